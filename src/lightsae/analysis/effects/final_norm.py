"""The norm between the residual stream and the unembedding, taken apart: centre, divide, scale by gain.

Axes: B rows, S positions, D width of the residual stream.

LayerNorm: y = gain * (x - mean x) / sqrt(var x + eps) + bias. RMSNorm: y = gain * x / sqrt(mean x^2 + eps), where Gemma
keeps gain - 1. The bias is the same whatever a feature does, so that it is left out.
Source: the modelling files of transformers, read one by one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightsae.lm import LanguageModel
from lightsae.metrics.conventions import is_sink

# From the base model, by `model_type` of config.json. OPT's may be absent: its post-norm models have none.
FINAL_NORMS = {
    "gpt2": "ln_f",
    "gpt_neo": "ln_f",
    "gpt_neox": "final_layer_norm",
    "llama": "norm",
    "mistral": "norm",
    "qwen2": "norm",
    "qwen3": "norm",
    "gemma2": "norm",
    "gemma3": "language_model.norm",
    "gemma3_text": "norm",
    "phi": "final_layernorm",
    "opt": "decoder.final_layer_norm",
}
_GAIN_FROM_ONE = {"gemma2", "gemma3", "gemma3_text"}
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
    kind = model.model.config.model_type
    path = FINAL_NORMS.get(kind)
    if path is None:
        return None
    base = model.model.base_model
    try:
        norm: nn.Module = base.get_submodule(path)
    except AttributeError:  # OPT's post-norm models keep None there
        return None
    prefix = "" if base is model.model else f"{model.model.base_model_prefix}."
    weight: Tensor = norm.weight.detach().float()  # type: ignore[operator]
    gain = 1 + weight if kind in _GAIN_FROM_ONE else weight
    eps = float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)  # type: ignore[arg-type]
    return FinalNorm(prefix + path, gain, isinstance(norm, nn.LayerNorm), eps)


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
