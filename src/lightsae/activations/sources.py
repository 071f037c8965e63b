"""Where activations come from: language models with text, activation files, or a synthetic world.

Each origin knows its sites, makes the fills of the stream, and holds out data for validation. What the user set lives
on the data module.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightsae.activations.corpus.rows import RowSource, check_corpus
from lightsae.activations.files import ActivationFiles, Chunks, FileFills, ValidationFileRows
from lightsae.activations.fills import LanguageModelFills, Reading, ValidationRows
from lightsae.activations.stream import FillSource, Schedule
from lightsae.activations.synthetic.config import SyntheticConfig
from lightsae.activations.synthetic.fills import SITE as SYNTHETIC
from lightsae.activations.synthetic.fills import SyntheticFills, SyntheticValidation
from lightsae.activations.synthetic.world import SyntheticWorld
from lightsae.errors import ConfigError, SiteError, arg, did_you_mean, under
from lightsae.lm import LanguageModel, ModelDescription, describe
from lightsae.sae import SiteRef

if TYPE_CHECKING:
    from lightsae.activations.datamodule import ActivationDataModule

Sites = tuple[SiteRef, ...]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HeldOut = ValidationRows | ValidationFileRows | SyntheticValidation


@runtime_checkable
class Origin(Protocol):
    """One kind of source."""

    def preflight(self) -> None:
        """Check that everything exists and fits, without loading weights or text."""

    def site(self, name: str | None) -> SiteRef:
        """Return the site that a user's name means; None: the only one."""

    def width(self, site: SiteRef) -> int:
        """Return the width of a site."""

    def fill_size(self, world: int) -> tuple[int, int]:
        """Return the rows of one rank's fill, and the tokens that it serves of them."""

    def epoch_tokens(self) -> int | None:
        """Return the training tokens of an epoch; None where there are no epochs."""

    def fills(self, schedule: Schedule, sites: Sites, fill_rows: int, device: torch.device) -> FillSource:
        """Return what makes the numbered fills."""

    def held_out(self, sites: Sites, device: torch.device, rank: int, world: int) -> HeldOut:
        """Return the validation batches of a rank."""

    def describe(self) -> dict[str, Any]:
        """Return where the activations come from, in plain values."""


