"""A checkpoint that something else wrote: every value of it is refused when it is wrong, or does not matter."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import RunCheckpoint
from lightsae.errors import CheckpointError
from lightsae.sae import BatchTopK, TopK
from lightsae.training.checkpoint_check import check_checkpoint, check_resumable
from lightsae.training.checkpoint_io import AtomicCheckpointIO
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule

# What a fit does not read: Lightning's notes for other loops, for itself, and of the loaders.
IGNORED = (
    # What the SAE of a checkpoint is opened by; see tests/unit/callbacks/test_opened_runs.py.
    ("lightsae", "widths"),
    ("lightsae", "data"),
    ("epoch",),
    ("global_step",),
    ("pytorch-lightning_version",),
    ("loops", "validate_loop"),
    ("loops", "test_loop"),
    ("loops", "predict_loop"),
    ("loops", "fit_loop", "state_dict", "combined_loader"),
    ("lr_schedulers", 0, "_is_initial"),
    ("lr_schedulers", 0, "_get_lr_called_within_step"),
)
# Of these any kind of value may be stored, or none.
OPTIONAL = {"monitor", "best_model_score", "current_score", "kth_value", "dtype", "fused", "foreach", "sae", "dirpath"}
# What Adam puts in by itself, and what earlier versions did not store.
MAY_BE_MISSING = {"amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay", "total_steps"}


class SaveAt6(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.path)


@dataclass
class Run:
    folder: Path
    activations: Path
    data: dict[str, Any]

    def made(self, steps: int, *callbacks: Callback) -> tuple[SAEModule, Trainer, ActivationDataModule]:
        entries = {
            "top": Entry(lambda widths: TopK(widths, d_sae=24, k=2)),
            "batch": Entry(lambda widths: BatchTopK(widths, d_sae=16, k=2)),
        }
        module = SAEModule(saes=entries, lr=0.01, dead_after=100)
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, limit_val_batches=0, max_steps=steps, default_root_dir=self.folder,
            callbacks=[RunCheckpoint(), *callbacks], plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        return module, trainer, ActivationDataModule(**self.data)

    def fit(self, steps: int, ckpt_path: Path | None = None, *callbacks: Callback) -> tuple[SAEModule, Trainer]:
        module, trainer, data = self.made(steps, *callbacks)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module, trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    rows = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    data = {"activations": str(folder / "rows.npy"), "batch_tokens": 32, "buffer_tokens": 128, "val_tokens": 32}
    return Run(folder, folder / "rows.npy", data)


@pytest.fixture(scope="module")
def stopped(run: Run) -> dict[str, Any]:
    """The checkpoint of step 6 of a run of 9."""
    run.fit(9, None, SaveAt6(run.folder / "at6.ckpt"))
    return AtomicCheckpointIO().load_checkpoint(run.folder / "at6.ckpt")


@pytest.fixture(scope="module")
def check(run: Run, stopped: dict[str, Any]) -> Any:
    """Hold a checkpoint against a run that could go on from `stopped`."""
    module, trainer, data = run.made(9)
    saes = module.build(data)
    return lambda checkpoint: check_resumable(checkpoint, saes, trainer, data)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of nested dicts and lists, containers too, by its keys."""
    if path:
        yield path, value
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))


def changed(checkpoint: dict[str, Any], path: tuple[Any, ...], new: Any) -> dict[str, Any]:
    """Return a copy in which one value is another; `...` takes it out."""
    result = copy.deepcopy(checkpoint)
    holder: Any = result
    for depth, key in enumerate(path[:-1]):
        if isinstance(holder[key], tuple):
            holder[key] = list(holder[key])
        holder = holder[key]
        assert depth < 12
    if new is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return result


