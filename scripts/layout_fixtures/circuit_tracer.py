"""circuit-tracer's own code beside ours: small files that it wrote, with what it gives for them, and a check both ways.

    python -P scripts/layout_fixtures/circuit_tracer.py          # writes tests/fixtures/layouts/circuit_tracer
    python -P scripts/layout_fixtures/circuit_tracer.py --check  # ours -> theirs; exit code 1 if they differ

Needs `circuit-tracer` beside lightsae, with src/ on PYTHONPATH. With -P the package is found, and not this file, which
has its name. A fixture's expected.safetensors holds activations x (T, D), and the latents (T, F) and predictions (T, D)
of circuit-tracer's class for them. circuit-tracer writes no config.yaml; the one here has the keys that it reads.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from circuit_tracer.transcoder import (  # type: ignore[import-not-found]
    SingleLayerTranscoder,
    TranscoderSet,
    load_transcoder_set,
)
from circuit_tracer.transcoder.activation_functions import JumpReLU  # type: ignore[import-not-found]
from safetensors.torch import save_file
from torch import Tensor

from lightsae.formats.convert import convert
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import MECHANISMS, SiteRef, SparseAutoencoder, Transcoder, Widths

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures" / "layouts" / "circuit_tracer"
MODEL, WIDTH, D_SAE, TOKENS = "Qwen/Qwen3-0.6B", 6, 16, 24
# Of the largest value.
TOLERANCE = 1e-5
CONFIG = {
    "model_kind": "transcoder_set",
    "model_name": MODEL,
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "hook_mlp_out",
    "scan": "example/transcoders",
}
CASES = {
    "relu": (False, False),
    "jumprelu": (True, False),
    "skip": (False, True),
    "jumprelu_skip": (True, True),
}


def inputs() -> Tensor:
    return 2 * torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


def theirs(jumps: bool, skips: bool, seed: int) -> Any:
    """Make a transcoder of circuit-tracer's class with random weights."""
    activation = JumpReLU(torch.zeros(D_SAE), 0.1) if jumps else torch.nn.functional.relu
    made = SingleLayerTranscoder(WIDTH, D_SAE, activation, 0, skip_connection=skips, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in made.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() if "threshold" in name else noise)
    return made


@torch.no_grad()
def write() -> None:
    """Write a set of one layer for each case."""
    x = inputs()
    for seed, (name, (jumps, skips)) in enumerate(CASES.items()):
        folder, made = FIXTURES / name, theirs(jumps, skips, seed)
        TranscoderSet({0: made}, CONFIG["feature_input_hook"], CONFIG["feature_output_hook"]).to_safetensors(
            str(folder)
        )
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
        expected = {"x": x, "latents": made.encode(x), "x_hat": made(x)}
        save_file(expected, folder / "expected.safetensors")


def ours(mechanism: str, skip: bool, layer: int) -> SparseAutoencoder:
    """Make a transcoder of ours with random weights, centre and scales."""
    kind = MECHANISMS[mechanism]
    widths = Widths({SiteRef(MODEL, f"mlp_in.{layer}"): WIDTH}, {SiteRef(MODEL, f"mlp_out.{layer}"): WIDTH})
    made = Transcoder(widths, D_SAE, kind(k=3) if mechanism == "BatchTopK" else kind(), skip=skip).eval()
    generator = torch.Generator().manual_seed(layer)
    with torch.no_grad():
        for name, value in made.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() + 0.1 if "scale" in name or name == "mechanism.threshold" else noise)
    return made


@torch.no_grad()
def check() -> list[str]:
    """Return what differs between ours and circuit-tracer's, by file, in both directions."""
    x, wrong = inputs(), []
    cases = [(mechanism, skip) for mechanism in ("ReLU", "BatchTopK", "JumpReLU") for skip in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        for mechanism, skip in cases:
            out = Path(folder) / f"{mechanism}_{skip}"
            made = [ours(mechanism, skip, layer) for layer in range(2)]
            files = [convert(sae, "circuit_tracer", out).path for sae in made]
            config = yaml.safe_load((out / "config.yaml").read_text())
            hooks = config["feature_input_hook"], config["feature_output_hook"]
            loaded = load_transcoder_set(dict(enumerate(map(str, files))), config["scan"], *hooks, torch.device("cpu"))
            for layer, sae in enumerate(made):
                found = loaded[layer].encode(x), loaded[layer](x)
                wrong += differences(f"ours, {out.name}, layer {layer}", (sae.encode(x), sae(x).x_hat), found)
    for seed, (name, (jumps, skips)) in enumerate(CASES.items()):
        sae, made = SavedSAE.open(FIXTURES / name).sae, theirs(jumps, skips, seed)
        wrong += differences(f"theirs, {name}", (made.encode(x), made(x)), (sae.encode(x), sae(x).x_hat))
    return wrong


def differences(name: str, expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> list[str]:
    """Print the largest differences, as shares of the largest values; return those beyond the tolerance."""
    shares = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True)]
    support = int(((expected[0] > 0) != (found[0] > 0)).sum())
    line = f"{name}: latents {shares[0]:.1e}, predictions {shares[1]:.1e}, {support} firings elsewhere"
    print(line)
    return [line] if max(shares) > TOLERANCE or support else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="hold ours against circuit-tracer's, and write nothing")
    if parser.parse_args().check:
        sys.exit(1 if check() else 0)
    write()
