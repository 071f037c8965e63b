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
from lightsae.analysis.panels.paired_tests import label_gains, paired_tests, stands_out
from lightsae.analysis.panels.panel import HARMFUL, RELIABLE, WEAK, is_wired, judge, others_of, rises, verdict_on
from lightsae.analysis.panels.panel import Tested as OneTested
from lightsae.analysis.panels.panel_report import draw_panel, panel_report, write_panel
from lightsae.analysis.panels.settings import Choice, Limits, PanelSettings, SweepSettings
from lightsae.analysis.panels.side_effects import SideEffects
from lightsae.analysis.panels.summary import summary
from lightsae.analysis.panels.sweep import Measured, Sweep
from lightsae.errors import ConfigError
from lightsae.lm.generate import Samples
from lightsae.metrics.intervals import Interval
from lightsae.metrics.paired import matched_sets, sign_flips
from lightsae.production.registry.evidence import figures_in

SETTINGS = PanelSettings(["a", "b", "c", "d"])
N = 12
# Gains on the reporting prompts: apart from 0, or not.
FAR, NEAR = np.linspace(0.5, 0.6, N), np.tile([0.0, 0.02, -0.01], N // 3)
BACK, NOTHING = -FAR, np.zeros(N)
CHEAP = SideEffects(Interval(0.1, 0.0, 0.2), Interval(0.3, 0.2, 0.4))
BASE = np.linspace(0.1, 0.4, N)
# Of other features: they raise the label now and then, as random directions do.
OTHERS = [np.random.default_rng(number).normal(0, 0.02, N) for number in range(19)]


def a_sweep(
    gains: dict[str, dict[str, np.ndarray]],
    *,
    feature: int = 1,
    chosen: float | None = 0.25,
    label: str | None = "x",
    others: list[np.ndarray] = OTHERS,
    rule: bool = True,
) -> Sweep:
    """Figures of arms by their gains over no steering: {arm: {measure: (N,)}}; arms not named gain nothing.

    `others` is what the label gains with other features in its place.
    """
    label_measure = "concept" if rule else "fires"
    names = sorted({name for arm in gains.values() for name in arm} | {"target", "fires", "follows", label_measure})
    base = {name: BASE for name in names} | {"ppl_untouched": np.zeros(N)}

    def measured(arm: str, gained: dict[str, np.ndarray], number: int | None = None) -> Measured:
        values = {name: value + gained.get(name, 0.0) for name, value in base.items()}
        texts = Samples([[0]] * N, [[f"{arm} | text"]] * N, [[[5]]] * N)
        return Measured(arm, 0.0 if arm in (NONE, PROMPT) else 0.25, values, texts, number)

    arms = [measured(arm, gains.get(arm, {})) for arm in (NONE, FEATURE, RANDOM, SECOND_RANDOM, PLACEBO, PROMPT)]
    shared = gains.get(SHUFFLED, {})
    arms += [measured(SHUFFLED, {label_measure: gain, **shared}, 100 + n) for n, gain in enumerate(others)]
    concept = Concept(feature, label, "high", 2.0, None, (2,))
    choosing = {0.25: (0.5, 1.2 if chosen else 4.0), 0.5: (0.6, 9.0)}
    prompts = ["p|1", *(f"p{number}" for number in range(1, N))]
    return Sweep(concept, SweepSettings(), chosen, 0.25, choosing, arms, prompts, {})


def verdict(sweep: Sweep, cost: SideEffects = CHEAP, **limits: float) -> tuple[str, list[str]]:
    (test,) = paired_tests([sweep])
    return verdict_on(sweep, cost, test, replace(SETTINGS, limits=Limits(**limits)))


GOOD = {FEATURE: {"concept": FAR}}


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "label"),
    [
        (GOOD, True),
        # What it promotes and what follows it in text are no part of what the label says.
        ({FEATURE: {"target": FAR}}, False),
        ({FEATURE: {"follows": FAR, "target": FAR}}, False),
        ({FEATURE: {"concept": FAR, "target": BACK, "follows": BACK}}, True),
        # The rule is there and does not hold on more text: that it fires then says nothing of the label.
        ({FEATURE: {"fires": FAR, "concept": NEAR}}, False),
        ({FEATURE: {"concept": BACK}}, False),
        # As much as a random direction does is nothing; a random one that lowers does not lift what does nothing.
        ({FEATURE: {"concept": FAR}, RANDOM: {"concept": FAR}}, False),
        ({FEATURE: {"concept": FAR}, SECOND_RANDOM: {"concept": FAR}}, False),
        ({FEATURE: {"concept": NOTHING}, RANDOM: {"concept": BACK}}, False),
        ({FEATURE: {"concept": NEAR}, RANDOM: {"concept": BACK}, SECOND_RANDOM: {"concept": BACK}}, False),
        # Unequal prompts: the mean is far, the interval is not.
        ({FEATURE: {"concept": np.tile([4.0, -2.4, -0.9], N // 3)}}, False),
    ],
)
def test_what_counts_as_risen(gains: dict[str, Any], label: bool) -> None:
    sweep = a_sweep(gains)
    assert rises(sweep, sweep.at(FEATURE), "concept") is label
    found, reasons = verdict(sweep)
    assert found == (RELIABLE if label else WEAK)
    assert bool(reasons) is not label


def test_without_a_rule_the_label_is_read_off_whether_it_fires() -> None:
    assert a_sweep({}, rule=False).label_measure == "fires"
    assert verdict(a_sweep({FEATURE: {"fires": FAR}}, rule=False)) == (RELIABLE, [])
    assert a_sweep({}).label_measure == "concept"


def test_gains_are_taken_prompt_by_prompt() -> None:
    # The prompts differ by far more than what steering adds to each of them.
    small = np.tile([0.010, 0.011, 0.012], N // 3)
    sweep = a_sweep({FEATURE: {"concept": small}})
    assert rises(sweep, sweep.at(FEATURE), "concept")


def test_a_feature_no_better_than_others_is_not_reliable() -> None:
    """It raises its label apart from random directions, as every second other feature does."""
    noise = np.random.default_rng(0)
    as_good = [FAR + noise.normal(0, 0.05, N) if number % 2 else NOTHING for number in range(19)]
    found, reasons = verdict(a_sweep(GOOD, others=as_good))
    assert found == WEAK
    assert len(reasons) == 1
    assert "its label rises as much with" in reasons[0]
    found, reasons = verdict(a_sweep(GOOD, others=[FAR + noise.normal(0, 0.05, N) for _ in range(19)]))
    assert found == WEAK
    assert "no more than with other features, prompt by prompt (p = " in reasons[0]
    # One of 19 that does as much is two of twenty: a tenth. Of 39 it is a twentieth.
    assert verdict(a_sweep(GOOD, others=[FAR, *OTHERS[:18]]))[0] == WEAK
    assert verdict(a_sweep(GOOD, others=[FAR, *OTHERS, *OTHERS])) == (RELIABLE, [])


def test_too_few_others_can_tell_nothing() -> None:
    found, reasons = verdict(a_sweep(GOOD, others=OTHERS[:18]))
    assert (found, reasons) == (WEAK, ["18 other features are too few to tell at a level of 0.05"])
    assert verdict(a_sweep(GOOD, others=[])) == (WEAK, ["there is no other labelled feature to hold it against"])
    few = replace(SETTINGS, level=0.25)
    sweep = a_sweep(GOOD, others=OTHERS[:3])
    assert verdict_on(sweep, CHEAP, paired_tests([sweep])[0], few) == (RELIABLE, [])


def test_a_feature_without_a_label_is_weak() -> None:
    found, reasons = verdict(a_sweep(GOOD, label=None))
    assert (found, reasons[0]) == (WEAK, "it has no label that could come true")


def test_the_paired_test_by_hand() -> None:
    own = np.array([0.1, 0.3, 0.2, 0.0, 0.1, 0.2, 0.3, 0.1, 0.0, 0.1, 0.2, -0.1])
    others = [0.5 * own, NOTHING, own[::-1]]
    sweep = a_sweep({FEATURE: {"concept": own}}, others=others)
    (found,) = paired_tests([sweep])
    assert found is not None
    differences = own - np.mean(others, 0)
    assert found.p_prompts == pytest.approx(sign_flips(differences))
    assert found.difference.mean == pytest.approx(differences.mean())
    # The reversed one has the same mean: it does as much.
    assert (found.others, found.as_good, found.p_directions) == (3, 1, 2 / 4)
    assert label_gains(sweep) == pytest.approx(np.stack([own, *others]))


def test_the_number_of_features_is_allowed_for() -> None:
    """One of twenty features with p = 0.01 is what chance gives."""
    near = NEAR + np.linspace(0.0, 0.012, N)
    alone = paired_tests([a_sweep({FEATURE: {"concept": near}}, others=[NOTHING] * 19)])[0]
    among = paired_tests([a_sweep({FEATURE: {"concept": near}}, others=[NOTHING] * 19)] * 20)[0]
    assert alone is not None
    assert among is not None
    assert 0.0025 < alone.p_prompts < 0.05 < among.p_prompts
    assert among.p_prompts == pytest.approx(min(1.0, 20 * alone.p_prompts))
    assert among.p_directions == alone.p_directions == 0.05


def test_features_that_are_like_any_other_pass_seldom() -> None:
    """Each direction has an effect of its own on each label, far above the noise of prompts."""
    draw, passed = np.random.default_rng(1), 0
    for _ in range(200):
        effects = draw.normal(0, 0.2, (20, 1)) + draw.normal(0, 0.02, (20, N))
        passed += stands_out(effects, 0, 0.05)
    assert passed <= 200 * 0.05 + 2 * np.sqrt(200 * 0.05 * 0.95)
    assert passed > 0


def test_costs_make_it_harmful() -> None:
    good = a_sweep(GOOD)
    assert verdict(good, max_ce_rise=0.1, max_others_changed=0.3) == (RELIABLE, [])
    dear, reasons = verdict(good, max_ce_rise=0.09)
    assert (dear, reasons) == (HARMFUL, ["cross-entropy of unrelated text rises by 0.10 nats"])
    assert verdict(good, max_others_changed=0.29) == (HARMFUL, ["30% of the other features change"])
    found, reasons = verdict(a_sweep({}, chosen=None), max_ce_rise=0.0, max_others_changed=0.0)
    assert found == HARMFUL
    assert reasons[0] == "every dose multiplies the perplexity by 4.0 or more"
    assert len(reasons) > 3


# -- shares ------------------------------------------------------------------------------------------------------------


def a_panel() -> list[OneTested]:
    """Ten features: seven raise theirs, one of them without a label; another feature raises two, a random one one."""
    sweeps = []
    for number in range(10):
        gains: dict[str, Any] = {FEATURE: {"target": FAR, "concept": FAR if number < 7 else NEAR}}
        gains[PLACEBO] = {"concept": FAR, "target": FAR} if number == 9 else {"target": FAR}
        gains[PROMPT] = {"concept": FAR} if number == 1 else {}
        others = [FAR, NOTHING] if number in (8, 9) else [NOTHING, NOTHING]
        label = None if number == 0 else f"label {number}"
        sweeps.append(a_sweep(gains, feature=number, label=label, others=[*others, *OTHERS[:18]]))
    return judge(sweeps, [CHEAP] * 10, SETTINGS)


@pytest.fixture
def tested() -> list[OneTested]:
    return a_panel()


def test_shares_of_the_summary(tested: list[OneTested]) -> None:
    told = summary(tested, 0.05)
    assert {key: told[key] for key in ("features", "reliable", "weak", "harmful", "reliable_share")} == {
        "features": 10, "reliable": 6, "weak": 4, "harmful": 0, "reliable_share": 0.6,
    }  # fmt: skip
    # A feature without a label has nothing that its label says.
    shares = {name: (told[name]["share"], told[name]["of"]) for name in told if "share" in str(told[name])[:10]}
    outcome = {name: (pytest.approx(share), of) for name, (share, of) in shares.items()}
    assert outcome == {
        "causal_usefulness": (6 / 9, 9),
        "random_floor": (1 / 9, 9),
        "prompt_instead": (1 / 9, 9),
        "another_feature": (2 / 20 / 9, 9),
        "causal_usefulness_follows": (0.0, 9),
        "random_floor_follows": (0.0, 9),
        "prompt_instead_follows": (0.0, 9),
        "another_feature_follows": (0.0, 9),
    }
    wilson = Interval.share(6, 9)
    assert (told["causal_usefulness"]["low"], told["causal_usefulness"]["high"]) == (wilson.low, wilson.high)


def test_the_wiring_is_each_arms_own_and_counts_for_nothing(tested: list[OneTested]) -> None:
    wiring = summary(tested, 0.05)["wiring"]
    assert {name: share["share"] for name, share in wiring.items()} == {"feature": 1.0, "random": 1.0, "another": 0.0}
    assert all(is_wired(one.sweep, one.sweep.at(FEATURE)) for one in tested)
    assert {one.verdict for one in tested} == {RELIABLE, WEAK}
    assert is_wired(tested[0].sweep, None) is None


def test_the_exact_paired_test_over_features(tested: list[OneTested]) -> None:
    test = summary(tested, 0.05)["paired"]["label"]
    own = np.array([True] * 6 + [False] * 3)
    others = [np.array([number in (8, 9)] + [False] * 19) for number in range(1, 10)]
    assert test["p"] == pytest.approx(matched_sets(own, others))
    assert test["p"] < 0.001
    assert (test["features"], test["others"]) == (9, 20)
    assert test["difference"]["mean"] == pytest.approx(6 / 9 - 2 / 20 / 9)


def test_other_features_are_put_to_the_same_tests(tested: list[OneTested]) -> None:
    # Of 20 others, one passes where the feature itself does not.
    assert summary(tested, 0.05)["reliable_by_chance"] == pytest.approx(2 / 20 / 9)


def test_without_labels_there_is_no_share_of_them(tested: list[OneTested]) -> None:
    told = summary([tested[0]], 0.05)
    assert told["causal_usefulness"] == told["random_floor"] == {"share": None, "low": None, "high": None, "of": 0}
    assert told["paired"]["label"] == {"difference": None, "p": None, "features": 0, "others": 0}
    assert told["reliable_by_chance"] is None


def test_the_registry_reads_the_summary(tested: list[OneTested]) -> None:
    assert figures_in("panel", json.loads(json.dumps(summary(tested, 0.05))), "panel") == {
        "reliable_share": 0.6,
        "harmful_share": 0.0,
        "above_random_floor": False,  # six of nine and one of nine: intervals that touch
        "above_other_features": True,
    }
    assert figures_in("panel", summary(tested[1:7] * 3, 0.05), "panel")["above_random_floor"] is True
    assert figures_in("panel", summary(tested[7:], 0.05), "panel")["above_other_features"] is False


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


def test_others_are_labelled_and_those_of_the_panel_first(dictionary: FeatureDictionary) -> None:
    admitted, panel = {*HIGH, *MEDIUM}, [0, 1, 2, 3]  # 2 is unlabelled
    chosen = others_of(panel, dictionary, replace(SETTINGS, choose=Choice(features=panel), others=6))
    for feature, others in chosen.items():
        assert feature not in others
        assert len(others) == len(set(others)) == 6
        assert admitted.issuperset(others)
        assert set(others[: len({0, 1, 3} - {feature})]) == {0, 1, 3} - {feature}
    assert len({tuple(others[3:]) for others in chosen.values()}) > 1, "all are held against the same"
    assert chosen == others_of(panel, dictionary, replace(SETTINGS, choose=Choice(features=panel), others=6))


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
    with pytest.raises(ConfigError, match="others is 0"):
        replace(SETTINGS, others=0)
    with pytest.raises(ConfigError, match=r"level is 5\.0"):
        replace(SETTINGS, level=5.0)


# -- reports -----------------------------------------------------------------------------------------------------------


def test_report_and_files(tested: list[OneTested], dictionary: FeatureDictionary, tmp_path: Path) -> None:
    report = panel_report(tested, dictionary, asdict(SETTINGS))
    write_panel(tmp_path / "panel", tested, report)
    assert sorted(path.name for path in (tmp_path / "panel").iterdir()) == [
        "panel.json", "panel.md", "panel.png", "tensorboard",
    ]  # fmt: skip
    told = json.loads((tmp_path / "panel" / "panel.json").read_text())
    assert (told["schema"], told["dictionary"], told["sae"]) == (2, dictionary.id, "5a" * 32)
    assert told["features"][1]["rises"] == {"label": True, "follows": False}
    assert told["features"][1]["wiring"] is True
    assert told["features"][1]["paired"]["p_directions"] == pytest.approx(1 / 21)
    assert told["features"][1]["side_effects"]["ce_rise"] == {"mean": 0.1, "low": 0.0, "high": 0.2}
    markdown = (tmp_path / "panel" / "panel.md").read_text()
    assert "10 features: 6 reliable, 4 weak, 0 harmful; of other features put to the same tests" in markdown
    assert "check of the wiring: what a direction itself promotes becomes likelier: features 100%" in markdown
    assert "against 20 other features in the place of each of 9; exact paired test, one-sided: p " in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| ") and "label 3" in line]
    assert len(rows) == 1
    assert "| reliable |" in rows[0]
    tables = [line.replace("\\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert tables == [6] * 4 + [12] * 12


def test_a_figure_of_one_feature(tested: list[OneTested]) -> None:
    assert len(draw_panel(tested[:1]).axes) == 3
