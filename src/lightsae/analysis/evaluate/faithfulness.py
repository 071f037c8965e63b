"""What splicing costs the language model, summed over documents.

Axes: B rows, S positions, D width of a site, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.analysis.evaluate.document_sums import DocumentSums
from lightsae.analysis.evaluate.groups import Groups, GroupSums
from lightsae.lm import LanguageModel
from lightsae.lm.splice import spliced_logits
from lightsae.metrics import counted_targets, token_cross_entropy, token_kl_divergence
from lightsae.sae import SiteRef, SparseAutoencoder, Widths

# Rows whose logits are in memory at once, twice.
_ROWS = 8

Columns = dict[str, Float[Tensor, "B S_minus_1"]]


@dataclass
class Spliced:
    """Sums of one SAE over the predictions of a text, and of each group of them."""

    sums: DocumentSums = field(default_factory=DocumentSums)
    groups: GroupSums = field(default_factory=GroupSums)


@torch.no_grad()
def splice(
    saes: Mapping[str, SparseAutoencoder],
    model: LanguageModel,
    batches: Iterator[ActivationBatch],
    mean: Mapping[SiteRef, Float[Tensor, " D"]],
    groups: Mapping[str, Groups] | None = None,
) -> dict[str, Spliced]:
    """Return what `figures.faithfulness` reads, over the predictions whose target is no special token.

    A prediction belongs to the document of the token that it is made at, and to the groups of its target: what it
    costs in a role is about that role's words. What the model says untouched and ablated is the same beside every
    SAE, and computed once.

    Args:
        saes: By name, in eval mode; they read and predict the same sites.
        model: What predicts; it has the sites that they predict.
        batches: Whole rows, with what they read.
        mean: The mean activation at each site that they predict, without sinks.
        groups: By the SAEs' names, the groups of tokens that have sums of their own.
    """
    spliced = {name: Spliced() for name in saes}
    for batch in batches:
        assert batch.rows_shape is not None
        shape = batch.rows_shape
        x_hats = {name: sae(Widths.join(batch.activations, sae.widths.read)).x_hat for name, sae in saes.items()}
        members = {name: of_sae.members(batch) for name, of_sae in (groups or {}).items()}
        for start in range(0, shape[0], _ROWS):
            part = slice(start, min(shape[0], start + _ROWS))
            some = {name: x_hat.reshape(*shape, -1)[part] for name, x_hat in x_hats.items()}
            counted = counted_targets(batch.special.reshape(shape)[part]).reshape(-1).cpu().numpy()
            documents = batch.documents.reshape(shape)[part][:, :-1].reshape(-1).cpu().numpy()[counted]
            for name, columns in _columns(saes, model, batch, some, mean, part).items():
                values = {key: one.reshape(-1).double().cpu().numpy()[counted] for key, one in columns.items()}
                values["predictions"] = np.ones(len(documents))
                spliced[name].sums.add(documents, values)
                targets = {
                    group: ours.reshape(shape)[part][:, 1:].reshape(-1)[counted]
                    for group, ours in members.get(name, {}).items()
                }
                spliced[name].groups.add(targets, documents, values)
    return spliced


def _columns(
    saes: Mapping[str, SparseAutoencoder],
    model: LanguageModel,
    batch: ActivationBatch,
    x_hats: Mapping[str, Float[Tensor, "B S _"]],
    mean: Mapping[SiteRef, Tensor],
    part: slice,
) -> dict[str, Columns]:
    """Return what is summed over the predictions in some rows, of each SAE."""
    assert batch.rows_shape is not None
    shape, widths = batch.rows_shape, next(iter(saes.values())).widths.predicted
    tokens = batch.tokens.reshape(shape)[part]
    sinks = {site.site: batch.sinks[site].reshape(shape)[part] for site in widths}
    zero = {site.site: torch.zeros_like(mean[site]) for site in widths}
    with model.computed_once([site.site for site in widths]):
        clean = model.logits(tokens)
        common: Columns = {"ce_clean": token_cross_entropy(clean, tokens)}
        for name, replacements, kept in (
            ("ce_zero", zero, None),
            ("ce_mean", {site.site: mean[site] for site in widths}, None),
            ("ce_zero_no_sinks", zero, sinks),
        ):
            common[name] = token_cross_entropy(spliced_logits(model, tokens, replacements, kept), tokens)
        return {
            name: common | _spliced(model, tokens, clean, Widths.split(x_hat, widths), sinks)
            for name, x_hat in x_hats.items()
        }


def _spliced(
    model: LanguageModel,
    tokens: Int[Tensor, "B S"],
    clean: Float[Tensor, "B S V"],
    x_hat: Mapping[SiteRef, Tensor],
    sinks: Mapping[str, Tensor],
) -> Columns:
    """Return what splicing one SAE costs, with its reconstructions everywhere and without those of sinks."""
    new, columns = {site.site: values for site, values in x_hat.items()}, Columns()
    for suffix, kept in (("", None), ("_no_sinks", sinks)):
        logits = spliced_logits(model, tokens, new, kept)
        columns[f"ce_spliced{suffix}"] = token_cross_entropy(logits, tokens)
        columns[f"kl{suffix}"] = token_kl_divergence(clean, logits)
        if not suffix:
            columns["top1"] = (clean[:, :-1].argmax(-1) == logits[:, :-1].argmax(-1)).float()
    return columns
