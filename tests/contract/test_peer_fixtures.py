"""Files that the libraries' own code wrote give the latents and the predictions that this code gave for them.

Below tests/fixtures/layouts lies a folder for each layout and in it one for each case, with expected.safetensors beside
the files: activations `x` (T, D), `latents` (T, F) and `x_hat` (T, O). scripts/layout_fixtures makes them.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lightsae.formats.layouts import layout_of
from lightsae.formats.saved_sae import SavedSAE

FIXTURES = Path(__file__).parents[1] / "fixtures" / "layouts"
CASES = sorted(path.parent.relative_to(FIXTURES).as_posix() for path in FIXTURES.rglob("expected.safetensors"))


def close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_what_the_code_that_wrote_it_gives(case: str) -> None:
    folder = FIXTURES / case
    expected = load_file(folder / "expected.safetensors")
    assert layout_of(folder).name == case.split("/")[0]
    sae = SavedSAE.open(folder).sae
    latents = sae.encode(expected["x"])
    assert ((latents > 0) == (expected["latents"] > 0)).all()
    assert 0 < (latents > 0).float().mean() < 1
    close(latents, expected["latents"])
    close(sae(expected["x"]).x_hat, expected["x_hat"])


def test_there_are_files_of_every_library_that_can_be_installed() -> None:
    libraries = {"circuit_tracer", "dictionary_learning", "sae_lens", "sparsify"}
    assert {case.split("/")[0] for case in CASES} >= libraries
