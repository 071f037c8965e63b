"""`lightsae compare`: which SAE is better, figure by figure, as far as seeds and text can tell."""

from pathlib import Path

from lightsae.analysis.compare import CompareSettings, Comparison, compare
from lightsae.analysis.compare.picture import draw_pareto
from lightsae.analysis.compare.report import (
    VERDICT_COLUMNS,
    l0_words,
    mean_words,
    scope,
    shown_figures,
    text_words,
    to_markdown,
    verdict_cells,
    write_comparison,
)
from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.cli.settings.command import Bars, check_file, command
from lightsae.cli.tables import console, print_paths, table
from lightsae.formats.files import write_atomically

_EXAMPLES = (
    "lightsae compare run_1/sae run_2/sae --out comparison.json",
    "lightsae compare topk=run_1/sae,run_2/sae,run_3/sae jumprelu=run_4/sae,run_5/sae,run_6/sae --out comparison.json",
    "lightsae compare 'topk=topk_seed_*/sae' 'relu=relu_seed_*/sae' --ce_tokens 0",
    "lightsae compare run_1/sae run_4/sae --seeds '[run_2/sae, run_3/sae, run_5/sae]'",
)


@command("SAE SAE [SAE ...] [OPTIONS]", _EXAMPLES, words="sae")
def run_compare(
    sae: list[str],
    settings: CompareSettings,
    text: TextSettings,
    seeds: list[str] | None = None,
    out: str | None = None,
) -> None:
    """Say which SAE is better, figure by figure: better, worse, or cannot tell.

    Each word is a recipe: SAE, or SAE,SAE,SAE: several that were trained by it with other seeds; NAME=SAE,SAE,SAE gives
    it a name, * stands for many. All are read on the same held-out text. Of recipes with several SAEs the verdicts hold
    for recipes: two of them differ if their means do by more than seeds and text explain. Single SAEs are compared as
    they are.

    A verdict comes with the smallest difference that would have been seen. Where L0 differs, a figure that more latents
    raise anyway gets none.

    Args:
        sae: The recipes; also without a name, before the options.
        settings: What is compared.
        text: What differs from the training.
        seeds: Further SAEs, each of one of the recipes: it is found by what its export says of variant, settings and
            training.
        out: File for the report, ending in .json; a page of Markdown and a picture go beside it. Null: it is printed
            only.
    """
    check_file("out", out, ".json")
    comparison = compare(sae, text, settings, seeds or (), Bars())
    _print(comparison)
    if out is None:
        return
    path = Path(out)
    page, picture = path.with_suffix(".md"), path.with_suffix(".png")
    write_comparison(comparison, path)
    with write_atomically(picture) as temporary:
        draw_pareto(comparison).savefig(temporary, dpi=160)
    with write_atomically(page) as temporary:
        temporary.write_text(to_markdown(comparison, picture.name), encoding="utf-8")
    print_paths(("report", path), ("page", page), ("picture", picture))


def _print(comparison: Comparison) -> None:
    recipes = comparison.recipes
    for one in recipes:
        print(f"{one.name}: {', '.join(evaluation.name for evaluation in one.evaluations)}")
    print(text_words(comparison))
    figures = table("", *(one.name for one in recipes))
    for name in shown_figures(comparison):
        figures.add_row(name, *(mean_words(one, name) for one in recipes))
    console().print(figures)
    for pair in comparison.dominant:
        print(f"\n{pair[0]} against {pair[1]}. {l0_words(comparison, pair)}")
        rows = table("", *VERDICT_COLUMNS, words=(0, len(VERDICT_COLUMNS)))
        for verdict in comparison.of_pair(pair):
            rows.add_row(verdict.figure, *verdict_cells(verdict))
        console(120).print(rows)
    print()
    for line in (scope(comparison), *comparison.notes):
        print(line)
