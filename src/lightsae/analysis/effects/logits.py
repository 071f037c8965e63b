"""Direct logit effect: what a feature adds to the next-token logits through no layer but the final norm.

Axes:    F features, D width of the residual stream, V vocabulary.
Units:   logits (nats) for one unit of activation of the latent, which is one unit of the SAE's normalised scale.
Source:  the logit lens (nostalgebraist 2020) on decoder rows; kurtosis of it as a sign of features that write tokens.

Linear part only. The final norm is folded: centred where it is a LayerNorm, times its gain, divided by a fixed
denominator, the mean over a text. Its bias, the head's bias and a cap on the logits (Gemma 2) are left out: the first
two are the same for all features, and the cap is not linear.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lightsae.analysis.effects.directions import directions
from lightsae.analysis.effects.final_norm import FinalNorm, final_norm
from lightsae.errors import ModelError
from lightsae.lm import LanguageModel
from lightsae.lm.devices import weights_at_hand
from lightsae.sae import SiteRef, SparseAutoencoder

# Sites that are written to the residual stream; what stands at the others is read by a layer first.
WRITES = ("resid_pre", "attn_out", "mixer_out", "mlp_out", "resid_post")
CONCENTRATED_ON = 10


@dataclass(frozen=True)
class LogitEffects:
    """The direct logit effect of each feature.

    Attributes:
        promoted: (F, top) token ids whose logits it raises most, the most first.
        promoted_logits: (F, top) by how much.
        suppressed: (F, top) token ids whose logits it lowers most, the most first.
        suppressed_logits: (F, top) by how much; ascending.
        kurtosis: (F,) excess kurtosis of the effect over the vocabulary: 0 for a normal distribution, large where few
            tokens stand out. NaN where all logits are alike.
        concentration: (F,) sum of squares of the effects on the ten tokens where it is largest in absolute value, after
            the mean over the vocabulary was subtracted, as a share of that sum over the vocabulary. NaN likewise.
    """

    promoted: NDArray[np.int32]
    promoted_logits: NDArray[np.float32]
    suppressed: NDArray[np.int32]
    suppressed_logits: NDArray[np.float32]
    kurtosis: NDArray[np.float32]
    concentration: NDArray[np.float32]


@torch.inference_mode()
def direct_logits(
    sae: SparseAutoencoder,
    model: LanguageModel,
    *,
    site: SiteRef,
    norm_scale: float,
    top: int = 10,
    chunk: int = 512,
) -> LogitEffects | None:
    """Return what each feature of an SAE adds to the logits directly.

    Args:
        sae: Predicts `site`.
        model: The model of that site, with its head in memory.
        site: Where the features write.
        norm_scale: What the final norm divides by: `final_norm_scale` of a text.
        top: Tokens to keep at each end.
        chunk: Features at once; memory is chunk * V floats, a few times.

    Returns:
        None where there is no direct effect: at sites that are not added to the residual stream (mlp_in, mlp_act,
        attn_z, and module paths that none of `WRITES` stands for), in post-norm models, where every layer normalises
        the stream again, and in architectures without portable names.

    Raises:
        SiteError: The SAE does not predict the site, or the model has no such site.
        ModelError: The model is in memory without a next-token head.
    """
    rows, norm = directions(sae, site), final_norm(model)
    if norm is None or not writes_to_stream(model, site.site):
        return None
    if not model.has_next_token_head:
        raise ModelError(f"{model.name!r} is in memory without a next-token head, so features have no effect on it.")
    parts = [_effects(logits_of(model, norm, part, norm_scale), top) for part in rows.to(model.device).split(chunk)]
    return LogitEffects(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def writes_to_stream(model: LanguageModel, site: str) -> bool:
    """Return whether what stands at a site is added to, or is, the residual stream; by portable name or module path.

    Raises:
        SiteError: There is no such site.
    """
    chosen = model.site(site)
    written = [info for info in model.sites() if info.name.split(".")[0] in WRITES]
    return (chosen.path, chosen.side, chosen.scale) in {(info.path, info.side, info.scale) for info in written}


def logits_of(
    model: LanguageModel, norm: FinalNorm, vectors: Float[Tensor, "F D"], norm_scale: float
) -> Float[Tensor, "F V"]:
    """Return what vectors of the residual stream add to the logits, with the norm's denominator fixed."""
    config = model.model.config.get_text_config()
    # Cohere multiplies its logits, Granite divides them.
    scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    head = model.model.get_output_embeddings()
    with weights_at_hand(head):
        logits: Tensor = norm.fold(vectors, norm_scale) @ head.weight.float().T.to(vectors.device)
    return scale * logits


def _effects(logits: Float[Tensor, "F V"], top: int) -> tuple[NDArray[np.generic], ...]:
    """Return the fields of `LogitEffects` for some features."""
    top = min(top, logits.shape[1])
    high, low = logits.topk(top, dim=1), logits.topk(top, dim=1, largest=False)
    squares = (logits - logits.mean(1, keepdim=True)).square_()
    total = squares.sum(1)
    flat = total == 0
    concentration = squares.topk(min(CONCENTRATED_ON, logits.shape[1]), dim=1).values.sum(1) / total
    kurtosis = squares.square_().mean(1) / (total / logits.shape[1]).square() - 3
    for shape in (kurtosis, concentration):
        shape[flat] = torch.nan
    fields = high.indices.int(), high.values, low.indices.int(), low.values, kurtosis, concentration
    return tuple(field.cpu().numpy() for field in fields)
