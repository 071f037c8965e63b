"""`lightsae drift`: what became of each feature between two dictionaries."""

from collections.abc import Sequence
from pathlib import Path

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.drift.compare import DriftThresholds, compare
from lightsae.analysis.drift.read import SAEOnText, read_on_text
from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.cli.settings.command import Bars, CommandParser, settings_from
from lightsae.errors import ConfigError
from lightsae.formats.files import shown
from lightsae.formats.native import describe_sae

_DESCRIPTION = (
    "Compare two dictionaries (two seeds, two checkpoints, a base and a fine-tuned model) by their directions and by "
    "their activations over the same text. For each feature of the first: kept, moved, split or lost; with "
    "--dictionary its labels are carried, flagged or revoked.\n\n"
    "What counts as the same is judged against a null: two reseeds where you give them, chance otherwise."
)
_EXAMPLES = (
    "lightsae drift run_1/sae run_2/sae --out drift.json",
    "lightsae drift base/sae tuned/sae --dictionary dictionary --reseeds '[seed_1/sae, seed_2/sae]'",
)


def run_drift(args: Sequence[str]) -> int:
    """Compare, print a table, write a report."""
    parser = CommandParser("drift", "SAE_A SAE_B [OPTIONS]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("a", type=str, help="The dictionary whose features are followed: an exported SAE.")
    parser.add_argument("b", type=str, help="The other one.")
    parser.add_argument("--dictionary", type=str | None, help="Feature dictionary of the first, for its labels.")
    parser.add_argument("--reseeds", type=list[str] | None, help="Two SAEs that differ in their seed alone: the null.")
    parser.add_argument("--out", type=str | None, help="File for the whole report, ending in .json.")
    parser.add_argument("--tokens", type=int, default=200_000, help="Held-out tokens to compare activations on.")
    parser.add_argument("--rows", type=int, default=20, help="Features in the printed table.")
    parser.add_class_arguments(DriftThresholds)
    parser.add_class_arguments(TextSettings)
    given = parser.parse_args(list(args))
    if given.out is not None and not given.out.endswith(".json"):
        raise ConfigError(f"out is {given.out!r}; name a file that ends in .json.")
    if given.tokens < 1:
        raise ConfigError(f"tokens is {given.tokens}; write 1 or more.")
    if given.reseeds is not None and len(given.reseeds) != 2:
        raise ConfigError(f"reseeds names {len(given.reseeds)} dictionaries; name two.")
    _check_sites(given.a, [given.b, *(given.reseeds or [])])
    labels = _labels(given.dictionary, given.a) if given.dictionary is not None else None
    settings = settings_from(TextSettings, given)
    thresholds = settings_from(DriftThresholds, given)
    bars = Bars()
    a, rows = read_on_text(given.a, settings, given.tokens, bars)

    def other(folder: str) -> SAEOnText:
        return read_on_text(folder, settings, given.tokens, bars, rows)[0]

    b = other(given.b)
    reseeds = (other(given.reseeds[0]), other(given.reseeds[1])) if given.reseeds else None
    with bars.stage("matching", 1):
        report = compare(a, b, labels=labels, reseeds=reseeds, thresholds=thresholds)
    # So that the report is known again, wherever its file goes.
    report.summary["sae"] = {"a": describe_sae(given.a)["sha256"], "b": describe_sae(given.b)["sha256"]}
    print(report.to_text(given.rows))
    if given.out is not None:
        report.to_json(given.out)
        print(f"report  {shown(Path(given.out))}")
    return 0


def _check_sites(a: str, others: Sequence[str]) -> None:
    """Refuse dictionaries of different sites, whose directions and activations have nothing in common."""

    def sites(folder: str) -> list[str]:
        return [entry["site"] for entry in describe_sae(folder)["widths"]["predicted"]]

    expected = sites(a)
    for other in others:
        if (found := sites(other)) != expected:
            raise ConfigError(
                f"{other!r} writes to {', '.join(found)}, but {a!r} to {', '.join(expected)}; "
                "compare dictionaries of the same site."
            )


def _labels(folder: str, sae: str) -> dict[int, str]:
    dictionary = FeatureDictionary.open(folder)
    dictionary.check_belongs_to(sae)
    features = dictionary.features()
    pairs = zip(features["feature"].to_pylist(), features["label"].to_pylist(), strict=True)
    return {feature: label for feature, label in pairs if label is not None}
