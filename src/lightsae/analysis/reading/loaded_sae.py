"""An SAE with what it needs to be read: the language models of its sites and its corpus, as its export tells."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lightsae.activations.fills import ReadSettings
from lightsae.activations.settings import DataSettings, MixedDataset, described
from lightsae.analysis.reading.models import LanguageModels
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import CorpusRows, TextRows
from lightsae.errors import ConfigError, FormatError, ModelError, arg, reading, under
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm import LanguageModel, describe
from lightsae.lm.placement import check_choices, loading_arguments, quantization_of
from lightsae.lm.random_weights import split_name
from lightsae.sae import SiteRef, SparseAutoencoder

# Settings of `data:` that say what the text is.
_CORPUS = (
    "dataset",
    "dataset_config",
    "dataset_split",
    "dataset_revision",
    "validation_split",
    "validation_fraction",
    "text_column",
    "streaming",
    "context_size",
    "prepend_bos",
    "datasets",
    "roles",
    "chat_template",
)
_OPTIONAL = ("datasets", "roles", "chat_template")


@dataclass(frozen=True)
class TextSettings:
    """Settings that take the place of those the SAE was trained with; None: as it was trained.

    Attributes:
        model: Language model, if the one of the training has another name here: Hub name, folder, or `builtin`.
        site: Where an SAE reads whose file does not say it: `resid_post.6`, ...; `lightsae sites MODEL` lists them.
        target_site: What such a transcoder predicts.
        dataset: Another corpus; as in `lightsae fit`.
        device: Where the models run: `cpu`, `cuda`, `cuda:1`, ...; with device_map where the SAE does.
        quantization: Round the language model's weights: `8bit`, `4bit`, or `none`.

    Raises:
        ConfigError: `model_batch_tokens` is below 1, or `quantization` or `device_map` is none that is known.
    """

    model: str | None = None
    site: str | None = None
    target_site: str | None = None
    model_revision: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    validation_split: str | None = None
    text_column: str | None = None
    roles: list[str] | None = None
    chat_template: str | None = None
    context_size: int | None = None
    dtype: str | None = None
    model_batch_tokens: int = DataSettings.model_batch_tokens
    num_workers: int = DataSettings.num_workers
    device: str = "cpu"
    trust_remote_code: bool = False
    quantization: Literal["none", "8bit", "4bit"] | None = None
    device_map: str | dict[str, int | str] | None = None

    def __post_init__(self) -> None:
        if self.model_batch_tokens < 1:
            raise ConfigError("model_batch_tokens", self.model_batch_tokens, "it must be at least 1")
        check_choices(quantization_of(self.quantization, None), None, self.device_map)

    def placement(self, trained: str | None) -> dict[str, Any]:
        """Return the arguments of `LanguageModel.from_pretrained` that say where a model goes, and rounded to what.

        Args:
            trained: What it was rounded to in the SAE's training.
        """
        return loading_arguments(quantization_of(self.quantization, trained), self.device_map, self.device)


_SAID = ("model", "site", "target_site", "dataset", "device", "quantization")
# What the other settings mean is said where they are declared.
_SHARED = described(*(field.name for field in fields(TextSettings) if field.name not in _SAID))
TextSettings.__doc__ = inspect.cleandoc(TextSettings.__doc__ or "").replace("\n\nRaises:", f"\n{_SHARED}\n\nRaises:")


@dataclass(frozen=True)
class LoadedSAE:
    """An SAE with what it needs to be read.

    Attributes:
        saved: The SAE and what its export says of it.
        models: Language models by the names that the SAE's sites have, the main one first.
        corpus: Its text.
        reading: How rows become activations.
    """

    saved: SavedSAE
    models: dict[str, LanguageModel]
    corpus: DataSettings
    reading: ReadSettings

    @classmethod
    def load(
        cls,
        sae: SavedSAE | str | Path,
        settings: TextSettings,
        *,
        whole_model: bool = True,
        shared: LanguageModels | None = None,
    ) -> "LoadedSAE":
        """Load an SAE, and the language models that it reads.

        Args:
            sae: It, or its folder or file; see `SavedSAE.open`.
            settings: What differs from the training.
            whole_model: Load all layers and the head, not only what lies before the sites.
            shared: Language models that other SAEs have loaded, to which these are added; None: none.

        Raises:
            FormatError: The folder holds no SAE.
            ConfigError: Neither the SAE's file nor the settings say what model and site it is of, or what text to read;
                or rows are longer than a language model reads.
            ModelError: A language model cannot be had, or is not the one that the SAE reads.
            SiteError: It has no such site.
        """
        saved = open_sae(sae, settings)
        if missing := saved.unknown:
            if not saved.can_be_named:
                raise ConfigError(
                    f"{arg('sae')} is {str(sae)!r}, which reads several sites and does not say which; they cannot be "
                    "named. In Python lightsae.load_sae opens it for activations that you have."
                )
            words = {"model": "the model", "site": "the site", "target_site": "the site that it predicts"}
            raise ConfigError(
                f"{arg('sae')} is {str(sae)!r}, which was trained on activations without a language model, or does not "
                f"say of which; name {', '.join(words[one] for one in missing)}: "
                f"{' '.join(f'--data.{one} {one.upper()}' for one in missing)} (lightsae sites MODEL lists sites)."
            )
        trained, widths = saved.provenance, saved.sae.widths.read | saved.sae.widths.predicted
        names = list(dict.fromkeys(site.model for site in widths))
        corpus = _corpus(trained.data, settings, sae)
        models = {}
        for name in names:
            is_main = name == names[0]
            with under(name_or_path="model", revision="model_revision"):
                model = (shared or LanguageModels()).load(
                    settings.model if settings.model is not None and is_main else name,
                    known_as=name,
                    revision=settings.model_revision or (trained.revision if is_main else None),
                    dtype=settings.dtype or trained.dtype or "auto",
                    sites=None if whole_model else [site.site for site in widths if site.model == name],
                    trust_remote_code=settings.trust_remote_code,
                    **settings.placement(trained.quantization),
                )
            _check_fits(model, widths, name, corpus.context_size)
            _check_weights(model, name)
            # The SAE knows its model by the name that it was trained under.
            model.name = name
            models[name] = model
        reading = ReadSettings(
            sites=tuple(saved.sae.widths.read),
            dtype=torch.float32,
            rows_at_once=max(1, settings.model_batch_tokens // corpus.context_size),
            skip_special=trained.skip_special_tokens,
            skip_positions=trained.skip_positions,
            roles=None if corpus.roles is None else tuple(corpus.roles),
        )
        return cls(saved, models, corpus, reading)

    @property
    def sae(self) -> SparseAutoencoder:
        """The SAE in eval mode."""
        return self.saved.sae

    @property
    def main_model(self) -> LanguageModel:
        """The model whose tokenizer makes the rows."""
        return next(iter(self.models.values()))

    def reader(self, beside: tuple[SiteRef, ...] = ()) -> ActivationReader:
        """Return what turns rows into the activations that the SAE reads, and those at further sites."""
        return ActivationReader(self.models, self.reading, beside)

    def held_out_rows(self, tokens: int) -> TextRows:
        """Return rows of held-out text, about `tokens` in all, at least one row."""
        rows = CorpusRows(self.corpus, self.main_model.vocabulary, "validation", tokens)
        context = self.corpus.context_size
        return next(rows.batches(max(1, tokens // context)), TextRows.gather([], context))

    def tokenizer_entry(self) -> dict[str, Any]:
        """Return what a manifest says of the tokenizer: a hash of its vocabulary."""
        return {"name": self.main_model.name, "vocabulary": self.main_model.vocabulary.digest}

    def corpus_entry(self) -> dict[str, Any]:
        """Return what a manifest says of the corpus."""
        entry = {name: getattr(self.corpus, name) for name in _CORPUS if name != "streaming"}
        # Files of runs without them are as they were.
        entry = {name: value for name, value in entry.items() if value is not None or name not in _OPTIONAL}
        if self.corpus.datasets is not None:
            entry["dataset"] = " + ".join(f"{part.weight:g} x {part.name}" for part in self.corpus.datasets)
            entry["datasets"] = [vars(part) for part in self.corpus.datasets]
        return entry


def on_some_text(settings: TextSettings, saved: SavedSAE) -> TextSettings:
    """Return the settings with the corpus `builtin` where neither they nor the SAE say a text to read."""
    told = [settings.dataset] if settings.dataset else saved.provenance.datasets
    return settings if told and told != ["synthetic"] else replace(settings, dataset="builtin")


def on_text_at_hand(settings: TextSettings, saved: SavedSAE) -> TextSettings:
    """Return the settings with a corpus that nothing has to be fetched for: that of the training, or `builtin`."""
    told = saved.provenance.datasets
    here = settings.dataset or (told and all(one == "builtin" or Path(one).exists() for one in told))
    return settings if here else replace(settings, dataset="builtin")


def within_context(settings: TextSettings, saved: SavedSAE) -> tuple[TextSettings, str | None]:
    """Return the settings with rows as long as the language model reads, where the SAE's file says longer ones.

    Args:
        settings: A context size that they name stays.
        saved: Model and sites are known.

    Returns:
        The settings, and a line that says what was changed; None: nothing.

    Raises:
        ModelError: There is no such model.
    """
    said = saved.provenance.data.get("context_size")
    if settings.context_size is not None or not isinstance(said, int) or saved.unknown:
        return settings, None
    name = settings.model or next(iter(saved.sae.widths.read)).model
    with under(name_or_path="model", revision="model_revision"):
        longest = describe(
            name,
            revision=settings.model_revision or saved.provenance.revision,
            trust_remote_code=settings.trust_remote_code,
        ).max_context
    if longest is None or said <= longest:
        return settings, None
    note = f"rows of {longest:,} tokens, the most that {name!r} reads: the SAE's file says {said:,}"
    return replace(settings, context_size=longest), note


def open_sae(sae: SavedSAE | str | Path, settings: TextSettings) -> SavedSAE:
    """Open an SAE; what its file does not say of model and sites is named by the settings.

    Raises:
        FormatError: There is none.
        SiteError: Its file says another site.
    """
    return SavedSAE.of(sae, settings.device).named(settings.model, settings.site, settings.target_site)


def _check_fits(model: LanguageModel, widths: Mapping[SiteRef, int], name: str, context_size: int) -> None:
    """Refuse another model than the SAE's, as far as widths tell, and rows that it cannot read."""
    if model.max_context is not None and context_size > model.max_context:
        raise ConfigError(
            f"{arg('context_size')} is {context_size}, but {model.name!r} reads {model.max_context} tokens at most."
        )
    for site, width in widths.items():
        if site.model == name and (width_there := model.width(site.site)) != width:
            raise ModelError(
                f"{arg('model')} is {model.name!r}, where {site.site} has width {width_there}, but the SAE was trained "
                f"on width {width}, of {name!r}; give the model that it was trained on."
            )


