"""A crosscoder between a file of somebody's and one of ours; what `PortableSAE` is for one site.

It keeps each site's scale beside the weights: a latent's norms at the sites are compared, to say which it belongs to,
and are only comparable while every site is in units of its own.

    z = sum over s of (x_s * read_s) W_enc[s] + b_enc        f = activation(z)
    x_hat_s = (f W_dec[s] + b_dec[s]) / predicted_s

Axes:    S sites, D width of each, F latents.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError, FormatError, under
from lightsae.formats.layouts.source import Source
from lightsae.sae import MECHANISMS, Crosscoder, Refinements, SiteRef, Widths

_LIMITS = torch.finfo(torch.float32)


@dataclass(frozen=True)
class PortableCrosscoder:
    """A crosscoder that takes and gives raw activations, side by side in the order of its sites.

    Attributes:
        activation: `relu`: max(z, 0). `jumprelu`: z where z > threshold and z > 0.
        W_enc: (S, D, F).
        b_enc: (F,).
        W_dec: (S, F, D).
        b_dec: (S, D).
        read: By what each site's activations are multiplied before encoding, (S,), above 0.
        predicted: By what each site's prediction is divided, (S,), above 0.
        sites: Where each is read; all different.
        threshold: Of `jumprelu`, (F,), above 0.
        source: Where it comes from.
        folded: As in `PortableSAE`.
    """

    activation: Literal["relu", "jumprelu"]
    W_enc: Float[Tensor, "S D F"]
    b_enc: Float[Tensor, " F"]
    W_dec: Float[Tensor, "S F D"]
    b_dec: Float[Tensor, "S D"]
    read: Float[Tensor, " S"]
    predicted: Float[Tensor, " S"]
    sites: tuple[SiteRef, ...]
    threshold: Float[Tensor, " F"] | None = None
    source: Source = field(default_factory=Source)
    folded: tuple[str, ...] = ()

    def to_sae(self) -> Crosscoder:
        """Make the crosscoder, in eval mode.

        Raises:
            FormatError: A scale is not above 0, or there is one site only.
        """
        if not bool((self.read > 0).all() and (self.predicted > 0).all()):
            raise FormatError(f"The scales of the sites are {self.read.tolist()}; a scale is above 0.")
        at_sites = dict.fromkeys(self.sites, self.W_enc.shape[1])
        assert len(at_sites) == len(self.sites)
        try:
            with torch.device("meta"), under("settings"):
                mechanism = MECHANISMS["ReLU" if self.activation == "relu" else "JumpReLU"]()
                refinements = Refinements(centre_input=False if mechanism.centres_input else None)
                sae = Crosscoder(Widths(at_sites, at_sites), len(self.b_enc), mechanism, refinements)
        except ConfigError as error:
            raise FormatError(f"The file makes no crosscoder: {error}") from error
        tensors = {
            "W_enc": self.W_enc.flatten(0, 1),
            "b_enc": self.b_enc,
            "W_dec": self.W_dec.transpose(0, 1).flatten(1),
            "b_dec": self.b_dec.flatten(),
            # Not one tensor under two names, which no file of safetensors holds.
            "input_scale": self.read.clone(),
            "output_scale": self.predicted.clone(),
        }
        if self.threshold is not None:
            # Their logarithms have to be finite.
            within = self.threshold.double().clamp(_LIMITS.tiny, _LIMITS.max / 2)
            tensors["mechanism.log_threshold"] = within.log()
        sae.load_state_dict({name: value.float().contiguous() for name, value in tensors.items()}, assign=True)
        return sae.eval()
