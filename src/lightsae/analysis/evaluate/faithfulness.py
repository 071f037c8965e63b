"""What splicing costs the language model, summed over documents.

Axes: B rows, S positions, D width of a site, V vocabulary.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.analysis.evaluate.document_sums import DocumentSums
from lightsae.lm import LanguageModel
from lightsae.lm.splice import spliced_logits
from lightsae.metrics import counted_targets, token_cross_entropy, token_kl_divergence
from lightsae.sae import SiteRef, SparseAutoencoder, Widths

# Rows whose logits are in memory at once, twice.
_ROWS = 8


Columns = dict[str, Float[Tensor, "B S_minus_1"]]


@torch.no_grad()
def splice(
    saes: Mapping[str, SparseAutoencoder],
    model: LanguageModel,
    batches: Iterator[ActivationBatch],
    mean: Mapping[SiteRef, Float[Tensor, " D"]],
) -> dict[str, DocumentSums]:
    """Return what `figures.faithfulness` reads, over the predictions whose target is no special token.

    A prediction belongs to the document of the token that it is made at. What the model says untouched and ablated
    is the same beside every SAE, and computed once.

    Args:
        saes: By name, in eval mode; they read and predict the same sites.
        model: What predicts; it has the sites that they predict.
        batches: Whole rows, with what they read.
        mean: The mean activation at each site that they predict, without sinks.
    """
    sums = {name: DocumentSums() for name in saes}
    for batch in batches:
        assert batch.rows_shape is not None
        x_hats = {name: sae(Widths.join(batch.activations, sae.widths.read)).x_hat for name, sae in saes.items()}
        rows = batch.rows_shape[0]
        for start in range(0, rows, _ROWS):
            part = slice(start, min(rows, start + _ROWS))
            some = {name: x_hat.reshape(*batch.rows_shape, -1)[part] for name, x_hat in x_hats.items()}
            for name, (documents, columns) in _columns(saes, model, batch, some, mean, part).items():
                sums[name].add(documents, columns)
    return sums


def _columns(
    saes: Mapping[str, SparseAutoencoder],
    model: LanguageModel,
    batch: ActivationBatch,
    x_hats: Mapping[str, Float[Tensor, "B S _"]],
    mean: Mapping[SiteRef, Tensor],
    part: slice,
) -> dict[str, tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]]:
    """Return the documents of the predictions in some rows, and what is summed over them, of each SAE."""
    assert batch.rows_shape is not None
    shape, widths = batch.rows_shape, next(iter(saes.values())).widths.predicted
    tokens, special = batch.tokens.reshape(shape)[part], batch.special.reshape(shape)[part]
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
        own = {
            name: _spliced(model, tokens, clean, Widths.split(x_hat, widths), sinks) for name, x_hat in x_hats.items()
        }
    counted = counted_targets(special).reshape(-1).cpu().numpy()
    documents = batch.documents.reshape(shape)[part][:, :-1].reshape(-1).cpu().numpy()[counted]
    return {
        name: (
            documents,
            {key: value.reshape(-1).double().cpu().numpy()[counted] for key, value in (common | columns).items()}
            | {"predictions": np.ones(len(documents))},
        )
        for name, columns in own.items()
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
