"""`lightsae panel`: a fixed panel of prompts, doses and limits, and a verdict on each feature."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightsae.analysis.labels.wording import shortened
from lightsae.analysis.panels.arms import FEATURE, RANDOM, Arm
from lightsae.analysis.panels.load import load_steered
from lightsae.analysis.panels.panel import PanelSettings, Tested, test_features
from lightsae.analysis.panels.panel_report import panel_report, write_panel
from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.cli.settings.command import Bars, CommandParser, check_folder, settings_from
from lightsae.formats.files import shown
from lightsae.lm.model import vocabulary_of

_DESCRIPTION = (
    "Steer the features of a dictionary on a fixed panel, and say of each: reliable, weak or harmful.\n\n"
    "The dose is chosen on one half of the prompts and reported on the other, beside no steering, random directions of "
    "the same norm, another feature, and a prompt; what it costs is measured on unrelated held-out text. Writes "
    "panel.json, panel.md, panel.png and TensorBoard events."
)
_EXAMPLES = (
    "lightsae panel --sae RUN/sae --panel configs/panels/builtin.yaml --out RUN/panel",
    "lightsae panel --sae RUN/sae --panel configs/panels/builtin.yaml --out RUN/panel --choose.features '[406, 998]'",
)
# Rows and letters of the printed table.
_SHOWN, _LABEL = 12, 28


def run_panel(args: Sequence[str]) -> int:
    """Run a panel, write its report, print what it says."""
    parser = CommandParser("panel", "--sae DIR --panel FILE --out FOLDER [OPTIONS]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--panel", action="config", help="The panel: a YAML file; options win over it.")
    parser.add_argument("--sae", type=str, required=True, help="The SAE: a run's sae/ folder, or an exported one.")
    parser.add_argument("--dictionary", type=str | None, help="Its feature dictionary; null: the one beside the SAE.")
    parser.add_argument("--out", type=str, required=True, help="Folder of the report; an earlier one is replaced.")
    parser.add_class_arguments(PanelSettings)
    parser.add_class_arguments(TextSettings)
    given = parser.parse_args(list(args))
    settings = settings_from(PanelSettings, given)
    out = Path(given.out)
    check_folder(out, "panel.json")
    text = settings_from(TextSettings, given)
    steered, origin = load_steered(given.sae, given.dictionary, text, required=True)
    assert steered.dictionary is not None
    rows = origin.held_out_rows(settings.held_out_rows * origin.corpus.context_size)
    tested = test_features(
        steered,
        vocabulary_of(origin.main_model),
        torch.from_numpy(rows.tokens.astype("int64")),
        settings,
        Bars(),
    )
    report = panel_report(tested, steered.dictionary, asdict(settings))
    write_panel(out, tested, report)
    _print(tested, report, out)
    return 0


def _print(tested: Sequence[Tested], report: dict[str, Any], out: Path) -> None:
    table = Table("feature", "verdict", "dose", "target", "random", "cost", box=None, pad_edge=False)
    table.add_column("label", no_wrap=True, overflow="ellipsis")
    for one in tested[:_SHOWN]:
        sweep = one.sweep
        table.add_row(
            str(sweep.concept.feature),
            one.verdict,
            f"{sweep.taken:g}",
            _shift(one, FEATURE),
            _shift(one, RANDOM),
            f"{one.side_effects.ce_rise.mean:+.2f}",
            escape(shortened(sweep.concept.label or "unlabelled", _LABEL)),
        )
    Console().print(table, highlight=False)
    if len(tested) > _SHOWN:
        print(f"... and {len(tested) - _SHOWN} more in panel.md")
    told = report["summary"]
    features = "1 feature" if told["features"] == 1 else f"{told['features']} features"
    print(f"{features}: {told['reliable']} reliable, {told['weak']} weak, {told['harmful']} harmful")
    for name, words in (("causal_usefulness", "the label says"), ("causal_usefulness_target", "it promotes")):
        floor = told[name.replace("causal_usefulness", "random_floor")]
        if told[name]["share"] is not None:
            print(f"steering raises what {words}: {_said(told[name])}; a third random direction: {_said(floor)}")
    print(f"report   {shown(out / 'panel.md')}")
    print(f"figure   {shown(out / 'panel.png')}")


def _shift(one: Tested, arm: Arm) -> str:
    found = one.sweep.shift(arm, "target")
    return "" if found is None else f"{found.mean:+.3f}"


def _said(share: dict[str, Any]) -> str:
    return f"{share['share']:.0%} [{share['low']:.0%}, {share['high']:.0%}]"
