"""The loss term `kl`: what the reconstructions in the activations' place change in the model's predictions.

A short end of a run with it brings most of what training on it throughout would bring (arXiv:2503.17272).

Axes: B rows, S positions, D width of a site, V vocabulary.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.errors import ConfigError, arg
from lightsae.lm import LanguageModel
from lightsae.lm.hooks import no_cache
from lightsae.lm.splice import spliced
from lightsae.metrics import counted_targets, token_kl_divergence
from lightsae.randomness import keyed_generator
from lightsae.sae import SparseAutoencoder, Widths

if TYPE_CHECKING:
    from lightsae.activations.datamodule import ActivationDataModule

KL = "kl"
# Nats a token: where less is lost, the term is no longer made larger.
SMALLEST_KL = 1e-4


def check_kl(data: "ActivationDataModule", sae: SparseAutoencoder) -> None:
    """Check that the model's predictions can be had, with an SAE's reconstructions in it. Loads nothing.

    Raises:
        ConfigError: There is no text, or no site of the SAE lies in the model that predicts, or it predicts no tokens.
    """
    named = arg(f"coefficients.{KL}")
    if not data.reads_text:
        raise ConfigError(f"{named} compares what a language model predicts, and there is none here; leave it out.")
    if data.cache is not None:
        raise ConfigError(f"{named} needs whole rows of text, and a cache serves pieces of them; train from the text.")
    if data.roles is not None:
        raise ConfigError(f"{named} needs whole rows of text, and {arg('roles', 'data')} leaves parts of them out.")
    if not data.predicts_tokens:
        raise ConfigError(
            f"{named} compares what a model predicts, and {data.model!r} predicts no token; leave it out."
        )
    if not any(site.model == data.model for site in sae.widths.predicted):
        raise ConfigError(f"{named} splices into {data.model!r}, and this SAE predicts no site of it; leave it out.")


def rows_for_kl(data: "ActivationDataModule", batch: ActivationBatch) -> ActivationBatch:
    """Return the rows that a step compares predictions on: whole rows of the fill that the step's batch came from.

    They have as many tokens as the batch: with a quarter of them the gradient is noise that costs more than the term
    brings. Which ones follows from the batch's number, so that a resumed run takes the same.
    """
    count = max(1, round(len(batch) / data.context_size))
    return data.rows_of_the_fill(count, keyed_generator(data.seed, "rows of the term kl", batch.index))


def kl_terms(
    saes: Mapping[str, SparseAutoencoder], model: LanguageModel, rows: ActivationBatch
) -> dict[str, Float[Tensor, ""]]:
    """Return KL(untouched || spliced) in nats a token for each SAE.

    It is the mean over predictions of a token that is not special. The untouched model predicts once for all SAEs.

    Args:
        saes: Each one's reconstructions take the place of the activations at those of its sites that lie in the model,
            at all positions. The gradient reaches its weights alone.
        model: With its head.
        rows: Whole rows.
    """
    shape = rows.rows_shape
    assert shape is not None, "predictions need whole rows"
    tokens, counted = rows.tokens.reshape(shape), counted_targets(rows.special.reshape(shape))

    def logits() -> Float[Tensor, "B S V"]:
        return model.model(tokens, **no_cache(model.model)).logits  # type: ignore[no-any-return]

    replacements = {name: _replacements(sae, model, rows) for name, sae in saes.items()}
    terms = {}
    with model.computed_once([site for sites in replacements.values() for site in sites]):
        # Not inference mode: what these blocks return is seen by the passes that keep a graph.
        with torch.no_grad():
            untouched = logits()
        for name, new in replacements.items():
            with spliced(model, new):
                divergence = token_kl_divergence(untouched, logits())
            terms[name] = (divergence * counted).sum() / counted.sum().clamp_min(1)
    return terms


def _replacements(sae: SparseAutoencoder, model: LanguageModel, rows: ActivationBatch) -> dict[str, Tensor]:
    """Return an SAE's reconstructions, (B, S, D), by those of its sites that lie in the model."""
    assert rows.rows_shape is not None
    x_hat = sae(Widths.join(rows.activations, sae.widths.read)).x_hat.reshape(*rows.rows_shape, -1)
    parts = Widths.split(x_hat, sae.widths.predicted)
    return {site.site: values for site, values in parts.items() if site.model == model.name}


def as_large_as(loss: Float[Tensor, ""], kl: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the term scaled to the size of the rest of the loss: one is in nats, the other in squared units."""
    return kl * (loss.detach() / kl.detach().clamp_min(SMALLEST_KL))
