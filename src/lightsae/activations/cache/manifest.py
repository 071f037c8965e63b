"""What a cache of activations says of itself: what they depend on, and which shards hold them.

cache.json is written anew after each shard, so that it never names one that is not whole on the disk.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lightsae.activations.contents import Contents, digest
from lightsae.activations.corpus.documents import Split
from lightsae.activations.settings import DataSettings
from lightsae.errors import ConfigError, CorpusError, SiteError, arg, under
from lightsae.formats.files import check_version, read_json, write_json
from lightsae.sae.sites import SiteRef
from lightsae.stored import misfit

NAME = "cache.json"
VERSION = 1
# Settings that say what the tokens are and who reads them. A run on a cache has those of the cache.
TEXT_SETTINGS = (
    *("model", "model_revision", "more_models", "context_size", "prepend_bos"),
    *("dataset", "dataset_config", "dataset_split", "dataset_revision", "text_column", "chat_template"),
    *("streaming", "validation_split", "validation_fraction"),
)
# Those that an identity leaves out where they are not set: caches from before there were any go on.
OPTIONAL_SETTINGS = ("quantization",)
AGAIN = "`lightsae cache` with the same settings makes it again"


@dataclass(frozen=True)
class CachedSite:
    """A site that a cache holds.

    Attributes:
        name: As a user writes it, `chat:resid_post.6`; also that of its tensors.
        model: The language model.
        site: The site in it.
        width: Its width.
    """

    name: str
    model: str
    site: str
    width: int

    @property
    def ref(self) -> SiteRef:
        return SiteRef(self.model, self.site)


@dataclass(frozen=True)
class CacheIdentity:
    """All that the activations of a cache depend on.

    Attributes:
        settings: Those of `TEXT_SETTINGS`, and of `OPTIONAL_SETTINGS` where they are set.
        sites: Where they were read.
        revision: Commit of the model, where the Hub told it.
        contents: Digests of the corpus, of the weights and of the tokenizer's file.
        tokenizer: Digest of the model's vocabulary; empty without a tokenizer.
        special: Ids of special tokens.
        model_dtype: What the language model computed in.
        dtype: What the activations are stored in.
        lightsae: Version that wrote them.
    """

    settings: dict[str, Any]
    sites: tuple[CachedSite, ...]
    revision: str | None
    contents: Contents
    tokenizer: str
    special: tuple[int, ...]
    model_dtype: str
    dtype: str
    lightsae: str

    @property
    def fingerprint(self) -> str:
        """A digest of all of it."""
        return digest([json.dumps(asdict(self), sort_keys=True).encode()])

    def difference(self, now: "CacheIdentity") -> str | None:
        """Return in words the first difference of a cache from what would be written now; None if there is none."""
        for name in dict.fromkeys((*self.settings, *now.settings)):
            if (stored := self.settings.get(name)) != (value := now.settings.get(name)):
                return f"{arg(name, 'data')} is {value!r}, and was {stored!r}"
        if self.sites != now.sites:
            names, before = (", ".join(site.name for site in sites) for sites in (now.sites, self.sites))
            return f"{arg('site', 'data')} is {names}, and was {before}"
        for what, held in now.contents.items():
            for part, value in held.items():
                if self.contents.get(what, {}).get(part) != value:
                    return f"{arg(what, 'data')}: what {part} holds has changed since"
        if self.tokenizer != now.tokenizer or self.special != now.special:
            return f"the tokenizer of {now.settings['model']!r} is another one now"
        plain = {"revision": arg("model_revision", "data"), "model_dtype": arg("dtype", "data")}
        plain |= {"dtype": "the dtype of the shards"}
        for name, words in (plain | {"lightsae": "the version of lightsae"}).items():
            stored, value = getattr(self, name), getattr(now, name)
            if stored != value:
                return f"{words} is {value}, and was {stored}"
        return None


@dataclass(frozen=True)
class ShardEntry:
    """One file of a cache.

    Attributes:
        split: The side of the corpus that its rows come from.
        file: Its name in the folder.
        rows: Token rows in it.
        bytes: Its size.
        sample: Digest of bytes from all over it; see `contents.sampled_digest`.
        sha256: Digest of all of it.
        end: Place in the corpus after it: what a `RowSource` goes on from.
    """

    split: Split
    file: str
    rows: int
    bytes: int
    sample: str
    sha256: str
    end: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What stands in cache.json.

    Attributes:
        identity: What the activations depend on.
        shards: Those that are whole on the disk, in the order of the corpus; validation first.
        complete: Whether all that was asked for is there.
    """

    identity: CacheIdentity
    shards: tuple[ShardEntry, ...] = ()
    complete: bool = False

    @property
    def digest(self) -> str:
        """A digest of what the cache holds."""
        held = [(shard.file, shard.rows, shard.sha256) for shard in self.shards]
        return digest([json.dumps([self.identity.fingerprint, held]).encode()])

    def of(self, split: Split) -> list[ShardEntry]:
        """Return the shards of one side of the corpus."""
        return [shard for shard in self.shards if shard.split == split]

    def rows(self, split: Split) -> int:
        """Return the token rows of one side of the corpus."""
        return sum(shard.rows for shard in self.of(split))

    def tokens(self, split: Split) -> int:
        """Return the tokens of one side of the corpus."""
        context: int = self.identity.settings["context_size"]
        return self.rows(split) * context

    def with_shard(self, shard: ShardEntry) -> "Manifest":
        """Return it with one more shard, or with another in the place of one of that name."""
        if any(known.file == shard.file for known in self.shards):
            return replace(self, shards=tuple(shard if s.file == shard.file else s for s in self.shards))
        return replace(self, shards=(*self.shards, shard))

    def write(self, folder: Path) -> None:
        """Write it, in the place of the one that is there."""
        values = {"format_version": VERSION, "fingerprint": self.identity.fingerprint, **asdict(self)}
        write_json(folder / NAME, values, indent=1, finite=False, ascii_only=True)

    @classmethod
    def read(cls, folder: str | Path, argument: str = "cache") -> "Manifest":
        """Read the manifest of a folder, whether the cache is complete or not.

        Args:
            folder: As the user wrote it.
            argument: What the caller calls it.

        Raises:
            FormatError: There is none, or a newer version wrote it.
            CorpusError: It is damaged.
        """
        with under(folder=argument):
            values = read_json(folder, NAME, "`lightsae cache` writes one.", AGAIN)
        written = str(Path(folder, NAME))
        check_version(values, written, "format_version", VERSION, AGAIN)
        if (problem := misfit(values, _EXPECTED)) or (problem := _misfit_of_lists(values)):
            raise CorpusError(f"{arg(argument)}: {written} cannot be used: {problem}; {AGAIN}.")
        told = values["identity"]
        sites = tuple(CachedSite(**{name: site[name] for name in _SITE}) for site in told["sites"])
        identity = CacheIdentity(**{**told, "sites": sites, "special": tuple(told["special"])})
        if identity.fingerprint != values["fingerprint"]:
            raise CorpusError(f"{arg(argument)}: {written} has been changed: its fingerprint is another one; {AGAIN}.")
        shards = tuple(ShardEntry(**{name: shard[name] for name in _SHARD}) for shard in values["shards"])
        return cls(identity, shards, values["complete"])


