"""ExportSAE: what is in RUN/sae belongs to the last checkpoint, whatever the run is stopped by."""

import json
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightsae.callbacks.export import ExportSAE, spread
from lightsae.callbacks.throughput import Throughput
from lightsae.errors import ConfigError
from lightsae.formats.native import describe_sae, load_sae


def exported_steps(run: Path) -> dict[str, int]:
    return {folder.name: describe_sae(folder)["provenance"]["step"] for folder in (run / "sae_checkpoints").iterdir()}


def test_the_end_of_a_run_exports_its_final_weights(small_run):
    run = small_run(ExportSAE(), steps=5)
    loaded = load_sae(run.folder / "sae")
    for name, tensor in run.module.saes["sae"].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_provenance_tells_data_tokens_step_config_and_versions(small_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: {lr: 0.1}\n")
    run = small_run(ExportSAE(), steps=5)
    provenance = describe_sae(run.folder / "sae")["provenance"]
    assert provenance["model"] == "toy"
    assert provenance["tokens_seen"] == 5 * run.data.batch_tokens
    assert provenance["step"] == 5
    assert provenance["config"] == "model: {lr: 0.1}\n"
    assert provenance["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in json.dumps(provenance)


def test_every_checkpoint_has_its_export(small_run):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            path = Path(trainer.log_dir, "sae", "sae.json")
            seen.append(json.loads(path.read_text())["provenance"]["step"] if path.exists() else None)

    small_run(Look(), ExportSAE(), ModelCheckpoint(every_n_train_steps=2, save_last=True), steps=6)
    assert seen == [None, None, 2, 2, 4, 4]


def test_a_step_saved_twice_is_exported_once(small_run, monkeypatch):
    export, written = ExportSAE(), []
    monkeypatch.setattr(export, "_write", lambda trainer, folder: written.append(trainer.global_step))
    small_run(export, ModelCheckpoint(every_n_train_steps=3, save_last=True, save_top_k=-1), steps=6)
    assert written == [3, 6]


def test_further_exports_lie_at_equal_distances(small_run):
    run = small_run(ExportSAE(checkpoints=3), steps=9)
    tokens = run.data.batch_tokens
    assert exported_steps(run.folder) == {f"tokens_{step * tokens:012d}": step for step in (3, 6, 9)}


def test_further_exports_count_optimiser_steps_under_accumulation(small_run):
    run = small_run(ExportSAE(checkpoints=2), steps=4, accumulate_grad_batches=2)
    tokens = 2 * run.data.batch_tokens
    assert exported_steps(run.folder) == {f"tokens_{step * tokens:012d}": step for step in (2, 4)}


def test_several_dictionaries_have_a_folder_each(small_run):
    run = small_run(ExportSAE(), steps=2, names=("a", "b"))
    for name in ("a", "b"):
        assert torch.equal(load_sae(run.folder / "sae" / name).W_dec, run.module.saes[name].W_dec)
        assert describe_sae(run.folder / "sae" / name)["provenance"]["dictionary"] == name


def test_exporting_changes_no_weight(small_run):
    with_it, without = small_run(ExportSAE(checkpoints=2), steps=6), small_run(steps=6, folder="other")
    assert torch.equal(with_it.module.saes["sae"].W_enc, without.module.saes["sae"].W_enc)


def test_a_resumed_run_that_has_nothing_left_to_do_still_exports(small_run):
    first = small_run(steps=4)
    first.trainer.save_checkpoint(first.folder / "end.ckpt")
    second = small_run(ExportSAE(), steps=4, ckpt_path=first.folder / "end.ckpt")
    assert torch.equal(load_sae(second.folder / "sae").W_dec, first.module.saes["sae"].W_dec)


@pytest.mark.parametrize(
    ("exports", "steps", "expected"),
    [(0, 10, set()), (1, 10, {10}), (4, 10, {2, 5, 8, 10}), (5, 3, {1, 2, 3})],
)
def test_spread(exports, steps, expected):
    assert spread(exports, steps) == expected


def test_a_negative_number_of_exports_is_refused():
    with pytest.raises(ConfigError, match="checkpoints is -1; write 0 or more"):
        ExportSAE(checkpoints=-1)


def test_a_trial_run_writes_nothing(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_run(ExportSAE(), Throughput(), steps=1, fast_dev_run=1)
    assert not list(tmp_path.rglob("*.json"))
