"""What a steered feature is held against: nothing, random directions of its norm, another feature, a prompt.

Axes: D width of the site.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.panels.concepts import Concept
from lightsae.analysis.reading.compatibility import choose_site
from lightsae.analysis.steering.interventions import Intervention
from lightsae.analysis.steering.steer import check_feature, steer
from lightsae.lm import LanguageModel
from lightsae.lm.passes import Positions
from lightsae.randomness import keyed_generator
from lightsae.sae import SparseAutoencoder

NONE, FEATURE, SHUFFLED, PROMPT = "none", "feature", "shuffled", "prompt"
# The placebo is a third random direction, put to the test that the feature is put to.
RANDOM, SECOND_RANDOM, PLACEBO = RANDOMS = ("random", "second random", "placebo")
SAID = {
    NONE: "no steering",
    FEATURE: "feature",
    RANDOM: "random direction",
    SECOND_RANDOM: "another random direction",
    PLACEBO: "a random direction as the feature",
    SHUFFLED: "another feature",
    PROMPT: "prompt",
}


@dataclass(frozen=True)
class Steered:
    """A language model with the dictionaries that steer it.

    Attributes:
        model: With its head.
        sae: The dictionary of latents.
        dictionary: The feature dictionary made for it; without one, no label, no maximum and no text are known.
        positions: Which tokens are steered; see `steer`.
        skip_first: With `all`, how many first positions are left alone.
        any_model: Whether another model than the dictionary's is meant.
        mean_norm: The mean activation norm at the site, where the feature dictionary does not say it.
    """

    model: LanguageModel
    sae: SparseAutoencoder
    dictionary: FeatureDictionary | None
    positions: Positions = "all"
    skip_first: int = 1
    any_model: bool = False
    mean_norm: float | None = None

    def by(self, interventions: Sequence[Intervention]) -> AbstractContextManager[Any]:
        """Return a context in which the model is steered; none of them: in which nothing happens."""
        if not interventions:
            return nullcontext()
        return steer(
            self.model,
            interventions,
            self.sae,
            dictionary=self.dictionary,
            positions=self.positions,
            skip_first=self.skip_first,
            mean_norm=self.mean_norm,
            any_model=self.any_model,
        )

    def concept(self, feature: int) -> Concept:
        """Return what a feature stands for, as far as it is known.

        Raises:
            ConfigError: There is no such feature.
        """
        check_feature(self.sae, feature)
        if self.dictionary is not None:
            return Concept.of(self.dictionary, feature)
        return Concept.without_dictionary(self.model, feature, self.direction(feature))

    def direction(self, feature: int) -> Tensor:
        """Return what a feature writes at the site that is steered, (D,)."""
        site = choose_site(self.sae, None)
        predicted = list(self.sae.widths.predicted)
        row: Tensor = self.sae.direction(feature).detach().float()
        parts: Sequence[Tensor] = row.split(list(self.sae.widths.predicted.values()))
        return parts[predicted.index(site)]

    def random_direction(self, feature: int, seed: int, number: int) -> Tensor:
        """Return a direction drawn for a feature, (D,); `steer` gives it the feature's norm."""
        own = self.direction(feature)
        return torch.randn(len(own), generator=keyed_generator(seed, f"random direction {number}", feature))

    def other_feature(self, feature: int, seed: int) -> int:
        """Return another feature, one that fires and has the same tier where that is known, drawn for it.

        Where there is no other, itself.
        """
        draw = keyed_generator(seed, "another feature", feature)
        if self.sae.d_sae == 1:
            return feature
        if self.dictionary is None:
            other = int(torch.randint(self.sae.d_sae - 1, (1,), generator=draw))
            return other + (other >= feature)
        table = self.dictionary.sql("SELECT feature, tier FROM features WHERE fires > 0 ORDER BY feature").to_pandas()
        tier = dict(zip(table.feature, table.tier, strict=True)).get(feature)
        same = table[(table.feature != feature) & (table.tier == tier)]
        pool = (same if len(same) else table[table.feature != feature]).feature.tolist()
        if not pool:
            pool = [other for other in range(self.sae.d_sae) if other != feature] or [feature]
        return int(pool[int(torch.randint(len(pool), (1,), generator=draw))])

    def arm(self, name: str, interventions: Sequence[Intervention], seed: int) -> list[Intervention]:
        """Return what an arm writes in place of the given interventions, each at the norm of its own feature."""
        if name in (NONE, PROMPT):
            return []
        if name == FEATURE:
            return list(interventions)
        if name == SHUFFLED:
            return [replace(one, along=self.direction(self.other_feature(one.feature, seed))) for one in interventions]
        number = RANDOMS.index(name)
        return [replace(one, along=self.random_direction(one.feature, seed, number)) for one in interventions]