def _check_weights(model: LanguageModel, name: str) -> None:
    """Refuse trained weights for an SAE of random ones, and the other way round."""
    given, trained_with = (split_name(one)[1] for one in (model.name, name))
    if given != trained_with:
        suffix = name[len(split_name(name)[0]) :]
        advice = f"write {split_name(model.name)[0] + suffix!r}"
        raise ModelError(f"{arg('model')} is {model.name!r}, but the SAE was trained on {name!r}; {advice}.")


def _corpus(trained: Mapping[str, Any], settings: TextSettings, sae: SavedSAE | str | Path) -> DataSettings:
    # Of another corpus what was said of the old one does not hold.
    kept = _CORPUS if settings.dataset is None else ("context_size", "prepend_bos", "roles", "chat_template")
    chosen = {name: trained[name] for name in kept if trained.get(name) is not None}
    chosen |= {name: value for name in _CORPUS if (value := getattr(settings, name, None)) is not None}
    if chosen.get("datasets"):
        with reading(FormatError, f"{str(sae)!r} says that it was trained on datasets which cannot be read"):
            chosen["datasets"] = [MixedDataset(**entry) for entry in chosen["datasets"]]
    elif not chosen.get("dataset") or chosen["dataset"] == "synthetic":
        raise ConfigError(
            f"{arg('dataset')} is missing: {str(sae)!r} does not say what text it was trained on; name one."
        )
    return DataSettings(**chosen, num_workers=settings.num_workers)
