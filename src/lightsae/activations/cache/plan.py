"""What a cache will hold and how large it will be, checked before anything is loaded or written."""

import shutil
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from lightsae.activations.cache.manifest import (
    NAME,
    OPTIONAL_SETTINGS,
    TEXT_SETTINGS,
    CachedSite,
    CacheIdentity,
    Manifest,
    refuse_groups,
)
from lightsae.activations.cache.shards import bytes_per_token
from lightsae.activations.corpus.documents import Split
from lightsae.activations.corpus.open import open_documents
from lightsae.activations.settings import DataSettings
from lightsae.activations.stream import Process
from lightsae.activations.text_source import TextSource
from lightsae.activations.timings import Timings
from lightsae.errors import ConfigError, arg, section
from lightsae.formats.files import entries
from lightsae.lm.dtypes import DTYPES, choose_dtype, dtype_name
from lightsae.lm.placement import check_device
from lightsae.version import version

# In this order: what is wrong with the small one is found first.
SPLITS: tuple[Split, ...] = ("validation", "train")
SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class CachePlan:
    """A cache that is to be written.

    Attributes:
        folder: Where to.
        source: The text and its models.
        process: The device, the sites, and the dtype of the models.
        identity: What the activations depend on; the tokenizer is not known yet.
        rows: Token rows of each side of the corpus.
        shard_rows: Rows of a shard.
        present: What is there already.
    """

    folder: Path
    source: TextSource
    process: Process
    identity: CacheIdentity
    rows: dict[Split, int]
    shard_rows: int
    present: Manifest | None

    @property
    def context(self) -> int:
        return self.source.settings.context_size

    @property
    def tokens(self) -> int:
        """Tokens of the whole cache, if the corpus has as many."""
        return sum(self.rows.values()) * self.context

    @property
    def bytes(self) -> int:
        """Size of the whole cache, but for the headers."""
        return self.tokens * bytes_per_token(self.identity)

    @property
    def missing_bytes(self) -> int:
        """What is not there yet."""
        there = {split: self.present.rows(split) if self.present else 0 for split in SPLITS}
        rows = sum(max(0, self.rows[split] - there[split]) for split in SPLITS)
        return rows * self.context * bytes_per_token(self.identity)

    def check_same(self, identity: CacheIdentity) -> None:
        """Check that what is there is of these settings, as far as `identity` is known.

        Raises:
            ConfigError: It is not.
        """
        if self.present is None:
            return
        stored = self.present.identity
        if not identity.tokenizer and not identity.special:
            stored = replace(stored, tokenizer="", special=())
        if difference := stored.difference(identity):
            raise ConfigError(
                f"{arg('out')} is {str(self.folder)!r}, a cache of other activations: {difference}. Name a new folder, "
                "or take the change back."
            )


def plan_cache(
    settings: DataSettings,
    out: str | Path,
    tokens: int,
    *,
    store_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "cpu",
    shard_tokens: int | None = None,
) -> CachePlan:
    """Say what will be written, and check that it can be. Loads no weights, writes nothing.

    Args:
        settings: Text, models and sites; `val_tokens` of held-out text are written too.
        out: The folder; one that such a call began to fill is gone on with.
        tokens: Training tokens, as far as the corpus has them.
        store_dtype: What to store; `auto`: what the language model computes in.
        device: Where the language model runs.
        shard_tokens: Tokens of a shard, which is what a kill costs; None: about 256 MB.

    Raises:
        ConfigError: A setting cannot work; the folder holds other activations; the disk has too little room.
        ModelError, SiteError, CorpusError: As for a run on this text.
    """
    for name, value in {"tokens": tokens, "shard_tokens": shard_tokens}.items():
        if value is not None and value < settings.context_size:
            row = f"{arg('context_size', 'data')} ({settings.context_size})"
            raise ConfigError(name, value, f"write {row} or more, for rows are stored whole")
    target, present = check_device(device), _present(out)
    with section("data"):
        source = _source(settings)
        if settings.dtype == "auto" and present is not None:
            # What was measured when the cache was begun, not what a busier machine would choose now.
            model_dtype = DTYPES[present.identity.model_dtype]
        else:
            model_dtype = choose_dtype(settings.dtype, target)
        stored = model_dtype if store_dtype == "auto" else DTYPES[store_dtype]
        identity = _identity(source, dtype_name(model_dtype), dtype_name(stored))
    rows: dict[Split, int] = {
        "validation": max(1, settings.val_tokens // settings.context_size),
        "train": tokens // settings.context_size,
    }
    per_shard = (shard_tokens or SHARD_BYTES // bytes_per_token(identity)) // settings.context_size
    plan = CachePlan(
        folder=Path(out),
        source=source,
        process=Process(tuple(site.ref for site in identity.sites), target, model_dtype),
        identity=identity,
        rows=rows,
        shard_rows=max(1, min(per_shard, max(rows.values()))),
        present=present,
    )
    plan.check_same(identity)
    _check_space(plan)
    return plan


def _source(settings: DataSettings) -> TextSource:
    if not settings.reads_text or settings.cache is not None:
        raise ConfigError(f"{arg('dataset')}: there is no text to run a language model over; name one.")
    refuse_groups(vars(settings))
    source = TextSource(settings, Timings())
    source.preflight()
    return source


def _sites(source: TextSource) -> tuple[CachedSite, ...]:
    """Return the sites that the settings name, each once."""
    settings = source.settings
    named = [names if isinstance(names, list) else [names] for names in (settings.site, settings.target_site)]
    names = [name for name in dict.fromkeys(chain(*named)) if name is not None]
    # Without any name, the source says that it is missing.
    refs = {name: source.site(name) for name in names} or {"": source.site(None)}
    return tuple(CachedSite(name, ref.model, ref.site, source.width(ref)) for name, ref in refs.items())


def _identity(source: TextSource, model_dtype: str, dtype: str) -> CacheIdentity:
    settings, contents = source.settings, source.contents()
    if settings.validation_split is not None:
        held_out = open_documents(settings, "validation")
        contents["validation_split"] = held_out.contents()
        held_out.close()
    return CacheIdentity(
        settings={name: getattr(settings, name) for name in TEXT_SETTINGS}
        | {name: value for name in OPTIONAL_SETTINGS if (value := getattr(settings, name)) is not None},
        sites=_sites(source),
        revision=source.description(settings.model).revision,
        contents=contents,
        tokenizer="",
        special=(),
        model_dtype=model_dtype,
        dtype=dtype,
        lightsae=version(),
    )


def _present(out: str | Path) -> Manifest | None:
    # The manifest is the first file of a cache.
    files = [path.name for path in entries(out, "for the cache") if not path.name.startswith(".partial-")]
    if files and NAME not in files:
        raise ConfigError(f"{arg('out')} is {str(out)!r}, which holds other files; name a new folder.")
    return Manifest.read(out, "out") if files else None


def _check_space(plan: CachePlan) -> None:
    """Raise where the disk lacks room for what is missing."""
    existing = next(path for path in (plan.folder, *plan.folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < plan.missing_bytes:
        raise ConfigError(
            f"{arg('out')}: {existing} has {free / 1e9:,.2f} GB free, and the cache needs "
            f"{plan.missing_bytes / 1e9:,.2f} GB more; free some, name another folder, or lower {arg('tokens')}."
        )
