"""What a feature is said to stand for, as tests that read text and predictions: whether steering moved it.

Axes: n texts, L generated positions, D width of the site, V vocabulary.

    concept  the label's rule, as it was tested on held-out text: the share of generated tokens on which it holds. It
             reads text alone, so a steered activation can't make it true.
    follows  the tokens that came after the feature's firings in held-out text: their share of the next-token
             probability. A model that believes the concept has just been there makes them likelier.

Both are read off text, so that any arm can be asked about them. What a direction promotes is read off the direction:
every arm is asked about its own tokens (`promoted_tokens`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.effects.final_norm import final_norm
from lightsae.analysis.effects.logits import logits_of, writes_to_stream
from lightsae.analysis.labels.patterns import PatternKeys, needs_roles, patterns_of
from lightsae.lm import LanguageModel

# Tokens that seldom follow a firing say nothing about it.
_LEAST_SHARE = 0.02
_PROMOTED = 10


@dataclass(frozen=True)
class Concept:
    """What a feature dictionary says about one feature.

    Attributes:
        feature: Which.
        label: Its label; None if none passed.
        tier: Its confidence tier.
        maximum: Its largest activation, latent units; 0 if it is not known.
        patterns: (kind, key) of its label's rule; None without a rule that passed.
        follows: Ids of the tokens that come after it.
    """

    feature: int
    label: str | None
    tier: str
    maximum: float
    patterns: tuple[tuple[str, int], ...] | None
    follows: tuple[int, ...]

    @classmethod
    def of(cls, dictionary: FeatureDictionary, feature: int) -> "Concept":
        """Read a feature's concept.

        Raises:
            ConfigError: There is no such feature.
        """
        page = dictionary.feature(feature)
        row = page.row
        # The rule of the label that is shown: one by a model or a person says something else than the rule does.
        rules = [one["rule"] for one in page.labels if one["rule"] and one["passed"] and one["label"] == row["label"]]
        # The text that is made is no conversation, of which the rule could ask whose words a token is.
        patterns = patterns_of(rules[0]) if rules else ()
        return cls(
            feature=feature,
            label=row["label"],
            tier=row["tier"] or "unlabelled",
            maximum=float(row["max"] or 0.0),
            patterns=None if needs_roles(patterns) else patterns or None,
            follows=tuple(one["token"] for one in row["tokens_after"] or () if one["share"] >= _LEAST_SHARE),
        )

    @classmethod
    def without_dictionary(cls, feature: int) -> "Concept":
        """Return what is known of a feature by its weights alone: nothing that text could be asked about."""
        return cls(feature, None, "unlabelled", 0.0, None, ())

    def report(self) -> dict[str, Any]:
        """Return what a report says of it, as JSON values."""
        return {"feature": self.feature, "label": self.label, "tier": self.tier, "has_rule": self.patterns is not None}

    def rate(self, texts: "Generated") -> NDArray[np.float64] | None:
        """Return the share of each text's generated tokens on which the label's rule holds; None without a rule."""
        if self.patterns is None:
            return None
        holds = np.zeros(texts.counts.size, bool)
        for kind, key in self.patterns:
            holds |= texts.keys.of(kind) == key
        held = holds.reshape(texts.counts.shape) & texts.counts
        rates: NDArray[np.float64] = held.sum(1) / np.maximum(1, texts.counts.sum(1))
        return rates


class Generated:
    """Texts as rules read them: made ready once for all concepts.

    Args:
        prompts: (n,) what stands before each text; the rule sees it, but it does not count.
        made: (n,) generated tokens.
        vocabulary: (V,) what each token says.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], made: Sequence[Sequence[int]], vocabulary: Sequence[str]
    ) -> None:
        width = max(len(p) + len(m) for p, m in zip(prompts, made, strict=True))
        rows, self.counts = np.zeros((len(made), width), np.int32), np.zeros((len(made), width), bool)
        for row, (prompt, text) in enumerate(zip(prompts, made, strict=True)):
            end = len(prompt) + len(text)
            rows[row, :end] = (*prompt, *text)
            self.counts[row, len(prompt) : end] = True
        self.keys = PatternKeys(rows, vocabulary)


def promoted_tokens(model: LanguageModel, site: str, direction: Float[Tensor, " D"]) -> tuple[int, ...]:
    """Return the ids of the tokens that a direction promotes through the final norm alone, the most first.

    None where there is no such effect: at a site that is not added to the residual stream, or without a final norm.
    """
    norm = final_norm(model)
    if norm is None or not writes_to_stream(model, site):
        return ()
    # The scale of the norm moves no token past another.
    logits = logits_of(model, norm, direction[None].to(model.device), 1.0)[0]
    return tuple(logits.topk(min(_PROMOTED, len(logits))).indices.tolist())
