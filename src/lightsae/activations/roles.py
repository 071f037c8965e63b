"""Whose words a token is: roles of chat messages as small numbers that travel with the token rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from torch import Tensor

from lightsae.errors import ConfigError, did_you_mean

# A role's number is its place here; it stands in rows, never in a file. `markup` is what no message says: headers, the
# ends of turns, what a template adds, separators between documents. `text` is a document that is no conversation.
ROLES = ("markup", "text", "system", "developer", "user", "assistant", "tool", "other")
MARKUP, TEXT, ASSISTANT, OTHER = (ROLES.index(name) for name in ("markup", "text", "assistant", "other"))
# Where a token of each role stands, as a label says it.
PLACES = (
    "in what no message says",
    "in a text that is no conversation",
    "in a system message",
    "in a developer's message",
    "in a user's message",
    "in an assistant's message",
    "in a tool's message",
    "in another's message",
)
# What some data sets and templates call these roles.
_CALLED: Mapping[str, str] = {"model": "assistant", "function": "tool", "ipython": "tool"}


def code_of(role: Any) -> int:
    """Return the number of a message's role as a data set writes it.

    Example:
        >>> [ROLES[code_of(role)] for role in ("user", "ipython", "narrator", "markup")]
        ['user', 'tool', 'other', 'other']
    """
    name = _CALLED.get(str(role), str(role))
    # Nobody who speaks is called markup or text.
    return ROLES.index(name) if name in ROLES[TEXT + 1 :] else OTHER


def check_roles(roles: Sequence[str] | None) -> None:
    """Check a setting that names roles.

    Raises:
        ConfigError: It names none, or one that is not known.
    """
    if roles is None:
        return
    known = f"write some of {', '.join(ROLES)}"
    if not roles:
        raise ConfigError("roles", roles, f"{known}, or leave it out")
    for role in roles:
        if role not in ROLES:
            raise ConfigError("roles", role, known + did_you_mean(role, ROLES).rstrip("?"))


@overload
def among(codes: NDArray[np.uint8], roles: Iterable[str] | None) -> NDArray[np.bool_]: ...
@overload
def among(codes: UInt8[Tensor, "*n"], roles: Iterable[str] | None) -> Bool[Tensor, "*n"]: ...
def among(codes: Any, roles: Iterable[str] | None) -> Any:
    """Return which tokens have one of some roles; None: any.

    Example:
        >>> among(np.array([0, 5, 4], np.uint8), ["assistant"]).tolist()
        [False, True, False]
    """
    wanted = [code for code, name in enumerate(ROLES) if roles is None or name in roles]
    if isinstance(codes, np.ndarray):
        return np.isin(codes, wanted)
    return torch.isin(codes, torch.tensor(wanted, dtype=codes.dtype, device=codes.device))
