"""In whose words features fire, against counts made token by token; and the columns that say it."""

import numpy as np
import pytest

from helpers.planted_firings import planted
from lightsae.activations.roles import ROLES
from lightsae.analysis.contexts.token_counts import RoleCounts
from lightsae.analysis.dictionary.schema import FEATURES, ROLE_SHARES
from lightsae.analysis.reading.firings import Firings


def firings_of(roles: np.ndarray | None, part: slice) -> Firings:
    """Feature 0 fires on every token, 1 on what the assistant says, 2 nowhere; the first token does not count."""
    codes = np.arange(24) % len(ROLES) if roles is None else roles
    fires = np.stack([np.ones(24, bool), codes == ROLES.index("assistant"), np.zeros(24, bool)], axis=1)[part]
    counted = (np.arange(24) > 0)[part]
    token_of, feature_of = (fires & counted[:, None]).nonzero()
    count = len(counted)
    return Firings(
        token_of, feature_of, np.ones(len(token_of), np.float32), 3, np.zeros((count // 6, 6), np.int32),
        np.zeros((count // 6, 6), np.int64), np.arange(count // 6), counted.reshape(-1, 6),
        None if roles is None else roles[part],
    )  # fmt: skip


def test_shares_are_of_a_features_firings() -> None:
    roles = np.random.default_rng(0).choice([0, 4, 5], 24).astype(np.uint8)
    counts = RoleCounts(3)
    for part in (slice(0, 6), slice(6, 24)):
        counts.update(firings_of(roles, part))
    expected = {role: int((roles[1:] == code).sum()) for code, role in enumerate(ROLES)}
    assert counts.by_role == {role: count for role, count in expected.items() if count}
    shares = counts.shares()
    for role, count in expected.items():
        assert shares[role][0] == pytest.approx(count / 23)
    assert shares["assistant"][1] == 1
    assert all(np.isnan(values[2]) for values in shares.values())


def test_text_has_no_shares() -> None:
    counts = RoleCounts(3)
    counts.update(firings_of(None, slice(0, 24)))
    for firings in planted(rows=4, features=3).firings():
        RoleCounts(3).update(firings)
    assert counts.shares() == {}
    assert counts.by_role == {}


def test_there_is_a_column_for_each_role() -> None:
    assert ROLE_SHARES == tuple(f"{role}_share" for role in ROLES)
    assert set(ROLE_SHARES) < set(FEATURES.names)
