"""What a feature is said to stand for, as tests that read text and predictions: whether steering moved it.

Axes: n texts, L generated positions, V vocabulary.

    concept  the label's rule, as it was tested on held-out text: the share of generated tokens on which it holds. It
             reads text alone, so a steered activation can't make it true.
    follows  the tokens that came after the feature's firings in held-out text: their share of the next-token
             probability. A model that believes the concept has just been there makes them likelier.
    target   the tokens that the direction promotes through the final norm alone; their share likewise. It says what
             the weights do, whatever the label says.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.effects.final_norm import final_norm
from lightsae.analysis.effects.logits import logits_of
from lightsae.analysis.labels.patterns import PatternKeys
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
        target: Ids of the tokens that it promotes.
        follows: Ids of the tokens that come after it.
    """

    feature: int
    label: str | None
    tier: str
    maximum: float
    patterns: tuple[tuple[str, int], ...] | None
    target: tuple[int, ...]
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
        return cls(
            feature=feature,
            label=row["label"],
            tier=row["tier"] or "unlabelled",
            maximum=float(row["max"] or 0.0),
            patterns=tuple((kind, int(key)) for kind, key in json.loads(rules[0])["patterns"]) if rules else None,
            target=tuple(one["token"] for one in row["promoted"] or ()),
            follows=tuple(one["token"] for one in row["tokens_after"] or () if one["share"] >= _LEAST_SHARE),
        )

    @classmethod
    def without_dictionary(cls, model: LanguageModel, feature: int, direction: Float[Tensor, " D"]) -> "Concept":
        """Return what can be said of a feature by its weights alone: the tokens that its direction promotes."""
        norm = final_norm(model)
        target: list[int] = []
        if norm is not None:
            # The scale of the norm moves no token past another.
            target = logits_of(model, norm, direction[None].to(model.device), 1.0)[0].topk(_PROMOTED).indices.tolist()
        return cls(feature, None, "unlabelled", 0.0, None, tuple(target), ())

    def report(self) -> dict[str, Any]:
        """Return what a report says of it, as JSON values."""
        return {"feature": self.feature, "label": self.label, "tier": self.tier, "has_rule": self.patterns is not None}

    def rate(
        self, prompts: Sequence[Sequence[int]], made: Sequence[Sequence[int]], vocabulary: Sequence[str]
    ) -> NDArray[np.float64] | None:
        """Return the share of each text's generated tokens on which the label's rule holds; None without a rule.

        Args:
            prompts: (n,) what stands before each text; the rule sees it, but does not count there.
            made: (n,) generated tokens.
            vocabulary: (V,) what each token says.
        """
        if self.patterns is None:
            return None
        width = max(len(p) + len(m) for p, m in zip(prompts, made, strict=True))
        rows, counts = np.zeros((len(made), width), np.int32), np.zeros((len(made), width), bool)
        for row, (prompt, text) in enumerate(zip(prompts, made, strict=True)):
            end = len(prompt) + len(text)
            rows[row, :end] = (*prompt, *text)
            counts[row, len(prompt) : end] = True
        keys = PatternKeys(rows, vocabulary).keys
        holds = np.zeros(rows.size, bool)
        for kind, key in self.patterns:
            holds |= keys[kind] == key
        rates: NDArray[np.float64] = (holds.reshape(rows.shape) & counts).sum(1) / np.maximum(1, counts.sum(1))
        return rates
