"""Where the weights of a training start: random and tied, at data points, or at a saved SAE."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightsae.errors import ActivationError, ConfigError, arg, under
from lightsae.formats.saved_sae import SavedSAE
from lightsae.randomness import keyed_generator
from lightsae.sae import SiteRef, SparseAutoencoder
from lightsae.sae.initialise import Normalisation
from lightsae.sae.ranks import alone, is_distributed
from lightsae.sae.units import bring_rows_to_norm_1, normalise
from lightsae.training.latent_parallel import is_dealt_out, share_start

TIED, DATA = "tied", "data"
# By this share norms differ where they are meant to be the same.
SAME_NORM = 0.01


def check_start(start: str, sae: SparseAutoencoder) -> None:
    """Raise where an SAE cannot start from what `start` names; reads no tensors.

    Raises:
        ConfigError: A saved SAE is of another variant, size or width.
        FormatError: There is no saved SAE, or it is damaged.
    """
    if start in (TIED, DATA):
        return
    with under(folder="start"):
        stored, configured = _kind_of_weights(SavedSAE.open(start)), _kind_of_weights(SavedSAE.of(sae))
    for name, value in configured.items():
        if stored[name] != value:
            raise ConfigError(
                f"{arg('start')} is {start!r}, a saved SAE whose {name} is {stored[name]}, and here it is {value}; "
                "fine-tuning needs the same."
            )


def _kind_of_weights(saved: SavedSAE) -> dict[str, Any]:
    # Other mechanisms have no threshold, or rows of other norms: the weights would mean something else.
    mechanism = saved.settings.get("mechanism", saved.settings)
    d_in, d_out = (sum(site["width"] for site in saved.widths[side]) for side in ("read", "predicted"))
    return {
        "variant": saved.variant,
        "d_sae": saved.settings.get("d_sae"),
        "d_in": d_in,
        "d_out": d_out,
        "mechanism": mechanism.get("name"),
        "decoder_norm": mechanism.get("decoder_norm"),
        "token_norm": (saved.settings.get("refinements") or {}).get("token_norm"),
    }


def start_weights(
    sae: SparseAutoencoder, start: str, sample: Mapping[SiteRef, Tensor], normalisation: str, seed: int
) -> None:
    """Give a new SAE its weights, scales and thresholds.

    Args:
        sae: As it was built.
        start: `tied`, `data`, or where a saved SAE is; whatever `SavedSAE.open` takes.
        sample: Raw activations at the SAE's sites, of the same tokens, without attention sinks.
        normalisation: See `SparseAutoencoder.start_from`. A saved SAE keeps its scales; one out of another library's
            file has none, and gets them.
        seed: Seed for random directions and data points.

    Raises:
        ActivationError: All rows at a site are the same: what is measured against their spread has no value.
    """
    for site, rows in sample.items():
        if len(rows) > 1 and bool((rows == rows[0]).all()):
            raise ActivationError(f"{site} is the same on all of {len(rows):,} tokens: there is nothing to learn.")
    sae.reset_parameters(keyed_generator(seed, "weights"))
    if start in (TIED, DATA):
        points = keyed_generator(seed, "data points") if start == DATA else None
        sae.start_from(sample, normalisation, points)
        return
    with torch.no_grad():
        saved = SavedSAE.open(start)
        state, stored = sae.state_dict(), saved.sae.state_dict()
        sae.mechanism.upgrade(stored, "mechanism.")
        for name, tensor in stored.items():
            if name in state and state[name].shape == tensor.shape:
                state[name].copy_(tensor)
        if (saved.sae.centre is None) != (sae.centre is None) and not sae.predicts_another_site:
            # What one subtracts before encoding, the other's bias takes off after it.
            shift = sae.b_dec @ sae.W_enc
            sae.b_enc.add_(shift if saved.sae.centre is None else -shift)
        if saved.opened is not None:
            normalise(sae, sample, normalisation)
            if sae.mechanism.unit_norm_decoder and bring_rows_to_norm_1(sae) > SAME_NORM and sae.mechanism.competes:
                rank_zero_warn(
                    f"The decoder rows of {start!r} differ in norm, and {saved.variant} keeps them at 1. Its latents "
                    "are now chosen by what they add, so that the training starts near the saved SAE and not at it."
                )
    sae.constrain()


def start_in_run(
    sae: SparseAutoencoder,
    start: str,
    sample: Mapping[SiteRef, Tensor],
    normalisation: Normalisation,
    seed: int,
    trainer: Trainer,
) -> None:
    """Start an SAE on every process of a run alike, wherever its latents lie; see `start_weights`.

    Each process has a sample of its own: the first one's start is that of all.
    """
    if is_dealt_out(sae):
        # A start looks at all latents at once: the whole SAE, on the host, for as long as that takes.
        with alone():
            whole = type(sae)(sae.widths, **sae.settings)
            start_weights(whole, start, {site: values.cpu() for site, values in sample.items()}, normalisation, seed)
        share_start(sae, whole, trainer)
        return
    start_weights(sae, start, sample, normalisation, seed)
    if is_distributed():
        for tensor in sae.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
