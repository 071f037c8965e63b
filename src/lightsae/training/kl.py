"""The loss term `kl`: what the reconstructions in the activations' place change in the model's predictions.

A short end of a run with it brings most of what training on it throughout would bring (arXiv:2503.17272).

Axes: B rows, S positions, D width of a site, V vocabulary.
"""

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
# Of the tokens of a batch, that many are run through the model's upper blocks, twice forward and once back.
SHARE = 0.25
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

    Which ones follows from the batch's number, so that a resumed run takes the same.
    """
    count = max(1, round(SHARE * len(batch) / data.context_size))
    return data.rows_of_the_fill(count, keyed_generator(data.seed, "rows of the term kl", batch.index))


def kl_term(sae: SparseAutoencoder, model: LanguageModel, rows: ActivationBatch) -> Float[Tensor, ""]:
    """Return KL(untouched || spliced) in nats a token: the mean over predictions of a token that is not special.

    Args:
        sae: Its reconstructions take the place of the activations at those of its sites that lie in the model, at all
            positions. The gradient reaches its weights alone.
        model: With its head.
        rows: Whole rows.
    """
    shape = rows.rows_shape
    assert shape is not None, "predictions need whole rows"
    tokens = rows.tokens.reshape(shape)
    x_hat = sae(Widths.join(rows.activations, sae.widths.read)).x_hat.reshape(*shape, -1)
    replacements = {
        site.site: values
        for site, values in Widths.split(x_hat, sae.widths.predicted).items()
        if site.model == model.name
    }

    def logits() -> Float[Tensor, "B S V"]:
        return model.model(tokens, **no_cache(model.model)).logits  # type: ignore[no-any-return]

    with model.computed_once(list(replacements)):
        # Not inference mode: what these blocks return is seen by the pass that keeps a graph.
        with torch.no_grad():
            untouched = logits()
        with spliced(model, replacements):
            divergence = token_kl_divergence(untouched, logits())
    counted = counted_targets(rows.special.reshape(shape))
    return (divergence * counted).sum() / counted.sum().clamp_min(1)


def as_large_as(loss: Float[Tensor, ""], kl: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the term scaled to the size of the rest of the loss: one is in nats, the other in squared units."""
    return kl * (loss.detach() / kl.detach().clamp_min(SMALLEST_KL))
