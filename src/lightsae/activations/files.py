"""Fills from activation files: (N, D) rows from any model or modality, shuffled, in epochs.

Rows are read in chunks of neighbours. Each epoch has its own order of the chunks; a fill is a run of chunks, permuted.
Every fixed share of the chunks is held out for validation.
"""

from bisect import bisect_right
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.activations.batch import ActivationBatch, with_sinks
from lightsae.activations.contents import digests_of_files
from lightsae.activations.matrix_file import SUFFIXES, MatrixFile
from lightsae.activations.stream import Fill, FillSource, HeldOut, Process, StreamPlan, slot
from lightsae.activations.timings import Timings
from lightsae.errors import CorpusError, arg, did_you_mean
from lightsae.formats.files import natural_order
from lightsae.randomness import ShuffledEpochs
from lightsae.sae.sites import SiteRef

CHUNK_ROWS = 256


class ActivationFiles:
    """The rows of one file, or of all files of a folder in natural order, as one matrix."""

    def __init__(self, location: str) -> None:
        self.parts = [MatrixFile.open(path) for path in _files(location)]
        widths = sorted({part.width for part in self.parts})
        if len(widths) > 1:
            raise CorpusError(f"{arg('activations')}: the files in {location} have different widths, {widths}.")
        self.width = widths[0]
        self.starts = np.cumsum([0] + [part.rows for part in self.parts]).tolist()
        self.site = SiteRef("", Path(location).stem)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows start..stop, over the borders of files."""
        pieces = []
        while start < stop:
            number = bisect_right(self.starts, start) - 1
            end = min(stop, self.starts[number + 1])
            pieces.append(self.parts[number].read(start - self.starts[number], end - self.starts[number]))
            start = end
        return torch.cat(pieces)

    def contents(self) -> dict[str, str]:
        """Return a digest of each file."""
        paths = [part.path for part in self.parts]
        return digests_of_files(paths, paths[0].parent)


def _files(location: str) -> list[Path]:
    path = Path(location)
    if path.is_dir():
        paths = [p for p in path.iterdir() if p.suffix in SUFFIXES]
        if not paths:
            raise CorpusError(f"{arg('activations')} is {location!r}, a folder without .npy or .safetensors files.")
        return sorted(paths, key=natural_order)
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [])
        raise CorpusError(f"{arg('activations')} is {location!r}, which does not exist.{near}")
    if path.suffix not in SUFFIXES:
        raise CorpusError("activations", location, "write a .npy or .safetensors file, or a folder of them")
    return [path]


class Chunks:
    """The chunks of a matrix, dealt to training and validation."""

    def __init__(self, rows: int, validation_fraction: float, fill_rows: int) -> None:
        # A file that fits into one fill is shuffled row by row; small files still get both splits.
        self.size = max(1, min(CHUNK_ROWS, fill_rows // 8, int(rows * validation_fraction)))
        self.rows, numbers = rows, np.arange(-(-rows // self.size))
        period = max(2, min(round(1 / validation_fraction), len(numbers)))
        # The ragged end is held out too: all fills are then of one size.
        held_out = (numbers % period == period // 2) | ((numbers + 1) * self.size > rows)
        self.validation, self.train = numbers[held_out], numbers[~held_out]

    def in_fill(self, buffer_rows: int, batch_rows: int, world: int) -> int:
        """Return how many chunks a rank's fill holds: what the buffer takes, and a batch at least."""
        needed = max(buffer_rows // self.size, -(-batch_rows // self.size))
        return max(1, min(needed, len(self.train) // world))

    def bounds(self, chunk: int) -> tuple[int, int]:
        return chunk * self.size, min(self.rows, (chunk + 1) * self.size)


class FileFills(FillSource):
    """Makes fills from activation files: runs of the shuffled chunks, as many as go into the buffer."""

    def __init__(
        self,
        files: ActivationFiles,
        chunks: Chunks,
        plan: StreamPlan,
        buffer: Float[Tensor, "rows D"],
        timings: Timings,
    ) -> None:
        self.files, self.chunks, self.plan, self.timings = files, chunks, plan, timings
        self.chunks_in_fill = len(buffer) // chunks.size
        self._buffers, self._epochs = [buffer], ShuffledEpochs(len(chunks.train), plan.seed)

    def fill(self, number: int) -> Fill:
        first = (number * self.plan.world + self.plan.rank) * self.chunks_in_fill
        chosen = self.chunks.train[self._epochs.places(first, self.chunks_in_fill)].tolist()
        with self.timings.measure("text"):
            everything = read_chunks(self.files, self.chunks, chosen, slot(self._buffers, number, self.slots))
        return Fill(everything, torch.arange(len(everything), device=everything.rows.device))


def read_chunks(
    files: ActivationFiles, chunks: Chunks, chosen: list[int], buffer: Float[Tensor, "rows D"]
) -> ActivationBatch:
    """Read the rows of the chosen chunks into the buffer, and return what it then holds of them as one batch."""
    bounds = [chunks.bounds(chunk) for chunk in chosen]
    filled = 0
    for start, stop in bounds:
        buffer[filled : filled + stop - start].copy_(files.read(start, stop))
        filled += stop - start
    rows = torch.cat([torch.arange(*pair) for pair in bounds]).to(buffer.device)
    return with_sinks(ActivationBatch.without_text(files.site, buffer[:filled], rows))


def held_out_chunks(
    files: ActivationFiles, chunks: Chunks, max_rows: int, batch_rows: int, process: Process
) -> HeldOut:
    """Return the held-out rows of activation files, in order.

    Raises:
        CorpusError: There is not one chunk for each process.
    """
    chosen = chunks.validation[: max(process.world, max_rows // chunks.size)].tolist()
    if len(chosen) < process.world:
        raise CorpusError(
            f"{arg('activations')} holds {len(chosen)} chunks of rows for validation, too few for {process.world} "
            "devices; take fewer devices or more rows."
        )
    mine, per_batch = chosen[process.rank :: process.world], max(1, batch_rows // chunks.size)

    def read(some: list[int]) -> ActivationBatch:
        return read_chunks(files, chunks, some, process.buffer(len(some) * chunks.size, files.width))

    return HeldOut(read, [mine[i : i + per_batch] for i in range(0, len(mine), per_batch)])
