"""Control vectors: the bytes of the file, the layer, what is written, and what is refused."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightsae.analysis.steering import Ablate, Add, Fires, Intervention, steer
from lightsae.analysis.steering.control_vector import layer_of, to_gguf, write_control_vector
from lightsae.errors import ConfigError, SiteError
from lightsae.lm import LanguageModel
from lightsae.sae import SparseAutoencoder

Make = Callable[..., SparseAutoencoder]


def vectors_of(data: bytes) -> dict[str, np.ndarray]:
    """Read the tensors by the format's description, not by what wrote them."""
    magic, version, n_tensors, n_pairs = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    at = 24

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return int(value)

    def text() -> str:
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size : at].decode()

    pairs: dict[str, str | int] = {}
    for _ in range(n_pairs):
        key = text()
        pairs[key] = text() if take("I") == 8 else take("I")
    assert pairs["general.architecture"] == "controlvector"
    assert pairs["controlvector.layer_count"] == n_tensors
    assert pairs["controlvector.model_hint"] == "llama"
    places = {}
    for _ in range(n_tensors):
        name = text()
        assert take("I") == 1
        size = take("Q")
        assert take("I") == 0, "float32"
        places[name] = size, take("Q")
    start = -(-at // 32) * 32
    assert all(offset % 32 == 0 for _, offset in places.values())
    return {name: np.frombuffer(data, "<f4", size, start + offset) for name, (size, offset) in places.items()}


def test_the_file(tmp_path: Path) -> None:
    given = {7: torch.randn(12, dtype=torch.float64), 3: torch.randn(12)}
    data = to_gguf(given, "llama")
    found = vectors_of(data)
    assert list(found) == ["direction.3", "direction.7"]
    for layer, vector in given.items():
        assert np.array_equal(found[f"direction.{layer}"], vector.float().numpy())
    gguf = pytest.importorskip("gguf")
    (tmp_path / "v.gguf").write_bytes(data)
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert bytes(reader.fields["general.architecture"].parts[-1]) == b"controlvector"
    assert {tensor.name: tensor.data.tolist() for tensor in reader.tensors} == {k: v.tolist() for k, v in found.items()}


@pytest.mark.parametrize(("site", "layer"), [("resid_post.1", 1), ("resid_post.31", 31), ("resid_pre.2", 1)])
def test_layers(site: str, layer: int) -> None:
    assert layer_of(site) == layer


@pytest.mark.parametrize("site", ["resid_post.0", "resid_pre.0", "resid_pre.1", "mlp_out.3", "model.layers.3.output"])
def test_other_sites(site: str) -> None:
    with pytest.raises(SiteError, match=re.escape(site)):
        layer_of(site)


def test_what_is_written_is_what_is_added(lm: LanguageModel, make_sae: Make, tokens: Tensor, tmp_path: Path) -> None:
    site = "resid_post.1"
    before = lm.capture(tokens, [site])[site]
    several = [Add(3, 1.5, unit="latent"), Add(4, -2.0, unit="latent")]
    with steer(lm, several, sae=make_sae(lm)) as steering:
        assert write_control_vector(steering, tmp_path / "v.gguf", "llama") == 1
        after = lm.capture(tokens, [site])[site]
    (vector,) = vectors_of((tmp_path / "v.gguf").read_bytes()).values()
    torch.testing.assert_close((after - before)[:, 1:], torch.tensor(vector).expand(before[:, 1:].shape))


@pytest.mark.parametrize(
    "intervention", [Ablate(3), Add(3, 1.0, unit="latent", when=Fires()), Add(3, 0.0, unit="latent")], ids=str
)
def test_what_is_no_addition(intervention: Intervention, lm: LanguageModel, make_sae: Make, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="added to every token alike"),
        steer(lm, intervention, sae=make_sae(lm)) as steering,
    ):
        write_control_vector(steering, tmp_path / "v.gguf", "llama")
    assert not list(tmp_path.iterdir())
