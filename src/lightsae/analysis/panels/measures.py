"""What steering did to texts and predictions: effect and cost, one number per prompt.

Axes:    n prompts; in `distinct` and `repetition`, n texts.
Source:  distinct-n of Li et al. 2016, arXiv:1510.03055; the share of repeated n-grams of Welleck et al. 2020,
         arXiv:1908.04319 (seq-rep-n).

    concept     share of generated tokens on which the label's rule holds (`concepts`)
    fires       share of generated tokens on which the feature fires when the untouched model reads the text: above a
                tenth of its maximum
    activation  mean activation there, in units of its maximum
    follows     probability of the tokens that come after it in held-out text, over the unsteered texts
    target      how far the probability of the tokens that the arm's own direction promotes rises over the unsteered
                texts. A check of the wiring: any direction raises its own tokens, a random one too
    kl          KL(untouched || steered) over the unsteered texts, nats per token
    ppl_steered, ppl_untouched   perplexity of the steered text under steering, and for the untouched model
    repetition  share of the steered text's 4-grams that stood in it before
    distinct_1, distinct_2   share of different tokens, and of different pairs of tokens, in the steered text
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from lightsae.metrics.intervals import Interval

Values = dict[str, NDArray[np.float64]]


class Measure(StrEnum):
    """A measure; its value is its name in reports.

    Attributes:
        words: Its row in a terminal; empty if it is not shown there.
        caption: Title of its pane in a figure over doses.
        is_effect: Whether it is wanted; the others are costs.
        in_nats: A perplexity: kept as nats until its interval is known.
    """

    words: str
    caption: str
    is_effect: bool
    in_nats: bool

    def __new__(cls, value: str, words: str = "", caption: str = "", is_effect: bool = True) -> "Measure":
        measure = str.__new__(cls, value)
        measure._value_, measure.words, measure.caption, measure.is_effect = value, words, caption, is_effect
        measure.in_nats = value.startswith("ppl_")
        return measure

    CONCEPT = "concept", "label holds on the text", "label holds on the text: gain"
    FIRES = "fires", "fires on it, untouched model", "it fires on the text, untouched model: gain"
    ACTIVATION = "activation", "activation there, x maximum"
    TARGET = "target", "wiring: P(what each promotes), rise", "wiring: P(what each direction promotes), gain"
    FOLLOWS = "follows", "P(what follows it)", "probability of what follows it: gain"
    KL = "kl", "KL to untouched model, nats", "KL to the untouched model (nats)", False
    PPL_STEERED = "ppl_steered", "perplexity, as steered", "", False
    PPL_UNTOUCHED = "ppl_untouched", "perplexity, untouched model", "perplexity, untouched model: ratio", False
    REPETITION = "repetition", "repeated 4-grams", "", False
    DISTINCT_1 = "distinct_1", "", "", False
    DISTINCT_2 = "distinct_2", "distinct 2-grams", "", False


EFFECTS = tuple(measure for measure in Measure if measure.is_effect)


def interval(name: str, values: NDArray[np.float64]) -> Interval:
    """Return the mean of a measure over prompts with its interval; the geometric mean of perplexities."""
    mean = Interval.over(values)
    return mean.exponentiated() if Measure(name).in_nats else mean


def shift(name: str, values: NDArray[np.float64], plain: NDArray[np.float64]) -> Interval:
    """Return what a measure gained over no steering, prompt by prompt; for perplexities, their ratio."""
    return interval(name, values - plain)


def distinct(texts: Sequence[Sequence[int]], n: int) -> NDArray[np.float64]:
    """Return the share of different n-grams among each text's n-grams; 1 if it has none.

    Example:
        >>> distinct([[5, 6, 5, 6], [7]], 2).round(3).tolist()
        [0.667, 1.0]
    """
    grams = [[tuple(text[start : start + n]) for start in range(len(text) - n + 1)] for text in texts]
    return np.array([len(set(each)) / len(each) if each else 1.0 for each in grams])


def repetition(texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return the share of each text's 4-grams that stood in it before."""
    return 1 - distinct(texts, 4)
