"""Token rows, and what is known of each token: document, role, dataset.

Axes:    n rows, context tokens in a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.roles import among


@dataclass(frozen=True)
class TokenRows:
    """Rows for the language model.

    Attributes:
        tokens: (n, context) token ids.
        documents: (n, context) running number of each token's document, from 0; it goes on when a corpus is read again.
            A separator has the number of the document before it, a row's BOS that of the token after it.
        roles: (n, context) whose words a token is; see `roles`. None where no document is a conversation.
        datasets: (n,) place of each row's dataset in a mixture; None: there is one dataset.
    """

    tokens: NDArray[np.int32]
    documents: NDArray[np.int64]
    roles: NDArray[np.uint8] | None = None
    datasets: NDArray[np.int16] | None = None

    @classmethod
    def empty(cls, context: int) -> "TokenRows":
        """Return no rows of `context` tokens."""
        return cls(np.empty((0, context), np.int32), np.empty((0, context), np.int64))

    @classmethod
    def joined(cls, parts: "Sequence[TokenRows]") -> "TokenRows":
        """Return the rows of all parts."""
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.documents for part in parts]),
            _joined([part.roles for part in parts]),
            _joined([part.datasets for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def taken(self, rows: NDArray[np.int64] | slice) -> "TokenRows":
        """Return some of the rows."""
        roles = None if self.roles is None else self.roles[rows]
        datasets = None if self.datasets is None else self.datasets[rows]
        return TokenRows(self.tokens[rows], self.documents[rows], roles, datasets)

    def chosen(self, roles: Sequence[str] | None, skip_positions: int) -> NDArray[np.bool_]:
        """Return which tokens are trained on, (n, context), as far as roles and positions say."""
        kept = np.broadcast_to(np.arange(self.tokens.shape[1]) >= skip_positions, self.tokens.shape)
        return kept if self.roles is None else kept & among(self.roles, roles)


def _joined(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None
