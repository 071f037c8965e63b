"""How well the SAEs reconstruct, while they train and on held-out text.

Axes: T tokens, F latents.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from lightning import LightningModule, Trainer
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.roles import ROLES
from lightsae.callbacks.base import SAECallback, add_histogram, log_once
from lightsae.metrics import GroupedReconstruction, LatentFrequencies, ReconstructionStatistics, TokenMean
from lightsae.sae import SAEOutput, SparseAutoencoder
from lightsae.sae.ranks import shard
from lightsae.sae.sparse_ops import Latents, as_sparse
from lightsae.training.latent_parallel import own_share, whole_output, whole_tensor

HISTOGRAM_VALUES = 100_000


class ReconstructionMetrics(SAECallback):
    """Log FVE, L0 and what goes with them. Observes only.

    In training, every `every_n_steps` steps, from the batch at hand, on the progress bar too: `train/fve`,
    `train/fve_no_sinks`, `train/l0`, and `train/dead_fraction` by the run's definition of dead (`model.dead_after`).

    In validation, pooled over all `val/tokens` held-out tokens: `val/fve`, `val/mse` (mean over tokens and dimensions,
    in the activations' unit squared), `val/relative_reconstruction_bias`, `val/cosine`, each also as `..._no_sinks`;
    `val/l0`, and where latents are made otherwise in training (BatchTopK: the batch's largest, not those above the
    threshold) `val/l0_in_training` on the same tokens; `val/dead_fraction` (silent on all these tokens),
    `val/dense_fraction` (on more than 10% of them) and `val/dense_fraction_1pct`. TensorBoard also gets histograms:
    log10 of the firing frequencies, the first batch's positive latents without those of sinks (normalised units, at
    most 100,000), and the norms of decoder rows.

    Of conversations also by role (`val/fve/assistant`, `val/fve_no_sinks/...`, `val/l0/...`, `val/dead_fraction/...`,
    `val/tokens/...`; `markup` is what no message says), and of a mixture by the dataset's name.

    Where a run has several SAEs, each figure's name begins with the SAE's.

    Args:
        every_n_steps: Steps between the figures in training.

    Example:
        trainer: {callbacks: [{class_path: ReconstructionMetrics, init_args: {every_n_steps: 50}}]}
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self._refuse_if(every_n_steps < 1, "every_n_steps", every_n_steps, "write 1 or more")
        self.every_n_steps = every_n_steps
        self._last_step = 0
        # Not submodules of the LightningModule: its precision and its checkpoints are not theirs.
        self._statistics: dict[str, ReconstructionStatistics] = {}
        self._frequencies: dict[str, LatentFrequencies] = {}
        self._l0_in_training: dict[str, TokenMean] = {}
        # By what the groups are (roles, datasets) and the SAE's name; made when there are any.
        self._groups: dict[tuple[str, str], GroupedReconstruction] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ActivationBatch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # While gradients accumulate, several batches end at the same step.
        if step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        for name, of_device in outputs["outputs"].items():
            output = whole_output(self.module.each_sae()[name], of_device)
            statistics = ReconstructionStatistics(output.x_hat.shape[1], sync_on_compute=False).to(self.module.device)
            sinks = batch.sinks_at(self.module.each_sae()[name].widths.predicted)
            statistics.update(self.module.targets(name, batch), output.x_hat, l0_per_token(output.latents), sinks)
            figures = statistics.compute()
            dead = whole_tensor(self.module.latent_usage(name).dead).double().mean()
            # One wait for the device here. Lightning reads what is on the progress bar in every later step too, and
            # would wait each time if it were still on the device.
            values = torch.stack([figures["fve"], figures["fve_no_sinks"], figures["l0"], dead]).float().tolist()
            keys = ("train/fve", "train/fve_no_sinks", "train/l0", "train/dead_fraction")
            tagged = {self.module.tag(name, key): value for key, value in zip(keys, values, strict=True)}
            self.module.log_dict(tagged, prog_bar=True, logger=False, on_step=True, on_epoch=False)
            log_once(trainer, tagged)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, sae in self.module.each_sae().items():
            self._statistics[name] = ReconstructionStatistics(sae.d_out).to(self.module.device)
            self._frequencies[name] = LatentFrequencies(sae.d_sae).to(self.module.device)
            if sae.mechanism.two_modes:
                self._l0_in_training[name] = TokenMean().to(self.module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ActivationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for name, sae in self.module.each_sae().items():
            if name in self._l0_in_training:
                in_training = latents_in_training(sae, outputs[name])
            if shard() > 0:
                continue  # another process has the same batch
            x, output, sinks = self.module.targets(name, batch), outputs[name], batch.sinks_at(sae.widths.predicted)
            self._statistics[name].update(x, output.x_hat, l0_per_token(output.latents), sinks)
            self._frequencies[name].update(firing_counts(output.latents), len(batch))
            if name in self._l0_in_training:
                self._l0_in_training[name].update(l0_per_token(in_training))
            self._update_groups(name, batch, output)
            if batch_idx == 0 and not trainer.sanity_checking:
                values = positive_latents(output, ~sinks)
                add_histogram(trainer, self.module.tag(name, "histogram/latent_activations"), values)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, sae in self.module.each_sae().items():
            figures = self._statistics.pop(name).compute() | self._frequencies.pop(name).compute()
            if name in self._l0_in_training:
                figures["l0_in_training"] = self._l0_in_training.pop(name).compute()
            for groups in ("roles", "datasets"):
                if (name, groups) in self._groups:
                    figures |= self._groups.pop((name, groups)).compute()
            frequencies = figures.pop("log10_frequencies")
            self.log_pooled(name, figures)
            norms = whole_tensor(sae.W_dec.detach()).norm(dim=1)
            if not trainer.sanity_checking:
                add_histogram(trainer, self.module.tag(name, "histogram/log10_firing_frequency"), frequencies)
                add_histogram(trainer, self.module.tag(name, "histogram/decoder_norm"), norms)

    def _update_groups(self, name: str, batch: ActivationBatch, output: SAEOutput) -> None:
        """Add a batch to the figures by role and by dataset."""
        sae, x = self.module.each_sae()[name], self.module.targets(name, batch)
        sinks, fired = batch.sinks_at(sae.widths.predicted), l0_per_token(output.latents)
        names = {"roles": ROLES, "datasets": [part.name for part in getattr(self.data, "datasets", None) or []]}
        for groups, numbers in (("roles", batch.roles), ("datasets", batch.datasets)):
            if numbers is None:
                continue
            if (name, groups) not in self._groups:
                metric = GroupedReconstruction(names[groups], sae.d_out, sae.d_sae)
                self._groups[name, groups] = metric.to(self.module.device)
            firings = firings_by_group(output.latents, numbers, len(names[groups]))
            self._groups[name, groups].update(x, output.x_hat, fired, firings, numbers, sinks)


@torch.no_grad()
def latents_in_training(sae: SparseAutoencoder, output: SAEOutput) -> Latents:
    """Return the latents that the same input would have in training."""
    sae.train()
    try:
        with own_share(sae):
            latents = sae.encode_normalised(output.x_normalised)
    finally:
        sae.eval()
    return whole_output(sae, replace(output, latents=latents)).latents


def l0_per_token(latents: Latents) -> Int[Tensor, " T"]:
    """Return how many latents fire on each token."""
    if isinstance(latents, Tensor):
        return (latents > 0).sum(1, dtype=torch.int32)
    counts = torch.zeros(latents.pattern.tokens, dtype=torch.int32, device=latents.values.device)
    return counts.scatter_add_(0, latents.pattern.token_of, (latents.values > 0).int())


def firing_counts(latents: Latents, tokens: Bool[Tensor, " T"] | None = None) -> Int[Tensor, " F"]:
    """Return on how many tokens each latent fires; if `tokens` are given, on how many of those."""
    if isinstance(latents, Tensor):
        return ((latents if tokens is None else latents[tokens]) > 0).sum(0, dtype=torch.int32)
    fires = latents.values > 0
    if tokens is not None:
        fires = fires & tokens[latents.pattern.token_of]
    counts = torch.zeros(latents.pattern.width, dtype=torch.int32, device=fires.device)
    return counts.scatter_add_(0, latents.indices.long(), fires.int())


def firings_by_group(latents: Latents, groups: Shaped[Tensor, " T"], count: int) -> Int[Tensor, "G F"]:
    """Return on how many tokens of each of `count` groups each latent fires."""
    return torch.stack([firing_counts(latents, groups == group) for group in range(count)])


def positive_latents(output: SAEOutput, mask: Tensor, limit: int = HISTOGRAM_VALUES) -> Float[Tensor, " N"]:
    """Return the positive latents of the tokens in `mask`, evenly thinned out to `limit` at most."""
    latents = as_sparse(output.latents)
    values = latents.values[(latents.values > 0) & mask[latents.pattern.token_of]]
    return values[:: max(1, -(-len(values) // limit))]
