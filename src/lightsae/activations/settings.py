"""The settings of the data: each declared, described, defaulted and checked here, and nowhere else.

`ActivationDataModule` is its settings, so that its signature and the help of the command line follow from this file;
what reads text takes them too.
"""

import inspect
import math
import os
import re
from dataclasses import dataclass, fields
from typing import Literal

from lightsae.activations.roles import ROLES, check_roles
from lightsae.activations.synthetic.config import SyntheticConfig, check_known
from lightsae.errors import ConfigError, arg
from lightsae.lm.dtypes import DTYPES
from lightsae.lm.placement import check_choices
from lightsae.sae import NORMALISATIONS

SiteNames = str | list[str] | None


@dataclass(frozen=True)
class MixedDataset:
    """A dataset of a mixture; what it leaves out is that of `data`.

    Args:
        name: What figures call it; if `dataset` is not given, also the dataset.
        weight: Its share of the tokens, relative to the other weights.
        dataset: A Hub name, a file, ...; as data.dataset.
        text_column: As data.text_column.
        dataset_config: Configuration of a Hub dataset.
        dataset_split: As data.dataset_split.
        dataset_revision: Revision of a Hub dataset.
        validation_split: Split, file, folder or glob to validate on; None: hold out a share of the documents.
    """

    name: str
    weight: float = 1.0
    dataset: str | None = None
    text_column: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    validation_split: str | None = None


