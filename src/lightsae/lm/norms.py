"""A norm's output before its gain and bias: the side `normalised` of a site, TransformerLens's `hook_normalized`.

    LayerNorm: (x - mean(x)) / sqrt(var(x) + eps)          RMSNorm: x / sqrt(mean(x^2) + eps)

Transcoders of Gemma Scope read it. No module returns it; it is the output less the bias, divided by the gain.

Axes:    D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a LayerNorm or an RMSNorm, of which each library has its own."""
    return isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__


def gain_and_bias(norm: nn.Module, like: Float[Tensor, "*batch D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Return what a norm multiplies each dimension by and what it then adds, in float32, on the device of `like`."""
    ones = torch.ones(like.shape[-1], device=like.device)
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        bias = getattr(norm, "bias", None)
        gain = ones if norm.weight is None else norm.weight.float()
        return gain, torch.zeros_like(ones) if bias is None else bias.float()
    # Some multiply by the weight, some by 1 + weight: equal entries come back as the gain. They are large beside
    # epsilon, and go through `forward`, so that no hook sees them.
    return norm.forward(1000 * ones), torch.zeros_like(ones)


def without_gain(
    output: Float[Tensor, "*batch D"], gain: Float[Tensor, " D"], bias: Float[Tensor, " D"]
) -> Float[Tensor, "*batch D"]:
    """Return the normalised activations of a norm's output; 0 where the gain is 0, since nothing of them is left."""
    return torch.where(gain == 0, 0, (output.float() - bias) / gain).to(output.dtype)
