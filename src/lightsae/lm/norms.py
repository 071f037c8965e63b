"""A norm's output before its gain and bias: the side `normalised` of a site, TransformerLens's `hook_normalized`.

    LayerNorm: (x - mean(x)) / sqrt(var(x) + eps)          RMSNorm: x / sqrt(mean(x^2) + eps)

Transcoders of Gemma Scope read it. No module returns it; it is the output less the bias, divided by the gain.

Axes:    D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightsae.lm.devices import weights_at_hand


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a LayerNorm or an RMSNorm, of which each architecture may have its own."""
    name = type(module).__name__
    return isinstance(module, nn.LayerNorm) or "RMSNorm" in name or name.endswith("LayerNorm")


def gain_and_bias(norm: nn.Module, like: Float[Tensor, "*batch D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Return what a norm multiplies each dimension by and what it then adds, in float32, on the device of `like`."""
    ones = torch.ones(like.shape[-1], device=like.device)
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        with weights_at_hand(norm):
            bias = getattr(norm, "bias", None)
            gain = ones if norm.weight is None else norm.weight.float()
            return gain, torch.zeros_like(ones) if bias is None else bias.float()
    # Some multiply by the weight, some by 1 + weight, T5's LayerNorm does not centre: a vector of mean 0 comes back as
    # what it is normalised to, times the gain, and its negative as the opposite. Large beside epsilon, and through
    # `forward`, so that no hook sees them.
    probe = 1000 * _of_mean_zero(like)
    normalised = probe / probe.square().mean().sqrt()
    up, down = norm.forward(probe).float(), norm.forward(-probe).float()
    return (up - down) / (2 * normalised), (up + down) / 2


def is_centred(norm: nn.Module, like: Float[Tensor, "*batch D"]) -> bool:
    """Return whether a norm subtracts the mean over the width: a LayerNorm in more than its name."""
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return isinstance(norm, nn.LayerNorm)
    probe = 1000 * _of_mean_zero(like)
    return bool(torch.allclose(norm.forward(probe + 1000), norm.forward(probe), rtol=1e-3, atol=1e-5))


def _of_mean_zero(like: Float[Tensor, "*batch D"]) -> Float[Tensor, " D"]:
    """Return 1, -1, 1, -1 ...; of an odd width the last three are 1, 1, -2."""
    width = like.shape[-1]
    probe = torch.ones(width, device=like.device)
    probe[1::2] = -1
    if width % 2:
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0], device=like.device)
    return probe


def without_gain(
    output: Float[Tensor, "*batch D"], gain: Float[Tensor, " D"], bias: Float[Tensor, " D"]
) -> Float[Tensor, "*batch D"]:
    """Return the normalised activations of a norm's output; 0 where the gain is 0, since nothing of them is left."""
    return torch.where(gain == 0, 0, (output.float() - bias) / gain).to(output.dtype)
