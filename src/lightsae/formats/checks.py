"""What is checked of an SAE that somebody sent, beside its hashes: types of settings, dtypes and values of tensors."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor

from lightsae.errors import FormatError

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


def check_types(settings: Mapping[str, Any], of: Callable[..., Any]) -> None:
    """Refuse settings of other types than the parameters of a function or class say; unknown names are left to it.

    Raises:
        TypeError: One is.

    Example:
        >>> def topk(k: int, k_fall: float = 0.5) -> None: ...
        >>> check_types({"k": True}, topk)
        Traceback (most recent call last):
        TypeError: k is True, where int should be
    """
    parameters = inspect.signature(of).parameters
    for name, value in settings.items():
        if name in parameters and not fits(value, kind := parameters[name].annotation):
            said = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
            raise TypeError(f"{name} is {value!r:.60}, where {said} should be")


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value, as JSON has it, is of a type; a number may be whole, and has to be finite.

    >>> fits(1, float), fits(True, int), fits(float("nan"), float), fits([1, 2], list[int] | None), fits(2**64, int)
    (True, False, False, True, False)
    """
    options = get_args(kind)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    if get_origin(kind) is Literal:
        return value in options
    if get_origin(kind) is list:
        return type(value) is list and all(fits(one, options[0]) for one in value)
    if get_origin(kind) is dict:
        return type(value) is dict and all(fits(k, options[0]) and fits(v, options[1]) for k, v in value.items())
    if get_origin(kind) in (Union, UnionType):
        return any(fits(value, option) for option in options)
    return isinstance(value, kind)


def check_tensors(tensors: Mapping[str, Tensor], trained: Collection[str], dtype: str | None, written: str) -> None:
    """Refuse tensors that are not what an export says, or with which no figure could be told.

    Args:
        tensors: By name.
        trained: Names of those that are: all of one dtype.
        dtype: What the export says; None: that of the decoder, where it is too old to say it.
        written: The file as the user would write it.

    Raises:
        FormatError: A dtype is another one, a value is no finite number, or a scale is not above 0.
    """
    expected = tensors["W_dec"].dtype if dtype is None else DTYPES[dtype]
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values() or (name in trained and tensor.dtype != expected):
            found, said = (str(one).removeprefix("torch.") for one in (tensor.dtype, expected))
            raise FormatError(f"{written!r}: {name} is {found}, where {said} should be; export it again.")
        if not tensor.isfinite().all():
            raise FormatError(f"{written!r}: {name} holds a NaN or an infinity; export it from an earlier checkpoint.")
        if name in ("input_scale", "output_scale") and not (tensor > 0).all():
            raise FormatError(f"{written!r}: {name} is {tensor.tolist()}, and a scale is above 0; export it again.")
