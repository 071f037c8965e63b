"""What every layout of others owes: it takes its own files alone, and reads from them the function that they stand for.

Each case writes small files as the library does, and says in plain formulas what the SAE in them gives. Files that the
libraries' own code wrote lie in tests/fixtures/layouts, with what that code gave for them.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from helpers.layout_files import (
    D,
    F,
    Function,
    circuit_tracer,
    crosscoders,
    dictionary_learning,
    drawn,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    llama_scope_r1,
    llamascopium,
    openai,
    pickled,
    sae_lens,
    sparsify,
)
from lightsae.errors import FormatError
from lightsae.formats.hub import choose
from lightsae.formats.layouts import LAYOUTS, PortableSAE, WritableLayout, layout_of, verdicts
from lightsae.formats.layouts.source import Source
from lightsae.formats.saved_sae import SavedSAE


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


CASES: dict[str, Case] = {}
for module in (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    llama_scope_r1,
    llamascopium,
    openai,
    sae_lens,
    sparsify,
):
    layout = module.__name__.rpartition(".")[2]
    CASES |= {f"{layout}, {case}": Case(layout, make, says) for case, (make, says) in module.CASES.items()}
OF_SEVERAL = {"ckkissane": crosscoders.MODEL_DIFF, "science_of_finetuning": crosscoders.FINETUNING, **pickled.BY_LAYOUT}
for name, cases in OF_SEVERAL.items():
    CASES |= {f"{name}, {case}": Case(name, make, says) for case, (make, says) in cases.items()}


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
    if not isinstance(read, PortableSAE):
        pytest.skip("of several sites")
    again = PortableSAE.of(read.to_sae(), read.source)
    assert again.activation == read.activation
    assert again.subtracts_b_dec == read.subtracts_b_dec
    assert again.groups == read.groups
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
    read = layout.read(path)
    assert isinstance(read, PortableSAE)
    layout.write(read, written)
    sae = SavedSAE.open(written).sae
    x = 3 * drawn(64, sae.d_in, seed=9)
    torch.testing.assert_close(sae.encode(x), function(x)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x).x_hat, function(x)[1], rtol=1e-5, atol=1e-5)


def test_what_is_fetched_of_a_repository_is_enough(case: Case, tmp_path: Path) -> None:
    path, _ = case.make(tmp_path / "all")
    names = [file.relative_to(tmp_path / "all").as_posix() for file in (tmp_path / "all").rglob("*") if file.is_file()]
    asked = path.relative_to(tmp_path / "all").as_posix()
    chosen, needed = choose(names, "" if asked == "." else asked, "hf://somebody/saes")
    for name in needed:
        (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "all" / name, tmp_path / "fetched" / name)
    assert SavedSAE.open(tmp_path / "fetched" / chosen).sha256 == SavedSAE.open(path).sha256


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(FormatError, match="holds no SAE of a known layout"):
        SavedSAE.open(tmp_path)


def test_a_folder_with_files_of_two_layouts_is_named(tmp_path: Path) -> None:
    folder, _ = sae_lens.CASES["topk"][0](tmp_path)
    other, _ = gemma_scope.CASES["upper case"][0](tmp_path)
    shutil.copy(other / "params.npz", folder)
    with pytest.raises(FormatError, match="holds files of Gemma Scope and SAELens; name the file"):
        layout_of(folder)


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
