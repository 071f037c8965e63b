"""What splicing costs the language model, summed over documents.

Axes: B rows, S positions, D width of a site, V vocabulary.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.analysis.evaluate.document_sums import DocumentSums
from lightsae.lm import LanguageModel
from lightsae.lm.splice import spliced_logits
from lightsae.metrics import counted_targets, token_cross_entropy, token_kl_divergence
from lightsae.sae import SiteRef, SparseAutoencoder, Widths

# Rows whose logits are in memory at once, twice.
_ROWS = 8


@torch.no_grad()
def splice(
    sae: SparseAutoencoder,
    model: LanguageModel,
    batches: Iterator[ActivationBatch],
    mean: Mapping[SiteRef, Float[Tensor, " D"]],
) -> DocumentSums:
    """Return what `figures.faithfulness` reads, over the predictions whose target is no special token.

    A prediction belongs to the document of the token that it is made at.

    Args:
        sae: In eval mode.
        model: What predicts; it has the sites that the SAE predicts.
        batches: Whole rows, with what it reads.
        mean: The mean activation at each site that it predicts, without sinks.
    """
    sums = DocumentSums()
    for batch in batches:
        assert batch.rows_shape is not None
        x_hat = sae(Widths.join(batch.activations, sae.widths.read)).x_hat
        rows = batch.rows_shape[0]
        for start in range(0, rows, _ROWS):
            part = slice(start, min(rows, start + _ROWS))
            _add(sums, sae, model, batch, x_hat.reshape(*batch.rows_shape, -1)[part], mean, part)
    return sums


def _add(
    sums: DocumentSums,
    sae: SparseAutoencoder,
    model: LanguageModel,
    batch: ActivationBatch,
    x_hat: Float[Tensor, "B S _"],
    mean: Mapping[SiteRef, Tensor],
    part: slice,
) -> None:
    assert batch.rows_shape is not None
    sites = list(sae.widths.predicted)
    shape = batch.rows_shape
    tokens, special = batch.tokens.reshape(shape)[part], batch.special.reshape(shape)[part]
    sinks = {site.site: batch.sinks[site].reshape(shape)[part] for site in sites}
    new = {site.site: values for site, values in Widths.split(x_hat, sae.widths.predicted).items()}
    zero = {site.site: torch.zeros_like(mean[site]) for site in sites}
    ways = {
        "ce_spliced": (new, None),
        "ce_zero": (zero, None),
        "ce_mean": ({site.site: mean[site] for site in sites}, None),
        "ce_spliced_no_sinks": (new, sinks),
        "ce_zero_no_sinks": (zero, sinks),
    }
    values = {}
    with model.computed_once([site.site for site in sites]):
        clean = model.logits(tokens)
        values["ce_clean"] = token_cross_entropy(clean, tokens)
        for name, (replacements, kept) in ways.items():
            logits = spliced_logits(model, tokens, replacements, kept)
            values[name] = token_cross_entropy(logits, tokens)
            if "spliced" in name:
                suffix = name.removeprefix("ce_spliced")
                values[f"kl{suffix}"] = token_kl_divergence(clean, logits)
                if not suffix:
                    values["top1"] = (clean[:, :-1].argmax(-1) == logits[:, :-1].argmax(-1)).float()
    counted = counted_targets(special).reshape(-1).cpu().numpy()
    documents = batch.documents.reshape(shape)[part][:, :-1].reshape(-1).cpu().numpy()[counted]
    columns = {name: value.reshape(-1).double().cpu().numpy()[counted] for name, value in values.items()}
    sums.add(documents, columns | {"predictions": np.ones(len(documents))})
