"""What a feature writes at a site, and what that direction is close to: other features, coordinates (raw neurons).

Axes: F features, D width of the site, k neighbours.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from lightsae.errors import SiteError, arg
from lightsae.lm import LanguageModel
from lightsae.sae import SiteRef, SparseAutoencoder, Widths

# Cosines that agree so far are ties, and the lower id comes first: the last float32 digits depend on how a product was
# split, and must not decide the order.
_DECIMALS = 6


def directions(sae: SparseAutoencoder, site: SiteRef) -> Float[Tensor, "F D"]:
    """Return what one unit of each latent adds to the raw activations at a site: d_i / output_scale.

    Args:
        sae: An SAE; of a crosscoder's rows, the columns of `site`.
        site: One that the SAE predicts.

    Returns:
        Float32, detached. A latent's unit is that of the SAE: normalised activations. With `token_norm`, what is added
        to a token is this times the token's own unit; see `SparseAutoencoder.token_units`.

    Raises:
        SiteError: The SAE does not predict the site.
    """
    predicted = sae.widths.predicted
    if site not in predicted:
        raise SiteError(
            f"{arg('site')} is '{site}', but the SAE predicts {', '.join(map(str, predicted))}; write that."
        )
    place = list(predicted).index(site)
    return Widths.split(sae.W_dec.detach(), predicted)[site].float() / sae.output_scale[place]


@dataclass(frozen=True)
class Neighbours:
    """The k nearest of each feature, the nearest first.

    Attributes:
        ids: (F, k) features, or coordinates of the site.
        cosines: (F, k) signed, to six decimals.
    """

    ids: NDArray[np.int32]
    cosines: NDArray[np.float32]


@torch.inference_mode()
def nearest_by_cosine(W: Float[Tensor, "F D"], k: int, *, chunk: int = 1024) -> Neighbours:
    """Return the features whose directions have the largest cosine with each feature's, itself left out.

    Args:
        W: Directions; a row of zeros has cosine 0 with all.
        k: Neighbours per feature; at most F - 1 are there.
        chunk: Features at once; memory is chunk * F floats.

    Returns:
        Signed cosines, descending; among equals the lower id first.
    """
    unit, parts = F.normalize(W.float()), []
    k = min(k, len(unit) - 1)
    for start in range(0, len(unit), chunk):
        cosines = (unit[start : start + chunk] @ unit.T).round_(decimals=_DECIMALS)
        cosines.diagonal(start).fill_(-torch.inf)
        ids = _largest(cosines, k)
        parts.append((ids.int().cpu().numpy(), cosines.gather(1, ids).cpu().numpy()))
    return Neighbours(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@torch.inference_mode()
def aligned_neurons(W: Float[Tensor, "F D"], k: int, written: Float[Tensor, "N D"] | None = None) -> Neighbours:
    """Return the neurons with the largest |cosine| between what they write and each feature, signed.

    Args:
        W: Directions of the features; a row of zeros has cosine 0 with all.
        k: Neurons per feature.
        written: Directions of the neurons; None: they are the coordinates of the site.

    Returns:
        Signed cosines; among equals the lower neuron first.
    """
    cosines = F.normalize(W.float())
    if written is not None:
        cosines = cosines @ F.normalize(written.float()).T.to(cosines.device)
    cosines = cosines.round_(decimals=_DECIMALS)
    ids = _largest(cosines.abs(), min(k, cosines.shape[1]))
    return Neighbours(ids.int().cpu().numpy(), cosines.gather(1, ids).cpu().numpy())


def neuron_directions(model: LanguageModel, site: str) -> Float[Tensor, "N D"] | None:
    """Return what each neuron at an `mlp_act` adds to the MLP's output: a row of the down projection."""
    module = model.site(site).module
    weight: Tensor | None = getattr(module, "weight", None)
    if weight is None or weight.ndim != 2:
        return None
    # transformers' Conv1D keeps (in, out).
    return (weight.T if isinstance(module, nn.Linear) else weight).detach()


def _largest(values: Float[Tensor, "F N"], k: int) -> Int[Tensor, "F k"]:
    """Return the places of the k largest of each row, descending; among equals the lower place first."""
    largest = values.topk(k, dim=1)
    ids = largest.indices.sort(dim=1).values
    order = values.gather(1, ids).argsort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    if k:
        # Where equals lie on both sides of the cut, topk takes any of them: rare enough for a whole sort.
        cut = ((values >= largest.values[:, -1:]).sum(1) > k).nonzero()[:, 0]
        ids[cut] = values[cut].argsort(dim=1, descending=True, stable=True)[:, :k]
    return ids
