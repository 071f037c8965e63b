"""A fixed panel: the same prompts, doses and limits for the features of an SAE, and a verdict on each.

    reliable  steering raises what the direction promotes and what the label says, each more than two random directions
              of the same norm do (95% intervals over prompts apart), at a cost within the limits
    harmful   it costs more than the limits allow: on unrelated text, or at every dose
    weak      the rest

What the label says moves if its rule holds on more of the generated text, or if what follows the feature's firings in
held-out text becomes more likely. The causal usefulness of an SAE is the share of the panel's features for which it
does; the floor is the same share with a third random direction in the feature's place. Two random
directions differ by more than chance does, each has effects of its own: so one alone would be no floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightsae.analysis.panels.arms import FEATURE, PLACEBO, PROMPT, RANDOM, SECOND_RANDOM, SHUFFLED, Arm, Steered
from lightsae.analysis.panels.settings import PanelSettings
from lightsae.analysis.panels.side_effects import SideEffects, UnrelatedText
from lightsae.analysis.panels.sweep import Sweep, Sweeper
from lightsae.metrics.intervals import Interval
from lightsae.progress import Progress

RELIABLE, WEAK, HARMFUL = "reliable", "weak", "harmful"
FLOORS = (RANDOM, SECOND_RANDOM)
ARMS = (*FLOORS, PLACEBO, SHUFFLED, PROMPT)
SCHEMA = 1


@dataclass(frozen=True)
class Tested:
    """One feature of a panel.

    Attributes:
        sweep: What was measured.
        side_effects: On unrelated text, at the dose that was taken.
        verdict: reliable, weak or harmful.
        reasons: Why it is not reliable; empty if it is.
    """

    sweep: Sweep
    side_effects: SideEffects
    verdict: str
    reasons: list[str]

    def report(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            **self.sweep.report(),
            "verdict": self.verdict,
            "reasons": self.reasons,
            "moves": {"target": moves_target(self.sweep, FEATURE), "label": moves_label(self.sweep, FEATURE)},
            "side_effects": self.side_effects.report(),
        }


def test_features(
    steered: Steered,
    vocabulary: Sequence[str],
    rows: torch.Tensor,
    settings: PanelSettings,
    progress: Progress,
) -> list[Tested]:
    """Test the features of a panel, one after the other.

    Args:
        steered: The model, the SAE and a feature dictionary.
        vocabulary: (V,) what each token says.
        rows: (B, S) held-out text.
        settings: The panel.
        progress: Told of every feature.

    Raises:
        ConfigError: No feature fits, or one does not exist.
    """
    assert steered.dictionary is not None
    features = settings.choose.of(steered.dictionary, settings.sweep.seed)
    sweeper = Sweeper(steered, vocabulary, settings.prompts, settings.sweep)
    unrelated = UnrelatedText(steered, rows)
    tested = []
    with progress.stage("panel", len(features)) as done:
        for count, feature in enumerate(features, start=1):
            sweep = sweeper.sweep(feature, arms=ARMS)
            cost = unrelated.effects([settings.sweep.intervention(feature, sweep.taken)], feature)
            tested.append(Tested(sweep, cost, *verdict_on(sweep, cost, settings)))
            done(count)
    return tested


def verdict_on(sweep: Sweep, cost: SideEffects, settings: PanelSettings) -> tuple[str, list[str]]:
    """Return the verdict on a feature, with the reasons against it."""
    limits, harm, lacks = settings.limits, [], []
    if sweep.chosen is None:
        ratio = min(ratio for _, ratio in sweep.choosing.values())
        harm.append(f"every dose multiplies the perplexity by {ratio:.1f} or more")
    if cost.ce_rise.mean > limits.max_ce_rise:
        harm.append(f"cross-entropy of unrelated text rises by {cost.ce_rise.mean:.2f} nats")
    if cost.others_changed.mean > limits.max_others_changed:
        harm.append(f"{cost.others_changed.mean:.0%} of the other features change")
    if not moves_target(sweep, FEATURE):
        lacks.append("what it promotes does not rise apart from random directions")
    if not moves_label(sweep, FEATURE):
        lacks.append("what its label says does not rise apart from random directions")
    return (HARMFUL if harm else WEAK if lacks else RELIABLE), harm + lacks


def moves_target(sweep: Sweep, arm: Arm) -> bool:
    """Return whether an arm raises the probability of what the direction promotes, apart from random directions."""
    return _apart(sweep, arm, "target")


def moves_label(sweep: Sweep, arm: Arm) -> bool:
    """Return whether an arm raises what the label says, apart from random directions."""
    return any(_apart(sweep, arm, measure) for measure in sweep.label_measures)


def summary(tested: Sequence[Tested]) -> dict[str, Any]:
    """Return what a panel says of the SAE, as JSON values."""
    counts = {verdict: sum(one.verdict == verdict for one in tested) for verdict in (RELIABLE, WEAK, HARMFUL)}
    labelled = [one for one in tested if one.sweep.concept.label is not None]
    result: dict[str, Any] = {"features": len(tested), **counts, "reliable_share": counts[RELIABLE] / len(tested)}
    for name, arm in (("causal_usefulness", FEATURE), ("random_floor", PLACEBO), ("another_feature", SHUFFLED)):
        result[name] = _share([moves_label(one.sweep, arm) for one in labelled])
        result[f"{name}_target"] = _share([moves_target(one.sweep, arm) for one in tested])
    for arm in (FEATURE, RANDOM, SHUFFLED, PROMPT):
        shifts = [gain.mean for one in tested if (gain := one.sweep.shift(arm, "target")) is not None]
        if shifts:
            result.setdefault("target_shift", {})[arm] = Interval.over(shifts).report()
    return result


def _apart(sweep: Sweep, arm: Arm, measure: str) -> bool:
    mine, floors = sweep.shift(arm, measure), [sweep.shift(floor, measure) for floor in FLOORS]
    if mine is None or mine.low is None or mine.low <= 0:
        return False
    return all(floor is not None and mine.above(floor) for floor in floors)


def _share(moved: Sequence[bool]) -> dict[str, float | int | None]:
    if not moved:
        return {"share": None, "low": None, "high": None, "of": 0}
    share = Interval.share(sum(moved), len(moved))
    return {"share": share.mean, "low": share.low, "high": share.high, "of": len(moved)}
