"""Tensors out of files that somebody sent: safetensors, npz, pickled state dicts. Nothing but numbers is taken.

A pickle is read by PyTorch's unpickler for weights alone, which makes tensors and plain values and calls nothing else.
"""

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightsae.errors import FormatError, listed, reading
from lightsae.formats.files import shown

# Tensors that a message names.
_NAMED = 12
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Tensors:
    """Named tensors of one file, which a reader takes out one by one, by shape.

    A shape is given in letters; the first tensor that has a letter says its size: `take("W_enc", "D", "F")`.

    Args:
        values: The tensors by name.
        where: The file as the user would write it, for messages.
    """

    def __init__(self, values: Mapping[str, Tensor], where: str) -> None:
        self._values, self.where = dict(values), where
        self.sizes: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    @property
    def names(self) -> list[str]:
        """What is left."""
        return sorted(self._values)

    def take(self, name: str, *shape: str) -> Tensor:
        """Return a tensor as float32, and leave it out of what is left.

        Raises:
            FormatError: It is missing, of another shape, no float, or holds a NaN or an infinity.
        """
        if name not in self._values:
            raise FormatError(f"{self.where!r} lacks the tensor {name!r}; it has {_listed(self.names)}.")
        value = self._values.pop(name)
        if value.dtype not in _FLOATS:
            raise FormatError(f"{self.where!r}: {name} is {str(value.dtype).removeprefix('torch.')}, not a float.")
        if value.ndim == len(shape):
            for letter, size in zip(shape, value.shape, strict=True):
                self.sizes.setdefault(letter, size)
        expected = tuple(self.sizes.get(letter) for letter in shape)
        if tuple(value.shape) != expected or 0 in expected:
            named = ", ".join(f"{letter} {self.sizes[letter]}" for letter in shape if letter in self.sizes)
            raise FormatError(
                f"{self.where!r}: {name} has shape {tuple(value.shape)}, where ({', '.join(shape)}) should be"
                + (f", with {named}." if named else ".")
            )
        if not bool(value.isfinite().all()):
            raise FormatError(f"{self.where!r}: {name} holds a NaN or an infinity.")
        return value.float()

    def number(self, name: str) -> float:
        """Return a tensor of one entry, of any dtype, as a number; see `take`."""
        number = self.peek(name)
        del self._values[name]
        return number

    def peek(self, name: str) -> float:
        """Return what `number` does, and leave the tensor where it is."""
        if name not in self._values:
            raise FormatError(f"{self.where!r} lacks {name!r}; it has {_listed(self.names)}.")
        value = self._values[name]
        if value.numel() != 1 or value.dtype.is_complex or not math.isfinite(number := float(value)):
            raise FormatError(f"{self.where!r}: {name} has shape {tuple(value.shape)}, where one number should be.")
        return number

    def whole_numbers(self, name: str) -> tuple[int, ...]:
        """Return a count, or a list of them, of any dtype of whole numbers; see `take`."""
        if name not in self._values:
            raise FormatError(f"{self.where!r} lacks {name!r}; it has {_listed(self.names)}.")
        value = self._values.pop(name)
        if value.dtype not in _WHOLE or value.ndim > 1 or not value.numel():
            found = f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
            raise FormatError(f"{self.where!r}: {name} is {found}, where whole numbers should be.")
        return tuple(value.reshape(-1).tolist())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that is there."""
        return tuple(self._values[name].shape)

    def has_nan(self, name: str) -> bool:
        """Return whether a tensor that is there holds a NaN, which to some libraries is none at all."""
        return bool(self._values[name].isnan().any())

    def pop(self, name: str) -> Tensor:
        """Return a tensor as it stands in the file, unchecked, and leave it out of what is left."""
        return self._values.pop(name)

    def drop(self, *names: str) -> None:
        """Leave out what has no part in the function, such as counters of the training."""
        for name in names:
            self._values.pop(name, None)

    def finish(self) -> None:
        """Refuse what nobody took: an unknown tensor may be a part of the function."""
        if self._values:
            raise FormatError(f"{self.where!r} holds {self.names[0]!r:.60}, which an SAE of this layout does not have.")


def _listed(names: Sequence[str]) -> str:
    """Return names out of a file as one line, however many and however long they are."""
    return listed([f"{name!r:.60}" for name in names], _NAMED) or "none"


def read_safetensors(path: Path) -> Tensors:
    """Read a safetensors file.

    Raises:
        FormatError: It is not one.
    """
    where = shown(path)
    with reading(FormatError, f"{where} is not a readable safetensors file"), safe_open(path, "pt") as file:
        return Tensors({name: file.get_tensor(name) for name in file.keys()}, where)


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a safetensors file, of its header alone; none, where it is no such file."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (OSError, SafetensorError):
        return {}


def read_npz(path: Path) -> Tensors:
    """Read the arrays of a .npz file; arrays of objects, which are pickles, are refused.

    Raises:
        FormatError: It is not one, or an array takes more room than the file says.
    """
    where = shown(path)
    with reading(FormatError, f"{where} is not a readable npz file"), zipfile.ZipFile(path) as archive:
        _check_members(archive, where)
        with np.load(path, allow_pickle=False) as arrays:
            return Tensors({name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}, where)


def read_pickle(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read a state dict that torch.save wrote.

    Returns:
        The tensors, and what else stands in it (names of activations, counts).

    Raises:
        FormatError: It is not one, or holds more than tensors and plain values.
    """
    where = shown(path)
    with reading(FormatError, f"{where} is not a readable file of weights"):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_members(archive, where)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise FormatError(f"{where!r} holds a {type(loaded).__name__}, where named tensors should be.")
    tensors = {name: value.detach() for name, value in loaded.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        if not _lies_in_file(value):
            raise FormatError(
                f"{where!r}: {name!r:.60} is no plain tensor, or larger than what the file holds of it; refused."
            )
    return Tensors(tensors, where), {name: value for name, value in loaded.items() if name not in tensors}


def read_pickled_tensors(path: Path) -> Tensors:
    """Read a state dict in which nothing but tensors stands; see `read_pickle`."""
    tensors, others = read_pickle(path)
    if others:
        raise FormatError(f"{tensors.where!r} holds {min(others)!r:.60}, which an SAE of this layout does not have.")
    return tensors


def _check_members(archive: zipfile.ZipFile, where: str) -> None:
    for member in archive.infolist():
        # Weights hardly shrink: what is a hundred times as large unpacked is made to fill the memory.
        if member.file_size > 2 * member.compress_size + (1 << 16):
            raise FormatError(f"{where!r}: {member.filename!r:.60} unpacks to {member.file_size:,} bytes; refused.")


def _lies_in_file(value: Tensor) -> bool:
    """Return whether each number has a place of its own: a view can stand for a thousand times its storage."""
    if not value.is_cpu or value.layout != torch.strided or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
