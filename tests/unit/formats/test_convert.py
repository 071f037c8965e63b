"""What is written is the SAE that was given, or nothing; another folder's files stay as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightsae.errors import ConfigError, FormatError
from lightsae.formats.convert import convert, difference, writable
from lightsae.formats.layouts import LAYOUTS
from lightsae.formats.native import load_sae, save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import (
    BatchTopK,
    Crosscoder,
    JumpReLU,
    Refinements,
    ReLU,
    SiteRef,
    SparseAutoencoder,
    TopK,
    Transcoder,
    Widths,
    mechanisms,
)

D, F = 6, 16
ONE = Widths.autoencoder(SiteRef("gpt2", "resid_post.1"), D)
TWO = {SiteRef("gpt2", "mlp_in.0"): 4, SiteRef("gpt2", "mlp_in.1"): 3}


def across(sae_of: Callable[[Widths], SparseAutoencoder]) -> SparseAutoencoder:
    return sae_of(Widths({SiteRef("gpt2", "mlp_in.0"): D}, {SiteRef("gpt2", "mlp_out.0"): D}))


def test_native_keeps_every_bit_and_what_is_known(tmp_path: Path) -> None:
    told = {"model": "gpt2", "config": "data: {context_size: 64}", "tokens_seen": 5}
    save_sae(TopK(ONE, F, k=3), tmp_path / "given", told)
    done = convert(tmp_path / "given", "native", tmp_path / "new" / "sae")
    assert done.path == tmp_path / "new" / "sae"
    assert (done.difference.latents, done.difference.predictions, done.difference.other_firings) == (0, 0, 0)
    for name in ("sae.json", "sae.safetensors"):
        assert (tmp_path / "new" / "sae" / name).read_bytes() == (tmp_path / "given" / name).read_bytes()
    assert SavedSAE.open(done.path).provenance.data["context_size"] == 64


def test_what_a_file_does_not_know_can_be_named(tmp_path: Path) -> None:
    save_sae(ReLU(Widths.of(D), F), tmp_path / "given", {"normalisation": "none"})
    saved = SavedSAE.open(tmp_path / "given")
    assert saved.unknown == ["model", "site"]
    convert(saved.named("builtin", "resid_post.2"), "native", tmp_path / "new")
    again = SavedSAE.open(tmp_path / "new")
    assert again.unknown == []
    assert again.provenance.model == "builtin"
    assert list(again.sae.widths.read) == list(again.sae.widths.predicted) == [SiteRef("builtin", "resid_post.2")]
    # In memory nothing but the names is another.
    assert saved.sae.widths == Widths.of(D)
    assert saved.sha256 == again.sha256


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (lambda: Crosscoder(Widths(TWO, TWO), F, mechanisms.TopK(3)), "A Crosscoder reads several sites"),
        (lambda: ReLU(ONE, F, refinements=Refinements(second_step=0.3)), "has second_step"),
        (lambda: ReLU(ONE, F, refinements=Refinements(prune=0.1)), "has prune"),
    ],
)
def test_what_no_other_layout_holds_is_refused_by_name(
    sae: Callable[[], SparseAutoencoder], message: str, tmp_path: Path
) -> None:
    for layout in set(writable()) - {"native"}:
        with pytest.raises(FormatError, match=message) as caught:
            convert(sae(), layout, tmp_path / "new")
        assert "\n" not in str(caught.value)
        assert not any(tmp_path.iterdir())
    convert(sae(), "native", tmp_path / "new")


def test_a_layout_that_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^to is 'gemma_scope' \(which is read, and not written\); write native or"):
        convert(ReLU(ONE, F), "gemma_scope", tmp_path / "new")
    with pytest.raises(ConfigError, match=r"to is 'nativ'; .* Did you mean 'native'\?"):
        convert(ReLU(ONE, F), "nativ", tmp_path / "new")


@pytest.mark.parametrize("layout", ["native", "circuit_tracer"])
def test_other_files_stay(layout: str, tmp_path: Path) -> None:
    sae = across(lambda widths: Transcoder(widths, F, mechanisms.ReLU()))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    if layout == "native":
        convert(sae, layout, tmp_path / "export")
        (tmp_path / "export" / "letter.txt").write_text("mine")
    for folder in [path for path in tmp_path.iterdir() if (path / "letter.txt").exists()]:
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(FormatError, match="holds other files"):
            convert(sae, layout, folder)
        assert sorted(path.name for path in folder.iterdir()) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FormatError, match="is a file"):
        convert(sae, layout, tmp_path / "file")


def test_an_earlier_export_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        convert(ReLU(ONE, F), "native", tmp_path / "out")
    before = load_sae(tmp_path / "out").W_dec

    def fail(*_: Any) -> None:
        raise FormatError("the disk burns")

    monkeypatch.setattr("lightsae.formats.convert.difference", fail)
    with pytest.raises(FormatError, match="the disk burns"):
        convert(ReLU(ONE, F), "native", tmp_path / "out")
    assert torch.equal(load_sae(tmp_path / "out").W_dec, before)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("kind", [lambda w: ReLU(w, F), lambda w: JumpReLU(w, F), lambda w: BatchTopK(w, F, k=3)])
def test_a_difference_is_seen_at_any_scale(kind: Callable[[Widths], SparseAutoencoder], scale: float) -> None:
    torch.manual_seed(0)
    one, other = kind(ONE).eval(), kind(ONE).eval()
    for sae in (one, other):
        sae.input_scale.fill_(scale)
        sae.output_scale.fill_(scale)
    other.load_state_dict(one.state_dict())
    assert difference(one, other).latents == difference(one, other).predictions == 0
    with torch.no_grad():
        other.b_enc += 0.01 * one.encode(torch.randn(99, D) / scale).max()
        other.W_dec[3] *= 1.01
    found = difference(one, other)
    assert found.latents > 1e-3
    assert found.predictions > 1e-3
    assert found.places == found.tokens * F


def test_firings_elsewhere_are_counted_apart() -> None:
    torch.manual_seed(0)
    one, other = (ReLU(ONE, F).eval() for _ in range(2))
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        other.W_enc[:, 3] = -other.W_enc[:, 3]
    assert 0.3 < difference(one, other).other_firings / 512 <= 1


def test_every_written_layout_says_how_it_is_called() -> None:
    assert writable()[0] == "native"
    assert set(writable()[1:]) <= set(LAYOUTS)
