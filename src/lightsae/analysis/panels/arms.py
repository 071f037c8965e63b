"""What a steered feature is held against: nothing, random directions of its norm, another feature, a prompt.

Axes: D width of the site.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.panels.concepts import Concept, promoted_tokens
from lightsae.analysis.reading.compatibility import choose_site
from lightsae.analysis.steering.interventions import Intervention
from lightsae.analysis.steering.steer import check_feature, direction_at, steer
from lightsae.lm import LanguageModel
from lightsae.lm.passes import Positions
from lightsae.randomness import keyed_generator
from lightsae.sae import SparseAutoencoder


class Arm(StrEnum):
    """One of the things that are compared; its value is its name in reports.

    Attributes:
        words: Its name in figures and lists of texts.
        column: Head of its column in a terminal.
        colour: Its colour in figures.
        line: Line style across a figure over doses, for an arm without doses.
    """

    words: str
    column: str
    colour: str
    line: str

    def __new__(cls, value: str, words: str, column: str, colour: str, line: str = "") -> "Arm":
        arm = str.__new__(cls, value)
        arm._value_, arm.words, arm.column, arm.colour, arm.line = value, words, column, colour, line
        return arm

    NONE = "none", "no steering", "none", "#666666", ":"
    FEATURE = "feature", "feature", "feature", "#0b6e69"
    RANDOM = "random", "random direction", "random", "#a8632a"
    SECOND_RANDOM = "second random", "another random direction", "second", "#c89468"
    # A third random direction, put to the test that the feature is put to.
    PLACEBO = "placebo", "a random direction as the feature", "placebo", "#c9a227"
    SHUFFLED = "shuffled", "another feature", "another", "#7d5aa6"
    PROMPT = "prompt", "prompt", "prompt", "#2863c5", "--"


NONE, FEATURE, RANDOM, SECOND_RANDOM, PLACEBO, SHUFFLED, PROMPT = Arm
RANDOMS = (RANDOM, SECOND_RANDOM, PLACEBO)


@dataclass(frozen=True)
class Steered:
    """A language model with the SAE that steers it. The attributes are arguments of `steer`.

    Attributes:
        model: With its head.
        sae: Whose features are changed.
        dictionary: The feature dictionary made for it; without one, no label, no maximum and no text are known.
        positions: Which tokens are steered; see `steer`.
        skip_first: With `all`, how many first positions are left alone.
        any_model: Whether another model than the SAE's is meant.
        mean_norm: The mean activation norm at the site, if the feature dictionary does not say it.
    """

    model: LanguageModel
    sae: SparseAutoencoder
    dictionary: FeatureDictionary | None
    positions: Positions = "all"
    skip_first: int = 1
    any_model: bool = False
    mean_norm: float | None = None

    def by(self, interventions: Sequence[Intervention]) -> AbstractContextManager[Any]:
        """Return a context in which the model is steered; without interventions nothing happens in it."""
        if not interventions:
            return nullcontext()
        return steer(interventions=interventions, **vars(self))

    def concept(self, feature: int) -> Concept:
        """Return what a feature stands for, as far as it is known.

        Raises:
            ConfigError: There is no such feature.
        """
        check_feature(self.sae, feature)
        if self.dictionary is not None:
            return Concept.of(self.dictionary, feature)
        choose_site(self.sae, None)  # refuses several
        return Concept.without_dictionary(feature)

    def direction(self, feature: int) -> Tensor:
        """Return what a feature writes at the site that is steered, (D,)."""
        return direction_at(self.sae, choose_site(self.sae, None), feature)

    def promoted(self, intervention: Intervention) -> tuple[int, ...]:
        """Return the tokens that what is written promotes: those of the direction that is written, whosever it is."""
        along = self.direction(intervention.feature) if intervention.along is None else intervention.along
        return promoted_tokens(self.model, choose_site(self.sae, None).site, along)

    def random_direction(self, feature: int, seed: int, number: int) -> Tensor:
        """Return a direction drawn for a feature, (D,); `steer` gives it the feature's norm."""
        own = self.direction(feature)
        return torch.randn(len(own), generator=keyed_generator(seed, f"random direction {number}", feature))

    def shared_direction(self, seed: int, number: int) -> Tensor:
        """Return one of the directions that are drawn for all features, (D,)."""
        width = len(self.direction(0))
        return torch.randn(width, generator=keyed_generator(seed, "random direction for all", number))

    def other_feature(self, feature: int, seed: int) -> int:
        """Return another feature, drawn for it: one that fires and has the same tier if that is known.

        If there is no other, itself.
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

    def arm(
        self, arm: Arm, interventions: Sequence[Intervention], seed: int, number: int | None = None
    ) -> list[Intervention]:
        """Return what an arm writes in place of the given interventions, each at the norm of its own feature.

        Args:
            arm: Which.
            interventions: Of the feature itself.
            seed: Seed of what is drawn.
            number: Which other feature, or which of the random directions for all; None: drawn for each feature.
        """
        if arm in (NONE, PROMPT):
            return []
        if arm == FEATURE:
            return list(interventions)

        def along(one: Intervention) -> Tensor:
            if arm == SHUFFLED:
                return self.direction(self.other_feature(one.feature, seed) if number is None else number)
            if number is None:
                return self.random_direction(one.feature, seed, RANDOMS.index(arm))
            return self.shared_direction(seed, number)

        return [replace(one, along=along(one)) for one in interventions]
