"""Whose words a token is, as concepts: where the tokens that count are of several roles, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest

from lightsae.activations.roles import ROLES
from lightsae.analysis.concepts.read import read_truth
from lightsae.analysis.reading.text import TextRows

USER, ASSISTANT, MARKUP = (ROLES.index(name) for name in ("user", "assistant", "markup"))
CODES = np.array([[MARKUP, USER, USER, MARKUP, ASSISTANT, ASSISTANT]], np.uint8)
ROWS = TextRows(np.array([[0, 1, 2, 0, 1, 2]], np.int32), np.zeros((1, 6), np.int64), np.zeros(1, np.int64), CODES)
TEXTS = ["|", " cat", " sat"]


@pytest.mark.parametrize(
    ("roles", "named"),
    [
        (None, {"role_user", "role_assistant", "role_markup"}),
        (["assistant", "user"], {"role_user", "role_assistant"}),
        (["assistant"], set()),
    ],
)
def test_roles_that_count_are_concepts(roles: list[str] | None, named: set[str]) -> None:
    truth = read_truth(ROWS, TEXTS, lambda _: None, roles=roles)
    assert {name for name in truth.names if name.startswith("role")} == named
    for name in named:
        holds = truth.holds[:, [truth.place[name]]].toarray().ravel()
        assert holds.tolist() == (CODES[0] == ROLES.index(name.removeprefix("role_"))).tolist()
    assert truth.known.all()


def test_text_without_conversations_has_none() -> None:
    truth = read_truth(replace(ROWS, roles=None), TEXTS, lambda _: None)
    assert not [name for name in truth.names if name.startswith("role")]
