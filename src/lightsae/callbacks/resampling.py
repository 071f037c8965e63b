"""Bring dead latents back by giving them the directions that the SAE explains worst.

Axes:    T tokens, D width, F latents.
Source:  Bricken et al. 2023, "Towards Monosemanticity", app. "Neuron resampling".
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.callbacks.base import SAECallback
from lightsae.errors import ConfigError, arg
from lightsae.randomness import keyed_generator
from lightsae.sae import LatentUsage, SAEOutput, SparseAutoencoder, Widths
from lightsae.training.latent_parallel import NAME, LatentParallelStrategy

ENCODER_NORM_SHARE = 0.2
POOL_TOKENS = 819_200
TOKENS_AT_ONCE = 4096


class DeadLatentResampling(SAECallback):
    """Resample dead latents at given optimiser steps. Acts on weights and on the optimiser.

    A dead latent gets an input of the buffer that the present batch came from (`data.buffer_tokens`, at most 819,200
    tokens, as in the source), drawn with probability proportional to its squared loss: without attention sinks, whose
    loss would outweigh all others, and each input once at most. The input becomes, at unit length (at the mean norm of
    the live rows, where rows are not of unit norm), its decoder row, and at 0.2 of the mean norm of the live encoder
    columns its encoder column. Its encoder bias becomes 0, what the mechanism has of its own for it (a threshold, say)
    starts afresh, and the Adam moments of all these become 0. With fewer inputs than dead latents, the longest silent
    get them; the others stay as they are.

    Draws come from a generator keyed by the step, and the counts of the latents are part of the checkpoint: a resumed
    run resamples as the uninterrupted one does. Variants that select (TopK) have AuxK instead and are left alone.

    Args:
        steps: Optimiser steps after which to resample.
        at_most: Cap on the latents that are resampled at once, the longest silent first.

    Example:
        trainer: {callbacks: [{class_path: DeadLatentResampling, init_args: {steps: [25000, 50000, 75000]}}]}
    """

    def __init__(self, steps: Sequence[int], at_most: int | None = None) -> None:
        self._refuse_if(any(step < 1 for step in steps), "steps", list(steps), "steps count from 1")
        self._refuse_if(at_most is not None and at_most < 1, "at_most", at_most, "write 1 or more, or leave it out")
        self.steps, self.at_most = frozenset(steps), at_most
        self._step_before = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if isinstance(trainer.strategy, LatentParallelStrategy):
            raise ConfigError(
                f"{type(self).__name__} does not go with {arg('strategy', 'trainer')} {NAME}: it draws for latents of "
                "all devices. Leave it out; JumpReLU and TopK bring dead latents back by their losses."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ActivationBatch, batch_idx: int
    ) -> None:
        stepped = trainer.global_step != self._step_before
        if trainer.global_step not in self.steps or not stepped:
            return
        for name, sae in self.module.each_sae().items():
            if sae.mechanism.has_auxk:
                continue
            usage = self.module.latent_usage(name)
            dead = _longest_silent(usage, self.at_most)
            if len(dead) == 0:
                continue
            generator = keyed_generator(self.data.seed, "resampling", trainer.global_step)
            widths = sae.widths
            pool = self.data.recent_without_sinks({**widths.read, **widths.predicted}, POOL_TOKENS, generator)
            inputs, targets = Widths.join(pool, widths.read), Widths.join(pool, widths.predicted)
            rows = draw_by_loss(sae, inputs, targets, len(dead), generator)
            # Every rank draws from its own buffer; rank 0's draw is everyone's.
            rows = trainer.strategy.broadcast(rows)
            left = len(dead) - len(rows[0])
            dead = _longest_silent(usage, len(rows[0]))
            resample(sae, trainer.optimizers[0], dead, rows, live=~usage.dead)
            usage.revive(dead)
            stay = f"; {left} dead ones stay, for want of inputs" if left else ""
            rank_zero_info(f"Step {trainer.global_step}: resampled {len(dead)} of {sae.d_sae} latents{stay}.")


def _longest_silent(usage: LatentUsage, at_most: int | None) -> Tensor:
    dead = usage.dead.nonzero().squeeze(1)
    if at_most is None or len(dead) <= at_most:
        return dead
    order = torch.argsort(usage.silent_tokens[dead], descending=True, stable=True)
    return dead[order[:at_most]].sort().values


@torch.no_grad()
def draw_by_loss(
    sae: SparseAutoencoder, inputs: Tensor, targets: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw `count` different tokens, each with probability proportional to its squared loss among those that are left.

    Returns:
        What was read of them, normalised and centred as the encoder sees it (count, D), and what is to be predicted,
        normalised and without the decoder's bias (count, O). Fewer, if fewer tokens have a loss.
    """
    parts = zip(inputs.split(TOKENS_AT_ONCE), targets.split(TOKENS_AT_ONCE), strict=True)
    weights = torch.cat([_losses(sae, x, y) for x, y in parts]).cpu().double().square()
    count = min(count, int(weights.count_nonzero()))
    chosen = torch.multinomial(weights, count, generator=generator) if count else torch.arange(0)
    output = sae(inputs[chosen.to(inputs.device)])
    read, predicted = output.x_normalised, output.normalised(targets[chosen.to(targets.device)].float())
    return read if sae.centre is None else read - sae.centre, predicted - sae.b_dec


def _losses(sae: SparseAutoencoder, inputs: Tensor, targets: Tensor) -> Tensor:
    output: SAEOutput = sae(inputs)
    error = output.normalised(targets.float()) - output.x_hat_normalised
    return error.square().sum(1)


@torch.no_grad()
def resample(
    sae: SparseAutoencoder, optimizer: torch.optim.Optimizer, dead: Tensor, drawn: tuple[Tensor, Tensor], live: Tensor
) -> None:
    """Overwrite the dead latents' weights and Adam moments in place.

    Args:
        sae: The SAE in training.
        optimizer: Its optimiser: the moments of these entries become 0.
        dead: Latents to overwrite, (n,).
        drawn: For each its input (n, D) and its target (n, O), as `draw_by_loss` gives them.
        live: Which latents are live, (F,): their mean norms are what the new weights are measured by.
    """
    read, predicted = drawn
    encoder_norms, decoder_norms = sae.W_enc.norm(dim=0), sae.W_dec.norm(dim=1)
    encoder_norm = encoder_norms[live].mean() if bool(live.any()) else encoder_norms.mean()
    decoder_norm = 1.0 if sae.mechanism.unit_norm_decoder else decoder_norms[live].mean() if bool(live.any()) else 1.0
    sae.W_dec[dead] = decoder_norm * torch.nn.functional.normalize(predicted, dim=1)
    sae.W_enc[:, dead] = ENCODER_NORM_SHARE * encoder_norm * torch.nn.functional.normalize(read, dim=1).T
    sae.b_enc[dead] = 0
    sae.mechanism.revive(dead)
    own = [(parameter, (dead,)) for parameter in sae.mechanism.parameters()]
    for parameter, entries in ((sae.W_dec, (dead,)), (sae.W_enc, (slice(None), dead)), (sae.b_enc, (dead,)), *own):
        for key in ("exp_avg", "exp_avg_sq"):
            if key in optimizer.state[parameter]:
                optimizer.state[parameter][key][entries] = 0
