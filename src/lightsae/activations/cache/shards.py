"""The files of a cache: safetensors with one tensor per site, and one that says what each token is.

Axes:   T tokens of a shard, in the order of the corpus; D width of a site.
Reads:  by spans of neighbouring tokens, straight into the memory of the caller. They are read and not mapped: where a
        file is cut short, a map ends the process without a word.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.cache.manifest import AGAIN, Cache, CacheIdentity, ShardEntry
from lightsae.activations.contents import sampled_digest
from lightsae.activations.corpus.documents import Split
from lightsae.errors import CorpusError, arg, reading
from lightsae.formats.files import hash_file, write_atomically
from lightsae.formats.tensor_files import save_tensors
from lightsae.lm.dtypes import DTYPES
from lightsae.parsing import parse_json

# What the tensor `tokens` says of each token, in int32.
COLUMNS = ("token", "position", "document", "row", "special")
TOKENS = "tokens"
# Bytes of a shard that are compared when a cache is opened.
_SAMPLE = 1 << 16
_LONGEST_HEADER = 1 << 20
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32"}


def token_columns(batch: ActivationBatch) -> Int[Tensor, "T 5"]:
    """Return what is known of the tokens of a batch, as a cache keeps it."""
    columns = (batch.tokens, batch.positions, batch.documents, batch.rows, batch.special)
    return torch.stack([column.to("cpu", torch.int32) for column in columns], dim=1)


def batch_of(columns: Int[Tensor, "T 5"], activations: Mapping[Any, Tensor], **others: Any) -> ActivationBatch:
    """Return the batch of some cached tokens, without sinks."""
    tokens, positions, documents, rows, special = columns.long().unbind(1)
    return ActivationBatch(dict(activations), tokens, positions, documents, rows, special.bool(), sinks={}, **others)


def bytes_per_token(identity: CacheIdentity) -> int:
    """Return what a token takes on the disk."""
    return sum(torch.Size(shape).numel() * kind.itemsize for kind, shape in _tensors(identity, 1).values())


def write_shard(path: Path, tensors: Mapping[str, Tensor], scratch: Path) -> dict[str, Any]:
    """Write a shard, and return its size and digests by their names in a `ShardEntry`.

    Args:
        path: The shard.
        tensors: What it holds.
        scratch: A folder on the same file system for what is not whole yet.

    Raises:
        ConfigError: The disk is full, or there is no permission to write.
    """
    with write_atomically(path, within=scratch) as temporary:
        save_tensors(tensors, temporary)
        return {"bytes": temporary.stat().st_size, **digests(temporary)}


def digests(path: Path) -> dict[str, str]:
    """Return the digests of a shard by their names in a `ShardEntry`."""
    return {"sample": sampled_digest(path, _SAMPLE), "sha256": hash_file(path)}


def damage(folder: Path, entry: ShardEntry, *, every_byte: bool = False) -> str | None:
    """Return in words what is wrong with a shard; None if nothing is, as far as samples tell.

    Args:
        folder: Of the cache.
        entry: What the manifest says of the shard.
        every_byte: Read all of it.
    """
    path = folder / entry.file
    try:
        if (size := path.stat().st_size) != entry.bytes:
            return f"it has {size:,} bytes, and was written with {entry.bytes:,}"
        if sampled_digest(path, _SAMPLE) != entry.sample or (every_byte and hash_file(path) != entry.sha256):
            return "it holds other bytes than were written"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None


@dataclass(frozen=True)
class Shard:
    """A file of a cache whose header was read.

    Attributes:
        path: The file.
        tokens: T.
        starts: Where each tensor begins, in bytes.
        strides: Bytes of a token in each tensor.
    """

    path: Path
    tokens: int
    starts: dict[str, int]
    strides: dict[str, int]

    @classmethod
    def open(cls, cache: Cache, entry: ShardEntry) -> "Shard":
        """Read where the tensors lie.

        Raises:
            CorpusError: The file is not what was written.
        """
        folder, path = Path(cache.folder), Path(cache.folder, entry.file)
        if problem := damage(folder, entry):
            raise CorpusError(f"{arg('cache')}: {path} is damaged: {problem}; {AGAIN}.")
        tokens = entry.rows * cache.identity.settings["context_size"]
        starts, strides = {}, {}
        with reading(CorpusError, f"{arg('cache')}: {path} is not a readable shard", AGAIN), path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), _LONGEST_HEADER)
            header = parse_json(file.read(length))
            for name, (kind, shape) in _tensors(cache.identity, tokens).items():
                begin, end = header[name]["data_offsets"]
                if header[name]["dtype"] != _NAMES[kind] or header[name]["shape"] != list(shape):
                    raise ValueError(f"{name} is {header[name]['dtype']} {header[name]['shape']}")
                strides[name], starts[name] = kind.itemsize * shape[1], 8 + length + begin
                if begin < 0 or end - begin != tokens * strides[name] or 8 + length + end > entry.bytes:
                    raise ValueError(f"{name} does not end where it should")
        return cls(path, tokens, starts, strides)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open the file, and give its number.

        Raises:
            CorpusError: It is gone.
        """
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise CorpusError(
                f"{arg('cache')}: {self.path} can no longer be read: {error.strerror or error}."
            ) from None
        try:
            yield handle
        finally:
            os.close(handle)

    def read(self, handle: int, name: str, first: int, into: NDArray[np.uint8]) -> None:
        """Fill `into`, (tokens, bytes of one), with a tensor's rows from token `first` on.

        Raises:
            CorpusError: The file has been cut short.
        """
        view, place = into.data.cast("B"), self.starts[name] + first * self.strides[name]
        done = os.preadv(handle, [view], place)
        while done < len(view):
            if (more := os.preadv(handle, [view[done:]], place + done)) == 0:
                size = os.fstat(handle).st_size
                raise CorpusError(
                    f"{arg('cache')}: {self.path} has been cut short since it was opened: it ends at byte {size}."
                )
            done += more


