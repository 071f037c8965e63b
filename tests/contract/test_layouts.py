"""What every layout of others owes: it takes its own files alone, and reads from them the function that they stand for.

Each case writes small files as the library does, and says in plain formulas what the SAE in them gives. Files that the
libraries' own code wrote lie in tests/fixtures/layouts, with what that code gave for them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.sae_lens_files import ARCHITECTURES, TRANSCODERS, in_old_terms, write_sae_lens
from lightsae.errors import FormatError
from lightsae.formats.layouts import LAYOUTS, PortableSAE, WritableLayout, layout_of, verdicts
from lightsae.formats.layouts.source import UNKNOWN_TARGET, Source
from lightsae.formats.saved_sae import SavedSAE

D, F = 6, 16
Function = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """Files of a layout.

    Attributes:
        layout: Its name.
        make: Writes the files below a folder; returns the path that a user would give, and the function (latents,
            prediction) of raw activations.
        says: What has to be known of the source.
    """

    layout: str
    make: Callable[[Path], tuple[Path, Function]]
    says: dict[str, object] = field(default_factory=dict)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def jump(z: Tensor, threshold: Tensor) -> Tensor:
    return torch.where((z > threshold) & (z > 0), z, 0)


def gemma_scope(folder: Path, *, upper: bool = True) -> tuple[Path, Function]:
    path = folder / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    path.mkdir(parents=True)
    W_enc, b_enc, W_dec, b_dec, threshold = drawn(D, F), drawn(F), drawn(F, D), drawn(D), drawn(F).abs()
    names = ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"]
    arrays = dict(zip(names, (W_enc, b_enc, W_dec, b_dec, threshold), strict=True))
    np.savez(path / "params.npz", **{n if upper else n.lower(): value.numpy() for n, value in arrays.items()})

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = jump(x @ W_enc + b_enc, threshold)
        return latents, latents @ W_dec + b_dec

    return path, function


def sae_lens(architecture: str, **options: Any) -> Callable[[Path], tuple[Path, Function]]:
    return lambda folder: (folder / "sae", write_sae_lens(folder / "sae", architecture, **options))


def old_sae_lens(folder: Path) -> tuple[Path, Function]:
    function = write_sae_lens(folder / "sae", "standard")
    in_old_terms(folder / "sae", architecture=None, normalize_activations=False)
    return folder / "sae", function


SAE_LENS_SAYS = {"model": "openai-community/gpt2", "site": "resid_pre.7", "sees_bos": True, "context_size": 128}
ACROSS = {"hook_name": "blocks.7.mlp.hook_in", "hook_name_out": "blocks.7.hook_mlp_out"}

CASES: dict[str, Case] = {
    "gemma_scope": Case(
        "gemma_scope",
        gemma_scope,
        {"model": "google/gemma-2-2b", "site": "resid_post.20", "sees_bos": False, "published": (("l0", 71.0),)},
    ),
    "gemma_scope, lower case": Case("gemma_scope", lambda folder: gemma_scope(folder, upper=False)),
    **{
        f"sae_lens, {name}": Case("sae_lens", sae_lens(name), SAE_LENS_SAYS)
        for name in ARCHITECTURES
        if name not in TRANSCODERS
    },
    **{
        f"sae_lens, {name}": Case(
            "sae_lens", sae_lens(name, metadata=ACROSS), {"site": "mlp_in.7", "target_site": "mlp_out.7"}
        )
        for name in TRANSCODERS
    },
    "sae_lens, a transcoder of one width": Case(
        "sae_lens", sae_lens("transcoder", d_out=6), {"site": "resid_pre.7", "target_site": UNKNOWN_TARGET}
    ),
    "sae_lens, topk rescaled": Case("sae_lens", sae_lens("topk", rescales=True)),
    "sae_lens, abstopk rescaled": Case("sae_lens", sae_lens("abstopk", rescales=True)),
    "sae_lens, not centred": Case("sae_lens", sae_lens("gated", subtracts=False)),
    "sae_lens, tokens normalised": Case("sae_lens", sae_lens("topk", normalises="layer_norm")),
    "sae_lens, before version 6": Case("sae_lens", old_sae_lens, SAE_LENS_SAYS),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_every_layout_is_under_contract() -> None:
    assert {case.layout for case in CASES.values()} == set(LAYOUTS)


def test_a_layout_takes_its_own_files_alone(case: Case, tmp_path: Path) -> None:
    path, _ = case.make(tmp_path)
    taken = verdicts(path)
    assert [name for name, problem in taken.items() if problem is None] == [case.layout]
    for problem in filter(None, taken.values()):
        assert problem[0].islower()
        assert not problem.endswith(".")


def test_it_gives_the_latents_and_the_prediction_that_the_files_stand_for(case: Case, tmp_path: Path) -> None:
    path, function = case.make(tmp_path)
    sae = SavedSAE.open(path).sae
    x = 3 * drawn(64, sae.d_in, seed=9)
    latents, x_hat = function(x)
    assert (latents > 0).any()
    assert (latents == 0).any()
    torch.testing.assert_close(sae.encode(x), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x).x_hat, x_hat, rtol=1e-5, atol=1e-5)
    assert not sae.training


def test_what_is_known_of_the_source_is_said(case: Case, tmp_path: Path) -> None:
    path, _ = case.make(tmp_path)
    source = layout_of(path).read(path).source
    assert source.layout == case.layout
    assert {name: getattr(source, name) for name in case.says} == case.says
    provenance = SavedSAE.open(path).provenance
    assert provenance.model == source.model
    assert provenance.skip_positions == (1 if source.sees_bos is False else 0)
    assert provenance.values["layout"] == case.layout


def test_the_portable_terms_of_what_was_read_are_those_of_the_file(case: Case, tmp_path: Path) -> None:
    path, _ = case.make(tmp_path)
    read = layout_of(path).read(path)
    again = PortableSAE.of(read.to_sae(), read.source)
    assert again.activation == read.activation
    assert again.subtracts_b_dec == read.subtracts_b_dec
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag", "W_skip"):
        before, after = getattr(read, name), getattr(again, name)
        assert (before is None) == (after is None)
        if before is not None:
            torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-7)


def test_what_a_layout_writes_it_reads_again(case: Case, tmp_path: Path) -> None:
    layout = LAYOUTS[case.layout]
    if not isinstance(layout, WritableLayout):
        pytest.skip("this layout is read only")
    path, function = case.make(tmp_path / "given")
    written = tmp_path / "written"
    written.mkdir()
    layout.write(layout.read(path), written)
    sae = SavedSAE.open(written).sae
    x = 3 * drawn(64, sae.d_in, seed=9)
    torch.testing.assert_close(sae.encode(x), function(x)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x).x_hat, function(x)[1], rtol=1e-5, atol=1e-5)


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(FormatError, match="holds no SAE of a known layout"):
        SavedSAE.open(tmp_path)


def test_damage_is_one_line(case: Case, tmp_path: Path) -> None:
    path, _ = case.make(tmp_path)
    file = path if path.is_file() else max(path.rglob("*"), key=lambda one: one.stat().st_size if one.is_file() else 0)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(FormatError) as caught:
        SavedSAE.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [0.03, 1.0, 40.0])
def test_scales_are_folded_without_changing_what_the_sae_gives(scale: float) -> None:
    sae = PortableSAE("jumprelu", drawn(D, F), drawn(F), drawn(F, D), drawn(D), threshold=drawn(F).abs())
    x = 3 * drawn(64, D, seed=9)
    expected = sae.to_sae()(x * scale)
    folded = sae.with_scales(scale, scale).to_sae()(x)
    # Rounding goes with what is multiplied, here by up to 40.
    torch.testing.assert_close(folded.dense_latents(), expected.dense_latents(), rtol=1e-5, atol=1e-5 * max(1, scale))
    torch.testing.assert_close(folded.x_hat, expected.x_hat / scale, rtol=1e-5, atol=1e-5 / min(1, scale))


def test_latents_in_other_units_give_the_same_prediction() -> None:
    sae = PortableSAE("jumprelu", drawn(D, F), drawn(F), drawn(F, D), drawn(D), threshold=drawn(F).abs())
    x, factor = 3 * drawn(64, D, seed=9), drawn(F).abs() + 0.1
    before, after = sae.to_sae()(x), sae.with_latents_times(factor, "norms").to_sae()(x)
    torch.testing.assert_close(after.dense_latents(), before.dense_latents() * factor)
    torch.testing.assert_close(after.x_hat, before.x_hat, rtol=1e-5, atol=1e-5)


def test_a_source_without_a_site_is_an_sae_of_no_particular_origin() -> None:
    widths = Source().widths(4, 4)
    assert [str(site) for site in widths.read] == ["activations"]
