"""What the scripts beside this one share: numbers drawn once, SAEs of ours, and how two functions are compared.

The scripts run where the other libraries are installed (requirements.txt), with -P: their names are the libraries'.

    PYTHONPATH=src:scripts python -P scripts/layout_fixtures/NAME.py          # makes tests/fixtures/layouts/NAME anew
    PYTHONPATH=src:scripts python -P scripts/layout_fixtures/NAME.py --check  # ours -> their loader, theirs -> ours

Axes:    T tokens, D width, F latents.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightsae.formats.layouts import LAYOUTS, PortableSAE, Source, WritableLayout
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import Matryoshka, Refinements, SiteRef, SparseAutoencoder, Transcoder, Widths, mechanisms, variants

T, D, F, K = 32, 6, 24, 3
MODEL = "EleutherAI/pythia-70m"
RELATIVE = 1e-5
Function = Callable[[Tensor], tuple[Tensor, Tensor]]
_ROOT = Path(__file__).parents[2] / "tests" / "fixtures" / "layouts"


def inputs() -> Tensor:
    """Tokens of a residual stream: with a mean that is no zero, and a scale that is no one."""
    generator = torch.Generator().manual_seed(11)
    return 3 * torch.randn(T, D, generator=generator) + torch.randn(D, generator=generator)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Give parameters values that are nothing special: untied, biased, rows of any norm, thresholds above 0."""
    generator = torch.Generator().manual_seed(12)
    for name, parameter in module.named_parameters():
        values = 0.6 * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(values.abs() if name == "threshold" else values)


class Fixtures:
    """Folders of one layout, each with what its library gives for it."""

    def __init__(self, layout: str) -> None:
        self.folder = _ROOT / layout
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, case: str, write: Callable[[Path], None], function: Function) -> None:
        folder = self.folder / case
        folder.mkdir(parents=True)
        write(folder)
        x = inputs()
        with torch.no_grad():
            latents, x_hat = function(x)
        expected = {"x": x, "latents": latents.contiguous(), "x_hat": x_hat.contiguous()}
        save_file(expected, folder / "expected.safetensors")


def ours() -> dict[str, SparseAutoencoder]:
    """SAEs of ours as after a training: every variant that reads one site, with scales, biases and thresholds."""
    here, there = SiteRef(MODEL, "mlp_in.1"), SiteRef(MODEL, "mlp_out.1")
    stream = SiteRef(MODEL, "resid_post.1")
    own, across, off = Widths.autoencoder(stream, D), Widths({here: D}, {there: D}), Refinements(centre_input=False)
    # Their classes are made by name, with the settings of their mechanisms.
    plain: Any = variants.VARIANTS
    made: dict[str, SparseAutoencoder] = {
        "ReLU": plain["ReLU"](own, F),
        "ReLU, unit norms": plain["ReLU"](own, F, "unit"),
        "JumpReLU": plain["JumpReLU"](own, F, start_l0=4.0),
        "Gated": plain["Gated"](own, F, start_l0=4.0),
        "Gated, not centred": plain["Gated"](own, F, start_l0=4.0, refinements=off),
        "TopK": plain["TopK"](own, F, k=K),
        "TopK, not centred": plain["TopK"](own, F, k=K, refinements=off),
        "BatchTopK": plain["BatchTopK"](own, F, k=K),
        "GroupMax": plain["GroupMax"](own, F, k=K),
        "Matryoshka TopK": Matryoshka(own, F, mechanisms.TopK(K)),
        "Matryoshka BatchTopK": Matryoshka(own, F, mechanisms.BatchTopK(K)),
        "Matryoshka by frequency": Matryoshka(own, F, mechanisms.BatchTopK(K), order="frequency"),
        "Transcoder": Transcoder(across, F, mechanisms.TopK(K)),
        "Transcoder, skip": Transcoder(across, F, mechanisms.TopK(K), skip=True),
        "Transcoder GroupMax, skip": Transcoder(across, F, mechanisms.GroupMax(K), skip=True),
        "Transcoder ReLU": Transcoder(across, F, mechanisms.ReLU()),
    }
    for sae in made.values():
        generator = torch.Generator().manual_seed(13)
        sae.reset_parameters(generator)
        sae.start_from({stream: inputs(), here: inputs(), there: 5 * inputs().flip(0)}, "sqrt_d")
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        sae.eval()
    return made


