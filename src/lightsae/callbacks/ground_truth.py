"""How much of the truth the SAEs have found, where the data are synthetic and the truth is known.

Axes: T tokens, F latents, N firings.
"""

from typing import Any

from jaxtyping import Int
from lightning import LightningModule, Trainer
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.synthetic.world import SyntheticWorld
from lightsae.callbacks.base import SAECallback
from lightsae.metrics.ground_truth import GroundTruthScores
from lightsae.sae.sparse_ops import Latents, as_sparse


class GroundTruth(SAECallback):
    """Log scores against the true features of synthetic data. Observes only; does nothing on other data.

    In validation, decoder rows are matched one to one with the true features (Hungarian, on |cosine|), and over all
    held-out tokens: `val/truth/mcc` (mean |cosine| of the pairs), `val/truth/recovered` (share of the true features
    whose partner lies at |cosine| above the threshold), `val/truth/f1`, `precision` and `recall` (each latent as a
    detector of its feature, averaged over the pairs). `val/truth/recovered_1e-3` and `val/truth/f1_1e-3` are those of
    the features that fire on 0.1% to 1% of the tokens, and so on. With fewer latents than features, the share
    recovered among as many of the most frequent features is `val/truth/recovered_most_frequent`.

    Where a run has several SAEs, each figure's name begins with the SAE's.

    Args:
        threshold: |cosine| above which a feature counts as recovered.

    Example:
        trainer: {callbacks: [GroundTruth]}
    """

    def __init__(self, threshold: float = 0.9) -> None:
        self._refuse_if(not 0 <= threshold < 1, "threshold", threshold, "write a cosine from 0 up, below 1")
        self.threshold = threshold
        # Not submodules of the LightningModule: its precision and its checkpoints are not theirs.
        self._scores: dict[str, GroundTruthScores] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        world: SyntheticWorld | None = getattr(self.data, "synthetic_world", None)
        if world is None:
            return
        for name, sae in self.module.each_sae().items():
            scores = GroundTruthScores(sae.W_dec.detach(), world.features, world.probabilities, self.threshold)
            self._scores[name] = scores.to(self.module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ActivationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch.truth is None:
            return
        true_tokens, true_features = firings(batch.truth)
        for name, scores in self._scores.items():
            scores.update(*firings(outputs[name].latents), true_tokens, true_features)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, scores in self._scores.items():
            # NaN: no pair, or no true firing, to judge by.
            figures = {f"truth/{key}": value for key, value in scores.compute().items() if not value.isnan()}
            self.log_pooled(name, figures)
        self._scores.clear()


def firings(latents: Latents) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Return the token and the latent of every positive entry."""
    sparse = as_sparse(latents)
    fires = sparse.values > 0
    return sparse.pattern.token_of[fires], sparse.indices[fires]
