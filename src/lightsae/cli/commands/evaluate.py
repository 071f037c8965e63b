"""`lightsae evaluate`: figures of SAEs with their noise, beside an SAE that learned nothing."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightsae.analysis.evaluate import EvaluateSettings, Evaluation, evaluate
from lightsae.analysis.evaluate.document_sums import FEWEST
from lightsae.analysis.evaluate.figures import DEFINITIONS
from lightsae.analysis.evaluate.markdown import group_columns, to_markdown
from lightsae.analysis.evaluate.report import write_report
from lightsae.analysis.evaluate.saebench import write_core_results
from lightsae.analysis.evaluate.tensorboard import write_tensorboard
from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.analysis.reading.models import LanguageModels
from lightsae.cli.random_model import RANDOM_MODEL, Recipe, beside_random_model
from lightsae.cli.settings.command import Bars, check_file, command
from lightsae.cli.tables import console, print_paths, table
from lightsae.errors import ConfigError
from lightsae.formats.files import shown, write_atomically
from lightsae.tracking import check_installed, log_result

_EXAMPLES = (
    "lightsae evaluate --sae lightning_logs/version_0/sae --out evaluation.json",
    "lightsae evaluate --sae '[run_1/sae, run_2/sae]' --tokens 500000 --out evaluation.json",
    "lightsae evaluate --sae RUN/sae --out evaluation.json --tensorboard RUN --saebench results",
    "lightsae evaluate --sae RUN/sae --controls '[random_sae, random_model]' --out evaluation.json",
)
# Of the figures, those that are printed.
_SHOWN = (
    "fve",
    "fve_no_sinks",
    "cosine_no_sinks",
    "relative_reconstruction_bias_no_sinks",
    "l0",
    "l0_p95",
    "dead_fraction",
    "dense_fraction",
    "ce_recovered",
    "ce_recovered_no_sinks",
    "kl_no_sinks",
    "top1_agreement",
    "concept_f1",
    "concepts_found",
    "latents_per_concept",
    "latents_with_concept",
    "absorption",
    "absorption_elsewhere",
    "probe_auc_k1",
    "probe_auc_k5",
    "probe_auc_full",
)


@command("--sae SAE [OPTIONS]", _EXAMPLES)
def run_evaluate(
    sae: str | list[str],
    settings: EvaluateSettings,
    text: TextSettings,
    out: str | None = None,
    tensorboard: str | None = None,
    saebench: str | None = None,
    clearml: str | None = None,
) -> None:
    """Judge SAEs on held-out text: reconstruction, sparsity, what splicing costs the language model.

    Each figure has a 95% interval over documents, and stands beside that of an SAE which learned nothing.

    Args:
        sae: The SAE, of any layout that is known, or a list of them.
        settings: What is measured.
        text: What differs from the training.
        out: File for the report, ending in .json; a page of Markdown goes beside it. Null: it is printed only.
        tensorboard: Folder for TensorBoard: figures, tables and pictures. A run's own folder, RUN, shows them beside
            its training. Null: none.
        saebench: Folder for a result file of SAEBench's core evaluation for each SAE. Null: none.
        clearml: ClearML project that takes the figures and, with --out, the report.
    """
    if clearml is not None:
        check_installed("clearml")
    check_file("out", out, ".json")
    for argument, folder in (("tensorboard", tensorboard), ("saebench", saebench)):
        if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
            raise ConfigError(argument, folder, "it is a file; name a folder")
    names = [sae] if isinstance(sae, str) else sae
    if not names:
        raise ConfigError("sae", sae, "name at least one")
    bars, shared = Bars(), LanguageModels()
    recipes = {name: Recipe(name, text.model) for name in names if RANDOM_MODEL in settings.controls}
    untrained = replace(settings, controls=tuple(one for one in settings.controls if one != RANDOM_MODEL))
    evaluations = [evaluate(name, text, untrained, bars, shared) for name in names]
    if recipes:
        evaluations = [beside_random_model(one, recipes[one.name], text, untrained, bars) for one in evaluations]
    for one in evaluations:
        _print(one)
    written: list[tuple[str, str | Path]] = []
    if out is not None:
        path = Path(out)
        write_report(evaluations, {name: one.text for name, one in DEFINITIONS.items()}, path)
        page = path.with_suffix(".md")
        with write_atomically(page) as temporary:
            temporary.write_text(to_markdown(evaluations), encoding="utf-8")
        written += [("report", path), ("page", page)]
    if saebench is not None:
        written += [("SAEBench", path) for path in write_core_results(evaluations, Path(saebench))]
    if tensorboard is not None:
        write_tensorboard(Path(tensorboard), evaluations)
        written.append(("TensorBoard", f"tensorboard --logdir {shown(Path(tensorboard))}"))
    if clearml is not None:
        settings_of_all = {**asdict(settings), **asdict(text), "sae": ", ".join(names)}
        written.append(("ClearML", _log(clearml, settings_of_all, evaluations, Path(out) if out else None)))
    if written:
        print_paths(*written)


def _log(project: str, settings: dict[str, Any], evaluations: Sequence[Evaluation], report: Path | None) -> str:
    """Log the figures and the report to ClearML; return where they are."""
    several = len(evaluations) > 1
    figures = {
        f"{one.name} {key}" if several else key: figure.value
        for one in evaluations
        for key, figure in one.figures.items()
    }
    artefacts = {} if report is None else {"evaluation": report, "page": report.with_suffix(".md")}
    return log_result(project, "evaluate", settings=settings, figures=figures, artefacts=artefacts)


def _print(one: Evaluation) -> None:
    words, controls = one.text, list(one.controls)
    noise = "95% intervals over them" if words["documents"] >= FEWEST else f"no intervals below {FEWEST}"
    print(f"{one.name}: {words['tokens']:,} held-out tokens of {words['documents']:,} documents, {noise}")
    published = ["published"] if one.published else []
    rows = table(
        "", "SAE", *published, *(name.replace("_", " ") for name in controls), "", words=(0, len(controls) + 2)
    )
    for name in _SHOWN:
        if name not in one.figures:
            continue
        said = [f"{one.published[name]:.4g}" if name in one.published else "" for _ in published]
        beside = [
            f"{one.controls[control][name].value:.4g}" if name in one.controls[control] else "" for control in controls
        ]
        rows.add_row(name, str(one.figures[name]), *said, *beside, DEFINITIONS[name].text)
    console(140).print(rows)
    for title, groups in (("role", one.roles), ("dataset", one.datasets)):
        if groups:
            columns = group_columns(groups)
            rows = table(title, "tokens", *columns)
            for group, its in groups.items():
                rows.add_row(group, f"{its['l0'].tokens:,}", *(str(its.get(name, "")) for name in columns))
            console(140).print(rows)
    if (concepts := one.concepts) is not None:
        scored = f"{len(concepts.concepts)} of {concepts.named} hold often enough to be scored"
        print(f"concepts ({concepts.source}): {scored}; tested on {concepts.tokens[1]:,} tokens")
