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
from dataclasses import dataclass, field
from typing import Any

import torch

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.panels.arms import FEATURE, PLACEBO, PROMPT, RANDOM, SECOND_RANDOM, SHUFFLED, Arm, Steered
from lightsae.analysis.panels.side_effects import SideEffects, UnrelatedText
from lightsae.analysis.panels.sweep import Sweep, Sweeper, SweepSettings
from lightsae.errors import ConfigError, arg
from lightsae.metrics.intervals import Interval
from lightsae.progress import Progress
from lightsae.randomness import keyed_generator

RELIABLE, WEAK, HARMFUL = "reliable", "weak", "harmful"
FLOORS = (RANDOM, SECOND_RANDOM)
ARMS = (*FLOORS, PLACEBO, SHUFFLED, PROMPT)
SCHEMA = 1


@dataclass(frozen=True)
class Choice:
    """Which features a panel looks at.

    Attributes:
        features: Their numbers; null: by the rules that follow.
        tiers: Confidence tiers to take from.
        min_s_out: Least output score (S_out).
        order: sample: drawn by the seed, so that shares hold for all that the rules admit; s_out: the largest first.
        count: How many.
    """

    features: Sequence[int] | None = None
    tiers: Sequence[str] = ("high", "medium")
    min_s_out: float = 0.0
    order: str = "sample"
    count: int = 20

    def __post_init__(self) -> None:
        if self.order not in ("sample", "s_out"):
            raise ConfigError("order", self.order, "write sample or s_out")
        if self.count < 1:
            raise ConfigError("count", self.count, "write how many features, 1 or more")
        if self.features is not None and not self.features:
            raise ConfigError(f"{arg('features')} is empty; write some numbers, or null to choose by the rules.")

    def of(self, dictionary: FeatureDictionary, seed: int) -> list[int]:
        """Return the features.

        Raises:
            ConfigError: No feature fits.
        """
        if self.features is not None:
            return list(dict.fromkeys(self.features))
        table = dictionary.sql(
            "SELECT feature FROM features WHERE list_contains($tiers, tier) AND coalesce(s_out, 0) >= $least "
            "ORDER BY s_out DESC NULLS LAST, feature",
            {"tiers": list(self.tiers), "least": self.min_s_out},
        )
        admitted: list[int] = table["feature"].to_pylist()
        if not admitted:
            raise ConfigError(
                f"no feature has a tier among {', '.join(self.tiers)} and an S_out of {self.min_s_out} or more; "
                "widen the panel's choice."
            )
        if self.order == "sample":
            admitted.sort()
            drawn = torch.randperm(len(admitted), generator=keyed_generator(seed, "panel"))[: self.count]
            return sorted(admitted[place] for place in drawn.tolist())
        return admitted[: self.count]


@dataclass(frozen=True)
class Limits:
    """What steering may cost.

    Attributes:
        max_ce_rise: Nats per token on unrelated held-out text.
        max_others_changed: Of the other features that fire there, the share that may change.
    """

    max_ce_rise: float = 0.5
    max_others_changed: float = 1.0


@dataclass(frozen=True)
class PanelSettings:
    """A panel.

    Attributes:
        prompts: The first, third ... choose the dose; the others report.
        choose: Which features.
        sweep: Doses, draws, limits of the choice.
        limits: What steering may cost.
        held_out_rows: Rows of held-out text that side effects are measured on.
    """

    prompts: Sequence[str]
    choose: Choice = field(default_factory=Choice)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    limits: Limits = field(default_factory=Limits)
    held_out_rows: int = 16

    def __post_init__(self) -> None:
        if len(self.prompts) < 4:
            raise ConfigError(
                f"{arg('prompts')} holds {len(self.prompts)}; write four or more, for intervals on either half."
            )
        if self.held_out_rows < 2:
            raise ConfigError("held_out_rows", self.held_out_rows, "write two or more")


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
