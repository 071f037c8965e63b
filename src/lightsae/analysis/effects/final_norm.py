"""The norm between the residual stream and the unembedding, taken apart: centre, divide, scale by gain.

Axes: B rows, S positions, D width of the residual stream.

LayerNorm: y = gain * (x - mean x) / sqrt(var x + eps) + bias. RMSNorm: y = gain * x / sqrt(mean x^2 + eps), where Gemma
keeps gain - 1. The bias is the same whatever a feature does, so that it is left out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.lm import LanguageModel
from lightsae.lm.devices import device_of
from lightsae.lm.norms import gain_and_bias, is_centred
from lightsae.lm.sites import family_of, path_in_body
from lightsae.metrics.conventions import is_sink

_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class FinalNorm:
    """The last norm of a model.

    Attributes:
        path: Its module, from the model.
        gain: (D,) what the normalised stream is multiplied by.
        centred: Whether the mean over the width is subtracted first (LayerNorm).
        eps: Added to the mean square before the root.
    """

    path: str
    gain: Float[Tensor, " D"]
    centred: bool
    eps: float

    def fold(self, x: Float[Tensor, "*batch D"], scale: float) -> Float[Tensor, "*batch D"]:
        """Return what `x`, added to the stream, adds to the norm's output while its denominator stays at `scale`."""
        return self._centre(x.float()) * (self.gain / scale)

    def denominator(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Return what the norm divides each vector of the stream by."""
        root: Tensor = (self._centre(x.float()).square().mean(-1) + self.eps).sqrt()
        return root

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x


def final_norm(model: LanguageModel) -> FinalNorm | None:
    """Return the norm before the unembedding; None where there is none (post-norm models) or it is not known."""
    family = family_of(model.model)
    # OPT's post-norm models keep None where the others have the norm.
    path = path_in_body(model.model, family.final_norm) if family and family.final_norm else None
    if path is None:
        return None
    norm = model.model.get_submodule(path)
    like = torch.zeros(model.model.config.get_text_config().hidden_size, device=device_of(norm, model.device))
    gain = gain_and_bias(norm, like)[0].detach().to(model.device)
    # OLMo's has none and computes with 1e-5.
    eps = float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-5)))
    return FinalNorm(path, gain, is_centred(norm, like), eps)


def final_norm_scale(model: LanguageModel, rows: Int[Tensor, "B S"]) -> float:
    """Return the mean of the final norm's denominator over a text, without attention sinks.

    Args:
        model: With its head in memory.
        rows: Token rows on the model's device; a few thousand tokens are plenty.

    Returns:
        In units of the residual stream; 1 where the model has no final norm.
    """
    norm = final_norm(model)
    if norm is None:
        return 1.0
    return _mean_without_sinks(torch.cat([norm.denominator(x).cpu() for x in _read(model, rows, f"{norm.path}.input")]))


def mean_site_norm(model: LanguageModel, rows: Int[Tensor, "B S"], site: str) -> float:
    """Return the mean Euclidean norm of the activations at a site over a text, without attention sinks: a dose's unit.

    Raises:
        SiteError: There is no such site.
    """
    return _mean_without_sinks(torch.cat([x.float().norm(dim=-1).cpu() for x in _read(model, rows, site)]))


def _read(model: LanguageModel, rows: Tensor, site: str) -> list[Tensor]:
    return [model.capture(part, [site])[site] for part in rows.split(_ROWS_AT_ONCE)]


def _mean_without_sinks(sizes: Tensor) -> float:
    """Return the mean of (B, S) sizes but position 0 and sinks."""
    counted = sizes[:, 1:] if sizes.shape[1] > 1 else sizes
    return counted[~is_sink(counted)].double().mean().item()
