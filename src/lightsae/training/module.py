"""The LightningModule: holds the SAEs, weighs and schedules their loss terms, steps the optimiser.

What a checkpoint of step n has to hold (constrained weights, usage counts, tokens seen) is final when `optimizer_step`
returns: callbacks, the one that saves checkpoints among them, run right after it.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.timings import Timings
from lightsae.compat import data_ranks, keep_from_ddp, logs_after
from lightsae.errors import ConfigError, section, under
from lightsae.formats.checkpoint import present_names
from lightsae.formats.native import widths_entry
from lightsae.lm.dtypes import warn_if_slow
from lightsae.sae import LatentUsage, SAEOutput, SparseAutoencoder, Widths
from lightsae.sae.ranks import one_batch
from lightsae.training.checkpoint_check import check_checkpoint, check_resumable, describe, leave_out
from lightsae.training.entries import Entry, MakeSAE, build_saes, check_entries
from lightsae.training.kl import KL, as_large_as, check_kl, kl_terms, rows_for_kl
from lightsae.training.latent_parallel import (
    check_run,
    deal_out,
    latent_mesh,
    own_share,
    whole_output,
    whole_sae,
)
from lightsae.training.optimiser import adam, prepare_gradients, set_rates
from lightsae.training.resumed import ResumedFrom
from lightsae.training.schedules import Schedule
from lightsae.training.start import DATA, TIED, start_in_run

if TYPE_CHECKING:
    from lightsae.activations.datamodule import ActivationDataModule

DEAD_AFTER = 10_000_000
DEAD_AFTER_SHARE = 0.01


class SAEModule(LightningModule):
    """Trains one SAE, or several at once, on the activations that an `ActivationDataModule` serves.

    Several SAEs share one stream and one forward pass of the language model, and nothing else: each ends in the
    weights that it would have if it were trained alone.

    Args:
        sae: The SAE: a variant's name with its settings, or in Python a function from `Widths` to an SAE,
            such as `lambda widths: TopK(widths, d_sae=4096, k=32)`.
        saes: Several by name, in place of `sae`: {small: {sae: ..., site: ..., coefficients: ..., lr: ...}, ...}. What
            an entry leaves out is taken from `data` and from the settings here.
        coefficients: Weight of each loss term, a number or {value, warm_up, decay, begin}; terms left out keep the
            variant's defaults. `kl`, for the last steps of a run, {value: 0.1, begin: 0.95}: what the reconstructions
            change in the language model's predictions, weighed to be as large as the rest of the loss, times this.
        lr: Peak learning rate of Adam; null: 2.5 / sqrt(width x steps of the run), at most 0.01; 0.4 / ... where
            `start` is a saved SAE.
        lr_warm_up: Length of its linear rise: a share of the run, or steps from 1 up.
        lr_decay: Length of its linear fall to 0 at the end: a share of the run, or steps from 1 up.
        start: `tied`: random directions, the encoder the decoder's transpose; `data`: directions of data points; or the
            place of a saved SAE (whatever --sae takes), to train it further. The decoder's bias of a new one starts at
            the data's geometric median.
        dead_after: A latent is dead after this many tokens without firing; null: 10 million, or 1% of the run if that
            is less.
    """

    @section("model")
    def __init__(
        self,
        sae: MakeSAE | None = None,
        saes: dict[str, Entry] | None = None,
        coefficients: dict[str, float | Schedule] | None = None,
        lr: float | None = None,
        lr_warm_up: float = 0.2,
        lr_decay: float = 0.2,
        start: str = TIED,
        dead_after: int | None = None,
    ) -> None:
        super().__init__()
        if lr is not None and lr <= 0:
            raise ConfigError("lr", lr, "it must be above 0")
        with under(warm_up="lr_warm_up", decay="lr_decay"):
            self.lr_schedule = Schedule(1.0, lr_warm_up, lr_decay)
        if dead_after is not None and dead_after < 1:
            raise ConfigError("dead_after", dead_after, "it counts tokens, so write 1 or more")
        self.entries = check_entries(sae, saes)
        self.run_coefficients = dict(coefficients or {})
        self.short_form = sae is not None
        self.lr, self.dead_after, self.start = lr, dead_after, start
        self.saes, self.usage = nn.ModuleDict(), nn.ModuleDict()
        self.coefficients: dict[str, dict[str, Schedule]] = {}
        self.timings = Timings()
        self.tokens_seen = 0
        self._tokens_in_step = 0
        self._started = False
        self._resumed: ResumedFrom | None = None

    # -- building -------------------------------------------------------------------------------------------------

    @property
    def data(self) -> "ActivationDataModule":
        data: ActivationDataModule | None = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ConfigError("SAEModule needs an ActivationDataModule: Trainer(...).fit(module, datamodule).")
        return data

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        if str(trainer.precision).startswith("bf16") and trainer.strategy.root_device.type == "cpu":
            warn_if_slow("precision", str(trainer.precision), "32-true")

    def configure_model(self) -> None:
        """Build the SAEs, once their widths are known from the data."""
        if self.saes:
            return
        data = self.data
        dead_after = self.dead_after
        if dead_after is None:
            dead_after = DEAD_AFTER
            if data.run_tokens is not None:
                dead_after = max(1, min(DEAD_AFTER, int(DEAD_AFTER_SHARE * data.run_tokens)))
        built, mesh = self.build(data), latent_mesh(self.trainer)
        check_run(self.trainer, built, data, self.coefficients)
        for name, sae in built.items():
            self.saes[name] = sae
            self.usage[name] = usage = LatentUsage(sae.d_sae, dead_after)
            if mesh is not None:
                deal_out(sae, usage, mesh)
        # What is measured in training is reduced by `commit`; DDP would overwrite it with what rank 0 has.
        ignored = [f"usage.{name}" for name, _ in self.usage.named_buffers()]
        ignored += [f"saes.{name}" for name, _ in self.saes.named_buffers()]
        keep_from_ddp(self, ignored)

    @section("model")
    def build(self, data: "ActivationDataModule") -> dict[str, SparseAutoencoder]:
        """Make every SAE of the run, without weights that mean anything yet, and its coefficients.

        Raises:
            ConfigError: A setting does not fit.
        """
        built = build_saes(self.entries, self.widths(data), self.run_coefficients, self.start, self.short_form)
        for name, (sae, coefficients) in built.items():
            self.coefficients[name] = coefficients
            if KL in coefficients:
                check_kl(data, sae)
        return {name: sae for name, (sae, _) in built.items()}

    @section("model")
    def widths(self, data: "ActivationDataModule") -> dict[str, Widths]:
        """Return the sites of every SAE, by its name.

        Raises:
            SiteError: There is no such site; the message names the entry.
        """
        widths = {}
        for name, entry in self.entries.items():
            with under(f"saes.{name}"):
                widths[name] = data.widths_at(entry.site, entry.target_site)
        return widths

    @section("model")
    def on_fit_start(self) -> None:
        if self._resumed is not None and self.trainer.ckpt_path is not None:
            self._resumed.announce(self.total_steps, self.learning_rates())
        if self._started:
            return
        data = self.data
        for name, sae in self.each_sae().items():
            sample = data.sample_without_sinks({**sae.widths.read, **sae.widths.predicted})
            start = self.entries[name].start or self.start
            start_in_run(sae, start, sample, data.normalisation, data.seed, self.trainer)
        self._started = True

    def each_sae(self) -> dict[str, SparseAutoencoder]:
        """Return the SAEs by name, typed."""
        return {name: sae for name, sae in self.saes.items() if isinstance(sae, SparseAutoencoder)}

    def whole_saes(self) -> dict[str, SparseAutoencoder]:
        """Return the SAEs with all their latents, wherever those lie; every process has to ask for it."""
        return {name: whole_sae(sae) for name, sae in self.each_sae().items()}

    def latent_usage(self, name: str) -> LatentUsage:
        usage = self.usage[name]
        assert isinstance(usage, LatentUsage)
        return usage

    def learning_rate(self, name: str) -> float:
        """Return the peak learning rate of an SAE: its entry's, the run's, or what suits a run of this length.

        A run that is made longer keeps the rate that it was begun with, unless another is asked for.
        """
        if asked := self.entries[name].lr or self.lr:
            return asked
        if self._resumed is not None:
            return self._resumed.rates[name]
        further = (self.entries[name].start or self.start) not in (TIED, DATA)
        return self.each_sae()[name].default_lr(self.total_steps, further)

    def learning_rates(self) -> dict[str, float]:
        return {name: self.learning_rate(name) for name in self.each_sae()}

    def tag(self, name: str, tag: str) -> str:
        """Return the name under which a figure of an SAE is logged."""
        return tag if len(self.saes) == 1 else f"{name}/{tag}"

    # -- steps ----------------------------------------------------------------------------------------------------

    def inputs(self, name: str, batch: ActivationBatch) -> Tensor:
        """Return what the SAE reads, raw, (T, d_in)."""
        return Widths.join(batch.activations, self.each_sae()[name].widths.read)

    def targets(self, name: str, batch: ActivationBatch) -> Tensor:
        """Return what the SAE predicts, raw, (T, d_out)."""
        return Widths.join(batch.activations, self.each_sae()[name].widths.predicted)

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Any]:
        losses, outputs = [], {}
        step, total = self.trainer.global_step, self.total_steps
        logs = logs_after(self.trainer, step)  # in other steps, logging costs time for nothing
        for sae in self.each_sae().values():
            sae.progress = step / total
        kl, kl_weights = self._kl_terms(batch, step, total)
        for name, sae in self.each_sae().items():
            target = self.targets(name, batch).float()
            usage = self.latent_usage(name)
            with own_share(sae, usage), one_batch():
                output = sae(self.inputs(name, batch))
                terms = sae.loss_terms(target, output, usage)
                usage.observe(output.latents)
                sae.observe(output)
            weights = {term: self.coefficients[name][term].at(step, total) for term in terms}
            loss = torch.stack([weights[term] * value for term, value in terms.items()]).sum()
            if name in kl:
                terms[KL], weights[KL] = kl[name], kl_weights[name]
                loss = loss + weights[KL] * as_large_as(loss, terms[KL])
            if logs:
                figures: dict[str, Tensor | float] = {"train/loss": loss.detach()}
                figures |= {f"train/{term}": value.detach() for term, value in terms.items()}
                figures |= {f"train/coefficient/{term}": weight for term, weight in weights.items()}
                tagged = {self.tag(name, key): value for key, value in figures.items()}
                self.log_dict(tagged, batch_size=len(batch), sync_dist=self.trainer.world_size > 1)
            losses.append(loss)
            outputs[name] = output.detach()
        self._tokens_in_step += len(batch) * data_ranks(self.trainer)[1]
        return {"loss": torch.stack(losses).sum(), "outputs": outputs}

    def _kl_terms(self, batch: ActivationBatch, step: int, total: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the term kl of the SAEs that have it in this step, and the weights that it has."""
        weights = {name: terms[KL].at(step, total) for name, terms in self.coefficients.items() if KL in terms}
        saes = {name: sae for name, sae in self.each_sae().items() if weights.get(name)}
        if not saes:
            return {}, weights
        return kl_terms(saes, self.data.whole_language_model(), rows_for_kl(self.data, batch)), weights

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, SAEOutput]:
        outputs = {}
        for name, sae in self.each_sae().items():
            with own_share(sae):
                output = sae(self.inputs(name, batch))
            outputs[name] = whole_output(sae, output)
        return outputs

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # With 16-mixed the loss is scaled, and fused Adam would take the scale out after this.
            scaler.unscale_(optimizer)
        for sae in self.each_sae().values():
            prepare_gradients(sae, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        with self.timings.measure("sae_step", self.device):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            for name, sae in self.each_sae().items():
                usage = self.latent_usage(name)
                with torch.no_grad(), own_share(sae, usage):
                    sae.commit()
                    usage.commit()
        self.tokens_seen += self._tokens_in_step
        self._tokens_in_step = 0

    # -- optimiser ------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        return self.trainer.max_steps if self.trainer.max_steps > 0 else int(self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> Any:
        optimizer = adam(self.each_sae(), self.learning_rates())
        total = self.total_steps
        scheduler = LambdaLR(optimizer, lambda step: self.lr_schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        if self._resumed is not None:
            set_rates(self.trainer, self.learning_rates(), self.lr_schedule, self.total_steps)

    def on_train_batch_start(self, batch: ActivationBatch, batch_idx: int) -> None:
        if not logs_after(self.trainer, self.trainer.global_step):
            return
        for group in self.trainer.optimizers[0].param_groups:
            self.log(self.tag(group["name"], "train/lr"), group["lr"], batch_size=len(batch))

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saes, data = self.each_sae(), getattr(self.trainer, "datamodule", None)
        checkpoint["lightsae"] = {
            "tokens_seen": self.tokens_seen,
            "total_steps": self.total_steps,
            "dictionaries": {name: describe(sae) for name, sae in saes.items()},
            # For who opens the checkpoint as an SAE: what an export says.
            "widths": {name: widths_entry(sae.widths) for name, sae in saes.items()},
            "data": json.loads(json.dumps(data.describe(), default=str)) if data is not None else {},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check all of a checkpoint. Lightning calls this before it loads anything of it."""
        self.configure_model()
        if self.trainer.state.fn == TrainerFn.FITTING:
            data = getattr(self.trainer, "datamodule", None)
            check_resumable(checkpoint, self.each_sae(), self.trainer, data)
            leave_out(checkpoint, data)
            self._resumed = ResumedFrom.of(checkpoint)
        else:
            check_checkpoint(checkpoint, self.each_sae())
            checkpoint.pop("loops", None)  # weights are all that is measured
        checkpoint["state_dict"] = present_names(checkpoint["state_dict"])
        self.tokens_seen, self._started = checkpoint["lightsae"]["tokens_seen"], True