def wrong(value: Any) -> Iterator[Any]:
    """Values that cannot stand where `value` does."""
    yield from (..., "fast", torch.zeros(3, 2))
    if isinstance(value, Tensor):
        yield value.to(torch.int16 if value.dtype == torch.float32 else torch.float16)
        if value.is_floating_point():
            yield torch.full_like(value, float("nan"))
        elif value.dtype != torch.bool:
            yield value - 1000
    elif type(value) in (int, float):
        yield from (-1, float("nan"), True, None)
    elif type(value) is bool:
        yield from (2, None)


def is_refused(check: Any, checkpoint: dict[str, Any]) -> bool:
    try:
        check(checkpoint)
    except CheckpointError as error:
        return "\n" not in str(error) and len(str(error)) < 400
    return False


def is_equal(a: Any, b: Any) -> bool:
    return a is not ... and type(a) is type(b) and not isinstance(a, Tensor) and a == b


def test_the_checkpoint_itself_passes(check: Any, stopped: dict[str, Any]) -> None:
    check(stopped)


def test_every_wrong_value_is_refused(check: Any, stopped: dict[str, Any]) -> None:
    accepted, tried = [], 0
    for path, value in leaves(stopped):
        if any(path[: len(ignored)] == ignored for ignored in IGNORED):
            continue
        for new in wrong(value):
            free = value is None or path[-1] in OPTIONAL or (type(new) is str and str(path[-1]).endswith("_path"))
            optional = path[:1] == ("callbacks",) or path[-1] in MAY_BE_MISSING or "contents" in path
            # Another digest is one of other data, which is noticed when the data is there.
            free |= "contents" in path and type(new) is type(value) is str
            if free or is_equal(new, value) or (new is ... and optional):
                continue
            tried += 1
            if not is_refused(check, changed(stopped, path, new)):
                accepted.append(f"{'.'.join(map(str, path))[-60:]}: {new!r:.30}")
    assert tried > 500
    assert accepted == [], "\n".join(accepted)


def test_what_is_not_read_does_not_matter(run: Run, stopped: dict[str, Any]) -> None:
    whole, _ = run.fit(9)
    broken = stopped
    for path in IGNORED:
        if path[0] != "pytorch-lightning_version":  # looked at when the file is read
            broken = changed(broken, path, "fast")
    torch.save(broken, run.folder / "broken.ckpt")
    resumed, trainer = run.fit(9, run.folder / "broken.ckpt")
    assert trainer.global_step == 9
    for name, sae in whole.each_sae().items():
        for key, tensor in sae.state_dict().items():
            assert torch.equal(tensor, resumed.each_sae()[name].state_dict()[key]), f"{name}.{key}"


pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
PLACE = "ActivationDataModule"


