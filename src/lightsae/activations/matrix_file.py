"""The matrix of a .npy or .safetensors file, read by rows.

It is read and not mapped into memory: where a file is cut short, a map ends the process without a word.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lightsae.errors import CorpusError, arg, reading
from lightsae.parsing import parse_json

SUFFIXES = (".npy", ".safetensors")
# Numbers of safetensors files, as numpy reads them; and what they are where numpy has no such type.
_SAFETENSORS = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "<u1", "F8_E5M2": "<u1"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "?"},
}
_NOT_IN_NUMPY = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


@dataclass(frozen=True)
class MatrixFile:
    """A matrix of real numbers in a file.

    Attributes:
        path: The file.
        rows: Its rows.
        width: Its columns.
        start: Where it begins, in bytes.
        number: How a number lies in the file, in any byte order.
        meaning: What its bytes are, where numpy has no such type.
        by_columns: Columns lie together, not rows.
    """

    path: Path
    rows: int
    width: int
    start: int
    number: np.dtype[Any]
    meaning: torch.dtype | None = None
    by_columns: bool = False

    @classmethod
    def open(cls, path: Path) -> "MatrixFile":
        """Read where the matrix lies.

        Raises:
            CorpusError: The file is damaged, or holds something else than a matrix of real numbers.
        """
        shape, start, number, meaning, by_columns = (_npy if path.suffix == ".npy" else _safetensors)(path)
        if len(shape) != 2 or 0 in shape:
            raise CorpusError(
                f"{arg('activations')}: {path} has shape {shape}; it must be (rows, width) with at least one row."
            )
        if number is None:
            raise CorpusError(f"{arg('activations')} is {str(path)!r}, which does not hold real numbers; write floats.")
        return cls(path, *shape, start, number, meaning, by_columns)

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows start..stop, in the file's own precision.

        Raises:
            CorpusError: The file is gone, or has been cut short.
        """
        if not self.by_columns:
            return self._numbers(start * self.width, stop - start, self.width)
        columns = [self._numbers(column * self.rows + start, 1, stop - start) for column in range(self.width)]
        return torch.cat(columns).T.contiguous()

    def _numbers(self, first: int, rows: int, width: int) -> Tensor:
        place = self.start + first * self.number.itemsize
        try:
            found = np.fromfile(self.path, self.number, rows * width, offset=place)
            size = self.path.stat().st_size
        except OSError as error:
            raise CorpusError(
                f"{arg('activations')}: {self.path} can no longer be read: {error.strerror or error}."
            ) from None
        if len(found) < rows * width:
            raise CorpusError(
                f"{arg('activations')}: {self.path} has been cut short since it was opened: it ends at byte {size}."
            )
        values = torch.from_numpy(found.astype(self.number.newbyteorder("="), copy=False)).view(rows, width)
        return values if self.meaning is None else values.view(self.meaning)


# Shape, place, type of the numbers (None: not real ones), what they mean, and whether columns lie together.
_Layout = tuple[tuple[int, ...], int, np.dtype[Any] | None, torch.dtype | None, bool]


def _npy(path: Path) -> _Layout:
    with _readable(path):
        # Checks the header, and that the file is as long as it says.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):
            raise ValueError("it is an archive")
    is_real = array.dtype.kind in "fiub" and array.dtype.itemsize <= 8
    return array.shape, array.offset, array.dtype if is_real else None, None, not array.flags.c_contiguous


def _safetensors(path: Path) -> _Layout:
    with _readable(path):
        # Checks the header, and that the file is as long as it says.
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if "activations" not in names and len(names) != 1:
                raise CorpusError(
                    f"{arg('activations')}: {path} holds the tensors {names}; name the one to train on 'activations'."
                )
            name = "activations" if "activations" in names else names[0]
            part = file.get_slice(name)
            shape, kind = tuple(part.get_shape()), part.get_dtype()
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            begin, _ = parse_json(raw.read(length))[name]["data_offsets"]
    number = np.dtype(_SAFETENSORS[kind]) if kind in _SAFETENSORS else None
    return shape, 8 + length + begin, number, _NOT_IN_NUMPY.get(kind), False


def _readable(path: Path) -> AbstractContextManager[None]:
    return reading(CorpusError, f"{arg('activations')}: {path} is not a readable {path.suffix} file")
