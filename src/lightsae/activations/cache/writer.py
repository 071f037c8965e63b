"""Writes the activations of a corpus to a cache, shard by shard; goes on where an earlier writer stopped.

What counts as written is what cache.json names: a shard takes its name when it is whole and on the disk, and is named
after that. So a kill costs the shard in progress, and whoever reads meets whole ones alone.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightsae.activations.batch import check_finite
from lightsae.activations.cache.manifest import Manifest, ShardEntry
from lightsae.activations.cache.plan import SPLITS, CachePlan
from lightsae.activations.cache.shards import COLUMNS, TOKENS, damage, token_columns, write_shard
from lightsae.activations.corpus.documents import Split
from lightsae.activations.corpus.mixture import Rows
from lightsae.activations.corpus.token_rows import TokenRows
from lightsae.activations.fills import read_rows
from lightsae.errors import ActivationError, arg, section
from lightsae.formats.files import explain_os_errors, scratch_folder
from lightsae.lm.dtypes import DTYPES
from lightsae.progress import NullProgress, Progress
from lightsae.sae.sites import SiteRef


def write_cache(plan: CachePlan, progress: Progress | None = None) -> Manifest:
    """Write what is missing of a cache, and return its manifest.

    Where all is there, every byte of it is compared, and what is damaged is written again.

    Args:
        plan: See `plan_cache`.
        progress: Gets the tokens that are compared, and those that are written.

    Raises:
        ConfigError: The disk is full; the tokenizer is another one than that of what is there.
        ActivationError: An activation is NaN or infinite, or too large for the dtype of the shards.
        ModelError: A model cannot be loaded.
    """
    progress = progress or NullProgress()
    with section("data"):
        main = plan.source.models(plan.process)[plan.source.settings.model]
    tokenizer, special = main.vocabulary.digest, tuple(main.special_token_ids)
    identity = replace(plan.identity, tokenizer=tokenizer, special=special)
    plan.check_same(identity)
    manifest = plan.present or Manifest(identity)
    damaged = _damaged(plan, manifest, progress)
    if manifest.complete and not damaged and plan.missing_bytes == 0:
        return manifest
    with explain_os_errors(plan.folder), progress.stage("caching", plan.tokens) as report:
        plan.folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(plan.folder) as scratch:
            writer = _Writer(plan, replace(manifest, complete=False), report, scratch)
            for split in SPLITS:
                writer.write(split, damaged)
        writer.finish()
    return writer.manifest


def _damaged(plan: CachePlan, manifest: Manifest, progress: Progress) -> set[str]:
    """Return the shards that are not as they were written; of a complete cache every byte is compared."""
    damaged: set[str] = set()
    if not manifest.shards:
        return damaged
    done, tokens = 0, sum(map(manifest.tokens, SPLITS))
    with progress.stage("comparing what is there", tokens) as report:
        for entry in manifest.shards:
            if damage(plan.folder, entry, every_byte=manifest.complete) is not None:
                damaged.add(entry.file)
            done += entry.rows * plan.context
            report(done)
    return damaged


class _Writer:
    """Holds the manifest while shards are added to it, and the memory of one shard."""

    def __init__(self, plan: CachePlan, manifest: Manifest, report: Callable[[int], None], scratch: Path) -> None:
        self.plan, self.manifest, self._report, self._scratch = plan, manifest, report, scratch
        # Before the first shard, so that a folder with shards always says what they are.
        self.manifest.write(plan.folder)
        tokens, kind = plan.shard_rows * plan.context, DTYPES[plan.identity.dtype]
        self._tensors = {site.name: torch.empty(tokens, site.width, dtype=kind) for site in plan.identity.sites}
        self._tensors[TOKENS] = torch.empty(tokens, len(COLUMNS), dtype=torch.int32)
        self._buffers: dict[SiteRef, Tensor] = {}

    def write(self, split: Split, damaged: set[str]) -> None:
        """Write the shards of a split that are missing or damaged."""
        with section("data"):
            rows = self.plan.source.rows(split, once=True)
        try:
            self._write_again(split, rows, damaged)
            done, wanted = self.manifest.rows(split), self.plan.rows[split]
            # A corpus may end before.
            while done < wanted and len(block := _take(rows, min(self.plan.shard_rows, wanted - done))):
                self._add(split, f"{split}-{len(self.manifest.of(split)):05}.safetensors", block, done, rows)
                done += len(block)
        finally:
            rows.close()

    def finish(self) -> None:
        """Say that the cache is complete."""
        self.manifest = replace(self.manifest, complete=True)
        self.manifest.write(self.plan.folder)

    def _write_again(self, split: Split, rows: Rows, damaged: set[str]) -> None:
        """Write damaged shards, and leave the source behind the last shard."""
        done, start = 0, rows.state_dict()
        for entry in self.manifest.of(split):
            if entry.file in damaged:
                rows.load_state_dict(start)
                self._add(split, entry.file, _take(rows, entry.rows), done, rows)
            done, start = done + entry.rows, entry.end
        rows.load_state_dict(start)

    def _add(self, split: Split, file: str, block: TokenRows, first: int, rows: Rows) -> None:
        """Write the shard of some rows, whose numbers begin with `first`, and then the manifest."""
        if len(block) > self.plan.shard_rows:
            # An earlier writer had larger ones.
            size = len(block) * self.plan.context
            self._tensors = {name: old.new_empty(size, old.shape[1]) for name, old in self._tensors.items()}
        self._read(block, first, file, self.manifest.tokens("validation") if split == "train" else 0)
        size = len(block) * self.plan.context
        tensors = {name: values[:size] for name, values in self._tensors.items()}
        written = write_shard(self.plan.folder / file, tensors, self._scratch)
        entry = ShardEntry(split=split, file=file, rows=len(block), end=rows.state_dict(), **written)
        self.manifest = self.manifest.with_shard(entry)
        self.manifest.write(self.plan.folder)

    def _read(self, block: TokenRows, first: int, file: str, tokens_before: int) -> None:
        """Run the language models over some rows, into the memory of a shard."""
        source, context = self.plan.source, self.plan.context
        reading = source.read_settings(self.plan.process)
        for start in range(0, len(block), reading.rows_at_once):
            stop = min(start + reading.rows_at_once, len(block))
            some, numbers = block.taken(slice(start, stop)), np.arange(first + start, first + stop)
            models, buffers = source.language_models, self._buffers
            with section("data"):
                batch = read_rows(models, some, numbers, reading, buffers, source.timings)
                check_finite(batch, f"of {file}")
            place = slice(start * context, stop * context)
            self._tensors[TOKENS][place] = token_columns(batch)
            for site in self.plan.identity.sites:
                stored = self._tensors[site.name][place]
                stored.copy_(batch.activations[site.ref])
                if stored.dtype == torch.float16 and not bool(stored.isfinite().all()):
                    raise ActivationError(
                        f"{site.name} holds values above 65,504, where float16 ends; store bfloat16 or float32 "
                        f"({arg('store_dtype')})."
                    )
            self._report(tokens_before + (first + stop) * context)


@section("data")
def _take(rows: Rows, count: int) -> TokenRows:
    return rows.take(count)
