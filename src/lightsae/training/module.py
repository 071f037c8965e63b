"""The LightningModule: holds the dictionaries, weighs and schedules their loss terms, steps the optimiser.

What a checkpoint of step n has to hold (constrained weights, usage counts, tokens seen) is final when `optimizer_step`
returns: callbacks, the one that saves checkpoints among them, run right after it.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.timing import Timings
from lightsae.errors import CheckpointError, ConfigError, did_you_mean
from lightsae.randomness import keyed_generator
from lightsae.sae import LatentUsage, SAEOutput, SparseAutoencoder, Widths
from lightsae.training.schedules import Schedule

if TYPE_CHECKING:
    from lightsae.activations.datamodule import ActivationDataModule

DEAD_AFTER = 10_000_000
DEAD_AFTER_SHARE = 0.05


class SAEModule(LightningModule):
    """Trains a dictionary on the activations that an `ActivationDataModule` serves.

    Args:
        sae: The dictionary: a variant's name with its settings, or in Python a function from `Widths` to a dictionary,
            such as `lambda widths: TopK(widths, d_sae=4096, k=32)`.
        coefficients: Weight of each loss term, a number or {value, warm_up, decay}; terms left out keep the variant's
            defaults.
        lr: Peak learning rate of Adam; None: the variant's default.
        lr_warm_up: Length of its linear rise: a share of the run, or steps from 1 up.
        lr_decay: Length of its linear fall to 0 at the end: a share of the run, or steps from 1 up.
        dead_after: A latent is dead after this many tokens without firing; None: 10 million, or 5% of the run if that
            is less.
    """

    def __init__(
        self,
        sae: Callable[[Widths], SparseAutoencoder],
        coefficients: dict[str, float | Schedule] | None = None,
        lr: float | None = None,
        lr_warm_up: float = 0.02,
        lr_decay: float = 0.2,
        dead_after: int | None = None,
    ) -> None:
        super().__init__()
        if lr is not None and lr <= 0:
            raise ConfigError(f"model.lr is {lr}; it must be above 0.")
        for key, length in (("lr_warm_up", lr_warm_up), ("lr_decay", lr_decay)):
            if length < 0:
                raise ConfigError(f"model.{key} is {length}; write a share of the run (0.05) or steps (200).")
        if dead_after is not None and dead_after < 1:
            raise ConfigError(f"model.dead_after is {dead_after}; it counts tokens, so write 1 or more.")
        self.make_sae, self.given_coefficients = sae, dict(coefficients or {})
        self.lr, self.lr_warm_up, self.lr_decay, self.dead_after = lr, lr_warm_up, lr_decay, dead_after
        self.dictionaries, self.usage = nn.ModuleDict(), nn.ModuleDict()
        self.coefficients: dict[str, dict[str, Schedule]] = {}
        self.timings = Timings()
        self.tokens_seen = 0
        self._tokens_in_step = 0
        self._started = False

    # -- building -------------------------------------------------------------------------------------------------

    @property
    def data(self) -> "ActivationDataModule":
        data: ActivationDataModule | None = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ConfigError("SAEModule needs an ActivationDataModule: Trainer(...).fit(module, datamodule).")
        return data

    def configure_model(self) -> None:
        """Build the dictionaries, once their widths are known from the data."""
        if self.dictionaries:
            return
        data = self.data
        dead_after = self.dead_after
        if dead_after is None:
            dead_after = DEAD_AFTER
            if data.run_tokens is not None:
                dead_after = max(1, min(DEAD_AFTER, int(DEAD_AFTER_SHARE * data.run_tokens)))
        sae = self.make_sae(data.widths)
        sae.reset_parameters(keyed_generator(data.seed, "weights"))
        self.dictionaries["sae"] = sae
        self.usage["sae"] = LatentUsage(sae.d_sae, dead_after)
        self.coefficients["sae"] = merge_coefficients(sae, self.given_coefficients)
        # The counts are reduced by `LatentUsage.commit`; DDP would overwrite them with those of rank 0.
        self._ddp_params_and_buffers_to_ignore = [f"usage.{name}" for name, _ in self.usage.named_buffers()]

    def on_fit_start(self) -> None:
        if not self._started:
            sample = self.data.sample_without_sinks()
            for sae in self.each_sae().values():
                sae.start_from(sample, self.data.normalisation)
                if torch.distributed.is_available() and torch.distributed.is_initialized():
                    # Each rank measured its own fill, and DDP has shared the weights already: rank 0's start is all's.
                    for tensor in sae.state_dict().values():
                        torch.distributed.broadcast(tensor, src=0)
            self._started = True

    def each_sae(self) -> dict[str, SparseAutoencoder]:
        """Return the dictionaries by name, typed."""
        return {name: sae for name, sae in self.dictionaries.items() if isinstance(sae, SparseAutoencoder)}

    def latent_usage(self, name: str) -> LatentUsage:
        usage = self.usage[name]
        assert isinstance(usage, LatentUsage)
        return usage

    def tag(self, name: str, tag: str) -> str:
        """Return the name under which a figure of a dictionary is logged."""
        return tag if len(self.dictionaries) == 1 else f"{name}/{tag}"

    # -- steps ----------------------------------------------------------------------------------------------------

    def inputs(self, name: str, batch: ActivationBatch) -> Tensor:
        """Return what the dictionary reads, raw, (T, d_in)."""
        return _columns(batch, self.each_sae()[name].widths.read)

    def targets(self, name: str, batch: ActivationBatch) -> Tensor:
        """Return what the dictionary predicts, raw, (T, d_out)."""
        return _columns(batch, self.each_sae()[name].widths.predicted)

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Any]:
        losses, outputs = [], {}
        step, total = self.trainer.global_step, self.total_steps
        for name, sae in self.each_sae().items():
            target = self.targets(name, batch).float()
            output = sae(self.inputs(name, batch))
            terms = sae.loss_terms(target, output, self.latent_usage(name))
            weights = {term: self.coefficients[name][term].at(step, total) for term in terms}
            loss = torch.stack([weights[term] * value for term, value in terms.items()]).sum()
            self.latent_usage(name).observe(output.latents)
            figures: dict[str, Tensor | float] = {"train/loss": loss.detach()}
            figures |= {f"train/{term}": value.detach() for term, value in terms.items()}
            figures |= {f"train/coefficient/{term}": weight for term, weight in weights.items()}
            self.log_dict({self.tag(name, key): value for key, value in figures.items()}, batch_size=len(batch))
            losses.append(loss)
            outputs[name] = output.detach()
        self._tokens_in_step += len(batch) * self.trainer.world_size
        return {"loss": torch.stack(losses).sum(), "outputs": outputs}

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, SAEOutput]:
        return {name: sae(self.inputs(name, batch)) for name, sae in self.each_sae().items()}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each dictionary by itself: a global norm would couple the dictionaries of a sweep."""
        for sae in self.each_sae().values():
            sae.before_step()
            if gradient_clip_val:
                if gradient_clip_algorithm == "value":
                    nn.utils.clip_grad_value_(sae.parameters(), gradient_clip_val)
                else:
                    nn.utils.clip_grad_norm_(sae.parameters(), gradient_clip_val)

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
                sae.constrain()
                self.latent_usage(name).commit()
        self.tokens_seen += self._tokens_in_step
        self._tokens_in_step = 0

    # -- optimiser ------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        return self.trainer.max_steps if self.trainer.max_steps > 0 else int(self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [
            {
                "params": list(sae.parameters()),
                "lr": self.lr or sae.default_lr,
                "betas": sae.adam_betas,
                "eps": sae.adam_eps,
                "name": name,
            }
            for name, sae in self.each_sae().items()
        ]
        optimizer = Adam(groups, fused=True)
        schedule, total = Schedule(1.0, self.lr_warm_up, self.lr_decay), self.total_steps
        scheduler = LambdaLR(optimizer, lambda step: schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: ActivationBatch, batch_idx: int) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            self.log(self.tag(group["name"], "train/lr"), group["lr"], batch_size=len(batch))

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lightsae"] = {
            "tokens_seen": self.tokens_seen,
            "dictionaries": {name: describe(sae) for name, sae in self.each_sae().items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("lightsae")
        if stored is None:
            raise CheckpointError("--ckpt_path: this checkpoint was not written by lightsae fit.")
        self.configure_model()
        found = {name: describe(sae) for name, sae in self.each_sae().items()}
        if difference := first_difference(stored["dictionaries"], found):
            raise CheckpointError(f"--ckpt_path: the checkpoint does not fit the configuration: {difference}.")
        self.tokens_seen, self._started = stored["tokens_seen"], True


def merge_coefficients(sae: SparseAutoencoder, given: Mapping[str, float | Schedule]) -> dict[str, Schedule]:
    """Return every loss term's schedule: what was given, and the variant's defaults for the rest.

    Raises:
        ConfigError: A given term is none of the variant's.
    """
    mechanism = sae.mechanism
    merged = {
        term: Schedule(value, mechanism.default_warm_up.get(term, 0.0))
        for term, value in mechanism.default_coefficients.items()
    }
    for term, value in given.items():
        if term not in merged:
            raise ConfigError(
                f"model.coefficients.{term}: {type(sae).__name__} has the loss terms {', '.join(merged)}."
                + did_you_mean(term, merged)
            )
        if isinstance(value, Schedule):
            merged[term] = value
        else:
            merged[term] = Schedule(float(value), mechanism.default_warm_up.get(term, 0.0))
    return merged


def describe(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return what has to agree between a checkpoint and a configuration, as plain values."""
    return {
        "variant": type(sae).__name__,
        "d_in": sae.d_in,
        "d_out": sae.d_out,
        **sae.settings,
        "read": [str(site) for site in sae.widths.read],
        "predicted": [str(site) for site in sae.widths.predicted],
    }


def first_difference(stored: Mapping[str, Any], found: Mapping[str, Any], where: str = "") -> str | None:
    """Return the first disagreement of two nested descriptions in words, or None."""
    for key in {**stored, **found}:
        a, b = stored.get(key), found.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := first_difference(a, b, f"{where}{key}."):
                return inner
        elif a != b:
            return f"{where}{key} is {a!r} in the checkpoint and {b!r} in the configuration"
    return None


def _columns(batch: ActivationBatch, widths: Mapping[Any, int]) -> Tensor:
    sites = list(widths)
    return batch.activations[sites[0]] if len(sites) == 1 else torch.cat([batch.activations[s] for s in sites], dim=1)
