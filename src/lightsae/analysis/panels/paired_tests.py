"""Whether a feature's label rises more than with other labelled features in its place.

Axes: n reporting prompts, K other features.

The same prompts, seeds and doses, and the same label; only the direction differs. There are two kinds of chance, and a
test for each:

    prompts     its gain, less the mean gain of the others, prompt by prompt: signs flipped at random. Allows for the
                number of features by Holm's method
    directions  each direction has effects of its own, which no number of prompts averages out: where the feature's
                gain stands among those of all 1 + K. A feature that is no better than others comes first of 20 with a
                probability of one in 20, so that 19 others are needed for a level of 5%

The second can't allow for the number of features: its p-value is never below 1 / (1 + K). Instead the summary puts the
other features to the same tests (`reliable_by_chance`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from lightsae.analysis.panels.arms import FEATURE
from lightsae.analysis.panels.sweep import Sweep
from lightsae.metrics.intervals import Interval
from lightsae.metrics.paired import holm, rank, sign_flips

Gains = Float[NDArray[np.float64], "arms n"]


@dataclass(frozen=True)
class PairedTest:
    """A feature's label, with the feature steered and with others in its place.

    Attributes:
        others: How many others.
        as_good: Of them, those with which the label rises as much, mean over prompts.
        difference: Its gain less the mean gain of the others, over prompts.
        p_prompts: Of the difference, for all features of the panel at once.
        p_directions: Of its place among the others.
    """

    others: int
    as_good: int
    difference: Interval
    p_prompts: float
    p_directions: float

    def reasons(self, level: float) -> list[str]:
        """Return what speaks against its standing out at a level."""
        lacks = []
        if self.p_prompts > level:
            lacks.append(
                f"its label rises no more than with other features, prompt by prompt (p = {self.p_prompts:.2g})"
            )
        if 1 / (1 + self.others) > level:
            lacks.append(f"{self.others} other features are too few to tell at a level of {level:g}")
        elif self.p_directions > level:
            lacks.append(f"its label rises as much with {self.as_good} of {self.others} other features")
        return lacks

    def report(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**vars(self), "difference": self.difference.report()}


def paired_tests(sweeps: Sequence[Sweep]) -> list[PairedTest | None]:
    """Return the test of each feature; None for one without a label or without another feature."""
    each = {place: label_gains(sweep) for place, sweep in enumerate(sweeps) if is_paired(sweep)}
    adjusted = dict(zip(each, holm([sign_flips(less_others(gains, 0)) for gains in each.values()]), strict=True))
    result: list[PairedTest | None] = [None] * len(sweeps)
    for place, gains in each.items():
        means = gains.mean(1)
        result[place] = PairedTest(
            others=len(gains) - 1,
            as_good=int((means[1:] >= means[0]).sum()),
            difference=Interval.over(less_others(gains, 0)),
            p_prompts=adjusted[place],
            p_directions=rank(float(means[0]), means[1:]),
        )
    return result


def is_paired(sweep: Sweep) -> bool:
    """Return whether a feature has a label, and others to be held against."""
    return sweep.concept.label is not None and bool(sweep.others)


def label_gains(sweep: Sweep) -> Gains:
    """Return what its label gains over no steering, prompt by prompt: with itself, then with each other."""
    own = sweep.at(FEATURE)
    assert own is not None
    return sweep.gains([own, *sweep.others], sweep.label_measure)


def less_others(gains: Gains, place: int) -> NDArray[np.float64]:
    """Return the gains of one arm less the mean of all others, (n,)."""
    difference: NDArray[np.float64] = gains[place] - np.delete(gains, place, axis=0).mean(0)
    return difference


def stands_out(gains: Gains, place: int, level: float) -> bool:
    """Return whether one arm passes both tests at a level; for the number of features nothing is allowed."""
    means = gains.mean(1)
    if rank(float(means[place]), np.delete(means, place)) > level:
        return False
    return sign_flips(less_others(gains, place)) <= level