class Spans:
    """All spans of `length` neighbouring tokens of one side of a cache; none reaches over the end of a shard.

    Args:
        cache: Its shards are opened.
        split: The side of the corpus.
        length: Tokens in a span; of a shard of other sizes the last tokens, fewer than these, are in none.

    Raises:
        CorpusError: A shard is damaged.
    """

    def __init__(self, cache: Cache, split: Split, length: int) -> None:
        self.length = length
        self._shards = [Shard.open(cache, entry) for entry in cache.manifest.of(split)]
        self._starts = np.cumsum([0] + [shard.tokens // length for shard in self._shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, numbers: NDArray[np.integer[Any]], into: Mapping[str, NDArray[np.uint8]]) -> None:
        """Read spans one after another.

        Args:
            numbers: The spans, ascending.
            into: By the names of tensors, (tokens, bytes of one) for all of them.

        Raises:
            CorpusError: A shard is gone, or has been cut short.
        """
        parts = list(self._by_shard(numbers))
        for shard, _, within in parts:
            self._announce(shard, within, into)
        for shard, first, within in parts:
            with shard.opened() as handle:
                for name, target in into.items():
                    for place, number in enumerate(within, first):
                        stretch = target[place * self.length : (place + 1) * self.length]
                        shard.read(handle, name, number * self.length, stretch)

    def _by_shard(self, numbers: NDArray[np.integer[Any]]) -> Iterator[tuple[Shard, int, list[int]]]:
        """Yield each shard that is read, the place of its first span among all, and its spans by their number in it."""
        of = np.searchsorted(self._starts, numbers, side="right") - 1
        for shard in np.unique(of):
            places = np.flatnonzero(of == shard)
            yield self._shards[shard], int(places[0]), (numbers[places] - self._starts[shard]).tolist()

    def _announce(self, shard: Shard, within: Sequence[int], names: Mapping[str, Any]) -> None:
        """Have the system fetch what will be read: a disk is fast with many reads at once, and slow one by one."""
        if not hasattr(os, "posix_fadvise"):
            return
        with shard.opened() as handle:
            for name in names:
                size = self.length * shard.strides[name]
                for number in within:
                    os.posix_fadvise(handle, shard.starts[name] + number * size, size, os.POSIX_FADV_WILLNEED)


def _tensors(identity: CacheIdentity, tokens: int) -> dict[str, tuple[torch.dtype, tuple[int, int]]]:
    """Return dtype and shape of each tensor of a shard."""
    kind = DTYPES[identity.dtype]
    sites = {site.name: (kind, (tokens, site.width)) for site in identity.sites}
    return {TOKENS: (torch.int32, (tokens, len(COLUMNS))), **sites}
