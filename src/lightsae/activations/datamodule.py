"""ActivationDataModule: text and a language model, or activation files, become batches of activations.

What the user configures under `data:`. The language model lives here, on the data side: it enters no checkpoint.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.cache.manifest import Cache
from lightsae.activations.cache.source import CacheSource
from lightsae.activations.contents import Contents, check_unchanged
from lightsae.activations.settings import DataSettings, SiteNames
from lightsae.activations.sources import ActivationSource, FileSource, SyntheticSource
from lightsae.activations.stream import (
    ActivationStream,
    HeldOut,
    Process,
    StreamPlan,
    check_place,
    refuse_place,
)
from lightsae.activations.synthetic.world import SyntheticWorld
from lightsae.activations.text_source import TextSource
from lightsae.activations.timings import Timings
from lightsae.compat import data_ranks, set_max_steps
from lightsae.errors import CheckpointError, ConfigError, arg, section
from lightsae.lm import LanguageModel
from lightsae.lm.dtypes import DTYPES, choose_dtype, dtype_name, warn_if_slow
from lightsae.lm.placement import check_device
from lightsae.sae import SiteRef, Widths
from lightsae.stored import misfit


class ActivationDataModule(DataSettings, LightningDataModule):
    """Serves a language model's activations, made while training or read from a cache, in shuffled batches.

    It is its settings: `ActivationDataModule(model="builtin", site="resid_post.2", dataset="builtin")` takes what
    `DataSettings` declares, in that order or by name, and they do not change afterwards.

    Attributes:
        timings: Seconds spent on text and in the language model.
        run_tokens: Training tokens of the run over all devices, once its length is known.
        chosen_dtype: What `dtype` means in this run, from `setup` on.
    """

    seed: int

    @section("data")
    def __post_init__(self) -> None:
        LightningDataModule.__init__(self)
        stored = Cache.open(self.cache) if self.cache is not None else None
        for name, value in (stored.text_settings(self) if stored else {}).items():
            object.__setattr__(self, name, value)
        super().__post_init__()
        self.timings = Timings()
        self.source = self._make_source(stored)
        self.run_tokens: int | None = None
        self.chosen_dtype: torch.dtype | None = None
        self._stream: ActivationStream | None = None
        self._ended_at: dict[str, Any] = {}
        self._validation: HeldOut | None = None

    def _make_source(self, stored: Cache | None) -> ActivationSource:
        if stored is not None:
            return CacheSource(self, stored, self.timings)
        if self.activations is not None:
            return FileSource(self, self.activations, self.timings)
        if self.dataset == "synthetic":
            return SyntheticSource(self, self.timings)
        if self.synthetic is not None:
            raise ConfigError(
                f"{arg('synthetic')} is set, but {arg('dataset')} is {self.dataset!r}; "
                f"write {arg('dataset')} synthetic."
            )
        return TextSource(self, self.timings)

    # -- what is known before anything is loaded --------------------------------------------------------------------

    @section("data")
    def preflight(self) -> None:
        """Check that models, sites and data exist and fit, without loading weights or text."""
        self.source.preflight()

    @property
    def language_model(self) -> LanguageModel | None:
        """The model named by `model`, once it is loaded; None where no model is run."""
        return self.language_models.get(self.model)

    @property
    def language_models(self) -> dict[str, LanguageModel]:
        """The models that are loaded, by name; the one that brings the text first."""
        return self.source.language_models

    @property
    def predicts_tokens(self) -> bool:
        """Whether `model` predicts the next token; told from its config.json."""
        return self.source.predicts_tokens

    @section("data")
    def whole_language_model(self) -> LanguageModel:
        """Return the model named by `model` with all of its layers and its head, which are loaded now if need be."""
        assert isinstance(self.source, TextSource), "there is no language model"
        return self.source.whole_model()

    @property
    def synthetic_world(self) -> SyntheticWorld | None:
        """What makes synthetic activations, with the true features; None for others."""
        return self.source.world if isinstance(self.source, SyntheticSource) else None

    def widths_at(self, site: SiteNames = None, target_site: SiteNames = None) -> Widths:
        """Return the sites and widths of an SAE that reads `site` and predicts `target_site`.

        Args:
            site: Name or names as the user writes them; None: the data's own.
            target_site: None: what is read, or the data's own where `site` is the data's own too.

        Raises:
            SiteError: There is no such site. Where the names were handed in, the caller knows where they were written.
            ConfigError: A site is named twice, or is missing.
            ModelError: The model's description cannot be had.
        """
        return self.source.widths(site, target_site)

    # -- set-up -----------------------------------------------------------------------------------------------------

    @section("data")
    def setup(self, stage: str) -> None:
        trainer = self.trainer
        assert trainer is not None
        # Every process measures for itself; what the first one chose holds for all.
        self._open(stage, trainer.strategy.broadcast(self.dtype_on(trainer.strategy.root_device)))

    def dtype_on(self, device: torch.device, state: Mapping[str, Any] | None = None) -> torch.dtype:
        """Return what `dtype` means on a device.

        Args:
            device: Where the run computes; what counts is where the language model does.
            state: Of the checkpoint from which it goes on: `auto` stays what it was there.
        """
        if state and self.dtype == "auto":
            # Checkpoints that do not say it are older than the choice: `auto` was float32 on every CPU.
            return DTYPES[state.get("dtype", "float32" if device.type == "cpu" else "bfloat16")]
        if self.dtype == "auto" and (stored := self.source.stored_dtype) is not None:
            return stored
        if device.type == "cpu" and not self.reads_text:
            # Nothing is computed here that fewer digits would make faster.
            return DTYPES.get(self.dtype, torch.float32)
        return choose_dtype(self.dtype, device if self.device is None else check_device(self.device))

    def _open(self, stage: str, dtype: torch.dtype) -> None:
        trainer = self.trainer
        assert trainer is not None
        if self.chosen_dtype not in (None, dtype):
            # What is loaded is of another one.
            if self._stream is not None:
                self._stream.close()
            self._stream = self._validation = None
            self.source.language_models.clear()
        self.chosen_dtype, device = dtype, trainer.strategy.root_device
        whole = any(getattr(callback, "needs_full_language_model", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        process = Process(self._sites_of_the_run(), device, dtype, *data_ranks(trainer), whole)
        if stage == "fit" and self._stream is None:
            self._stream = self._open_stream(trainer, process)
        if self._validation is None:
            self._validation = self.source.held_out(process)

    def _open_stream(self, trainer: Trainer, process: Process) -> ActivationStream:
        _ = self._contents  # as it was when the run began
        plan = self._plan(process.world, process.rank, *self._set_run_length(trainer))
        ahead = process.device if self.prefetch else None
        return ActivationStream(self.source.fills(plan, process), plan, self.timings, ahead)

    def _plan(self, world: int, rank: int = 0, total_batches: int = 0, epochs: int = 1) -> StreamPlan:
        return StreamPlan(
            batch_tokens=self.batch_tokens,
            batches_per_fill=max(1, self.source.fill_tokens(world) // self.batch_tokens),
            total_batches=total_batches,
            seed=self.seed,
            rank=rank,
            world=world,
            epochs=epochs,
        )

    def _sites_of_the_run(self) -> tuple[SiteRef, ...]:
        """Return every site that some dictionary of the run reads or predicts: one forward pass serves them all."""
        widths_of = getattr(getattr(self.trainer, "lightning_module", None), "widths", None)
        widths = widths_of(self).values() if widths_of is not None else [self.widths_at()]
        return tuple(dict.fromkeys(site for each in widths for site in (*each.read, *each.predicted)))

    def _set_run_length(self, trainer: Trainer) -> tuple[int, int]:
        """Return the batches of an epoch on one device, and the epochs: one, where the run is measured in steps."""
        accumulated, epoch_tokens = trainer.accumulate_grad_batches, self.source.epoch_tokens()
        epochs = 1
        if trainer.max_steps > 0:
            batches = trainer.max_steps * accumulated
        elif self.training_tokens is not None:
            batches = max(1, self.training_tokens // (self.batch_tokens * data_ranks(trainer)[1]))
            set_max_steps(trainer, max(1, batches // accumulated))
        elif epoch_tokens is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
            batches = max(1, epoch_tokens // (self.batch_tokens * data_ranks(trainer)[1]))
            epochs = trainer.max_epochs
        else:
            length = f"{arg('max_steps', 'trainer')} or {arg('training_tokens')}"
            raise ConfigError(f"How long is the run? Give {length}.")
        self.run_tokens = batches * epochs * self.batch_tokens * data_ranks(trainer)[1]
        return batches, epochs

    # -- what Lightning calls -----------------------------------------------------------------------------------------

    def train_dataloader(self) -> ActivationStream:
        assert self._stream is not None
        return self._stream

    def val_dataloader(self) -> HeldOut:
        assert self._validation is not None
        return self._validation

    def state_dict(self) -> dict[str, Any]:
        if self._stream is None or self.chosen_dtype is None:
            return self._ended_at
        state = {**self._stream.state_dict(), "dtype": dtype_name(self.chosen_dtype), "contents": self._contents}
        return state if self.quantization is None else state | {"quantization": self.quantization}

    @cached_property
    def _contents(self) -> Contents:
        return self.source.contents()

    @section("data")
    def check_place(self, state: Any, world: int) -> None:
        """Check that a fit with these settings can go on from a `state_dict`. Opens nothing that is not open.

        Args:
            state: What a checkpoint holds for the data.
            world: Number of processes.

        Raises:
            CheckpointError: Something is missing or damaged, or a setting that says what a batch holds has changed.
            CorpusError: What the data holds has changed.
        """
        # First: what has changed in size can change the schedule too.
        refuse_place(misfit(state, {"contents": {}}, partial=True))
        stored = state.get("contents", {})
        for setting, held in stored.items():
            refuse_place(misfit(held, dict.fromkeys(held, "") if isinstance(held, dict) else {}, f"contents.{setting}"))
        check_unchanged(stored, self._contents)
        self._check_quantization(state)
        if self._stream is not None:
            self._stream.check(state)
        else:
            check_place(state, self._plan(world))

    @section("data")
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stream is None or not state_dict:
            return
        self._check_quantization(state_dict)
        self._go_on_in_the_dtype_of(state_dict)
        self._stream.load_state_dict(state_dict)

    def _check_quantization(self, state: Mapping[str, Any]) -> None:
        if (before := state.get("quantization")) != self.quantization:
            raise CheckpointError(
                f"{arg('quantization')} differs from the checkpoint's: it was {before} and is {self.quantization}. "
                "Go on with the run's own config.yaml, or start a new run."
            )

    def _go_on_in_the_dtype_of(self, state: Mapping[str, Any]) -> None:
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        stored = self.dtype_on(device, state)
        if self.dtype != "auto" and state.get("dtype", self.dtype) != self.dtype:
            rank_zero_warn(
                f"dtype is {self.dtype}, and was {state['dtype']} in the checkpoint: the run goes on, but does not end "
                "in the bytes of one that was never stopped."
            )
        if stored is self.chosen_dtype:
            return
        if device.type == "cpu" and stored is torch.bfloat16:
            warn_if_slow("The checkpoint's dtype", dtype_name(stored), "dtype: float32")
        self._open("fit", stored)

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self._stream is not None:
            self._ended_at = self.state_dict()  # a checkpoint that is saved now is one of the end
            self._stream.close()
            self._stream = None  # the next fit begins at the beginning

    def on_exception(self, exception: BaseException) -> None:
        # Lightning does not call `teardown` then, and a fill that is being made would keep the process alive.
        self.teardown("fit")

    # -- what the module and the callbacks ask for --------------------------------------------------------------------

    def sample_without_sinks(self, sites: Collection[SiteRef]) -> dict[SiteRef, Tensor]:
        """Return the present fill's activations at some sites, of tokens that are an attention sink at none of them."""
        assert self._stream is not None
        everything = self._stream.sample()
        keep = ~everything.sinks_at(sites)
        return {site: everything.activations[site][keep] for site in sites}

    def recent_without_sinks(
        self, sites: Collection[SiteRef], at_most: int, generator: torch.Generator
    ) -> dict[SiteRef, Tensor]:
        """Return activations of the fill that the last batch came from, of tokens that are a sink at none of the sites.

        What the fill holds follows from its number, so that a resumed run gets the same.

        Args:
            sites: Where they are read.
            at_most: Of more tokens than this, as many are drawn.
            generator: For that draw.
        """
        assert self._stream is not None
        fill = self._stream.present_fill()
        tokens = fill.served[~fill.everything.sinks_at(sites)[fill.served]]
        if len(tokens) > at_most:
            tokens = tokens[torch.randperm(len(tokens), generator=generator)[:at_most].to(tokens.device)]
        return {site: fill.everything.activations[site][tokens] for site in sites}

    def rows_of_the_fill(self, count: int, generator: torch.Generator) -> ActivationBatch:
        """Return some whole rows of the fill that the last batch came from, all their tokens in order.

        Args:
            count: Rows that are drawn; all, where the fill has no more.
            generator: For that draw.
        """
        assert self._stream is not None
        return self._stream.present_fill().everything.draw_rows(count, generator)

    def describe(self) -> dict[str, Any]:
        """Return where the activations come from, in plain values, for the files that are exported."""
        return self.source.describe()
