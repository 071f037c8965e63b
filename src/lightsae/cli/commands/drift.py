"""`lightsae drift`: what became of each feature between two SAEs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.drift.compare import DriftThresholds, compare
from lightsae.analysis.drift.read import SAEOnText, read_on_text
from lightsae.analysis.reading.loaded_sae import TextSettings, open_sae
from lightsae.cli.settings.command import Bars, check_file, command
from lightsae.errors import ConfigError, under
from lightsae.formats.files import shown
from lightsae.formats.saved_sae import SavedSAE

_EXAMPLES = (
    "lightsae drift run_1/sae run_2/sae --out drift.json",
    "lightsae drift base/sae tuned/sae --dictionary dictionary --reseeds '[seed_1/sae, seed_2/sae]'",
)


@command("SAE_A SAE_B [OPTIONS]", _EXAMPLES, positional=True)
def run_drift(
    a: str,
    b: str,
    thresholds: DriftThresholds,
    text: TextSettings,
    dictionary: str | None = None,
    reseeds: list[str] | None = None,
    out: str | None = None,
    tokens: int = 200_000,
    rows: int = 20,
) -> None:
    """Compare two SAEs: two seeds, two checkpoints, a base and a fine-tuned model.

    They are compared by their directions and by their activations over the same text. For each feature of the first:
    kept, moved, split or lost; with --dictionary its labels are carried, flagged or revoked.

    What counts as the same is judged against a null: two reseeds if you give them, chance otherwise.

    Args:
        a: The SAE whose features are followed: its exported folder.
        b: The other one.
        thresholds: What counts as the same feature.
        text: What differs from the training.
        dictionary: Feature dictionary of the first, for its labels.
        reseeds: Two SAEs that differ in their seed alone: the null.
        out: File for the whole report, ending in .json.
        tokens: Held-out tokens to compare activations on.
        rows: Features in the printed table.
    """
    check_file("out", out, ".json")
    if tokens < 1:
        raise ConfigError("tokens", tokens, "write 1 or more")
    if reseeds is not None and len(reseeds) != 2:
        raise ConfigError(f"reseeds names {len(reseeds)} SAEs; name two.")
    _check_sites({"a": [a], "b": [b], "reseeds": reseeds or []}, text)
    labels = _labels(dictionary, open_sae(a, text)) if dictionary is not None else None
    bars = Bars()
    first, held_out = read_on_text(a, text, tokens, bars)

    def other(folder: str) -> SAEOnText:
        return read_on_text(folder, text, tokens, bars, held_out)[0]

    second = other(b)
    null = (other(reseeds[0]), other(reseeds[1])) if reseeds else None
    with bars.stage("matching", 1):
        report = compare(first, second, labels=labels, reseeds=null, thresholds=thresholds)
    # So that the report is known again, wherever its file goes.
    report.summary["sae"] = {"a": SavedSAE.open(a).sha256, "b": SavedSAE.open(b).sha256}
    print(report.to_text(rows))
    if out is not None:
        report.to_json(out)
        print(f"report  {shown(Path(out))}")


def _check_sites(saes: Mapping[str, Sequence[str]], text: TextSettings) -> None:
    """Refuse SAEs, by argument, of different sites, whose directions and activations have nothing in common."""
    first: tuple[str, list[str]] | None = None
    for argument, folders in saes.items():
        for folder in folders:
            with under(folder=argument):
                saved = SavedSAE.open(folder).named(text.model, text.site, text.target_site)
                sites = [entry["site"] for entry in saved.widths["predicted"]]
            first = first or (folder, sites)
            if sites != first[1]:
                raise ConfigError(
                    f"{folder!r} writes to {', '.join(sites)}, but {first[0]!r} to {', '.join(first[1])}; "
                    "compare SAEs of the same site."
                )


def _labels(folder: str, sae: SavedSAE) -> dict[int, str]:
    dictionary = FeatureDictionary.of(folder)
    dictionary.check_belongs_to(sae)
    rows = dictionary.features().select(["feature", "label"]).to_pylist()
    return {row["feature"]: row["label"] for row in rows if row["label"] is not None}
