"""An SAE as files of another library, or as lightsae's own; what was written is read again and held against it.

Axes:    T tokens, D width read, F latents.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError, FormatError, arg, did_you_mean
from lightsae.formats.files import entries, replace_folder_atomically
from lightsae.formats.layouts import LAYOUTS, PortableSAE, WritableLayout
from lightsae.formats.native import load_sae, write_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import SparseAutoencoder

NATIVE = "native"
# Tokens to compare on; fewer where their latents would not fit in memory.
_TOKENS, _PLACES = 512, 1 << 24
_DOUBLINGS = 40


@dataclass(frozen=True)
class Difference:
    """What lies between two SAEs on the same inputs.

    Attributes:
        latents: The largest difference where both fire, as a share of the largest latent.
        predictions: The largest difference on tokens where the same latents fire, as a share of the largest entry.
        other_firings: Where one fires and the other does not: a pre-activation within rounding of its threshold.
        places: Tokens times latents.
        tokens: Inputs.
    """

    latents: float
    predictions: float
    other_firings: int
    places: int
    tokens: int


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        path: Under which the SAE is opened.
        folded: What was worked into the weights, a clause each.
        difference: Between the given SAE and the files, read again.
    """

    path: Path
    folded: tuple[str, ...]
    difference: Difference


def writable() -> list[str]:
    """Return the layouts that `convert` writes, by name."""
    return [NATIVE, *(name for name, layout in LAYOUTS.items() if isinstance(layout, WritableLayout))]


def convert(sae: SavedSAE | SparseAutoencoder | str | Path, to: str, out: str | Path) -> Conversion:
    """Write an SAE in another layout.

    Args:
        sae: It, or its file or folder; see `SavedSAE.open`.
        to: `native`, or the name of a layout that is written; see `writable`.
        out: The folder: a new one, or one with an earlier export of this kind, which is replaced as a whole.

    Raises:
        ConfigError: There is no such layout, or the folder cannot be written.
        FormatError: The layout has no form for the SAE, or the folder holds other files; nothing is written.

    Example:
        convert("runs/version_0", "native", "sae_of_mine").difference.predictions
    """
    saved = SavedSAE.of(sae)
    if to not in writable():
        reads = " (which is read, and not written)" if to in LAYOUTS else ""
        known = writable()
        raise ConfigError(f"{arg('to')} is {to!r}{reads}; write {' or '.join(known)}.{did_you_mean(to, known)}")
    given, before = saved.sae, entries(out, "to write the SAE in")
    layout = LAYOUTS.get(to)
    if not isinstance(layout, WritableLayout):
        with replace_folder_atomically(out) as staged:
            write_sae(given, staged, dict(saved.provenance.values))
            check_replaces(before, staged, out)
            return Conversion(Path(out), (), difference(given, load_sae(staged)))
    portable = PortableSAE.of(given, saved.source)
    with replace_folder_atomically(out) as staged:
        if layout.shares_folder and before and layout.problem(before[0].parent) is None:
            _keep(before, staged)
        layout.write(portable, staged)
        check_replaces(before, staged, out)
        written = layout.written(portable, staged)
        found = difference(given, layout.read(written).to_sae())
    return Conversion(Path(out) / written.relative_to(staged), portable.folded, found)


@torch.no_grad()
def difference(one: SparseAutoencoder, other: SparseAutoencoder) -> Difference:
    """Hold two SAEs against each other on random activations, at a scale at which latents fire."""
    x = _random_inputs(one)
    latents, others = one.encode(x), other.encode(x)
    fires, also = latents != 0, others != 0
    both, alike = fires & also, (fires == also).all(1)
    predictions = one(x).x_hat
    return Difference(
        latents=_largest((latents - others)[both], latents),
        predictions=_largest((predictions - other(x).x_hat)[alike], predictions),
        other_firings=int((fires != also).sum()),
        places=latents.numel(),
        tokens=len(x),
    )


def _random_inputs(sae: SparseAutoencoder) -> Float[Tensor, "T D"]:
    tokens = max(8, min(_TOKENS, _PLACES // sae.d_sae))
    x = torch.randn(tokens, sae.d_in, generator=torch.Generator().manual_seed(0)).to(sae.W_enc.device)
    x = x / sae.input_scale.max().float()
    for _ in range(_DOUBLINGS):
        if bool((sae.encode(x) != 0).any(1).float().mean() >= 0.5):
            break
        x = 2 * x
    return x


def _largest(differences: Tensor, values: Tensor) -> float:
    """Return the largest entry of one tensor as a share of that of another; 0 where there is none."""
    if not differences.numel() or not bool(values.any()):
        return 0.0
    return float(differences.abs().max() / values.abs().max())


def _keep(before: Sequence[Path], staged: Path) -> None:
    """Take over the files of other SAEs, without copying their bytes where the file system can."""
    for path in before:
        try:
            os.link(path, staged / path.name)
        except OSError:
            shutil.copyfile(path, staged / path.name)


def check_replaces(before: Sequence[Path], staged: Path, out: str | Path, argument: str = "out") -> None:
    """Refuse to replace a folder, given as `argument`, that holds other files than what was staged."""
    names = {path.name for path in staged.iterdir()}
    if other := next((path.name for path in before if path.name not in names), None):
        raise FormatError(
            f"{arg(argument)} is {str(out)!r}, which holds other files ({other!r}) than such an export; name a new "
            "folder."
        )