_SITE = {"name": "", "model": "", "site": "", "width": 0}
_SHARD = {"split": "", "file": "", "rows": 0, "bytes": 0, "sample": "", "sha256": "", "end": {}}
_IDENTITY = {
    "settings": {name: None for name in TEXT_SETTINGS} | {"model": "", "dataset": "", "context_size": 0},
    **{"sites": None, "revision": None, "contents": {}, "tokenizer": "", "special": None},
    **{"model_dtype": "", "dtype": "", "lightsae": ""},
}
_EXPECTED = {"fingerprint": "", "complete": False, "identity": _IDENTITY, "shards": None}


def _misfit_of_lists(values: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the lists of a manifest, of which nobody knows the length beforehand."""
    identity = values["identity"]
    lists = {"sites": (identity["sites"], _SITE), "shards": (values["shards"], _SHARD)}
    for name, (found, one) in lists.items():
        if problem := misfit(found, [one] * len(found) if isinstance(found, list) else [], name):
            return problem
    if set(identity) != set(_IDENTITY) or not identity["sites"]:
        return "identity has other entries"
    if not isinstance(identity["special"], list) or not all(type(token) is int for token in identity["special"]):
        return "identity.special is no list of token ids"
    for shard in values["shards"]:
        if Path(shard["file"]).name != shard["file"] or shard["split"] not in ("train", "validation"):
            return f"{shard['file']!r} is no shard"
        if shard["rows"] == 0:
            return f"{shard['file']} has no rows"
    return "context_size is 0" if identity["settings"]["context_size"] == 0 else None


@dataclass(frozen=True)
class Cache:
    """A complete cache: its folder with its manifest.

    Attributes:
        folder: As the user wrote it.
        manifest: What stands in it.
    """

    folder: str
    manifest: Manifest = field(repr=False)

    @classmethod
    def open(cls, folder: str) -> "Cache":
        """Read the manifest.

        Raises:
            FormatError, CorpusError: As `Manifest.read`; or the cache is not complete.
        """
        manifest = Manifest.read(folder)
        if not manifest.complete or not manifest.of("train") or not manifest.of("validation"):
            tokens = manifest.tokens("train")
            raise CorpusError(
                f"{arg('cache')} is {folder!r}, which is not complete: it has {tokens:,} training tokens so far. "
                "`lightsae cache` with the same settings goes on with it."
            )
        return cls(folder, manifest)

    @property
    def identity(self) -> CacheIdentity:
        return self.manifest.identity

    @property
    def sites(self) -> dict[SiteRef, CachedSite]:
        return {site.ref: site for site in self.identity.sites}

    def text_settings(self, settings: DataSettings) -> dict[str, Any]:
        """Return the settings of the text for a run with these settings, which say nothing else about it.

        Raises:
            ConfigError: They do.
        """
        refuse_groups(vars(settings))
        kept = dict.fromkeys(OPTIONAL_SETTINGS) | self.identity.settings
        for name, stored in kept.items():
            value = getattr(settings, name)
            if value not in (stored, getattr(DataSettings, name)):
                raise ConfigError(
                    f"{arg(name)} is {value!r}, but {arg('cache')} {self.folder!r} was made with {stored!r}; "
                    f"leave {arg(name)} out, or write a cache of its own."
                )
        return kept

    def site(self, name: str | None) -> CachedSite:
        """Return the site that a user's name means; None: the only one.

        Raises:
            SiteError: The cache does not hold it.
            ConfigError: It holds several, and none is named.
        """
        return named_site(self.identity.sites, name, self.folder)


def refuse_groups(settings: Mapping[str, Any]) -> None:
    """Hold settings of the data, by name, against what a cache cannot keep.

    Raises:
        ConfigError: They name a mixture of datasets, or roles: a cache of all tokens is not what such a run trains on.
    """
    for name in ("datasets", "roles"):
        if settings.get(name) is not None:
            raise ConfigError(f"{arg(name)}: a cache keeps neither datasets nor roles apart; leave it out.")


def named_site(sites: Sequence[CachedSite], name: str | None, folder: str) -> CachedSite:
    """Return one of the sites of a cache; see `Cache.site`."""
    by_name = {site.name: site for site in sites}
    there = ", ".join(by_name)
    if name is None and len(sites) == 1:
        return sites[0]
    if name is None:
        raise ConfigError(f"{arg('site')} is missing: the cache {folder!r} holds {there}; name what to read.")
    if name not in by_name:
        raise SiteError(
            f"{arg('site')} is {name!r}, but {arg('cache')} {folder!r} holds {there}; name one of them, or write a "
            f"cache with {name}."
        )
    return by_name[name]
