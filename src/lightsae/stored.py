"""What a file stores, held against what it is to take the place of: kinds, shapes and ranges of nested values.

And such values side by side, under names with dots.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def misfit(found: Any, expected: Any, where: str = "", *, partial: bool = False) -> str | None:
    """Return in words why stored values cannot take the place of others, or None if they can.

    Keys, kinds of values, and dtypes and shapes of tensors have to agree. Numbers have to be finite, and those outside
    floating-point tensors not negative: they count something. Keys beyond the expected ones are no matter.

    Args:
        found: What was stored: numbers, strings, None, tensors, and lists and mappings of these.
        expected: The like, of the run as it is; None stands for anything.
        where: What `found` is called.
        partial: Let expected keys be missing.

    Example:
        >>> misfit({"step": 3, "rates": [0.1, "fast"]}, {"step": 0, "rates": [0.0, 0.0]})
        'rates.1 is a str, where a float should be'
        >>> misfit({"step": -3}, {"step": 0}, "Adam")
        'Adam.step is -3'
        >>> misfit({"step": 3, "more": "x"}, {"step": 0})
    """
    if expected is None:
        return None
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            return _wrong_kind(found, "a dict", where)
        for key, value in expected.items():
            inner = f"{where}.{key}" if where else str(key)
            if key not in found and not partial:
                return f"{inner} is missing"
            if key in found and (difference := misfit(found[key], value, inner, partial=partial)):
                return difference
        return None
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple):
            return _wrong_kind(found, "a list", where)
        if len(found) != len(expected):
            return f"{where} has {len(found)} entries, where {len(expected)} should be"
        pairs = enumerate(zip(found, expected, strict=True))
        return next((d for i, (a, b) in pairs if (d := misfit(a, b, f"{where}.{i}", partial=partial))), None)
    if isinstance(expected, Tensor):
        return _misfit_of_tensors(found, expected, where)
    if type(found) is not type(expected):
        return _wrong_kind(found, f"a {type(expected).__name__}", where)
    if isinstance(found, int | float) and not 0 <= found < math.inf:
        return f"{where} is {found}"
    return None


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values with their names; `before` stands before each.

    >>> dict(flat({"model": {"sae": {"k": 16}}, "seed": 0}))
    {'model.sae.k': 16, 'seed': 0}
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _misfit_of_tensors(found: Any, expected: Tensor, where: str) -> str | None:
    if not isinstance(found, Tensor):
        return _wrong_kind(found, "a tensor", where)
    for what in ("shape", "dtype"):
        a, b = getattr(found, what), getattr(expected, what)
        if a != b:
            a, b = (tuple(a), tuple(b)) if what == "shape" else (a, b)
            return f"{where} has {what} {a}, where {b} should be"
    if found.is_floating_point():
        # A sum is finite only if every term is; it reads the tensor once.
        if not bool(found.sum(dtype=torch.float64).isfinite()):
            return f"{where} holds NaN or infinity"
    elif not found.dtype == torch.bool and bool((found < 0).any()):
        return f"{where} holds negative numbers"
    return None


def _wrong_kind(found: Any, expected: str, where: str) -> str:
    kind = "None" if found is None else "a tensor" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    return f"{where or 'it'} is {kind}, where {expected} should be"