@pytest.mark.parametrize(
    ("path", "new", "words"),
    [
        ((PLACE,), ..., "does not say where in the data the run stopped"),
        ((PLACE, "served_batches"), -5, "served_batches is -5"),
        ((PLACE, "served_batches"), 7, "stopped after batch 7 of the data, but has trained on 6"),
        ((PLACE, "schedule", "seed"), 1, "seed was 1 and is 0"),
        (("optimizer_states",), ..., "optimizer_states is missing"),
        (("optimizer_states", 0, "state"), {}, r"optimizer_states\.0\.state\.0 is missing"),
        (("optimizer_states", 0, "state", 0, "exp_avg"), torch.zeros(2), r"shape \(2,\), where \(24, 8\)"),
        (("optimizer_states", 0, "state", 0, "step"), torch.tensor(7.0), "cannot come from 6 steps"),
        (("optimizer_states", 0, "param_groups", 1, "name"), "other", "name 'other', where 'batch' should be"),
        (("optimizer_states", 0, "param_groups", 0, "betas"), (0.9, 1.5), "settings that Adam cannot use"),
        (("optimizer_states", 0, "param_groups", 0, "amsgrad"), True, "amsgrad True, where False should be"),
        (("lr_schedulers", 0, "last_epoch"), 2, "schedule is at step 2, and its optimiser at step 6"),
        (("lr_schedulers", 0, "base_lrs"), [0.01], "base_lrs has 1 entries, where 2 should be"),
        (("state_dict", "saes.third.W_dec"), torch.zeros(2), "belongs to no SAE"),
        (("loops",), ..., "loops is missing"),
    ],
)
def test_what_is_said(check: Any, stopped: dict[str, Any], path: Any, new: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        check(changed(stopped, path, new))


def test_moments_that_no_squares_add_up_to(check: Any, stopped: dict[str, Any]) -> None:
    path = ("optimizer_states", 0, "state", 1, "exp_avg_sq")
    moments = stopped["optimizer_states"][0]["state"][1]["exp_avg_sq"]
    with pytest.raises(CheckpointError, match="cannot come from 6 steps"):
        check(changed(stopped, path, -moments))


def test_the_order_of_the_saes_is_that_of_the_optimiser(run: Run, stopped: dict[str, Any]) -> None:
    module, trainer, data = run.made(9)
    turned = dict(reversed(module.build(data).items()))
    with pytest.raises(CheckpointError, match="group 'batch' has name 'top'"):
        check_resumable(stopped, turned, trainer, data)


def test_a_validation_asks_for_the_weights_alone(run: Run, stopped: dict[str, Any]) -> None:
    module, _, data = run.made(9)
    saes = module.build(data)
    weights = {key: stopped[key] for key in ("state_dict", "lightsae", "pytorch-lightning_version")}
    check_checkpoint(weights, saes)
    torch.save(weights, run.folder / "weights.ckpt")
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, limit_val_batches=1, plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    trainer.validate(module, data, ckpt_path=run.folder / "weights.ckpt", verbose=False, weights_only=True)
    with pytest.raises(CheckpointError, match="loops is missing"):
        check_resumable(weights, saes, trainer, data)


def test_refused_before_anything_is_loaded(run: Run, stopped: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(SAEModule, "load_state_dict", lambda *args, **options: loaded.append("weights"))
    monkeypatch.setattr(ActivationDataModule, "load_state_dict", lambda *args: loaded.append("place"))
    broken = changed(stopped, ("optimizer_states", 0, "state", 7, "exp_avg"), torch.zeros(3))
    torch.save(broken, run.folder / "broken.ckpt")
    with pytest.raises(CheckpointError, match="cannot be used"):
        run.fit(9, run.folder / "broken.ckpt")
    assert loaded == []


def test_a_checkpoint_saved_after_the_fit_knows_its_place(run: Run) -> None:
    _, trainer = run.fit(6)
    trainer.save_checkpoint(run.folder / "after.ckpt")
    after, _ = run.fit(9, run.folder / "after.ckpt")
    run.fit(6)
    within, _ = run.fit(9, run.folder / "checkpoints" / "last.ckpt")
    assert torch.equal(after.each_sae()["top"].W_dec, within.each_sae()["top"].W_dec)


@pytest.mark.parametrize("wrong_source", [
    {}, {"block": -1}, {"block": 9}, {"fills_per_block": 0}, {"block_start": {}}, {"block_start": 3},
])  # fmt: skip
def test_a_place_in_a_text(tiny_text: Any, run: Run, tmp_path: Path, wrong_source: dict[str, Any]) -> None:
    data = {
        "model": tiny_text.model, "site": "resid_post.0", "dataset": tiny_text.corpus, "context_size": 8,
        "batch_tokens": 32, "buffer_tokens": 64, "shuffle_tokens": 256, "val_tokens": 16, "num_workers": 0,
    }  # fmt: skip
    text = Run(tmp_path, tmp_path, data)
    text.fit(3)
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    source = checkpoint["ActivationDataModule"]["source"]
    broken = source | wrong_source if wrong_source else {}
    torch.save(changed(checkpoint, ("ActivationDataModule", "source"), broken), tmp_path / "broken.ckpt")
    with pytest.raises(CheckpointError, match="place in the data cannot be used"):
        text.fit(5, tmp_path / "broken.ckpt")
    assert text.fit(5, path)[1].global_step == 5
