"""Activations made of text by language models."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightsae.activations.contents import Contents, digests_of_files
from lightsae.activations.corpus.documents import Split
from lightsae.activations.corpus.mixture import Rows, entry_of, open_rows
from lightsae.activations.corpus.open import check_corpus, open_documents
from lightsae.activations.fills import LanguageModelFills, ReadSettings, validation_rows
from lightsae.activations.settings import DataSettings
from lightsae.activations.sources import ActivationSource
from lightsae.activations.stream import FillSource, HeldOut, Process, StreamPlan
from lightsae.activations.timings import Timings
from lightsae.errors import ConfigError, SiteError, arg, did_you_mean, under
from lightsae.lm import LanguageModel, ModelDescription, describe
from lightsae.lm.dtypes import dtype_name
from lightsae.lm.placement import Placement, loading_arguments
from lightsae.sae import SiteRef


class TextSource(ActivationSource):
    """Text, run through one language model or several."""

    def __init__(self, settings: DataSettings, timings: Timings) -> None:
        super().__init__(settings, timings)
        self.more_models = settings.more_models or {}
        self._descriptions: dict[str, ModelDescription] = {}

    @property
    def predicts_tokens(self) -> bool:
        return self.description(self.settings.model).has_next_token_head

    def preflight(self) -> None:
        settings = self.settings
        datasets = settings.each_dataset()  # missing is said before the model is looked for
        placement = Placement.of(settings.quantization, settings.device, settings.device_map)
        for name in (settings.model, *self.more_models.values()):
            description = self.description(name)
            with self._argument_of(name):
                placement.check_model(name, description.model.config)
            if description.reads_images:
                raise ConfigError(
                    f"{arg('model')} is {name!r}, which reads images, not text. Write its activations to a file "
                    f"(`LanguageModel.capture` takes pixel values) and train on that: {arg('activations')}."
                )
            longest = description.max_context
            if longest is not None and settings.context_size > longest:
                raise ConfigError(
                    f"{arg('context_size')} is {settings.context_size}, but {name!r} reads {longest} tokens at most."
                )
        for name, dataset in datasets.items():
            with nullcontext() if settings.datasets is None else entry_of(name):
                check_corpus(dataset)

    def site(self, name: str | None) -> SiteRef:
        if name is None:
            raise ConfigError(
                f"{arg('site')} is missing: say where to read, for example resid_post.2. "
                f"List them: lightsae sites {self.settings.model}"
            )
        model, colon, site = name.rpartition(":")
        if not colon:
            return SiteRef(self.settings.model, name)
        if model not in self.more_models:
            known = ", ".join(self.more_models) or "none"
            raise SiteError(
                f"{arg('site')} is {name!r}, but {model!r} is no name in {arg('more_models')} (there: {known})."
                + did_you_mean(model, self.more_models)
            )
        return SiteRef(self.more_models[model], site)

    def width(self, site: SiteRef) -> int:
        description = self.description(site.model)
        with self._argument_of(site.model):
            return description.width(site.site)

    def description(self, name: str) -> ModelDescription:
        """Describe one of the models by its config.json, which is read once."""
        if name not in self._descriptions:
            trust = self.settings.trust_remote_code
            with self._argument_of(name):
                self._descriptions[name] = describe(name, revision=self._revision(name), trust_remote_code=trust)
        return self._descriptions[name]

    def _revision(self, name: str) -> str | None:
        return self.settings.model_revision if name == self.settings.model else None

    def _argument_of(self, name: str) -> AbstractContextManager[None]:
        """Say in errors about a model which setting names it."""
        more = next((short for short, model in self.more_models.items() if model == name), None)
        called = "model" if name == self.settings.model or more is None else f"more_models.{more}"
        return under(name_or_path=called, revision="model_revision")

    @property
    def _fill_rows(self) -> int:
        return self.settings.buffer_tokens // self.settings.context_size

    def fill_tokens(self, world: int) -> int:
        return self._fill_rows * (self.settings.context_size - self.settings.skip_positions)

    def fills(self, plan: StreamPlan, process: Process) -> FillSource:
        settings, models, fill_rows = self.settings, self.models(process), self._fill_rows
        fills = -(-plan.total_batches // plan.batches_per_fill)
        per_block = max(1, min(fills, settings.shuffle_tokens // (fill_rows * settings.context_size * plan.world)))
        rows, read = self.rows("train"), self.read_settings(process)
        return LanguageModelFills(rows, models, read, plan, fill_rows, per_block, self.timings)

    def held_out(self, process: Process) -> HeldOut:
        settings, models = self.settings, self.models(process)
        source = self.rows("validation")
        rows = source.take(max(1, settings.val_tokens // settings.context_size))
        source.close()
        if rows.tokens.size < settings.val_tokens // 2:
            rank_zero_warn(f"Only {rows.tokens.size} held-out tokens; val_tokens asks for {settings.val_tokens}.")
        in_batch = max(1, settings.batch_tokens // settings.context_size)
        read = self.read_settings(process)
        return validation_rows(rows, models, read, in_batch, process, self.timings)

    def rows(self, split: Split, *, once: bool = False) -> Rows:
        """Return the token rows of one side of the corpus, for models that are loaded; see `RowSource`."""
        main = self.language_models[self.settings.model].vocabulary
        # Every model gets the same ids.
        sizes = [size for model in self.language_models.values() if (size := model.vocabulary.size) is not None]
        rows = open_rows(self.settings, replace(main, size=min(sizes, default=None)), split, once=once)
        roles = self.settings.roles
        for name, source in rows.sources.items():
            if roles is not None and not source.conversations and "text" not in roles:
                raise ConfigError(
                    f"{arg('roles')} is {roles}, but {name} holds no conversations; add text to train on all of it, or "
                    "leave it out."
                )
        return rows

    def read_settings(self, process: Process) -> ReadSettings:
        """Return how token rows become activations."""
        settings = self.settings
        return ReadSettings(
            sites=process.sites,
            dtype=process.dtype,
            rows_at_once=max(1, settings.model_batch_tokens // settings.context_size),
            skip_special=settings.skip_special_tokens,
            skip_positions=settings.skip_positions,
            roles=None if settings.roles is None else tuple(settings.roles),
        )

    def models(self, process: Process) -> dict[str, LanguageModel]:
        """Load the models that are read, the main one first: it brings the tokenizer."""
        settings, models = self.settings, self.language_models
        for name in dict.fromkeys([settings.model, *(site.model for site in process.sites)]):
            if name in models:
                continue
            sites = None if process.whole_models else [s.site for s in process.sites if s.model == name]
            with self._argument_of(name):
                model = self._load(name, process.dtype, process.device, sites)
                main = models.get(settings.model, model)
                same = model is main or model.vocabulary.has_words_of(main.vocabulary)
            if not same:
                raise ConfigError(
                    f"{arg('more_models')}: {name!r} has another vocabulary than {arg('model')} {settings.model!r}; "
                    "models that read the same tokens need the same one."
                )
            models[name] = model
        return models

    def _load(self, name: str, dtype: torch.dtype, device: torch.device, sites: Sequence[str] | None) -> LanguageModel:
        settings = self.settings
        return LanguageModel.from_pretrained(
            name,
            revision=self._revision(name),
            dtype=dtype,
            sites=sites,
            trust_remote_code=settings.trust_remote_code,
            **loading_arguments(settings.quantization, settings.device_map, device, settings.device),
        )

    def whole_model(self) -> LanguageModel:
        """Return the main model with all of its layers and its head; what was loaded of it so far makes room for it."""
        name = self.settings.model
        loaded = self.language_models[name]
        if not loaded.has_next_token_head:
            # The same mapping is what the fills read from: the blocks up to a site give the same bits.
            with self._argument_of(name):
                self.language_models[name] = self._load(name, loaded.dtype, loaded.device, None)
        return self.language_models[name]

    def contents(self) -> Contents:
        contents: Contents = {}
        for name, dataset in self.settings.each_dataset().items():
            with nullcontext() if self.settings.datasets is None else entry_of(name):
                documents = open_documents(dataset, "train")
                contents["dataset" if self.settings.datasets is None else f"datasets.{name}"] = documents.contents()
                documents.close()
        if (template := self.settings.chat_template) is not None:
            path = Path(template).expanduser()
            contents["chat_template"] = digests_of_files([path], path.parent)
        return {**contents, "model": self.contents_of_models()}

    def contents_of_models(self) -> dict[str, str]:
        """Return a digest of each file of the models; the commit of one from the Hub."""
        models: dict[str, str] = {}
        for name in dict.fromkeys([self.settings.model, *self.more_models.values()]):
            description = self.description(name)
            if files := description.files:
                held = digests_of_files(files, files[0].parent)
                models |= {f"{file} of {name}": content for file, content in held.items()}
            elif description.revision is not None:
                models[name] = description.revision
        return models

    def describe(self) -> dict[str, Any]:
        settings, main = self.settings, self.language_models.get(self.settings.model)
        names = (
            *("model", "model_revision", "more_models", "site", "target_site"),
            *("dataset", "dataset_config", "dataset_split", "dataset_revision", "context_size", "prepend_bos"),
            *("normalisation", "skip_special_tokens", "skip_positions", "seed"),
            *("datasets", "roles", "chat_template", "quantization"),
        )
        values = {name: getattr(settings, name) for name in names}
        if settings.datasets is not None:
            parts = [vars(part).items() for part in settings.datasets]
            values["datasets"] = [{name: value for name, value in part if value is not None} for part in parts]
        if main is not None:
            values |= {"model_revision": main.revision, "dtype": dtype_name(main.dtype)}
        optional = ("more_models", "target_site", "datasets", "roles", "chat_template", "quantization")
        return {name: value for name, value in values.items() if value or name not in optional}
