"""Checkpoints, runs and files of other libraries that somebody may send as an SAE."""

from functools import cache
from pathlib import Path

import torch

from fuzz.readers.base import Reader
from lightsae.formats.convert import convert
from lightsae.formats.native import widths_entry
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import MECHANISMS, SiteRef, SparseAutoencoder, Transcoder, Widths
from lightsae.training.checkpoint_check import describe

LAYER = "layer_1.safetensors"


@cache
def transcoder() -> SparseAutoencoder:
    torch.manual_seed(0)
    sites = Widths({SiteRef("builtin", "mlp_in.1"): 6}, {SiteRef("builtin", "mlp_out.1"): 6})
    return Transcoder(sites, 8, MECHANISMS["JumpReLU"](), skip=True).eval()


def _make_checkpoint(folder: Path) -> None:
    sae = transcoder()
    told = {"dictionaries": {"a": describe(sae)}, "widths": {"a": widths_entry(sae.widths)}, "tokens_seen": 5}
    held = {"state_dict": {f"saes.a.{name}": value for name, value in sae.state_dict().items()}, "global_step": 7}
    torch.save(held | {"lightsae": told, "pytorch-lightning_version": "2.6.0"}, folder / "last.ckpt")


def _make_set(folder: Path) -> None:
    convert(transcoder(), "circuit_tracer", folder / "set")


def _check(saved: SavedSAE) -> None:
    """What is taken gives finite figures."""
    sae = saved.sae
    assert all(value.isfinite().all() for value in sae.state_dict().values())
    assert sae(torch.ones(3, sae.d_in)).x_hat.shape == (3, sae.d_out)
    assert isinstance(saved.source.model, str | None)


OPENED = {
    "opened_checkpoint": Reader(_make_checkpoint, lambda folder: _check(SavedSAE.open(folder / "last.ckpt"))),
    "circuit_tracer_set": Reader(_make_set, lambda folder: _check(SavedSAE.open(folder / "set"))),
    "circuit_tracer_layer": Reader(_make_set, lambda folder: _check(SavedSAE.open(folder / "set" / LAYER))),
}
