"""What steering costs on text that has nothing to do with it: held-out rows, where the feature does not fire.

Axes: B rows, S positions, F features, D width read.

    ce_rise         cross-entropy of the next token, steered minus untouched, in nats per token
    others_changed  how far the set of other features that fire on a token changes: one minus the share that the two
                    sets have in common (Jaccard distance), at the sites that the SAE reads
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightsae.analysis.panels.arms import Steered
from lightsae.analysis.panels.readings import watched
from lightsae.analysis.steering.interventions import Intervention
from lightsae.metrics import counted_targets, token_cross_entropy
from lightsae.metrics.intervals import Interval
from lightsae.sae import Widths


@dataclass(frozen=True)
class SideEffects:
    """Means over rows with their intervals."""

    ce_rise: Interval
    others_changed: Interval

    def report(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"ce_rise": self.ce_rise.report(), "others_changed": self.others_changed.report()}


class UnrelatedText:
    """Held-out rows, read once by the untouched model.

    Args:
        steered: The model and the SAE.
        rows: (B, S) token ids.
        rows_at_once: Rows per pass.
    """

    def __init__(self, steered: Steered, rows: Int[Tensor, "B S"], rows_at_once: int = 8) -> None:
        self._steered, self._parts = steered, rows.to(steered.model.device).split(rows_at_once)
        special = torch.tensor(steered.model.special_token_ids, device=steered.model.device)
        self._counted = [counted_targets(torch.isin(part, special)) for part in self._parts]
        self._clean = [self._read(part) for part in self._parts]

    def effects(self, interventions: list[Intervention], feature: int) -> SideEffects:
        """Return what steering does where the feature does not fire; of one that always fires, everywhere."""
        rises: list[float] = []
        changes: list[float] = []
        always = all(bool(clean_fires[:, 1:, feature].all()) for _, clean_fires in self._clean)
        for part, counted, (clean_ce, clean_fires) in zip(self._parts, self._counted, self._clean, strict=True):
            with self._steered.by(interventions):
                ce, fires = self._read(part)
            # Position 0 is an attention sink, which steering leaves alone.
            silent = ~clean_fires[:, :, feature] | always
            silent[:, 0] = False
            rises += _means(ce - clean_ce, counted & silent[:, :-1])
            changes += _means(_jaccard_distance(clean_fires, fires, feature), silent)
        return SideEffects(Interval.over(rises), Interval.over(changes))

    def _read(self, rows: Int[Tensor, "B S"]) -> tuple[Float[Tensor, "B S-1"], Bool[Tensor, "B S F"]]:
        model, sae = self._steered.model, self._steered.sae
        with watched(model, [ref.site for ref in sae.widths.read]) as seen:
            logits = model.logits(rows)
        with torch.no_grad():
            # A copy outside the inference mode of `logits`: what an SAE keeps in buffers has to stay usable.
            parts = {ref: seen[ref.site][0].flatten(0, 1).float().clone() for ref in sae.widths.read}
            x = Widths.join(parts, sae.widths.read)
            fires = torch.cat([sae.encode(chunk) > 0 for chunk in x.split(2048)])
        return token_cross_entropy(logits, rows), fires.reshape(*rows.shape, -1)


def _jaccard_distance(one: Bool[Tensor, "B S F"], other: Bool[Tensor, "B S F"], without: int) -> Float[Tensor, "B S"]:
    both, either = one & other, one | other
    both[..., without] = either[..., without] = False
    return 1 - both.sum(2) / either.sum(2).clamp(min=1)


def _means(values: Tensor, where: Tensor) -> list[float]:
    """Return each row's mean over what counts; rows in which nothing does are left out."""
    sums, counts = (values * where).sum(1).double(), where.sum(1)
    means: list[float] = (sums / counts)[counts > 0].tolist()
    return means
