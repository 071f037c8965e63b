"""Groups of tokens with figures of their own, beside those of all: roles of conversations, datasets of a mixture.

Axes: T tokens, F latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.roles import ROLES
from lightsae.analysis.evaluate.document_sums import DocumentSums

# What it is a group by (`roles`, `datasets`), and its name.
Group = tuple[str, str]


@dataclass(frozen=True)
class Groups:
    """Says which groups tokens belong to.

    Attributes:
        datasets: Names of the datasets of a mixture, in its order; none where there is one dataset.
    """

    datasets: Sequence[str] = ()

    def members(self, batch: ActivationBatch) -> dict[Group, NDArray[np.bool_]]:
        """Return (T,) which tokens of a batch belong to each group that has some."""
        found: dict[Group, NDArray[np.bool_]] = {}
        for by, names, numbers in (("roles", ROLES, batch.roles), ("datasets", self.datasets, batch.datasets)):
            if numbers is not None:
                of_tokens = numbers.cpu().numpy()
                found |= {(by, names[number]): of_tokens == number for number in np.unique(of_tokens).tolist()}
        return found


@dataclass
class GroupSums:
    """Sums over documents, of each group the documents that have tokens of it.

    Attributes:
        sums: By group.
        fires: (F,) on how many tokens of a group each latent fires.
    """

    sums: dict[Group, DocumentSums] = field(default_factory=dict)
    fires: dict[Group, NDArray[np.int64]] = field(default_factory=dict)

    def add(
        self,
        members: Mapping[Group, NDArray[np.bool_]],
        documents: NDArray[np.int64],
        values: Mapping[str, NDArray[np.float64]],
    ) -> None:
        """Add the tokens of a batch, as `DocumentSums.add` does.

        Args:
            members: (T,) which tokens belong to each group.
            documents: (T,) their documents.
            values: By name, one entry a token.
        """
        for group, ours in members.items():
            if ours.any():
                of_group = {name: column[ours] for name, column in values.items()}
                self.sums.setdefault(group, DocumentSums()).add(documents[ours], of_group)

    def add_firings(
        self,
        members: Mapping[Group, NDArray[np.bool_]],
        tokens: NDArray[np.int64],
        latents: NDArray[np.int64],
        d_sae: int,
    ) -> None:
        """Add the firings of a batch: of each its token, and its latent."""
        for group, ours in members.items():
            counts = np.bincount(latents[ours[tokens]], minlength=d_sae)
            self.fires[group] = self.fires.get(group, 0) + counts
