"""`lightsae interpret`: from a trained SAE to a feature dictionary that one can read, search and trust."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightsae.analysis.dictionary.figures import NOT_ABOVE, curves, headline
from lightsae.analysis.interpret.presentation import Presentation
from lightsae.analysis.interpret.run import InterpretSettings, interpret, write_interpretation
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.cli.settings.command import Bars, check_folder, command
from lightsae.cli.tables import console, print_paths, table
from lightsae.formats.files import shown
from lightsae.tracking import check_installed, log_result

_EXAMPLES = (
    "lightsae interpret --sae lightning_logs/version_0/sae --out dictionary",
    "lightsae interpret --sae sae --out dictionary --dataset my_texts/ --tokens 5000000 --device cuda",
)


@command("--sae DIR --out FOLDER [OPTIONS]", _EXAMPLES)
def run_interpret(
    sae: str,
    out: str,
    settings: InterpretSettings,
    text: TextSettings,
    dashboard: bool = True,
    clearml: str | None = None,
) -> None:
    """Turn a trained SAE into a feature dictionary.

    It says of every latent what it fires on, what it does, what it means as far as that could be tested on held-out
    text, and the same of the raw neurons. Both are held against floors: features that nothing was learned for, and that
    fire as often.

    Writes a folder: Parquet tables, dictionary.json, card.md, a dashboard (index.html, works offline), pictures. Model
    and corpus are those of the training, unless you say otherwise. A run that was stopped goes on when it is started
    again.

    Args:
        sae: The SAE: a run's folder, an export, a checkpoint, or files of another library.
        out: Folder to write; an earlier one is replaced.
        settings: What to find out.
        text: What differs from the training.
        dashboard: Write the dashboard and the pictures.
        clearml: ClearML project that takes the summary, the card and the dictionary.
    """
    if clearml is not None:
        check_installed("clearml")
    folder, bars = Path(out), Bars()
    check_folder(folder, "dictionary.json")
    loaded = LoadedSAE.load(sae, text)
    result = interpret(loaded, folder, settings, bars)
    presentation = Presentation(loaded, result) if dashboard else None
    with bars.stage("writing", 1):
        identity = write_interpretation(result, folder, presentation)
    _report(folder, identity, result.manifest)
    if clearml is not None:
        summary = result.manifest["summary"].items()
        figures = {key: value for key, value in summary if isinstance(value, int | float)}
        said = {**asdict(settings), **asdict(text), "sae": sae, "dictionary": identity}
        files = {"card": folder / "card.md", "dictionary": folder}
        print_paths(("ClearML", log_result(clearml, "interpret", settings=said, figures=figures, artefacts=files)))


def _report(out: Path, identity: str, manifest: Mapping[str, Any]) -> None:
    summary: Mapping[str, Any] = manifest["summary"]
    neurons: Mapping[str, Any] = summary.get("neurons", {})
    chance = {kind: _format(summary[f"{kind}_coherence_by_chance"], ".3f") for kind in ("window", "document")}
    rows = (
        ("alive", "alive", ",d", ""),
        ("tested", "tested", ",d", ""),
        ("labelled, of the tested", "labelled_share", ".1%", ""),
        ("F1 of labels, mean", "f1_mean", ".3f", ""),
        ("lower of precision and recall, median", "lower_median", ".3f", ""),
        ("coherence of windows, median", "window_coherence_median", ".3f", chance["window"]),
        ("coherence of documents, median", "document_coherence_median", ".3f", chance["document"]),
    )
    kinds = [neurons["kind"]] if neurons else []
    figures = table("", "features", *kinds, "by chance")
    for words, key, form, by_chance in rows:
        figures.add_row(words, *(_figure(side, key, form) for side in (summary, neurons) if side), by_chance)
    console().print(figures)
    print(headline(summary))
    floors = table("compared with", "labelled", "of", "features minus it, points", "F1", "features minus it")
    compared = {**summary["floors"], **({kinds[0]: neurons["difference"]} if neurons else {})}
    for name, floor in compared.items():
        apart = ""
        if floor["difference"] is not None:
            apart = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * floor[end] for end in ("difference", "low", "high")))
        f1 = ""
        if floor.get("f1_difference") is not None:
            f1 = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*(floor[f"f1_{end}"] for end in ("difference", "low", "high")))
        share = _format(floor["share"], ".1%")
        floors.add_row(name, share, f"{floor['n']:,}", apart, _format(floor.get("f1"), ".3f"), f1)
    console().print(floors)
    if of := curves(summary):
        limits = list(next(iter(of.values())))
        by_patterns = table("labelled, by patterns of a rule", *limits)
        for name, curve in of.items():
            by_patterns.add_row(name, *(_format(curve[limit], ".1%") for limit in limits))
        console().print(by_patterns)
    print(f"labels tested on {manifest['tokens']['scores']:,} tokens of other held-out documents")
    print(f"dictionary  {shown(out)}  (id {identity[:12]})")
    if (out / "index.html").is_file():
        print_paths(("look at it", out / "index.html"), ("type text", f"lightsae serve {shown(out)} --sae SAE"))


def _figure(side: Mapping[str, Any], key: str, form: str) -> str:
    """Return a figure; a median with the number of its values."""
    text, number = _format(side.get(key), form), side.get(f"{key.removesuffix('_median')}_n")
    if key == "labelled_share" and side.get("above_chance") is False:
        return NOT_ABOVE
    return f"{text} (n = {number:,})" if key.endswith("_median") and number is not None else text


def _format(value: int | float | None, form: str) -> str:
    return "" if value is None else format(value, form)
