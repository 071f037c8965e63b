"""Better, worse, or cannot tell: figures in, verdicts out.

A verdict is on one figure of two recipes. All p-values of a comparison are corrected together (Holm), so that of
recipes that do not differ at most 5% of the comparisons hold a single wrong verdict. Where L0 differs, a figure that
more latents would have raised anyway does not count.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from lightsae.analysis.compare.noise import Difference, Readings, Seeds, difference
from lightsae.analysis.evaluate.figures import Better
from lightsae.metrics.paired import holm

Word = Literal["better", "worse", "cannot tell"]
# Probability of a wrong verdict anywhere in a comparison of recipes that do not differ.
LEVEL = 0.05
# Figures that more latents per token improve, and those that fewer improve, by how their names begin.
_MORE = ("fve", "mse", "cosine", "ce_", "kl", "top1_agreement", "dead_fraction")
_FEWER = ("dense_fraction",)
# What the Pareto picture and a dominance speak of.
QUALITY = ("fve_no_sinks", "ce_recovered_no_sinks", "fve", "ce_recovered")

# The figures of a recipe, by name.
RecipeReadings = Mapping[str, Readings]


@dataclass(frozen=True)
class Verdict:
    """The first recipe against the second in one figure.

    Attributes:
        figure: Its name.
        first, second: Names of the recipes.
        means: Of the figure, over the SAEs of each.
        difference: The first mean less the second.
        low, high: 95% interval of the difference, of this figure alone; None where no noise is known.
        smallest: The smallest true difference that would be found in 80% of such comparisons; None likewise.
        p: Two-sided, corrected for all figures and pairs (Holm).
        word: What the first is.
        seeds: Whether it speaks of recipes (`both`, `assumed`) or of these SAEs (`none`).
        text: Whether it speaks of texts like this one, or of this text alone.
        why: Why it cannot be told, where another reason than the noise is known.
    """

    figure: str
    first: str
    second: str
    means: tuple[float, float]
    difference: float
    low: float | None
    high: float | None
    smallest: float | None
    p: float
    word: Word
    seeds: Seeds
    text: bool
    why: str


def verdicts(
    recipes: Mapping[str, RecipeReadings],
    better: Mapping[str, Better],
    *,
    level: float = LEVEL,
    l0_tolerance: float = 0.05,
) -> list[Verdict]:
    """Judge every pair of recipes in every figure.

    Args:
        recipes: The figures of each, all on one text; with `l0`, which is not judged.
        better: The figures to judge, and which of two values is the better one; figures that a pair lacks are left out.
        level: Probability of a single wrong verdict where nothing differs.
        l0_tolerance: By what share L0 may differ for it to count as the same.

    Returns:
        Pair by pair, figures in the order of `better`.
    """
    found: list[tuple[str, str, str, Difference]] = []
    for first, second in combinations(recipes, 2):
        a, b = recipes[first], recipes[second]
        for name in better:
            if name in a and name in b:
                others = [readings[name] for other, readings in recipes.items() if name in readings]
                others = [one for one in others if one is not a[name] and one is not b[name]]
                found.append((name, first, second, difference(a[name], b[name], others)))
    # What has no noise is never found, and takes nothing from the others.
    tested = [one for *_, one in found if one.error is not None]
    corrected = iter(holm([one.p for one in tested]))
    # What the first and strictest of Holm's steps asks for.
    strictest = level / max(1, len(tested))
    results = []
    for name, first, second, one in found:
        p = 1.0 if one.error is None else next(corrected)
        sides = (recipes[first], recipes[second])
        word, why = _word(name, better[name], one, p <= level, sides, l0_tolerance)
        low, high = one.interval()
        means = (sides[0][name].mean, sides[1][name].mean)
        results.append(
            Verdict(
                name,
                first,
                second,
                means,
                one.value,
                low,
                high,
                one.smallest(strictest),
                p,
                word,
                one.seeds,
                one.text,
                why,
            )
        )
    return results


def _word(
    name: str,
    better: Better,
    one: Difference,
    found: bool,
    sides: tuple[RecipeReadings, RecipeReadings],
    l0_tolerance: float,
) -> tuple[Word, str]:
    """Return the verdict, and why there is none where it is not the noise."""
    if not math.isfinite(one.value):
        return "cannot tell", "a figure has no value"
    if one.error is None:
        why = "equal" if one.value == 0 else "no noise is known: give several SAEs of a recipe, or more documents"
        return "cannot tell", why
    if not found:
        return "cannot tell", ""
    ahead = (one.value > 0) == (better == "higher")
    word: Word = "better" if ahead else "worse"
    winner, loser = sides if ahead else sides[::-1]
    if "l0" in winner and "l0" in loser and not same_l0(winner["l0"].mean, loser["l0"].mean, l0_tolerance):
        more = winner["l0"].mean > loser["l0"].mean
        if not name.startswith(_FEWER if more else _MORE):
            return "cannot tell", "L0 differs, which alone may be why"
    return word, ""


def same_l0(first: float, second: float, tolerance: float) -> bool:
    """Return whether two numbers of latents per token are the same, within a share of the larger one.

    >>> same_l0(32.0, 31.0, 0.05), same_l0(32.0, 30.0, 0.05)
    (True, False)
    """
    return abs(first - second) <= tolerance * max(first, second)


def dominant(
    judged: Sequence[Verdict], l0: tuple[float, float], *, level: float = LEVEL, l0_tolerance: float = 0.05
) -> Literal[0, 1] | None:
    """Return which of two recipes is the better choice whatever L0 one wants; None where neither is known to be.

    That is the one with at most as many latents per token which is ahead in variance explained or in loss recovered,
    and behind in neither.

    Args:
        judged: The verdicts on the pair.
        l0: Of both.
        level: As in `verdicts`.
        l0_tolerance: Likewise.
    """
    # Behind counts even where more latents may be why.
    ahead = {one.difference > 0 for one in judged if one.figure in QUALITY and one.p <= level}
    same = same_l0(*l0, l0_tolerance)
    if ahead == {True} and (same or l0[0] < l0[1]):
        return 0
    if ahead == {False} and (same or l0[1] < l0[0]):
        return 1
    return None
