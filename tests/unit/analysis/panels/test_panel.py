"""A panel's choice of features, its verdicts and its shares, from figures made by hand."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers.fake_dictionary import fake_manifest, fake_tables
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.dictionary.writer import write_dictionary
from lightsae.analysis.panels.arms import FEATURE, NONE, PLACEBO, PROMPT, RANDOM, SECOND_RANDOM, SHUFFLED
from lightsae.analysis.panels.concepts import Concept
from lightsae.analysis.panels.panel import (
    HARMFUL,
    RELIABLE,
    WEAK,
    moves_label,
    moves_target,
    summary,
    verdict_on,
)
from lightsae.analysis.panels.panel import Tested as OneTested
from lightsae.analysis.panels.panel_report import draw_panel, panel_report, write_panel
from lightsae.analysis.panels.settings import Choice, Limits, PanelSettings, SweepSettings
from lightsae.analysis.panels.side_effects import SideEffects
from lightsae.analysis.panels.sweep import Measured, Sweep
from lightsae.errors import ConfigError
from lightsae.lm.generate import Samples
from lightsae.metrics.intervals import Interval
from lightsae.production.registry.evidence import _panel_figures

SETTINGS = PanelSettings(["a", "b", "c", "d"])
# Gains on four reporting prompts: apart from 0, or not.
FAR, NEAR, BACK = np.array([0.5, 0.6, 0.5, 0.6]), np.array([0.0, 0.02, -0.01, 0.0]), -np.array([0.5, 0.6, 0.5, 0.6])
CHEAP = SideEffects(Interval(0.1, 0.0, 0.2), Interval(0.3, 0.2, 0.4))


def a_sweep(
    gains: dict[str, dict[str, np.ndarray]], *, feature: int = 1, chosen: float | None = 0.25, label: str | None = "x"
) -> Sweep:
    """Figures of arms by their gains over no steering: {arm: {measure: (4,)}}; arms not named gain nothing."""
    names = sorted({name for arm in gains.values() for name in arm} | {"target", "fires"})
    base = {name: np.array([0.1, 0.3, 0.2, 0.4]) for name in names} | {"ppl_untouched": np.zeros(4)}
    measured = []
    for arm in (NONE, FEATURE, RANDOM, SECOND_RANDOM, PLACEBO, SHUFFLED, PROMPT):
        values = {name: value + gains.get(arm, {}).get(name, 0.0) for name, value in base.items()}
        texts = Samples([[0]] * 4, [[f"{arm} | text"]] * 4, [[[5]]] * 4)
        measured.append(Measured(arm, 0.0 if arm in (NONE, PROMPT) else 0.25, values, texts))
    concept = Concept(feature, label, "high", 2.0, None, (1,), (2,))
    choosing = {0.25: (0.5, 1.2 if chosen else 4.0), 0.5: (0.6, 9.0)}
    return Sweep(concept, SweepSettings(), chosen, 0.25, choosing, measured, ["p|1", "p2", "p3", "p4"], {})


def verdict(sweep: Sweep, cost: SideEffects = CHEAP, **limits: float) -> tuple[str, list[str]]:
    return verdict_on(sweep, cost, replace(SETTINGS, limits=Limits(**limits)))


GOOD = {FEATURE: {"target": FAR, "follows": FAR}}


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "target", "label"),
    [
        (GOOD, True, True),
        ({FEATURE: {"target": FAR, "fires": FAR}}, True, True),
        ({FEATURE: {"target": FAR, "concept": FAR}}, True, True),
        # The rule is there and does not hold on more text: that it fires then says nothing of the label.
        ({FEATURE: {"target": FAR, "fires": FAR, "concept": NEAR}}, True, False),
        ({FEATURE: {"target": FAR}}, True, False),
        ({FEATURE: {"target": NEAR, "follows": FAR}}, False, True),
        ({FEATURE: {"target": BACK, "follows": BACK}}, False, False),
        # As much as a random direction does is nothing; a random one that lowers does not lift what does nothing.
        ({FEATURE: {"target": FAR, "follows": FAR}, RANDOM: {"target": FAR, "follows": FAR}}, False, False),
        ({FEATURE: {"target": FAR, "follows": FAR}, SECOND_RANDOM: {"target": FAR, "follows": FAR}}, False, False),
        ({FEATURE: {"target": np.zeros(4)}, RANDOM: {"target": BACK}}, False, False),
        ({FEATURE: {"target": NEAR}, RANDOM: {"target": BACK}, SECOND_RANDOM: {"target": BACK}}, False, False),
        # Unequal prompts: the mean is far, the interval is not.
        ({FEATURE: {"target": np.array([2.0, -0.4, 0.9, 0.1])}}, False, False),
    ],
)
def test_what_counts_as_moved(gains: dict[str, Any], target: bool, label: bool) -> None:
    sweep = a_sweep(gains)
    assert (moves_target(sweep, FEATURE), moves_label(sweep, FEATURE)) == (target, label)
    found, reasons = verdict(sweep)
    assert found == (RELIABLE if target and label else WEAK)
    assert len(reasons) == (not target) + (not label)


def test_gains_are_taken_prompt_by_prompt() -> None:
    # The prompts differ by far more than what steering adds to each of them.
    small = np.array([0.010, 0.011, 0.010, 0.012])
    assert moves_target(a_sweep({FEATURE: {"target": small}}), FEATURE)


def test_costs_make_it_harmful() -> None:
    good = a_sweep(GOOD)
    assert verdict(good, max_ce_rise=0.1, max_others_changed=0.3) == (RELIABLE, [])
    dear, reasons = verdict(good, max_ce_rise=0.09)
    assert (dear, reasons) == (HARMFUL, ["cross-entropy of unrelated text rises by 0.10 nats"])
    assert verdict(good, max_others_changed=0.29) == (HARMFUL, ["30% of the other features change"])
    found, reasons = verdict(a_sweep({}, chosen=None), max_ce_rise=0.0, max_others_changed=0.0)
    assert found == HARMFUL
    assert reasons[0] == "every dose multiplies the perplexity by 4.0 or more"
    assert len(reasons) == 5


# -- shares ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tested() -> list[OneTested]:
    """Ten features: seven move both, one of them without a label; a random direction moves one, another feature two."""
    sweeps = []
    for number in range(10):
        gains: dict[str, Any] = {FEATURE: {"target": FAR, "follows": FAR} if number < 7 else {"follows": NEAR}}
        gains[PLACEBO] = {"target": FAR, "follows": FAR} if number == 9 else {}
        gains[SHUFFLED] = {"follows": FAR} if number in (8, 9) else {}
        sweeps.append(a_sweep(gains, feature=number, label=None if number == 0 else f"label {number}"))
    return [OneTested(sweep, CHEAP, *verdict(sweep)) for sweep in sweeps]


def test_shares_of_the_summary(tested: list[OneTested]) -> None:
    told = summary(tested)
    assert {key: told[key] for key in ("features", "reliable", "weak", "harmful", "reliable_share")} == {
        "features": 10, "reliable": 7, "weak": 3, "harmful": 0, "reliable_share": 0.7,
    }  # fmt: skip
    # A feature without a label has nothing that its label says; what it promotes is known of all.
    shares = {name: (told[name]["share"], told[name]["of"]) for name in told if "share" in str(told[name])}
    assert shares == {
        "causal_usefulness": (pytest.approx(6 / 9), 9),
        "causal_usefulness_target": (0.7, 10),
        "random_floor": (pytest.approx(1 / 9), 9),
        "random_floor_target": (0.1, 10),
        "another_feature": (pytest.approx(2 / 9), 9),
        "another_feature_target": (0.0, 10),
    }
    wilson = Interval.share(6, 9)
    assert (told["causal_usefulness"]["low"], told["causal_usefulness"]["high"]) == (wilson.low, wilson.high)
    shifts = {arm: one["mean"] for arm, one in told["target_shift"].items()}
    assert shifts == {FEATURE: pytest.approx(0.7 * 0.55), RANDOM: 0.0, SHUFFLED: 0.0, PROMPT: 0.0}


def test_without_labels_there_is_no_share_of_them(tested: list[OneTested]) -> None:
    told = summary([tested[0]])
    assert told["causal_usefulness"] == told["random_floor"] == {"share": None, "low": None, "high": None, "of": 0}


def test_the_registry_reads_the_summary(tested: list[OneTested]) -> None:
    assert _panel_figures(json.loads(json.dumps(summary(tested)))) == {
        "reliable_share": 0.7,
        "harmful_share": 0.0,
        "above_random_floor": False,  # six of nine and one of nine: intervals that touch
    }
    assert _panel_figures(summary(tested[1:7] * 3))["above_random_floor"] is True


# -- which features ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> FeatureDictionary:
    """64 features; by i % 8: high medium unlabelled high dead medium unlabelled rare. S_out: i / 100; of 5, unknown."""
    tables = fake_tables(64)
    features = tables["features"]
    scores = [None if i == 5 else i / 100 for i in range(64)]
    field = features.schema.field("s_out")
    place = features.schema.get_field_index("s_out")
    tables["features"] = features.set_column(place, field, pa.array(scores, field.type))
    folder = tmp_path_factory.mktemp("made") / "dictionary"
    write_dictionary(folder, tables, fake_manifest(64))
    return FeatureDictionary.open(folder)


HIGH, MEDIUM = [i for i in range(64) if i % 8 in (0, 3)], [i for i in range(64) if i % 8 in (1, 5)]


def test_choice_by_tier_and_score(dictionary: FeatureDictionary) -> None:
    assert Choice(count=99).of(dictionary, 0) == sorted(HIGH + MEDIUM)
    assert Choice(tiers=["medium"], count=99).of(dictionary, 0) == MEDIUM
    assert Choice(tiers=["high"], min_s_out=0.4, count=99).of(dictionary, 0) == [i for i in HIGH if i >= 40]
    assert Choice(tiers=["high"], order="s_out", count=3).of(dictionary, 0) == HIGH[::-1][:3]
    # An unknown score comes last, and is none that reaches a least one.
    assert Choice(tiers=["medium"], order="s_out", count=99).of(dictionary, 0) == [
        *[i for i in MEDIUM[::-1] if i != 5],
        5,
    ]
    assert 5 not in Choice(tiers=["medium"], min_s_out=0.001, count=99).of(dictionary, 0)


def test_a_sample_is_drawn_by_the_seed(dictionary: FeatureDictionary) -> None:
    draws = [Choice(count=6).of(dictionary, seed) for seed in range(40)]
    assert draws[3] == Choice(count=6).of(dictionary, 3)
    assert all(draw == sorted(set(draw)) and len(draw) == 6 for draw in draws)
    assert {one for draw in draws for one in draw} == {*HIGH, *MEDIUM}, "some are never drawn"


def test_features_by_number_are_taken_as_they_are(dictionary: FeatureDictionary) -> None:
    assert Choice(features=[9, 4, 9], count=1, tiers=["high"]).of(dictionary, 0) == [9, 4]


def test_nothing_fits(dictionary: FeatureDictionary) -> None:
    for choice in (Choice(tiers=["hihg"]), Choice(min_s_out=0.9), Choice(tiers=[])):
        with pytest.raises(ConfigError, match=r"no feature has a tier among .* widen the panel's choice"):
            choice.of(dictionary, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"order": "sampled"}, "order is 'sampled'"),
        ({"count": 0}, "count is 0"),
        ({"features": []}, "features is empty"),
    ],
)
def test_choices_that_cannot_work(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Choice(**given)


def test_panels_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="prompts holds 3; write four or more"):
        PanelSettings(["a", "b", "c"])
    with pytest.raises(ConfigError, match="held_out_rows is 1"):
        replace(SETTINGS, held_out_rows=1)


# -- reports -----------------------------------------------------------------------------------------------------------


def test_report_and_files(tested: list[OneTested], dictionary: FeatureDictionary, tmp_path: Path) -> None:
    report = panel_report(tested, dictionary, asdict(SETTINGS))
    write_panel(tmp_path / "panel", tested, report)
    assert sorted(path.name for path in (tmp_path / "panel").iterdir()) == [
        "panel.json", "panel.md", "panel.png", "tensorboard",
    ]  # fmt: skip
    told = json.loads((tmp_path / "panel" / "panel.json").read_text())
    assert (told["dictionary"], told["sae"]) == (dictionary.id, "5a" * 32)
    assert told["features"][1]["moves"] == {"target": True, "label": True}
    assert told["features"][1]["side_effects"]["ce_rise"] == {"mean": 0.1, "low": 0.0, "high": 0.2}
    markdown = (tmp_path / "panel" / "panel.md").read_text()
    assert "- 10 features: 7 reliable, 3 weak, 0 harmful" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| ") and "label 3" in line]
    assert len(rows) == 1
    assert "| reliable |" in rows[0]
    assert len({line.replace("\\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1


def test_a_figure_of_one_feature(tested: list[OneTested]) -> None:
    assert len(draw_panel(tested[:1]).axes) == 3
