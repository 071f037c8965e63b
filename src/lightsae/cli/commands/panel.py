"""`lightsae panel`: a fixed panel of prompts, doses and limits, and a verdict on each feature."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from lightsae.analysis.labels.wording import shortened
from lightsae.analysis.panels.arms import FEATURE
from lightsae.analysis.panels.load import load_steered
from lightsae.analysis.panels.panel import Tested, test_features
from lightsae.analysis.panels.panel_report import (
    WORDS,
    paired_words,
    panel_report,
    percent,
    wiring_words,
    write_panel,
)
from lightsae.analysis.panels.settings import PanelSettings
from lightsae.analysis.panels.summary import ROWS
from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.cli.settings.command import Bars, check_folder, command
from lightsae.cli.tables import console, print_paths, table
from lightsae.lm.model import vocabulary_of

_EXAMPLES = (
    "lightsae panel --sae RUN/sae --panel configs/panels/builtin.yaml --out RUN/panel",
    "lightsae panel --sae RUN/sae --panel configs/panels/builtin.yaml --out RUN/panel --choose.features '[406, 998]'",
)
# Rows and letters of the printed table.
_SHOWN, _LABEL = 12, 28
_SHARES = ("causal_usefulness", "another_feature", "random_floor")


@command("--sae DIR --panel FILE --out FOLDER [OPTIONS]", _EXAMPLES, config=("--panel",))
def run_panel(sae: str, out: str, settings: PanelSettings, text: TextSettings, dictionary: str | None = None) -> None:
    """Steer the features of a dictionary on a fixed panel, and say of each: reliable, weak or harmful.

    The dose is chosen on one half of the prompts and reported on the other, beside no steering, random directions of
    the same norm, other labelled features, and a prompt; what it costs is measured on unrelated held-out text. Reliable
    is what makes its label come true more than the others do (exact paired tests). Writes panel.json, panel.md,
    panel.png and TensorBoard events.

    Args:
        sae: The SAE: a run's folder, an export, a checkpoint, or files of another library.
        out: Folder of the report; an earlier one is replaced.
        settings: The panel.
        text: What differs from the training.
        dictionary: Its feature dictionary; null: the one beside the SAE.
    """
    folder = Path(out)
    check_folder(folder, "panel.json")
    steered, origin = load_steered(sae, dictionary, text, required=True)
    assert steered.dictionary is not None
    rows = origin.held_out_rows(settings.held_out_rows * origin.corpus.context_size)
    tokens = torch.from_numpy(rows.tokens.astype("int64"))
    tested = test_features(steered, vocabulary_of(origin.main_model), tokens, settings, Bars())
    report = panel_report(tested, steered.dictionary, asdict(settings))
    write_panel(folder, tested, report)
    _print(tested, report, folder)


def _print(tested: Sequence[Tested], report: dict[str, Any], out: Path) -> None:
    features = table("feature", "verdict", "dose", "label rises", "with others", "cost", words=range(6))
    features.add_column("label", no_wrap=True, overflow="ellipsis")
    for one in tested[:_SHOWN]:
        sweep = one.sweep
        gain, difference = (
            sweep.shift(FEATURE, sweep.label_measure),
            None if one.paired is None else one.paired.difference,
        )
        features.add_row(
            str(sweep.concept.feature),
            one.verdict,
            f"{sweep.taken:g}",
            "" if gain is None else f"{gain.mean:+.3f}",
            "" if gain is None or difference is None else f"{gain.mean - difference.mean:+.3f}",
            f"{one.side_effects.ce_rise.mean:+.2f}",
            escape(shortened(sweep.concept.label or "unlabelled", _LABEL)),
        )
    console().print(features, highlight=False)
    if len(tested) > _SHOWN:
        print(f"... and {len(tested) - _SHOWN} more in panel.md")
    summary = report["summary"]
    number = "1 feature" if summary["features"] == 1 else f"{summary['features']} features"
    print(f"{number}: {summary['reliable']} reliable, {summary['weak']} weak, {summary['harmful']} harmful")
    for row, words in WORDS.items():
        share, other, random = (summary[f"{name}{ROWS[row]}"] for name in _SHARES)
        if share["share"] is not None:
            print(
                f"{words}: {percent(share)}; another feature: {percent(other)}; a random direction: {percent(random)}"
            )
        if line := paired_words(summary["paired"][row]):
            print(f"  {line}")
    print(f"check of the wiring, what a direction itself promotes rises: {wiring_words(summary['wiring'])}")
    print_paths(("report", out / "panel.md"), ("figure", out / "panel.png"))
