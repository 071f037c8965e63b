"""In whose words features fire: counts by role of conversations.

Axes: F features, R roles.
"""

import numpy as np
from jaxtyping import Float64, Int64

from lightsae.activations.roles import ROLES
from lightsae.analysis.reading.firings import Firings


class RoleCounts:
    """Counts firings by role.

    Attributes:
        fires: (F, R) tokens of each role on which a feature fires.
        tokens: (R,) tokens that count; all 0 where no text is a conversation.
    """

    fires: Int64[np.ndarray, "F R"]
    tokens: Int64[np.ndarray, " R"]

    def __init__(self, n_features: int) -> None:
        self.fires = np.zeros((n_features, len(ROLES)), np.int64)
        self.tokens = np.zeros(len(ROLES), np.int64)

    def update(self, firings: Firings) -> None:
        """Add the firings of a batch."""
        if firings.roles is None:
            return
        places = firings.feature_of * len(ROLES) + firings.roles[firings.token_of]
        self.fires += np.bincount(places, minlength=self.fires.size).reshape(self.fires.shape)
        self.tokens += np.bincount(firings.roles[firings.counted.ravel()], minlength=len(ROLES))

    @property
    def by_role(self) -> dict[str, int]:
        """Tokens of each role that has some."""
        return {role: int(count) for role, count in zip(ROLES, self.tokens, strict=True) if count}

    def shares(self) -> dict[str, Float64[np.ndarray, " F"]]:
        """Return, for each role, the share of a feature's firings that are on its tokens; NaN for a silent one."""
        if not self.tokens.any():
            return {}
        total = self.fires.sum(1)
        with np.errstate(invalid="ignore"):
            return {role: self.fires[:, code] / total for code, role in enumerate(ROLES)}
