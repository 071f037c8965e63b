"""A world that an SAE explains: sparse sums of directions around a mean, with a few sinks; no language model."""

import torch
from torch import Tensor

from lightsae.analysis.diagnose.case import SAID, Case, Sample, Text
from lightsae.formats.layouts import PortableSAE
from lightsae.sae import SiteRef

D, F, T, THRESHOLD = 64, 96, 1200, 5.7
HERE, OTHER = SiteRef("model", "resid_post.1"), SiteRef("model", "resid_post.2")


def directions() -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(F, D, generator=draw), dim=1)


def mean() -> Tensor:
    return 3 * torch.randn(D, generator=torch.Generator().manual_seed(1))


def activations(tokens: int = T) -> Tensor:
    """Sums of about two directions, of strength 9 to 15."""
    draw = torch.Generator().manual_seed(2)
    fires = torch.rand(tokens, F, generator=draw) < 2 / F
    return (fires * (9 + 6 * torch.rand(tokens, F, generator=draw))) @ directions() + mean()


def sae(activation: str = "jumprelu", *, subtracts: bool = True) -> PortableSAE:
    """The SAE that knows the directions."""
    rows, centre = directions(), mean()
    own = {"jumprelu": {"threshold": torch.full((F,), THRESHOLD)}, "topk": {"k": 4}, "relu": {}}[activation]
    bias = torch.full((F,), -4.5 if activation == "relu" else 0.0)
    b_enc = bias if subtracts else bias - centre @ rows.T
    return PortableSAE(activation, rows.T.clone(), b_enc, rows, centre, subtracts, **own)  # type: ignore[arg-type]


def sample(tokens: int = T, sinks: int = 12) -> Sample:
    """The world at `HERE`, its first tokens sinks; another one at `OTHER`."""
    x = activations(tokens)
    x[:sinks] += 150
    is_sink = torch.arange(tokens) < sinks
    values = {HERE: x, OTHER: 1.3 * x.roll(1, dims=1)}
    return {SAID: Text(values, dict.fromkeys(values, is_sink), torch.ones(tokens, dtype=torch.bool))}


def case(of: PortableSAE) -> Case:
    return Case(of, HERE, HERE)