class TextOrigin:
    """Text, run through one language model or several."""

    def __init__(self, data: "ActivationDataModule") -> None:
        self.data = data

    def preflight(self) -> None:
        data = self.data
        if data.dataset is None:
            raise ConfigError(f"{arg('dataset')} is missing: name a text dataset, a file, or `builtin`.")
        for name in (data.model, *data.more_models.values()):
            longest = self._description(name).max_context
            if longest is not None and data.context_size > longest:
                raise ConfigError(
                    f"{arg('context_size')} is {data.context_size}, but {name!r} reads {longest} tokens at most."
                )
        check_corpus(data.corpus)

    def site(self, name: str | None) -> SiteRef:
        data = self.data
        if name is None:
            raise ConfigError(
                f"{arg('site')} is missing: say where to read, for example resid_post.2. "
                f"List them: lightsae sites {data.model}"
            )
        model, colon, site = name.rpartition(":")
        if not colon:
            return SiteRef(data.model, name)
        if model not in data.more_models:
            known = ", ".join(data.more_models) or "none"
            raise SiteError(
                f"{arg('site')} is {name!r}, but {model!r} is no name in {arg('more_models')} (there: {known})."
                + did_you_mean(model, data.more_models)
            )
        return SiteRef(data.more_models[model], site)

    def width(self, site: SiteRef) -> int:
        with self._argument_of(site.model):
            return self._description(site.model).width(site.site)

    def _description(self, name: str) -> ModelDescription:
        data = self.data
        revision = data.model_revision if name == data.model else None
        with self._argument_of(name):
            return describe(name, revision=revision, trust_remote_code=data.trust_remote_code)

    def _argument_of(self, name: str) -> AbstractContextManager[None]:
        """Say of errors about a model which setting names it."""
        more = next((short for short, model in self.data.more_models.items() if model == name), None)
        called = "model" if name == self.data.model or more is None else f"more_models.{more}"
        return under(name_or_path=called, revision="model_revision")

    def fill_size(self, world: int) -> tuple[int, int]:
        data = self.data
        rows = data.buffer_tokens // data.context_size
        return rows, rows * (data.context_size - data.skip_positions)

    def epoch_tokens(self) -> int | None:
        return None

    def fills(self, schedule: Schedule, sites: Sites, fill_rows: int, device: torch.device) -> LanguageModelFills:
        data, models = self.data, self._models(sites, device)
        fills = -(-schedule.total_batches // schedule.batches_per_fill)
        per_block = max(1, min(fills, data.shuffle_tokens // (fill_rows * data.context_size * schedule.world)))
        rows = RowSource(data.corpus, self._tokenizer(models), "train")
        reading = self._reading(sites, device)
        return LanguageModelFills(rows, models, reading, schedule, fill_rows, per_block, data.timings)

    def held_out(self, sites: Sites, device: torch.device, rank: int, world: int) -> ValidationRows:
        data, models = self.data, self._models(sites, device)
        source = RowSource(data.corpus, self._tokenizer(models), "validation")
        rows = source.take(max(1, data.val_tokens // data.context_size))
        source.close()
        if (found := rows.tokens.size) < data.val_tokens // 2:
            rank_zero_warn(f"Only {found} held-out tokens; val_tokens asks for {data.val_tokens}.")
        in_batch = max(1, data.batch_tokens // data.context_size)
        return ValidationRows(rows, models, self._reading(sites, device), in_batch, rank, world, data.timings)

    def _tokenizer(self, models: dict[str, LanguageModel]) -> Any:
        with self._argument_of(self.data.model):
            return models[self.data.model].tokenizer

    def _reading(self, sites: Sites, device: torch.device) -> Reading:
        data = self.data
        return Reading(
            sites=sites,
            dtype=buffer_dtype(data.dtype, device),
            rows_at_once=max(1, data.model_batch_tokens // data.context_size),
            skip_special=data.skip_special_tokens,
            skip_positions=data.skip_positions,
        )

    def _models(self, sites: Sites, device: torch.device) -> dict[str, LanguageModel]:
        """Load the models that are read, the main one first: it brings the tokenizer."""
        data = self.data
        callbacks = getattr(data.trainer, "callbacks", [])
        whole = any(getattr(callback, "needs_full_language_model", False) for callback in callbacks)
        for name in dict.fromkeys([data.model, *(site.model for site in sites)]):
            if name in data.language_models:
                continue
            main = data.language_models.get(data.model)
            with self._argument_of(name):
                model = LanguageModel.from_pretrained(
                    name,
                    revision=data.model_revision if name == data.model else None,
                    dtype=data.dtype,
                    device=device,
                    sites=None if whole else [site.site for site in sites if site.model == name],
                    trust_remote_code=data.trust_remote_code,
                )
                same = main is None or model.tokenizer.get_vocab() == main.tokenizer.get_vocab()
            if not same:
                raise ConfigError(
                    f"{arg('more_models')}: {name!r} has another vocabulary than {arg('model')} {data.model!r}; "
                    "models that read the same tokens need the same one."
                )
            data.language_models[name] = model
        return data.language_models

    def describe(self) -> dict[str, Any]:
        data = self.data
        main = data.language_models.get(data.model)
        return {
            "model": data.model,
            "model_revision": main.revision if main is not None else data.model_revision,
            **({"more_models": data.more_models} if data.more_models else {}),
            "site": data.site,
            **({"target_site": data.target_site} if data.target_site is not None else {}),
            "dataset": data.dataset,
            "dataset_config": data.corpus.dataset_config,
            "dataset_split": data.corpus.dataset_split,
            "dataset_revision": data.corpus.dataset_revision,
            "context_size": data.context_size,
            "prepend_bos": data.corpus.prepend_bos,
            "normalisation": data.normalisation,
            "skip_special_tokens": data.skip_special_tokens,
            "skip_positions": data.skip_positions,
            "seed": data.seed,
        }


class FileOrigin:
    """Files of activations, with one site."""

    def __init__(self, data: "ActivationDataModule", location: str) -> None:
        self.data, self.location = data, location
        self._opened: ActivationFiles | None = None

    @property
    def files(self) -> ActivationFiles:
        if self._opened is None:
            self._opened = ActivationFiles(self.location)
        return self._opened

    def preflight(self) -> None:
        _ = self.files

    def site(self, name: str | None) -> SiteRef:
        return only_site(self.files.site, name, f"{arg('activations')} ({self.location})")

    def width(self, site: SiteRef) -> int:
        return self.files.width

    def fill_size(self, world: int) -> tuple[int, int]:
        chunks = self._chunks()
        rows = chunks.in_fill(self.data.buffer_tokens, self.data.batch_tokens, world) * chunks.size
        return rows, rows

    def epoch_tokens(self) -> int | None:
        return int(len(self.files) * (1 - self.data.validation_fraction))

    def fills(self, schedule: Schedule, sites: Sites, fill_rows: int, device: torch.device) -> FileFills:
        chunks, dtype = self._chunks(), buffer_dtype(self.data.dtype, device)
        in_fill = fill_rows // chunks.size
        return FileFills(self.files, chunks, schedule, in_fill, dtype, device, self.data.timings)

    def held_out(self, sites: Sites, device: torch.device, rank: int, world: int) -> ValidationFileRows:
        data, dtype = self.data, buffer_dtype(self.data.dtype, device)
        return ValidationFileRows(
            self.files, self._chunks(), data.val_tokens, data.batch_tokens, dtype, device, rank, world
        )

    def _chunks(self) -> Chunks:
        return Chunks(len(self.files), self.data.validation_fraction, self.data.buffer_tokens)

    def describe(self) -> dict[str, Any]:
        data = self.data
        return {"activations": Path(self.location).name, "normalisation": data.normalisation, "seed": data.seed}


class SyntheticOrigin:
    """Sums of known features, with one site."""

    def __init__(self, data: "ActivationDataModule", config: SyntheticConfig) -> None:
        with under("synthetic"):
            self.data, self.world = data, SyntheticWorld(config)

    def preflight(self) -> None:
        pass

    def site(self, name: str | None) -> SiteRef:
        return only_site(SYNTHETIC, name, f"{arg('dataset')} synthetic")

    def width(self, site: SiteRef) -> int:
        return self.world.width

    def fill_size(self, world: int) -> tuple[int, int]:
        tokens = self.data.buffer_tokens // self.data.batch_tokens * self.data.batch_tokens
        return tokens, tokens

    def epoch_tokens(self) -> int | None:
        return None

    def fills(self, schedule: Schedule, sites: Sites, fill_rows: int, device: torch.device) -> SyntheticFills:
        dtype = buffer_dtype(self.data.dtype, device)
        return SyntheticFills(self.world, schedule, fill_rows, dtype, device, self.data.timings)

    def held_out(self, sites: Sites, device: torch.device, rank: int, world: int) -> SyntheticValidation:
        data, dtype = self.data, buffer_dtype(self.data.dtype, device)
        return SyntheticValidation(
            self.world, data.val_tokens, data.batch_tokens, dtype, device, data.seed, rank, world
        )

    def describe(self) -> dict[str, Any]:
        data = self.data
        return {
            "dataset": "synthetic",
            "synthetic": self.world.config.__dict__,
            "normalisation": data.normalisation,
            "seed": data.seed,
        }


def only_site(there: SiteRef, name: str | None, where: str) -> SiteRef:
    """Return the one site of an origin, which needs no name.

    Raises:
        SiteError: Another one is asked for.
    """
    if name not in (None, there.site):
        raise SiteError(
            f"{arg('site')} is {name!r}, but {where} has one site, {there.site!r}; leave {arg('site')} out."
        )
    return there


def buffer_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the buffer: bfloat16 on accelerators, where the user says `auto`."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]


def union(parts: Sequence[Sites]) -> Sites:
    """Return every site of the parts once, in order."""
    return tuple(dict.fromkeys(site for part in parts for site in part))
