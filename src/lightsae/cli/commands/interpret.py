"""`lightsae interpret`: from a trained dictionary to a feature dictionary that one can read, search and trust."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightsae.analysis.interpret.presentation import Presentation
from lightsae.analysis.interpret.run import Interpretation, InterpretSettings, interpret, write_interpretation
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.cli.settings.command import Bars, CommandParser, check_folder, settings_from
from lightsae.formats.files import shown

_DESCRIPTION = (
    "Turn a trained dictionary into a feature dictionary: what every latent fires on, what it does, what it means as "
    "far as that could be tested on held-out text, and the same for the raw neurons of the site.\n\n"
    "Writes a folder: Parquet tables, dictionary.json, card.md, a dashboard (index.html, works offline), pictures. "
    "Model and corpus are those of the training, unless you say otherwise. A run that was stopped goes on when it is "
    "started again."
)
_EXAMPLES = (
    "lightsae interpret --sae lightning_logs/version_0/sae --out dictionary",
    "lightsae interpret --sae sae --out dictionary --dataset my_texts/ --tokens 5000000 --device cuda",
)


def run_interpret(args: Sequence[str]) -> int:
    """Interpret a dictionary, write a folder, print what was found."""
    parser = CommandParser("interpret", "--sae DIR --out FOLDER [OPTIONS]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("-c", "--config", action="config", help="Settings from a YAML file; options win over it.")
    parser.add_argument("--sae", type=str, required=True, help="A dictionary: a run's sae/ folder, or an exported one.")
    parser.add_argument("--out", type=str, required=True, help="Folder to write; an earlier one is replaced.")
    parser.add_argument("--dashboard", type=bool, default=True, help="Write the dashboard and the pictures.")
    parser.add_class_arguments(InterpretSettings)
    parser.add_class_arguments(TextSettings)
    given = parser.parse_args(list(args))
    settings = settings_from(InterpretSettings, given)
    out = Path(given.out)
    check_folder(out, "dictionary.json")
    bars = Bars()
    loaded = LoadedSAE.load(given.sae, settings_from(TextSettings, given))
    found = interpret(loaded, out, settings, bars)
    presentation = Presentation(loaded, found) if given.dashboard else None
    with bars.stage("writing", 1):
        identity = write_interpretation(found, out, presentation)
    _report(out, identity, found)
    return 0


def _report(out: Path, identity: str, found: Interpretation) -> None:
    summary: Mapping[str, Any] = found.manifest["summary"]
    neurons: Mapping[str, Any] = summary.get("neurons", {})
    floors: Mapping[str, Any] = summary["floors"]
    table = Table("", "features", *(["raw neurons"] if neurons else []), "by chance", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    chance = {kind: _number(summary[f"{kind}_coherence_by_chance"]) for kind in ("window", "document")}
    rows = (
        ("alive", "alive", ",d", ""),
        ("labelled, of the living", "labelled_share", ".1%", _percent(floors.get("random directions"))),
        ("precision of labels, median", "precision_median", ".3f", ""),
        ("recall of labels, median", "recall_median", ".3f", ""),
        ("coherence of windows", "window_coherence_median", ".3f", chance["window"]),
        ("coherence of documents", "document_coherence_median", ".3f", chance["document"]),
    )
    for words, key, form, by_chance in rows:
        columns = [format(side[key], form) if side.get(key) is not None else "" for side in (summary, neurons) if side]
        table.add_row(words, *columns, by_chance)
    console = Console()
    console.print(table)
    told = found.manifest["tokens"]
    print(
        f"labels tested on {told['scores']:,} tokens of other held-out documents; shuffled among features, "
        f"{_percent(floors.get('shuffled labels'))} pass"
    )
    print(f"dictionary  {shown(out)}  (id {identity[:12]})")
    if (out / "index.html").is_file():
        print(f"look at it  {shown(out / 'index.html')}")
        print(f"type text   lightsae serve {shown(out)} --sae SAE")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
