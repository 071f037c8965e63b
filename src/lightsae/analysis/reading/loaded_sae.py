"""Where a dictionary comes from, as its export tells: the language models that it reads, and its corpus."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lightsae.activations.corpus.rows import RowSource
from lightsae.activations.fills import ReadSettings
from lightsae.activations.settings import DataSettings
from lightsae.analysis.dictionary.writer import sae_entry
from lightsae.analysis.reading.text import Rows
from lightsae.errors import ConfigError, FormatError, ModelError
from lightsae.formats.native import describe_sae, load_sae
from lightsae.lm import LanguageModel
from lightsae.sae import SparseAutoencoder

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
)


@dataclass(frozen=True)
class TextSettings:
    """Settings that take the place of those the dictionary was trained with.

    Attributes:
        model: Language model, where the one of the training is called otherwise here: Hub name, folder, or `builtin`.
        model_revision: Revision of a Hub model.
        dataset: Another corpus; as in `lightsae fit`.
        dataset_config: Configuration of a Hub dataset.
        dataset_split: Split that training documents come from.
        dataset_revision: Revision of a Hub dataset.
        validation_split: Split that held-out documents come from; null: a share of the training documents.
        text_column: Column that holds the text.
        context_size: Tokens in a row.
        dtype: Of the language model: `auto`, `float32`, `bfloat16`, `float16`.
        model_batch_tokens: Tokens in one forward pass.
        num_workers: Processes that tokenise.
        device: Where the models run: `cpu`, `cuda`, `cuda:1`, ...
        trust_remote_code: Run code that a Hub model brings along.

    Raises:
        ConfigError: `model_batch_tokens` is below 1.
    """

    model: str | None = None
    model_revision: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    validation_split: str | None = None
    text_column: str | None = None
    context_size: int | None = None
    dtype: str | None = None
    model_batch_tokens: int = 8192
    num_workers: int = 2
    device: str = "cpu"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.model_batch_tokens < 1:
            raise ConfigError(f"model_batch_tokens is {self.model_batch_tokens}; it must be at least 1.")


@dataclass
class Origin:
    """A dictionary, with what it needs to be read.

    Attributes:
        sae: In eval mode.
        entry: What a manifest says of it.
        models: Language models by the names that the dictionary's sites have, the main one first.
        corpus: Its text.
        reading: How rows become activations.
    """

    sae: SparseAutoencoder
    entry: dict[str, Any]
    models: dict[str, LanguageModel]
    corpus: DataSettings
    reading: ReadSettings

    @classmethod
    def load(cls, folder: str | Path, settings: TextSettings, *, whole_model: bool = True) -> "Origin":
        """Load a dictionary from its folder, and the language models that it reads.

        Args:
            folder: What `save_sae` or a run wrote.
            settings: What differs from the training.
            whole_model: Load all layers and the head, not only what lies before the sites.

        Raises:
            FormatError: The folder holds no dictionary.
            ConfigError: The dictionary was trained on files or synthetic data, and nothing says what text to read; or
                rows are longer than a language model reads.
            ModelError: A language model cannot be had, or is not the one that the dictionary reads.
            SiteError: It has no such site.
        """
        told = trained_with(folder)
        sae = load_sae(folder, settings.device)
        names = list(dict.fromkeys(site.model for site in (*sae.widths.read, *sae.widths.predicted)))
        if not all(names):
            raise ConfigError(
                f"sae is {str(folder)!r}, which was trained on activations without a language model: there is no text "
                "to show its features in."
            )
        corpus = _corpus(told, settings, folder)
        models = {}
        for name in names:
            sites = [s.site for s in (*sae.widths.read, *sae.widths.predicted) if s.model == name]
            replaced = settings.model is not None and name == names[0]
            model = LanguageModel.from_pretrained(
                settings.model if replaced and settings.model is not None else name,
                revision=settings.model_revision or (told.get("model_revision") if name == names[0] else None),
                dtype=settings.dtype or told.get("dtype") or "auto",
                device=settings.device,
                sites=None if whole_model else sites,
                trust_remote_code=settings.trust_remote_code,
            )
            _check_fits(model, sae, name, corpus.context_size)
            # The dictionary knows its model by the name it was trained under.
            model.name = name
            models[name] = model
        reading = ReadSettings(
            sites=tuple(sae.widths.read),
            dtype=torch.float32,
            rows_at_once=max(1, settings.model_batch_tokens // corpus.context_size),
            skip_special=bool(told.get("skip_special_tokens", False)),
            skip_positions=int(told.get("skip_positions", 0)),
        )
        return cls(sae, sae_entry(folder), models, corpus, reading)

    @property
    def main_model(self) -> LanguageModel:
        """The model whose tokenizer makes the rows."""
        return next(iter(self.models.values()))

    def held_out_rows(self, tokens: int) -> Rows:
        """Return rows of held-out text, about `tokens` in all, at least one row."""
        source = RowSource(self.corpus, self.main_model.tokenizer, "validation")
        rows = source.take(max(1, tokens // self.corpus.context_size))
        source.close()
        return Rows(rows.tokens, rows.documents, np.arange(len(rows)))

    def tokenizer_entry(self) -> dict[str, Any]:
        """Return what a manifest says of the tokenizer: a hash of its vocabulary."""
        vocabulary = json.dumps(sorted(self.main_model.tokenizer.get_vocab().items()), ensure_ascii=False)
        return {
            "name": self.main_model.name,
            "vocabulary": hashlib.sha256(vocabulary.encode("utf-8", "surrogatepass")).hexdigest(),
        }

    def corpus_entry(self) -> dict[str, Any]:
        """Return what a manifest says of the corpus."""
        return {name: getattr(self.corpus, name) for name in _CORPUS if name != "streaming"}


def trained_with(folder: str | Path) -> dict[str, Any]:
    """Return the settings of `data:` that a dictionary was trained with, as far as its export tells."""
    provenance = describe_sae(folder)["provenance"]
    config = provenance.get("config")
    data: dict[str, Any] = {}
    if isinstance(config, str):
        try:
            loaded = yaml.safe_load(config)
        except yaml.YAMLError as error:
            raise FormatError(
                f"{str(folder)!r}: the configuration in sae.json is not YAML; export it again."
            ) from error
        data = loaded.get("data") or {} if isinstance(loaded, dict) else {}
    return {**data, **{key: value for key, value in provenance.items() if key != "config" and value is not None}}


def _check_fits(model: LanguageModel, sae: SparseAutoencoder, name: str, context_size: int) -> None:
    """Refuse another model than the dictionary's, as far as widths tell, and rows that it cannot read."""
    if model.max_context is not None and context_size > model.max_context:
        raise ConfigError(
            f"context_size is {context_size}, but {model.name!r} reads {model.max_context} tokens at most."
        )
    for site, width in (sae.widths.read | sae.widths.predicted).items():
        if site.model == name and (found := model.width(site.site)) != width:
            raise ModelError(
                f"model is {model.name!r}, where {site.site} has width {found}, but the dictionary was trained on "
                f"width {width}, of {name!r}; give the model that it was trained on."
            )


def _corpus(told: dict[str, Any], settings: TextSettings, folder: str | Path) -> DataSettings:
    given = {name: told[name] for name in _CORPUS if told.get(name) is not None}
    if settings.dataset is not None:
        # Another corpus: what was said of the old one does not hold.
        given = {name: value for name, value in given.items() if name in ("context_size", "prepend_bos")}
    given |= {name: value for name in _CORPUS if (value := getattr(settings, name, None)) is not None}
    if not given.get("dataset") or given["dataset"] == "synthetic":
        raise ConfigError(f"dataset is missing: {str(folder)!r} does not say what text it was trained on; name one.")
    return DataSettings(**given, num_workers=settings.num_workers)
