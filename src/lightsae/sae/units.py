"""The units that an SAE computes in: other scales, the same function of raw activations.

Files of other libraries hold SAEs of raw activations. Rates, penalties and kernels of a training are made for
normalised ones.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.sae.base import SparseAutoencoder
from lightsae.sae.initialise import Normalisation, measure_scale
from lightsae.sae.sites import SiteRef
from lightsae.sae.transcoder import Transcoder


@torch.no_grad()
def normalise(sae: SparseAutoencoder, sample: Mapping[SiteRef, Float[Tensor, "T _"]], kind: Normalisation) -> None:
    """Bring an SAE into normalised units: it predicts the same raw activations, of latents in other units.

    Only where it reads one site and predicts one: files of crosscoders bring the scales of their sites along.

    Args:
        sae: Changed in place.
        sample: Raw activations of the same tokens at its sites, without attention sinks.
        kind: See `SparseAutoencoder.start_from`.
    """
    if len(sae.widths.read) > 1 or len(sae.widths.predicted) > 1:
        return
    sample = sae.in_frames(sample)
    (read,), (predicted,) = sae.widths.read, sae.widths.predicted
    into = measure_scale(sample[read], kind) / sae.input_scale
    out = measure_scale(sample[predicted], kind) / sae.output_scale
    sae.input_scale.mul_(into)
    sae.output_scale.mul_(out)
    # The latents take on the input's unit.
    sae.b_enc.mul_(into)
    sae.b_dec.mul_(out)
    sae.W_dec.mul_(out / into)
    sae.mechanism.change_unit(into)
    if isinstance(sae, Transcoder):
        sae.input_centre.mul_(into)
        if sae.W_skip is not None:
            sae.W_skip.mul_(out / into)


@torch.no_grad()
def bring_rows_to_norm_1(sae: SparseAutoencoder) -> float:
    """Bring decoder rows to norm 1 and write each latent in a unit that makes up for it.

    Returns:
        By what share the norms differed, largest from smallest. Where latents compete that has changed which of them
        are chosen; otherwise the function is the same.
    """
    norms = sae.W_dec.norm(dim=1).clamp_min(torch.finfo(sae.W_dec.dtype).tiny)
    sae.W_dec.div_(norms[:, None])
    sae.W_enc.mul_(norms)
    sae.b_enc.mul_(norms)
    sae.mechanism.change_unit(norms)
    return float(norms.max() / norms.min()) - 1
