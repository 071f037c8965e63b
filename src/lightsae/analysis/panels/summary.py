"""What a panel says of an SAE: shares of its features beside their floors, and the exact paired tests.

label, follows   rises: above 0, apart from two random directions. The floors answer the same question about the same
                 tokens: a third random direction, the other features, a prompt in the feature's place
wiring           the tokens that a direction itself promotes become likelier, each arm asked about its own tokens
paired           of the features: does it happen with the feature more often than with others in its place? The share
                 less theirs, and the exact p-value of matched sets (`metrics.paired`)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightsae.analysis.panels.arms import FEATURE, PLACEBO, PROMPT, RANDOM, SHUFFLED, Arm
from lightsae.analysis.panels.measures import Measure
from lightsae.analysis.panels.paired_tests import label_gains, stands_out
from lightsae.analysis.panels.panel import HARMFUL, RELIABLE, WEAK, Tested, is_wired, rises
from lightsae.analysis.panels.sweep import Sweep
from lightsae.metrics.intervals import Interval, wilson
from lightsae.metrics.paired import matched_sets

# By name in the summary, the arms that are asked the same.
_IN_PLACE = {"causal_usefulness": FEATURE, "random_floor": PLACEBO, "prompt_instead": PROMPT}
ROWS = {"label": "", "follows": "_follows"}


def summary(tested: Sequence[Tested], level: float) -> dict[str, Any]:
    """Return what a panel says of the SAE, as JSON values.

    Args:
        tested: Its features.
        level: Of the verdicts' tests.
    """
    counts = {verdict: sum(one.verdict == verdict for one in tested) for verdict in (RELIABLE, WEAK, HARMFUL)}
    sweeps = [one.sweep for one in tested if one.sweep.concept.label is not None]
    result: dict[str, Any] = {
        "features": len(tested),
        **counts,
        "reliable_share": counts[RELIABLE] / len(tested),
        "reliable_by_chance": _by_chance([one for one in tested if one.paired is not None], level),
        "labels_with_a_rule": sum(sweep.label_measure == Measure.CONCEPT for sweep in sweeps),
        "paired": {},
    }
    for row, suffix in ROWS.items():
        known = [(sweep, measure) for sweep in sweeps if (measure := _measure(row, sweep)) in sweep.plain.values]
        for name, arm in _IN_PLACE.items():
            result[name + suffix] = _share([rises(sweep, sweep.at(arm), measure) for sweep, measure in known])
        beside = [(sweep, measure) for sweep, measure in known if sweep.others]
        own = np.array([rises(sweep, sweep.at(FEATURE), measure) for sweep, measure in beside], bool)
        others = [np.array([rises(sweep, other, measure) for other in sweep.others]) for sweep, measure in beside]
        result[f"another_feature{suffix}"] = _share([float(outcomes.mean()) for outcomes in others])
        result["paired"][row] = _paired(own, others)
    result["wiring"] = {
        name: _share([wired for one in tested if (wired := _wired(one.sweep, arm)) is not None])
        for name, arm in (("feature", FEATURE), ("random", PLACEBO), ("another", SHUFFLED))
    }
    for arm in (FEATURE, RANDOM, SHUFFLED):
        shifts = [gain.mean for one in tested if (gain := one.sweep.shift(arm, Measure.TARGET)) is not None]
        if shifts:
            result.setdefault("target_shift", {})[arm] = Interval.over(shifts).report()
    return result


def _measure(row: str, sweep: Sweep) -> Measure:
    return sweep.label_measure if row == "label" else Measure.FOLLOWS


def _wired(sweep: Sweep, arm: Arm) -> float | None:
    """Return the share of an arm's directions that raise their own tokens; None if none promotes any."""
    measured = sweep.others if arm == SHUFFLED else [sweep.at(arm)]
    known = [wired for one in measured if (wired := is_wired(sweep, one)) is not None]
    return float(np.mean(known)) if known else None


def _paired(own: Any, others: Sequence[Any]) -> dict[str, Any]:
    """Return the difference of the shares over features, and its exact p-value."""
    if not len(own):
        return {"difference": None, "p": None, "features": 0, "others": 0}
    differences = [float(mine) - float(outcomes.mean()) for mine, outcomes in zip(own, others, strict=True)]
    span = Interval.over(differences)
    return {
        # Of few features, Student's interval reaches beyond what shares can differ by.
        "difference": {n: v if v is None else float(np.clip(v, -1, 1)) for n, v in span.report().items()},
        "p": matched_sets(own, others),
        "features": len(own),
        "others": min(map(len, others)),
    }


def _by_chance(tested: Sequence[Tested], level: float) -> float | None:
    """Return how often another feature in a feature's place would pass what a reliable one has to pass; costs aside."""
    shares = []
    for sweep in (one.sweep for one in tested):
        gains = label_gains(sweep)
        passed = [
            rises(sweep, other, sweep.label_measure) and stands_out(gains, place, level)
            for place, other in enumerate(sweep.others, start=1)
        ]
        shares.append(np.mean(passed))
    return float(np.mean(shares)) if shares else None


def _share(moved: Sequence[float | bool]) -> dict[str, float | int | None]:
    """Return a share of features, where each may itself be a share of several arms, with Wilson's interval.

    The features are the sample; that several arms make each of theirs steadier is not counted.
    """
    if not moved:
        return {"share": None, "low": None, "high": None, "of": 0}
    low, high = wilson(float(sum(moved)), len(moved))
    return {"share": float(np.mean(moved)), "low": float(low), "high": float(high), "of": len(moved)}