@dataclass(frozen=True, eq=False)
class DataSettings:
    """What becomes activations, and how.

    Args:
        model: Language model: a Hub name, a local folder, or `builtin`. NAME@random, NAME@random-3 (seed 3):
            the same model with random weights, as a floor.
        site: Where to read: `resid_post.6`, `mlp_out.3`, ... or a module path; `lightsae sites MODEL` lists them. For a
            crosscoder a list. Entries of model.saes may name their own.
        dataset: Text: a Hub name, a .txt / .jsonl / .json / .csv / .parquet file (but for the last also .gz / .zst /
            .bz2), a folder or glob of such files, a `save_to_disk` folder, or `builtin`. A column `input_ids` is taken
            as text that is tokenised already, without what its `attention_mask` leaves out. Or `synthetic`: sums of
            known features, no language model; see data.synthetic.
        activations: Instead of a model and text: a .npy or .safetensors file of (rows, width), or a folder of them.
        cache: Instead of running a language model: a folder that `lightsae cache` wrote. Model and text are those of
            the cache, and need not be said again.
        target_site: What a transcoder predicts; null: what it reads.
        batch_tokens: Tokens in a training batch of one device.
        buffer_tokens: Tokens of a fill: what the model is run over at once, then shuffled and served. More mixes better
            and costs buffer_tokens * width * bytes of memory on the device.
        training_tokens: Length of the run over all devices; or give trainer.max_steps.
        val_tokens: Held-out tokens that a validation runs over.
        context_size: Tokens in a row of the language model's input, BOS included.
        normalisation: `sqrt_d`: mean norm sqrt(width); `unit`: mean squared norm 1; `none`: raw.
        skip_special_tokens: Leave special tokens (attention sinks, mostly) out of training.
        skip_positions: Leave the first positions of each row out of training.
        text_column: Column that holds the text, lists of token ids, or conversations (messages with a role and a
            content). The default falls back to `input_ids` and `messages`. Beside ids, what an `attention_mask` leaves
            out is padding, and what `assistant_masks` marks is the assistant's.
        dataset_config: Configuration of a Hub dataset.
        dataset_split: Split to train on, of a Hub dataset or of a saved DatasetDict.
        dataset_revision: Revision of a Hub dataset.
        validation_split: Split to validate on; for local files another file, folder or glob. None: hold out a share of
            the documents.
        validation_fraction: That share.
        streaming: Read a Hub dataset over the network as it is needed, rather than downloading it.
        prepend_bos: Begin each row with the BOS token; None: if the model has one, and rows of ids that
            have context_size tokens already are taken as they are.
        shuffle_tokens: Rows are shuffled within blocks of this many tokens before the model sees them.
        model_revision: Revision of a Hub model.
        more_models: Further models over the same tokens, by short names: {chat: PATH}. Their sites are written
            chat:resid_post.6.
        synthetic: The world of `dataset: synthetic`: how many features fire how often, and together.
        dtype: Dtype of the language model and the buffer: `auto` (bfloat16 on accelerators, and on a CPU that is faster
            with it; else float32), `float32`, `bfloat16`, `float16`. A resumed run goes on with what `auto` chose.
        model_batch_tokens: Tokens in one forward pass of the language model.
        num_workers: Above 0, text is tokenised in the background; 0: when it is needed. The rows are the same.
        prefetch: Make the next buffer_tokens while the ones before are trained on: a second buffer of memory, the same
            batches. For a language model on an accelerator; on a CPU both would share the cores.
        seed: Seed for every draw of the stream; None: seed_everything's.
        trust_remote_code: Run code that a Hub model brings along.
        datasets: In place of dataset, a mixture: [{name: X, weight: 2}, {name: chat, dataset: Y, weight: 1}]. Tokens
            come in proportion to the weights, and documents of each are held out.
        roles: Of conversations, train on the tokens of these roles alone: [assistant], or more of system, developer,
            user, assistant, tool, other; markup is what no message says, text a document that is no conversation.
        chat_template: File with the chat template for conversations; None: the tokenizer's own.
        quantization: Round the weights of the language model's blocks while they are read: `8bit`, `4bit`, by
            bitsandbytes; null: not. Activations have `dtype`. A model that was saved rounded needs no setting.
        device: Where the language model runs, if not where the SAEs are trained: `cpu`, `cuda:1`, ...
        device_map: Spread the language model over devices: `auto`, `balanced`, `sequential`, or a mapping of its
            modules to devices, as transformers takes it, by accelerate.

    Raises:
        ConfigError: A setting cannot work.
    """

    model: str = "builtin"
    site: SiteNames = None
    dataset: str | None = None
    activations: str | None = None
    cache: str | None = None
    target_site: SiteNames = None
    batch_tokens: int = 4096
    buffer_tokens: int = 262_144
    training_tokens: int | None = None
    val_tokens: int = 262_144
    context_size: int = 128
    normalisation: Literal["sqrt_d", "unit", "none"] = "sqrt_d"
    skip_special_tokens: bool = False
    skip_positions: int = 0
    text_column: str = "text"
    dataset_config: str | None = None
    dataset_split: str = "train"
    dataset_revision: str | None = None
    validation_split: str | None = None
    validation_fraction: float = 0.05
    streaming: bool = True
    prepend_bos: bool | None = None
    shuffle_tokens: int = 4_194_304
    model_revision: str | None = None
    more_models: dict[str, str] | None = None
    synthetic: SyntheticConfig | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    model_batch_tokens: int = 8192
    num_workers: int = 2
    prefetch: bool = False
    seed: int | None = None
    trust_remote_code: bool = False
    datasets: list[MixedDataset] | None = None
    roles: list[str] | None = None
    chat_template: str | None = None
    quantization: Literal["8bit", "4bit"] | None = None
    device: str | None = None
    device_map: str | dict[str, int | str] | None = None

    def __post_init__(self) -> None:
        if self.seed is None:
            object.__setattr__(self, "seed", int(os.environ.get("PL_GLOBAL_SEED", "0")))
        self.check()

    @property
    def reads_text(self) -> bool:
        """Whether activations are, or were, made from text by a language model."""
        return self.activations is None and self.dataset != "synthetic"

    @property
    def text(self) -> str:
        """The dataset of a run on text.

        Raises:
            ConfigError: None is named.
        """
        if self.dataset is None:
            raise ConfigError(f"{arg('dataset')} is missing: name a text dataset, a file, or `builtin`.")
        return self.dataset

    def check(self) -> None:
        """Hold the settings against their ranges and against each other.

        Raises:
            ConfigError: A setting cannot work.
        """
        lowest = dict.fromkeys(("batch_tokens", "buffer_tokens", "val_tokens", "model_batch_tokens"), 1)
        lowest |= {"context_size": 2 if self.reads_text else 1, "num_workers": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ConfigError(name, getattr(self, name), f"write {least} or more")
        check_roles(self.roles)
        self._check_mixture()
        check_known("normalisation", self.normalisation, NORMALISATIONS)
        check_known("dtype", self.dtype, ("auto", *DTYPES))
        self._check_placement()
        if not 0 < self.validation_fraction < 1:
            raise ConfigError("validation_fraction", self.validation_fraction, "write a share such as 0.05")
        if not 0 <= self.skip_positions < self.context_size:
            raise ConfigError("skip_positions", self.skip_positions, f"it must lie in 0..{self.context_size - 1}")
        self._check_buffer()
        if self.cache is not None and not self.reads_text:
            other = arg("activations" if self.activations is not None else "dataset")
            raise ConfigError(f"{arg('cache')} is {self.cache!r}, and {other} names other data; give one of them.")
        if self.more_models and not self.reads_text:
            raise ConfigError(f"{arg('more_models')}: there is no text to run them over; give {arg('dataset')}.")
        for name in self.more_models or {}:
            if not name.isidentifier():
                raise ConfigError(
                    f"{arg('more_models')}: {name!r} is no name; write letters, digits and _ (chat: PATH)."
                )

    def each_dataset(self) -> "dict[str, DataSettings]":
        """Return the settings of every dataset by its name: one, or those of a mixture.

        Raises:
            ConfigError: None is named.
        """
        if self.datasets is None:
            return {self.text: self}
        shared = {field.name: getattr(self, field.name) for field in fields(DataSettings)}
        parts = {}
        for part in self.datasets:
            own = {name: value for name, value in vars(part).items() if name in shared and value is not None}
            parts[part.name] = DataSettings(**{**shared, "datasets": None, "dataset": part.name, **own})
        return parts

    def _check_mixture(self) -> None:
        if self.datasets is None:
            return
        if not self.datasets:
            raise ConfigError("datasets", self.datasets, "name one or more: [{name: X, weight: 2}, ...]")
        for name in ("dataset", "activations", "dataset_config", "dataset_revision", "validation_split"):
            if (value := getattr(self, name)) is not None:
                advice = "leave it out" if name in ("dataset", "activations") else "write it in the entries"
                raise ConfigError(name, value, f"but there is {arg('datasets')}, too; {advice}")
        names = [part.name for part in self.datasets]
        for part in self.datasets:
            entry = f"datasets.{part.name}"
            if names.count(part.name) > 1:
                raise ConfigError(f"{arg('datasets')} names {part.name!r} twice; give one of them another name.")
            if part.name in ROLES or not part.name:
                raise ConfigError(f"{arg('datasets')}: {part.name!r} is no name for a dataset; choose another one.")
            if not 0 < part.weight < math.inf:
                raise ConfigError(f"{entry}.weight", part.weight, "it must be above 0")
            if (part.dataset or part.name) == "synthetic":
                raise ConfigError(f"{arg('datasets')}: {part.name!r} is no text.")

    def _check_placement(self) -> None:
        check_choices(self.quantization, self.device, self.device_map)
        for name in ("quantization", "device", "device_map"):
            if getattr(self, name) is not None and not self.reads_text:
                raise ConfigError(name, getattr(self, name), "but no language model is read; leave it out")

    def _check_buffer(self) -> None:
        buffer, batch = self.buffer_tokens, self.batch_tokens
        if buffer < batch:
            raise ConfigError(
                f"{arg('buffer_tokens')} is {buffer}, less than {arg('batch_tokens')} ({batch}); "
                f"write {batch} or more, better {32 * batch}."
            )
        if self.reads_text and buffer < self.context_size:
            raise ConfigError(
                f"{arg('buffer_tokens')} is {buffer}, less than one row of {arg('context_size')} "
                f"({self.context_size}); write {32 * self.context_size} or more."
            )
        if self.training_tokens is not None and self.training_tokens < batch:
            raise ConfigError(
                f"{arg('training_tokens')} is {self.training_tokens}, less than one batch of {arg('batch_tokens')} "
                f"({batch})."
            )


def described(*names: str) -> str:
    """Return what the docstring of `DataSettings` says of some settings, for one of settings that share them.

    Example:
        >>> print(described("model_revision", "dataset_config"))
            model_revision: Revision of a Hub model.
            dataset_config: Configuration of a Hub dataset.
    """
    arguments = inspect.cleandoc(DataSettings.__doc__ or "").partition("\n\nRaises:")[0]
    entries = {entry.partition(":")[0].strip(): entry for entry in re.split(r"\n(?=    \w+: )", arguments)}
    return "\n".join(entries[name] for name in names)
