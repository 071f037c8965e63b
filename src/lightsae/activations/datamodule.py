"""ActivationDataModule: text and a language model, or activation files, become batches of activations.

What the user configures under `data:`. The language model lives here, on the data side: it enters no checkpoint.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.corpus import CorpusConfig, RowSource, check_corpus
from lightsae.activations.files import ActivationFiles, Chunks, FileFills, ValidationFileRows
from lightsae.activations.fills import LanguageModelFills, Reading, ValidationRows
from lightsae.activations.stream import ActivationStream, Schedule
from lightsae.activations.timing import Timings
from lightsae.errors import ConfigError, did_you_mean
from lightsae.lm import LanguageModel, describe
from lightsae.sae import NORMALISATIONS, SiteRef, Widths

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ActivationDataModule(LightningDataModule):
    """Serves a language model's activations, made while training, in shuffled batches.

    Args:
        model: Language model: a Hub name, a local folder, or `builtin`.
        site: Where to read: `resid_post.6`, `mlp_out.3`, ... or a module path; `lightsae sites MODEL` lists them.
        dataset: Text: a Hub name, a .txt / .jsonl / .json / .parquet file, a folder or glob of such files, a
            `save_to_disk` folder, or `builtin`. A column `input_ids` is taken as text that is tokenised already.
        activations: Instead of a model and text: a .npy or .safetensors file of (rows, width), or a folder of them.
        batch_tokens: Tokens in a training batch of one device.
        buffer_tokens: Tokens of a fill: what the model is run over at once, then shuffled and served. More mixes better
            and costs buffer_tokens * width * bytes of memory on the device.
        training_tokens: Length of the run over all devices; or give trainer.max_steps.
        val_tokens: Held-out tokens that a validation runs over.
        context_size: Tokens in a row of the language model's input.
        normalisation: `sqrt_d`: mean norm sqrt(width); `unit`: mean squared norm 1; `none`: raw.
        skip_special_tokens: Leave special tokens (attention sinks, mostly) out of training.
        skip_positions: Leave the first positions of each row out of training.
        text_column: Column that holds the text.
        dataset_config: Configuration of a Hub dataset.
        dataset_split: Split to train on.
        dataset_revision: Revision of a Hub dataset.
        validation_split: Split to validate on; None: hold out a share of the documents.
        validation_fraction: That share.
        streaming: Read a Hub dataset over the network as it is needed, rather than downloading it.
        prepend_bos: Begin each row with the BOS token; None: if the model's tokenizer has one.
        shuffle_tokens: Rows are shuffled within blocks of this many tokens before the model sees them.
        model_revision: Revision of a Hub model.
        dtype: Of the language model and the buffer: `auto` (bfloat16 on accelerators, float32 on CPU), `float32`,
            `bfloat16`, `float16`.
        model_batch_tokens: Tokens in one forward pass of the language model.
        num_workers: Processes that tokenise; 0: none but this one.
        seed: Of every draw of the stream; None: seed_everything's.
        trust_remote_code: Run code that a Hub model brings along.
    """

    def __init__(
        self,
        model: str = "builtin",
        site: str | None = None,
        dataset: str | None = None,
        activations: str | None = None,
        batch_tokens: int = 4096,
        buffer_tokens: int = 262_144,
        training_tokens: int | None = None,
        val_tokens: int = 262_144,
        context_size: int = 128,
        normalisation: Literal["sqrt_d", "unit", "none"] = "sqrt_d",
        skip_special_tokens: bool = False,
        skip_positions: int = 0,
        text_column: str = "text",
        dataset_config: str | None = None,
        dataset_split: str = "train",
        dataset_revision: str | None = None,
        validation_split: str | None = None,
        validation_fraction: float = 0.05,
        streaming: bool = True,
        prepend_bos: bool | None = None,
        shuffle_tokens: int = 4_194_304,
        model_revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        model_batch_tokens: int = 8192,
        num_workers: int = 2,
        seed: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.site, self.dataset, self.activations = model, site, dataset, activations
        self.batch_tokens, self.buffer_tokens = batch_tokens, buffer_tokens
        self.training_tokens, self.val_tokens, self.context_size = training_tokens, val_tokens, context_size
        self.normalisation = normalisation
        self.skip_special_tokens, self.skip_positions = skip_special_tokens, skip_positions
        self.shuffle_tokens, self.validation_fraction = shuffle_tokens, validation_fraction
        self.model_revision, self.dtype, self.model_batch_tokens = model_revision, dtype, model_batch_tokens
        self.num_workers, self.trust_remote_code = num_workers, trust_remote_code
        self.seed = seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self.corpus = CorpusConfig(
            dataset=dataset or "",
            dataset_config=dataset_config,
            dataset_split=dataset_split,
            dataset_revision=dataset_revision,
            validation_split=validation_split,
            text_column=text_column,
            streaming=streaming,
            validation_fraction=validation_fraction,
            context_size=context_size,
            prepend_bos=prepend_bos,
            num_workers=num_workers,
        )
        self._check_numbers()
        self.language_model: LanguageModel | None = None
        self.timings = Timings()
        self.run_tokens: int | None = None
        self._stream: ActivationStream | None = None
        self._validation: ValidationRows | ValidationFileRows | None = None
        self._files: ActivationFiles | None = None
        self._widths: Widths | None = None

    # -- what is known before anything is loaded --------------------------------------------------------------------

    def _check_numbers(self) -> None:
        for key in ("batch_tokens", "buffer_tokens", "val_tokens", "context_size", "model_batch_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(f"data.{key} is {getattr(self, key)}; write 1 or more.")
        if self.activations is None and self.context_size < 2:
            raise ConfigError(f"data.context_size is {self.context_size}; write 2 or more.")
        if self.buffer_tokens < self.batch_tokens:
            raise ConfigError(
                f"data.buffer_tokens is {self.buffer_tokens}, less than data.batch_tokens ({self.batch_tokens}); "
                f"write {self.batch_tokens} or more, better {32 * self.batch_tokens}."
            )
        if self.activations is None and self.buffer_tokens < self.context_size:
            raise ConfigError(
                f"data.buffer_tokens is {self.buffer_tokens}, less than one row of data.context_size "
                f"({self.context_size}); write {32 * self.context_size} or more."
            )
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"data.validation_fraction is {self.validation_fraction}; write a share such as 0.05.")
        if self.training_tokens is not None and self.training_tokens < self.batch_tokens:
            raise ConfigError(
                f"data.training_tokens is {self.training_tokens}, less than one batch of data.batch_tokens "
                f"({self.batch_tokens})."
            )
        for key, known in (("normalisation", NORMALISATIONS), ("dtype", ("auto", *DTYPES))):
            if (found := getattr(self, key)) not in known:
                hint = did_you_mean(str(found), known)
                raise ConfigError(f"data.{key} is {found!r}; known are {', '.join(known)}.{hint}")
        if not 0 <= self.skip_positions < self.context_size:
            raise ConfigError(
                f"data.skip_positions is {self.skip_positions}; it must lie in 0..{self.context_size - 1}."
            )

    def preflight(self) -> None:
        """Check that model, site and data exist and fit, without loading weights or text. Raises what `setup` would."""
        if self.activations is not None:
            _ = self.widths
            return
        _ = self.widths
        if self.dataset is None:
            raise ConfigError("data.dataset is missing: name a text dataset, a file, or `builtin`.")
        longest = self._description().max_context
        if longest is not None and self.context_size > longest:
            raise ConfigError(
                f"data.context_size is {self.context_size}, but {self.model!r} reads {longest} tokens at most."
            )
        check_corpus(self.corpus)

    def _description(self) -> Any:
        return describe(self.model, revision=self.model_revision, trust_remote_code=self.trust_remote_code)

    @property
    def widths(self) -> Widths:
        """Sites and widths that the dictionary reads and predicts."""
        if self._widths is None:
            if self.activations is not None:
                files = self._open_files()
                self._widths = Widths.autoencoder(files.site, files.width)
            elif self.site is None:
                raise ConfigError(
                    f"data.site is missing: say where to read, for example resid_post.2. "
                    f"List them: lightsae sites {self.model}"
                )
            else:
                self._widths = Widths.autoencoder(SiteRef(self.model, self.site), self._description().width(self.site))
        return self._widths

    def _open_files(self) -> ActivationFiles:
        if self._files is None:
            assert self.activations is not None
            self._files = ActivationFiles(self.activations)
        return self._files

    # -- set-up -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        assert trainer is not None
        device = trainer.strategy.root_device
        if stage == "fit" and self._stream is None:
            batches = self._set_run_length(trainer)
            fill_rows = self._fill_rows(trainer.world_size)
            schedule = Schedule(
                batch_tokens=self.batch_tokens,
                batches_per_fill=max(1, self._tokens_in_fill(fill_rows) // self.batch_tokens),
                total_batches=batches,
                seed=self.seed,
                rank=trainer.global_rank,
                world=trainer.world_size,
            )
            self._stream = ActivationStream(self._fills(schedule, fill_rows, device), schedule, self.timings)
        if self._validation is None:
            self._validation = self._held_out(trainer, device)

    def _set_run_length(self, trainer: Trainer) -> int:
        """Return the batches of the run (of an epoch, where the run is measured in epochs) on one device."""
        accumulated = trainer.accumulate_grad_batches
        if trainer.max_steps > 0:
            batches = trainer.max_steps * accumulated
        elif self.training_tokens is not None:
            batches = max(1, self.training_tokens // (self.batch_tokens * trainer.world_size))
            trainer.fit_loop.epoch_loop.max_steps = max(1, batches // accumulated)
        elif self.activations is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
            rows = len(self._open_files()) * (1 - self.validation_fraction)
            batches = max(1, int(rows) // (self.batch_tokens * trainer.world_size))
        else:
            raise ConfigError("How long is the run? Give trainer.max_steps or data.training_tokens.")
        epochs = trainer.max_epochs if trainer.max_steps < 0 and trainer.max_epochs and trainer.max_epochs > 0 else 1
        self.run_tokens = batches * epochs * self.batch_tokens * trainer.world_size
        return batches

    def _fill_rows(self, world: int) -> int:
        """Rows of a fill: token rows, or activations where they come from files."""
        if self.activations is None:
            return self.buffer_tokens // self.context_size
        chunks = self._chunks()
        return chunks.in_fill(self.buffer_tokens, self.batch_tokens, world) * chunks.size

    def _tokens_in_fill(self, fill_rows: int) -> int:
        return fill_rows if self.activations is not None else fill_rows * (self.context_size - self.skip_positions)

    def _chunks(self) -> Chunks:
        return Chunks(len(self._open_files()), self.validation_fraction, self.buffer_tokens)

    def _fills(self, schedule: Schedule, fill_rows: int, device: torch.device) -> FileFills | LanguageModelFills:
        if self.activations is not None:
            chunks, dtype = self._chunks(), self._dtype(device)
            in_fill = fill_rows // chunks.size
            return FileFills(self._open_files(), chunks, schedule, in_fill, dtype, device, self.timings)
        model = self._load_model(device)
        fills = -(-schedule.total_batches // schedule.batches_per_fill)
        per_block = max(1, min(fills, self.shuffle_tokens // (fill_rows * self.context_size * schedule.world)))
        rows = RowSource(self.corpus, model.tokenizer, "train")
        return LanguageModelFills(rows, model, self._reading(device), schedule, fill_rows, per_block, self.timings)

    def _held_out(self, trainer: Trainer, device: torch.device) -> ValidationRows | ValidationFileRows:
        rank, world = trainer.global_rank, trainer.world_size
        if self.activations is not None:
            return ValidationFileRows(
                self._open_files(),
                self._chunks(),
                self.val_tokens,
                self.batch_tokens,
                self._dtype(device),
                device,
                rank,
                world,
            )
        model = self._load_model(device)
        source = RowSource(self.corpus, model.tokenizer, "validation")
        rows = source.take(max(1, self.val_tokens // self.context_size))
        source.close()
        if (found := rows.tokens.size) < self.val_tokens // 2:
            rank_zero_warn(f"Only {found} held-out tokens; data.val_tokens asks for {self.val_tokens}.")
        in_batch = max(1, self.batch_tokens // self.context_size)
        return ValidationRows(rows, model, self._reading(device), in_batch, rank, world, self.timings)

    def _load_model(self, device: torch.device) -> LanguageModel:
        if self.language_model is None:
            assert self.site is not None
            callbacks = getattr(self.trainer, "callbacks", [])
            whole = any(getattr(callback, "needs_full_language_model", False) for callback in callbacks)
            self.language_model = LanguageModel.from_pretrained(
                self.model,
                revision=self.model_revision,
                dtype=self.dtype,
                device=device,
                sites=None if whole else [self.site],
                trust_remote_code=self.trust_remote_code,
            )
        return self.language_model

    def _reading(self, device: torch.device) -> Reading:
        return Reading(
            sites=tuple(self.widths.read),
            dtype=self._dtype(device),
            rows_at_once=max(1, self.model_batch_tokens // self.context_size),
            skip_special=self.skip_special_tokens,
            skip_positions=self.skip_positions,
        )

    def _dtype(self, device: torch.device) -> torch.dtype:
        if self.dtype == "auto":
            return torch.float32 if device.type == "cpu" else torch.bfloat16
        return DTYPES[self.dtype]

    # -- what Lightning calls -----------------------------------------------------------------------------------------

    def train_dataloader(self) -> ActivationStream:
        assert self._stream is not None
        return self._stream

    def val_dataloader(self) -> "ValidationRows | ValidationFileRows":
        assert self._validation is not None
        return self._validation

    def transfer_batch_to_device(
        self, batch: ActivationBatch, device: torch.device, dataloader_idx: int
    ) -> ActivationBatch:
        return batch if batch.tokens.device == device else batch.to(device)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._stream is None else self._stream.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stream is not None and state_dict:
            self._stream.load_state_dict(state_dict)

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self._stream is not None:
            self._stream.close()
            self._stream = None  # the next fit begins at the beginning

    # -- what the module and the callbacks ask for --------------------------------------------------------------------

    def sample_without_sinks(self, sites: Collection[SiteRef]) -> dict[SiteRef, Tensor]:
        """Return the present fill's activations at some sites, of tokens that are an attention sink at none of them."""
        assert self._stream is not None
        everything = self._stream.sample()
        keep = ~everything.sinks_at(sites)
        return {site: everything.activations[site][keep] for site in sites}

    def describe(self) -> dict[str, Any]:
        """Return where the activations come from, in plain values, for the files that are exported."""
        if self.activations is not None:
            return {"activations": Path(self.activations).name, "normalisation": self.normalisation, "seed": self.seed}
        return {
            "model": self.model,
            "model_revision": self.language_model.revision if self.language_model else self.model_revision,
            "site": self.site,
            "dataset": self.dataset,
            "dataset_config": self.corpus.dataset_config,
            "dataset_split": self.corpus.dataset_split,
            "dataset_revision": self.corpus.dataset_revision,
            "context_size": self.context_size,
            "prepend_bos": self.corpus.prepend_bos,
            "normalisation": self.normalisation,
            "skip_special_tokens": self.skip_special_tokens,
            "skip_positions": self.skip_positions,
            "seed": self.seed,
        }
