"""Where the weights of a training start: random and tied, at data points, or at a saved SAE."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightsae.errors import ConfigError, arg
from lightsae.formats.files import locate
from lightsae.formats.native import DESCRIPTION, describe_sae, load_sae, plain
from lightsae.randomness import keyed_generator
from lightsae.sae import SiteRef, SparseAutoencoder

TIED, DATA = "tied", "data"


def check_start(start: str, sae: SparseAutoencoder) -> None:
    """Raise where an SAE cannot start from what `start` names; reads no tensors.

    Raises:
        ConfigError: A saved SAE is of another variant, size or width.
        FormatError: There is no saved SAE, or it is damaged.
    """
    if start in (TIED, DATA):
        return
    locate(start, DESCRIPTION, "start")
    saved = describe_sae(start)
    widths = [sum(site["width"] for site in saved["widths"][side]) for side in ("read", "predicted")]
    settings, mine = saved["settings"], plain(sae.settings)
    found = {"variant": saved["variant"], "d_sae": settings.get("d_sae"), "d_in": widths[0], "d_out": widths[1]}
    wanted = {"variant": type(sae).__name__, "d_sae": sae.d_sae, "d_in": sae.d_in, "d_out": sae.d_out}
    # Others have no threshold, or rows of other norms: the weights would mean something else.
    for told, of in ((found, settings), (wanted, mine)):
        mechanism = of.get("mechanism", of)
        told |= {"mechanism": mechanism.get("name"), "decoder_norm": mechanism.get("decoder_norm")}
    for name, value in wanted.items():
        if found[name] != value:
            raise ConfigError(
                f"{arg('start')} is {start!r}, a saved SAE whose {name} is {found[name]}, and here it is {value}; "
                "fine-tuning needs the same."
            )


def start_weights(
    sae: SparseAutoencoder, start: str, sample: Mapping[SiteRef, Tensor], normalisation: str, seed: int
) -> None:
    """Give a new SAE its weights, scales and thresholds.

    Args:
        sae: As it was built.
        start: `tied`, `data`, or the folder of a saved SAE.
        sample: Raw activations at the SAE's sites, of the same tokens, without attention sinks.
        normalisation: See `SparseAutoencoder.start_from`. A saved SAE keeps its scales.
        seed: Of the draws.
    """
    sae.reset_parameters(keyed_generator(seed, "weights"))
    if start in (TIED, DATA):
        points = keyed_generator(seed, "data points") if start == DATA else None
        sae.start_from(sample, normalisation, points)
        return
    saved = load_sae(start)
    with torch.no_grad():
        state = sae.state_dict()
        for name, tensor in saved.state_dict().items():
            if name in state and state[name].shape == tensor.shape:
                state[name].copy_(tensor)
    sae.constrain()
