"""A fixed panel: the same prompts, doses and limits for the features of an SAE, and a verdict on each.

    reliable  steering makes what the label says come true more often than two random directions of the same norm do
              (95% intervals over prompts apart), and more than other labelled features in its place do
              (`paired_tests`), at a cost within the limits
    harmful   it costs more than the limits allow: on unrelated text, or at every dose
    weak      the rest

What the label says is its rule on the generated text, alone. What follows the feature's firings in held-out text is a
row of its own, and counts for no verdict. Neither does `target`, whether the tokens that a direction promotes become
likelier: any direction raises its own, so that it says only that something was written where it should be, a check of
the wiring.

The causal usefulness of an SAE is the share of the panel's features whose label comes true. Three floors stand beside
it, each the same question about the same label: a third random direction, other features, or a prompt in its place.
Two random directions differ by more than chance does, each has effects of its own: so one alone would be no floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.panels.arms import FEATURE, PLACEBO, PROMPT, RANDOM, RANDOMS, SECOND_RANDOM, SHUFFLED, Steered
from lightsae.analysis.panels.measures import Measure
from lightsae.analysis.panels.paired_tests import PairedTest, paired_tests
from lightsae.analysis.panels.settings import PanelSettings
from lightsae.analysis.panels.side_effects import SideEffects, UnrelatedText
from lightsae.analysis.panels.sweep import Measured, Sweep, Sweeper
from lightsae.progress import Progress
from lightsae.randomness import keyed_generator

RELIABLE, WEAK, HARMFUL = "reliable", "weak", "harmful"
FLOORS = (RANDOM, SECOND_RANDOM)
ARMS = (*FLOORS, PLACEBO, SHUFFLED, PROMPT)
# Directions drawn for all features, three for each.
_DRAWN = 12


@dataclass(frozen=True)
class Tested:
    """One feature of a panel.

    Attributes:
        sweep: What was measured.
        side_effects: On unrelated text, at the dose that was taken.
        paired: How its label rises against that of other features in its place; None without any.
        verdict: reliable, weak or harmful.
        reasons: Why it is not reliable; empty if it is.
    """

    sweep: Sweep
    side_effects: SideEffects
    paired: PairedTest | None
    verdict: str
    reasons: list[str]

    def report(self) -> dict[str, Any]:
        """Return it as JSON values."""
        own = self.sweep.at(FEATURE)
        return {
            **self.sweep.report(),
            "verdict": self.verdict,
            "reasons": self.reasons,
            "label_measure": self.sweep.label_measure,
            "rises": {
                "label": rises(self.sweep, own, self.sweep.label_measure),
                "follows": rises(self.sweep, own, Measure.FOLLOWS),
            },
            "wiring": is_wired(self.sweep, own),
            "paired": None if self.paired is None else self.paired.report(),
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
    seed = settings.sweep.seed
    features = settings.choose.of(steered.dictionary, seed)
    others = others_of(features, steered.dictionary, settings)
    sweeper = Sweeper(steered, vocabulary, settings.prompts, settings.sweep, features, as_steered=False)
    with progress.stage("doses", len(features)) as done:
        for count, feature in enumerate(features, start=1):
            sweeper.prepare(feature)
            done(count)
    unrelated = UnrelatedText(steered, rows)
    sweeps, costs = [], []
    with progress.stage("panel", len(features)) as done:
        for count, feature in enumerate(features, start=1):
            drawn = torch.randperm(_DRAWN, generator=keyed_generator(seed, "random directions of a feature", feature))
            randoms = dict(zip(RANDOMS, drawn.tolist(), strict=False))
            sweep = sweeper.sweep(feature, arms=ARMS, others=others[feature], randoms=randoms)
            sweeps.append(sweep)
            costs.append(unrelated.effects([settings.sweep.intervention(feature, sweep.taken)], feature))
            done(count)
    return judge(sweeps, costs, settings)


def others_of(features: Sequence[int], dictionary: FeatureDictionary, settings: PanelSettings) -> dict[int, list[int]]:
    """Return the other labelled features that each is held against: of the panel first, whose texts are there."""
    admitted = settings.choose.admitted(dictionary)
    result = {}
    for feature in features:
        draw = keyed_generator(settings.sweep.seed, "other features", feature)
        mixed = [admitted[place] for place in torch.randperm(len(admitted), generator=draw).tolist()]
        ordered = sorted((one for one in mixed if one != feature), key=lambda one: one not in features)
        result[feature] = ordered[: settings.others]
    return result


def judge(sweeps: Sequence[Sweep], costs: Sequence[SideEffects], settings: PanelSettings) -> list[Tested]:
    """Return the verdicts on features that were measured: together, since the tests allow for their number."""
    paired = paired_tests(sweeps)
    return [
        Tested(sweep, cost, test, *verdict_on(sweep, cost, test, settings))
        for sweep, cost, test in zip(sweeps, costs, paired, strict=True)
    ]


def verdict_on(
    sweep: Sweep, cost: SideEffects, paired: PairedTest | None, settings: PanelSettings
) -> tuple[str, list[str]]:
    """Return the verdict on a feature, with the reasons against it."""
    limits, harm, lacks = settings.limits, [], []
    if sweep.chosen is None:
        ratio = min(ratio for _, ratio in sweep.choosing.values())
        harm.append(f"every dose multiplies the perplexity by {ratio:.1f} or more")
    if cost.ce_rise.mean > limits.max_ce_rise:
        harm.append(f"cross-entropy of unrelated text rises by {cost.ce_rise.mean:.2f} nats")
    if cost.others_changed.mean > limits.max_others_changed:
        harm.append(f"{cost.others_changed.mean:.0%} of the other features change")
    if sweep.concept.label is None:
        lacks.append("it has no label that could come true")
    elif not rises(sweep, sweep.at(FEATURE), sweep.label_measure):
        lacks.append("what its label says does not rise apart from random directions")
    lacks += ["there is no other labelled feature to hold it against"] if paired is None else []
    lacks += [] if paired is None else paired.reasons(settings.level)
    return (HARMFUL if harm else WEAK if lacks else RELIABLE), harm + lacks


def rises(sweep: Sweep, measured: Measured | None, measure: str) -> bool:
    """Return whether something raises a measure above 0, apart from random directions."""
    mine, floors = sweep.shift_of(measured, measure), [sweep.shift(floor, measure) for floor in FLOORS]
    if mine is None or mine.low is None or mine.low <= 0:
        return False
    return all(floor is not None and mine.above(floor) for floor in floors)


def is_wired(sweep: Sweep, measured: Measured | None) -> bool | None:
    """Return whether the tokens that a direction itself promotes become likelier; None if it promotes none."""
    gain = sweep.shift_of(measured, Measure.TARGET)
    return None if gain is None else gain.low is not None and gain.low > 0
