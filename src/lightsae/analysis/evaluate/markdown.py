"""An evaluation as a page of Markdown: tables of figures, bands and firing rates, with what each figure is."""

from collections.abc import Mapping, Sequence

from lightsae.analysis.concepts.report import concept_lines
from lightsae.analysis.evaluate.figures import DEFINITIONS
from lightsae.analysis.evaluate.report import Band, Evaluation, Figure
from lightsae.markdown import markdown_row

# Of the figures of a group of tokens, those that tables show.
_OF_GROUPS = ("fve", "fve_no_sinks", "l0", "dead_fraction", "ce_recovered", "ce_recovered_no_sinks")


def to_markdown(evaluations: Sequence[Evaluation]) -> str:
    """Return one page for all SAEs, and the definitions of the figures behind them."""
    shown = {name for one in evaluations for name in one.figures}
    lines = [line for one in evaluations for line in _of_one(one)]
    lines += ["## What the figures are", "", "| figure | definition | better |", "|---|---|---|"]
    lines += [
        markdown_row([f"`{name}`", definition.text, definition.better or ""])
        for name, definition in DEFINITIONS.items()
        if name in shown
    ]
    return "\n".join(lines) + "\n"


def _of_one(one: Evaluation) -> list[str]:
    text = one.text
    lines = [
        f"# {one.name}",
        "",
        f"{one.sae['variant']}, {one.sae['d_sae']:,} latents; {text['tokens']:,} held-out tokens of "
        f"{text['documents']:,} documents of {text['dataset']}, read by {text['model']}. "
        "In brackets: 95% interval over documents.",
        "",
    ]
    controls = list(one.controls)
    columns = [
        "figure",
        "SAE",
        *(["published"] if one.published else []),
        *(name.replace("_", " ") for name in controls),
    ]
    lines += [markdown_row(columns), "|---" * len(columns) + "|"]
    for name, figure in one.figures.items():
        cells = [f"`{name}`", str(figure)]
        if one.published:
            cells.append(f"{one.published[name]:.4g}" if name in one.published else "")
        cells += [_maybe(one.controls[control].get(name)) for control in controls]
        lines.append(markdown_row(cells))
    for title, bands in (
        ("Position in the row", one.positions),
        ("Share of the text that the token is", one.frequencies),
    ):
        lines += ["", *_of_bands(title, bands)]
    for title, groups in (("Role", one.roles), ("Dataset", one.datasets)):
        if groups:
            lines += ["", *_of_groups(title, groups)]
    lines += ["", "| fires on so many of the tokens | latents |", "|---|---|"]
    lines += [markdown_row([firing_rate(name), f"{count:,}"]) for name, count in one.firing_histogram.items()]
    if one.concepts is not None:
        lines += ["", *concept_lines(one.concepts)]
    return [*lines, ""]


def _of_bands(title: str, bands: Sequence[Band]) -> list[str]:
    lines = [markdown_row([title, "`fve`", "`l0`", "tokens"]), "|---|---|---|---|"]
    return lines + [markdown_row([band.name, str(band.fve), str(band.l0), f"{band.fve.tokens:,}"]) for band in bands]


def _of_groups(title: str, groups: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    names = group_columns(groups)
    lines = [markdown_row([title, *(f"`{name}`" for name in names), "tokens"]), "|---" * (len(names) + 2) + "|"]
    return lines + [
        markdown_row([group, *(_maybe(figures.get(name)) for name in names), f"{figures['l0'].tokens:,}"])
        for group, figures in groups.items()
    ]


def group_columns(groups: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    """Return the figures of groups of tokens that tables show."""
    return [name for name in _OF_GROUPS if any(name in figures for figures in groups.values())]


def firing_rate(name: str) -> str:
    """Say what a bin of the histogram holds.

    >>> firing_rate("1e-3"), firing_rate("1e0"), firing_rate("never")
    ('0.1% to 1%', 'all', 'never')
    """
    if name == "never":
        return name
    low = float(name)
    return "all" if low >= 1 else f"{100 * low:g}% to {1000 * low:g}%"


def _maybe(figure: Figure | None) -> str:
    return "" if figure is None else str(figure)
