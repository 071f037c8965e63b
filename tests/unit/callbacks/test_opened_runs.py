"""A run's folder and a checkpoint stand for the SAE that they hold: as the export of that moment."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

import lightsae
from lightsae.callbacks.export import ExportSAE
from lightsae.callbacks.run_checkpoint import RunCheckpoint
from lightsae.errors import ConfigError, FormatError
from lightsae.formats.native import load_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import Crosscoder, JumpReLU, SiteRef, SparseAutoencoder, Widths, mechanisms

Run = Callable[..., Any]
BOTH = Widths({SiteRef("toy", "a"): 2, SiteRef("toy", "b"): 4}, {SiteRef("toy", "a"): 2, SiteRef("toy", "b"): 4})


def same(one: SparseAutoencoder, other: SparseAutoencoder) -> None:
    assert type(one) is type(other)
    assert one.widths == other.widths
    assert not one.training
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_a_run_is_opened_at_its_export(small_run: Run) -> None:
    run = small_run(ExportSAE(), RunCheckpoint(), steps=3)
    saved = SavedSAE.open(run.folder)
    assert saved.folder == run.folder / "sae"
    assert saved.is_export
    same(saved.sae, load_sae(run.folder / "sae"))
    same(lightsae.load_sae(str(run.folder)), saved.sae)


def test_a_checkpoint_is_what_was_exported_with_it(small_run: Run) -> None:
    (checkpoints := ModelCheckpoint(every_n_train_steps=2, save_top_k=-1, filename="{step}")).monitor = None
    run = small_run(ExportSAE(checkpoints=2), checkpoints, steps=4)
    exported = sorted((run.folder / "sae_checkpoints").iterdir())
    files = sorted(Path(checkpoints.dirpath or "").glob("*.ckpt"))
    assert len(exported) == len(files) == 2
    for export, file in zip(exported, files, strict=True):
        opened, native = SavedSAE.open(file), SavedSAE.open(export)
        same(opened.sae, native.sae)
        assert opened.sha256 == native.sha256
        assert opened.entry == native.entry
        assert not opened.is_export
        for name in ("model", "site", "seed", "tokens_seen", "step"):
            assert opened.provenance.values[name] == native.provenance.values[name]


def test_a_checkpoint_tells_the_configuration_of_its_run(small_run: Run, tmp_path: Path) -> None:
    run = small_run(RunCheckpoint(), steps=2)
    (run.folder / "config.yaml").write_text("data: {context_size: 99}\n")
    assert SavedSAE.open(run.folder / "checkpoints" / "last.ckpt").provenance.data["context_size"] == 99


def test_a_run_without_an_export_is_opened_at_its_last_checkpoint(small_run: Run) -> None:
    run = small_run(RunCheckpoint(), steps=3)
    saved = SavedSAE.open(run.folder)
    assert saved.folder == run.folder / "checkpoints" / "last.ckpt"
    for name, tensor in run.module.saes["sae"].state_dict().items():
        assert torch.equal(saved.sae.state_dict()[name], tensor)


def test_a_run_with_several_lists_them(small_run: Run) -> None:
    run = small_run(ExportSAE(), RunCheckpoint(), steps=2, names=("a", "b"))
    with pytest.raises(FormatError, match=r"is a run with 2 SAEs; name one of them: '.*sae/a', '.*sae/b'\.") as caught:
        SavedSAE.open(run.folder)
    assert "\n" not in str(caught.value)
    last = run.folder / "checkpoints" / "last.ckpt"
    with pytest.raises(FormatError, match=r"2 SAEs; name one of them: '.*last\.ckpt/a', '.*last\.ckpt/b'\."):
        SavedSAE.open(last)
    for name in ("a", "b"):
        same(lightsae.load_sae(last / name), load_sae(run.folder / "sae" / name))
        assert SavedSAE.open(last / name).provenance.values["dictionary"] == name
    with pytest.raises(FormatError, match="holds no SAE 'c'; it holds a, b"):
        SavedSAE.open(last / "c")


def test_of_several_exports_one_that_is_left_needs_no_name(small_run: Run) -> None:
    run = small_run(ExportSAE(), steps=2, names=("a",))
    assert SavedSAE.open(run.folder / "sae").sha256 == run_sha256(run)


def run_sha256(run: Any) -> str:
    return SavedSAE.of(next(iter(run.module.saes.values()))).sha256


@pytest.mark.filterwarnings("ignore:.*configure_model.*")
def test_averaged_weights_are_read_where_there_are_some(small_run: Run) -> None:
    midway = ModelCheckpoint(every_n_train_steps=2, save_top_k=1, filename="midway", save_on_train_epoch_end=False)
    run = small_run(EMAWeightAveraging(decay=0.5), ExportSAE(), midway, RunCheckpoint(), steps=3)
    folder = run.folder / "checkpoints"
    stored = torch.load(folder / "midway.ckpt", weights_only=True)
    opened = SavedSAE.open(folder / "midway.ckpt").sae
    assert torch.equal(opened.W_enc, stored["state_dict"]["saes.sae.W_enc"])
    assert not torch.equal(opened.W_enc, stored["current_model_state"]["saes.sae.W_enc"])
    # The run ends with the averaged weights, and exports those.
    same(SavedSAE.open(folder / "last.ckpt").sae, load_sae(run.folder / "sae"))


@pytest.mark.parametrize(
    "make",
    [
        lambda w: JumpReLU(w, 16),
        lambda w: Crosscoder(BOTH, 16, mechanisms.BatchTopK(3)),
    ],
)
def test_thresholds_and_several_sites(make: Callable[[Widths], SparseAutoencoder], tmp_path: Path) -> None:
    sae = make(Widths.autoencoder(SiteRef("toy", "resid_post.0"), 6)).eval()
    saved = SavedSAE.open(checkpoint(tmp_path, {"sae": sae}))
    same(saved.sae, sae)


def test_a_checkpoint_of_before_tells_the_width_of_one_site(tmp_path: Path) -> None:
    sae = JumpReLU(Widths.autoencoder(SiteRef("C:/models/toy", "resid_post.0"), 6), 16).eval()
    same(lightsae.load_sae(checkpoint(tmp_path, {"sae": sae}, widths=None)), sae)
    path = checkpoint(tmp_path, {"sae": Crosscoder(BOTH, 16, mechanisms.TopK(3))}, widths=None)
    with pytest.raises(FormatError, match="widths of several sites; open the run's export, RUN/sae"):
        lightsae.load_sae(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda held: held.pop("lightsae"), "that lightsae fit did not write"),
        (lambda held: held["lightsae"].pop("dictionaries"), "dictionaries is missing"),
        (lambda held: held["lightsae"].update(dictionaries={}), "holds no SAE"),
        (lambda held: held["lightsae"]["dictionaries"].update(sae=7), "is a int, where a dict should be"),
        (lambda held: held["lightsae"]["dictionaries"]["sae"].update(variant="Topk"), "variant is 'Topk'"),
        (lambda held: held["lightsae"]["dictionaries"]["sae"].update(d_sae="many"), "d_sae is 'many'"),
        (lambda held: held["lightsae"].update(widths={"sae": {"read": [], "predicted": []}}), "widths do not make"),
        (lambda held: held["lightsae"].update(widths=[]), "is a list"),
        (lambda held: held["state_dict"].pop("saes.sae.W_enc"), "lacks the tensor 'W_enc'"),
        (lambda held: held["state_dict"].update({"saes.sae.W_enc": torch.zeros(2, 2)}), r"W_enc has shape \(2, 2\)"),
        (lambda held: held["state_dict"]["saes.sae.W_enc"].fill_(torch.nan), "W_enc holds a NaN"),
        (lambda held: held.update(state_dict=[]), "state_dict does not hold named tensors"),
        (lambda held: held["lightsae"].update(data={"model": 7}), "model was 7"),
    ],
)
def test_a_checkpoint_that_was_written_like_this(damage: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, {"sae": JumpReLU(Widths.of(6), 16)}, damage=damage)
    with pytest.raises(FormatError, match=message) as caught:
        lightsae.load_sae(path)
    assert "\n" not in str(caught.value)


def test_a_view_that_is_larger_than_the_file(tmp_path: Path) -> None:
    def widen(held: Any) -> None:
        held["lightsae"]["dictionaries"]["sae"]["d_sae"] = 10**9
        held["state_dict"]["saes.sae.W_enc"] = torch.zeros(1).expand(6, 10**9)

    with pytest.raises(FormatError, match="the tensors are larger than the file"):
        lightsae.load_sae(checkpoint(tmp_path, {"sae": JumpReLU(Widths.of(6), 16)}, damage=widen))


def test_packed_members_are_not_unpacked(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, {"sae": JumpReLU(Widths.of(6), 16)})
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(FormatError, match="is damaged"):
        lightsae.load_sae(tmp_path / "packed.ckpt")


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, {"sae": JumpReLU(Widths.of(6), 16)})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FormatError, match="is damaged or cut short; use an earlier one"):
        lightsae.load_sae(path)
    with pytest.raises(FormatError, match=r"does not exist\. Did you mean 'last.ckpt'\?"):
        lightsae.load_sae(path.with_name("lst.ckpt"))


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        lightsae.load_sae(checkpoint(tmp_path, {"sae": JumpReLU(Widths.of(6), 16)}), device="cuda")


def checkpoint(
    folder: Path, saes: dict[str, SparseAutoencoder], damage: Callable[[Any], Any] = lambda held: None, **more: Any
) -> Path:
    """Write what a checkpoint holds of SAEs; `more` replaces entries, None leaves one out."""
    from lightsae.formats.native import widths_entry
    from lightsae.training.checkpoint_check import describe

    told: dict[str, Any] = {
        "tokens_seen": 5,
        "dictionaries": {name: describe(sae) for name, sae in saes.items()},
        "widths": {name: widths_entry(sae.widths) for name, sae in saes.items()},
    } | more
    weights = {f"saes.{name}.{key}": value for name, sae in saes.items() for key, value in sae.state_dict().items()}
    held = {"state_dict": weights, "pytorch-lightning_version": "2.6.0", "global_step": 3}
    held["lightsae"] = {key: value for key, value in told.items() if value is not None}
    damage(held)
    torch.save(held, folder / "last.ckpt")
    return folder / "last.ckpt"
