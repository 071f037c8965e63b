"""What an SAE costs the language model that it describes: its reconstructions in place of the activations.

Axes: B rows, S positions, D width of a site, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.callbacks.base import SAECallback
from lightsae.lm import LanguageModel
from lightsae.lm.splice import spliced_logits
from lightsae.metrics import (
    TokenMean,
    counted_targets,
    cross_entropy_recovered,
    token_cross_entropy,
    token_kl_divergence,
)
from lightsae.sae import SiteRef, SparseAutoencoder, Widths
from lightsae.sae.ranks import shard

Sites = tuple[SiteRef, ...]


@dataclass(frozen=True)
class Rows:
    """Some rows of validation tokens: which of them are special tokens, and which are attention sinks at each site."""

    tokens: Int[Tensor, "B S"]
    special: Bool[Tensor, "B S"]
    sinks: dict[SiteRef, Bool[Tensor, "B S"]]

    def __getitem__(self, part: slice) -> "Rows":
        return Rows(self.tokens[part], self.special[part], {site: mask[part] for site, mask in self.sinks.items()})


class LanguageModelMetrics(SAECallback):
    """Log how much of the language model's prediction survives splicing, in validation. Observes only.

    For each SAE, in nats per token: `val/ce_clean`, `val/ce_spliced` (reconstructions in place of the activations
    at the SAE's site, at all positions), `val/ce_zero` and `val/ce_mean` (zeros, or the mean activation, there),
    `val/kl` (clean || spliced); `val/ce_recovered` = (zero - spliced) / (zero - clean), and `val/ce_recovered_mean`
    with the mean ablation. The `..._no_sinks` figures (ce_spliced, ce_zero, ce_recovered, kl) leave the activations of
    attention sinks as they are, in splicing and in ablation.

    All are means over the same `val/ce_tokens` predictions: those whose target exists and is no special token. The mean
    activation is that of all tokens of the evaluated rows but the sinks, whose norms would be most of it.

    A validation costs a forward pass of the whole model, 2 per SAE of what lies above its site, and the first one
    3 more per site: what ablation does depends neither on the SAE nor on its training. Without a next-token head
    (BERT), or with activations from files, it says so and logs nothing. Where several models are read, it is
    `data.model` that is spliced and measured, at those sites that lie in it.

    Args:
        max_rows: Evaluate only the first rows of each device's share; None: all validation rows.
        batch_rows: Rows in one forward pass; two such batches of logits are in memory.

    Example:
        trainer: {callbacks: [{class_path: LanguageModelMetrics, init_args: {max_rows: 512}}]}
    """

    needs_full_language_model = True

    def __init__(self, max_rows: int | None = None, batch_rows: int = 8) -> None:
        self._refuse_if(
            max_rows is not None and max_rows < 1, "max_rows", max_rows, "write 1 or more, or null for all rows"
        )
        self._refuse_if(batch_rows < 1, "batch_rows", batch_rows, "write 1 or more")
        self.max_rows, self.batch_rows = max_rows, batch_rows
        self._language_model: LanguageModel | None = None
        self._explained = False
        self._means: dict[str, TokenMean] = {}
        self._activation_means: dict[SiteRef, TokenMean] = {}
        self._rows: list[Rows] = []
        self._ablated_rows: list[Rows] = []
        self._ablations: dict[Sites, dict[str, Tensor]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        # Another run may bring another model.
        self._explained, self._ablated_rows, self._ablations = False, [], {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._language_model = self._usable_model()
        self._rows = []
        figures = [f"{name}/{f}{s}" for name in self.module.saes for f in ("ce", "kl") for s in ("", "_no_sinks")]
        self._means = {figure: TokenMean().to(self.module.device) for figure in ("ce_clean", *figures)}
        self._activation_means = {
            site: TokenMean(width).to(self.module.device)
            for sae in self.module.each_sae().values()
            for site, width in sae.widths.predicted.items()
        }

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ActivationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        model = self._language_model
        # Of the processes that share a batch, since each has some of the latents, one measures.
        if model is None or shard() > 0 or (rows := self._take_rows(batch)) is None:
            return
        self._rows.append(rows)
        counted_tokens = rows.tokens.numel()
        for site, mean in self._activation_means.items():
            mean.update(batch.activations[site][:counted_tokens], ~rows.sinks[site].reshape(-1))
        saes = self.module.each_sae()
        x_hats = {name: outputs[name].x_hat.reshape(*batch_shape(batch), -1) for name in saes}
        for part, chunk in self._chunks(rows):
            parts = {name: x_hat[part] for name, x_hat in x_hats.items()}
            with model.computed_once([site.site for sae in saes.values() for site in spliced_sites(sae, model)]):
                self._measure(model, chunk, parts)

    def _measure(self, model: LanguageModel, rows: Rows, x_hats: Mapping[str, Float[Tensor, "B S _"]]) -> None:
        """Count some rows in: untouched, and with each SAE's reconstructions in the activations' place."""
        counted = counted_targets(rows.special).reshape(-1)
        clean = model.logits(rows.tokens)
        self._means["ce_clean"].update(token_cross_entropy(clean, rows.tokens).reshape(-1), counted)
        for name, sae in self.module.each_sae().items():
            replacements = Widths.split(x_hats[name], sae.widths.predicted)
            replacements = {site: replacements[site] for site in spliced_sites(sae, model)}
            for suffix in ("", "_no_sinks"):
                logits = replaced_logits(model, rows, replacements, keep_sinks=suffix == "_no_sinks")
                ce, kl = token_cross_entropy(logits, rows.tokens), token_kl_divergence(clean, logits)
                self._means[f"{name}/ce{suffix}"].update(ce.reshape(-1), counted)
                self._means[f"{name}/kl{suffix}"].update(kl.reshape(-1), counted)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._language_model is None:
            return
        values = {figure: mean.compute() for figure, mean in self._means.items()}
        clean = values["ce_clean"]
        ablations = self._ablate(trainer, self._language_model)
        for name, sae in self.module.each_sae().items():
            figures = {"ce_clean": clean, "ce_tokens": self._means["ce_clean"].tokens}
            figures |= ablations[spliced_sites(sae, self._language_model)]
            for suffix in ("", "_no_sinks"):
                spliced, zero = values[f"{name}/ce{suffix}"], figures[f"ce_zero{suffix}"]
                figures[f"ce_spliced{suffix}"] = spliced
                figures[f"kl{suffix}"] = values[f"{name}/kl{suffix}"]
                figures[f"ce_recovered{suffix}"] = cross_entropy_recovered(clean, spliced, zero)
            figures["ce_recovered_mean"] = cross_entropy_recovered(clean, figures["ce_spliced"], figures["ce_mean"])
            self.log_pooled(name, figures)

    def _usable_model(self) -> LanguageModel | None:
        """Return the run's language model if it predicts tokens; otherwise say, once, why nothing is logged."""
        model: LanguageModel | None = getattr(self.data, "language_model", None)
        if model is not None and model.has_next_token_head:
            return model
        if not self._explained:
            why = "there is no language model here" if model is None else f"{model.name} has no next-token head"
            rank_zero_info(f"LanguageModelMetrics: {why}, so there are no val/ce_* and no val/kl.")
            self._explained = True
        return None

    def _take_rows(self, batch: ActivationBatch) -> Rows | None:
        """Return those rows of the batch that are to be evaluated; None once there are `max_rows`."""
        shape = batch_shape(batch)
        count = shape[0]
        if self.max_rows is not None:
            count = min(count, self.max_rows - sum(len(rows.tokens) for rows in self._rows))
        if count <= 0:
            return None
        # Copies: they are read again at the end, when the stream may have written over the batch.
        tokens, special = (t.reshape(shape)[:count].clone() for t in (batch.tokens, batch.special))
        return Rows(tokens, special, {s: mask.reshape(shape)[:count].clone() for s, mask in batch.sinks.items()})

    def _chunks(self, rows: Rows) -> Iterator[tuple[slice, Rows]]:
        for start in range(0, len(rows.tokens), self.batch_rows):
            part = slice(start, min(start + self.batch_rows, len(rows.tokens)))
            yield part, rows[part]

    def _ablate(self, trainer: Trainer, model: LanguageModel) -> dict[Sites, dict[str, Tensor]]:
        """Return the cross-entropies under ablation, by site.

        They come last, when the mean activation is known, and stay what they are until other rows are evaluated.
        """
        unchanged = len(self._rows) == len(self._ablated_rows) and all(
            torch.equal(new.tokens, old.tokens)
            and all(torch.equal(mask, old.sinks[site]) for site, mask in new.sinks.items())
            for new, old in zip(self._rows, self._ablated_rows, strict=True)
        )
        if self._ablations and trainer.strategy.reduce_boolean_decision(unchanged, all=True):
            return self._ablations
        for sites in {spliced_sites(sae, model): None for sae in self.module.each_sae().values()}:
            means = {site: self._activation_means[site].compute() for site in sites}
            zeros = {site: torch.zeros_like(mean) for site, mean in means.items()}
            ways = {"ce_zero": (zeros, False), "ce_zero_no_sinks": (zeros, True), "ce_mean": (means, False)}
            self._ablations[sites] = self._ce_with(model, sites, ways)
        self._ablated_rows = self._rows
        return self._ablations

    def _ce_with(
        self, model: LanguageModel, sites: Sites, ways: Mapping[str, tuple[Mapping[SiteRef, Tensor], bool]]
    ) -> dict[str, Tensor]:
        """Return the cross-entropy for each way to replace the activations at some sites: by what, and sinks kept."""
        means = {way: TokenMean().to(self._means["ce_clean"].device) for way in ways}
        for rows in self._rows:
            for _, chunk in self._chunks(rows):
                counted = counted_targets(chunk.special).reshape(-1)
                with model.computed_once([site.site for site in sites]):
                    for way, (replacements, keep_sinks) in ways.items():
                        logits = replaced_logits(model, chunk, replacements, keep_sinks=keep_sinks)
                        means[way].update(token_cross_entropy(logits, chunk.tokens).reshape(-1), counted)
        return {way: mean.compute() for way, mean in means.items()}


def spliced_sites(sae: SparseAutoencoder, model: LanguageModel) -> Sites:
    """Return those of an SAE's predicted sites that lie in a model."""
    return tuple(site for site in sae.widths.predicted if site.model == model.name)


def batch_shape(batch: ActivationBatch) -> tuple[int, int]:
    """Return (rows, context) of a batch of whole rows."""
    assert batch.rows_shape is not None, "validation serves whole rows"
    return batch.rows_shape


def replaced_logits(
    model: LanguageModel, rows: Rows, replacements: Mapping[SiteRef, Float[Tensor, "*_ D"]], *, keep_sinks: bool
) -> Float[Tensor, "B S V"]:
    """Return the logits with other activations at some sites: (B, S, D), or one (D,) for all positions."""
    new = {site.site: values for site, values in replacements.items()}
    kept = {site.site: rows.sinks[site] for site in replacements} if keep_sinks else None
    return spliced_logits(model, rows.tokens, new, kept)