def source_of(sae: SparseAutoencoder) -> Source:
    (read,), (predicted,) = sae.widths.read, sae.widths.predicted
    return Source(model=MODEL, site=read.site, target_site=None if read == predicted else predicted.site)


@dataclass
class Comparison:
    """Prints how far two functions lie apart, and counts those that lie further than they may."""

    failed: list[str] = field(default_factory=list)

    def compare(self, name: str, expected: tuple[Tensor, Tensor], given: tuple[Tensor, Tensor]) -> None:
        apart = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, given, strict=True)]
        fires, size = [latents > 0 for latents in (expected[0], given[0])], expected[0].abs().max()
        # At the edge of firing, rounding decides.
        edge = torch.maximum(expected[0], given[0]) <= RELATIVE * size
        others = int(((fires[0] != fires[1]) & ~edge).sum())
        some = 0 < int(fires[0].sum()) < fires[0].numel()
        good = all(one <= RELATIVE for one in apart) and not others and some
        self.failed += [] if good else [name]
        l0 = float(fires[0].sum(1).float().mean())
        print(f"{name:<48} {apart[0]:9.1e} {apart[1]:9.1e} {others:7d} {l0:5.1f}  {'' if good else 'FAILED'}")

    def of_ours(self, layout: str, folder: Path, theirs: Callable[[Path], Function]) -> None:
        """Write each SAE of ours that has such a form, open it by the other library, and compare."""
        writer = LAYOUTS[layout]
        assert isinstance(writer, WritableLayout)
        x = inputs()
        for name, sae in ours().items():
            below = folder / name.replace(" ", "_").replace(",", "")
            below.mkdir(parents=True)
            try:
                writer.write(PortableSAE.of(sae, source_of(sae)), below)
            except ValueError as error:
                print(f"{name:<48} no such form: {error}")
                continue
            with torch.no_grad():
                self.compare(f"{name} -> {layout}", (sae.encode(x), sae(x).x_hat), theirs(below)(x))

    def of_theirs(self, layout: str, folder: Path) -> None:
        """Open what the other library wrote, and compare with what it gives."""
        for path in sorted(folder.glob("*/expected.safetensors")):
            expected = load_file(path)
            with torch.no_grad():
                sae = SavedSAE.open(path.parent).sae
                given = sae.encode(expected["x"]), sae(expected["x"]).x_hat
            self.compare(f"{layout} {path.parent.name} -> ours", (expected["latents"], expected["x_hat"]), given)

    def end(self) -> None:
        if self.failed:
            raise SystemExit(f"{len(self.failed)} apart: {', '.join(self.failed)}")

    @staticmethod
    def begin() -> None:
        print(f"{'':<48} {'latents':>9} {'x_hat':>9} {'support':>7} {'L0':>5}")


def fixtures_of(layout: str) -> Path:
    return _ROOT / layout


def run(layout: str, make: Callable[[], None], opened_by_them: Callable[[Path], Function]) -> None:
    """Write the fixtures; with `--check` compare both ways instead, and exit with 1 where they lie apart.

    Args:
        layout: Its name.
        make: Writes them.
        opened_by_them: Opens a folder by the other library.
    """
    if "--check" not in sys.argv[1:]:
        make()
        return
    comparison = Comparison()
    comparison.begin()
    comparison.of_theirs(layout, fixtures_of(layout))
    with tempfile.TemporaryDirectory() as folder:
        comparison.of_ours(layout, Path(folder), opened_by_them)
    comparison.end()
