"""Private parts of Lightning, PyTorch and transformers do what this package needs of them, as installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from torch import nn

from lightsae import compat
from lightsae.training.checkpoint_io import AtomicCheckpointIO


class Each(Callback):
    """Calls a function at the end of each training batch, and notes validations."""

    def __init__(self, after_batch: Callable[[Trainer], Any] = lambda trainer: None) -> None:
        self.after_batch = after_batch
        self.validated: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.after_batch(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated.append(trainer.global_step)


def fit(quiet: dict[str, Any], *callbacks: Callback, **options: Any) -> Trainer:
    trainer = Trainer(**(quiet | {"max_steps": 6, "callbacks": list(callbacks)} | options))
    trainer.fit(BoringModel())
    return trainer


def test_a_dry_run_writes_nothing(quiet: dict[str, Any]) -> None:
    trainer = Trainer(**quiet)
    assert not compat.is_dry_run(trainer)
    assert compat.writes_files(trainer)
    dry = Trainer(accelerator="cpu", fast_dev_run=True, enable_progress_bar=False, enable_model_summary=False)
    assert compat.is_dry_run(dry)
    assert not compat.writes_files(dry)


def test_steps_that_are_logged_are_lightnings(quiet: dict[str, Any]) -> None:
    trainer = Trainer(**(quiet | {"log_every_n_steps": 3}))
    assert [step for step in range(10) if compat.logs_after(trainer, step)] == [0, 2, 5, 8]
    assert not any(compat.logs_after(Trainer(**(quiet | {"log_every_n_steps": 0})), step) for step in range(10))


def test_what_may_write(quiet: dict[str, Any]) -> None:
    watch, plugin = Each(), AtomicCheckpointIO()
    savers = compat.savers(Trainer(**(quiet | {"callbacks": [watch], "plugins": [plugin]})))
    assert watch in savers
    assert savers[-1] is plugin


def test_the_length_of_a_fit_can_be_set(quiet: dict[str, Any]) -> None:
    class Short(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            compat.set_max_steps(trainer, 4)

    assert fit(quiet, Short(), max_steps=-1, max_epochs=1).global_step == 4


def test_a_validation_can_be_asked_for(quiet: dict[str, Any]) -> None:
    watch = Each(lambda trainer: compat.validate_after_this_batch(trainer) if trainer.global_step == 4 else None)
    fit(quiet, watch, max_steps=4, val_check_interval=100, check_val_every_n_epoch=None, limit_val_batches=1)
    assert watch.validated == [4]


def test_save_now_saves_a_step_once(quiet: dict[str, Any], tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    watch = Each(lambda trainer: [compat.save_now(checkpoints, trainer) for _ in range(2)][-1])
    fit(quiet, watch, checkpoints, max_steps=3, enable_checkpointing=True)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]


def test_how_far_a_fit_is_and_without_what_its_loaders_noted(quiet: dict[str, Any]) -> None:
    trainer = fit(quiet, max_steps=3, accumulate_grad_batches=2)
    progress = compat.fit_progress(trainer)
    assert (compat.steps_trained(progress), compat.batches_trained(progress)) == (3, 6)
    progress["state_dict"]["combined_loader"] = [{}]
    compat.forget_loaders(progress)
    assert "combined_loader" not in progress["state_dict"]


def test_the_observer_of_processes_is_the_one_that_lightning_calls(quiet: dict[str, Any]) -> None:
    launch = subprocess_script._SubprocessScriptLauncher.launch
    assert "_launch_process_observer" in launch.__code__.co_names
    before = subprocess_script._launch_process_observer
    with compat.without_observer():
        assert subprocess_script._launch_process_observer([]) is None
        assert subprocess_script._launch_process_observer is not before
    assert subprocess_script._launch_process_observer is before
    assert compat.child_processes(Trainer(**quiet)) == []


def test_ddp_reads_which_tensors_to_leave_alone() -> None:
    module = BoringModel()
    compat.keep_from_ddp(module, ["layer.bias"])
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(module)
        ignored = wrapped.parameters_to_ignore
        # Were it the last that holds the group, the group's threads would wait for the interpreter, and it for them.
        del wrapped
        assert ignored == {"layer.bias"}
    finally:
        torch.distributed.destroy_process_group()


def test_a_chat_template_says_what_stands_in_its_generation_tags() -> None:
    template = "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}"
    talk = [{"role": "assistant", "content": "ab", "tool_calls": None}, {"role": "assistant", "content": "c"}]
    text, spans = compat.render_chat(template, talk, {"bos_token": "<s>"})
    assert (text, spans) == ("<s>ab;c;", [(3, 5), (6, 7)])
    assert compat.has_generation_tags(template)
    plain = "{% for m in messages %}{{ 'x' if 'tool_calls' in m }}{{ m.content }}{% endfor %}"
    assert compat.render_chat(plain, talk, {}) == ("abc", [])
    assert not compat.has_generation_tags(plain)


def test_swapped_tensors_are_seen_by_all_that_is_called() -> None:
    module = nn.Linear(2, 1)
    before, other = module.weight, torch.ones(1, 2)
    with compat.swapped_tensors(module, {"weight": other}):
        assert module.weight is other
        assert module(torch.ones(2)).item() == pytest.approx(2 + module.bias.item())
    assert module.weight is before


@pytest.mark.parametrize(
    ("strategy", "devices", "grid"),
    [
        ("auto", 1, (1, 1)),
        ("ddp", 2, (2, 1)),
        (ModelParallelStrategy(), 4, (1, 4)),
        (ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=2), 4, (2, 2)),
    ],
)
def test_the_grid_of_processes_is_known_before_they_start(strategy: Any, devices: int, grid: tuple[int, int]) -> None:
    trainer = Trainer(accelerator="cpu", devices=devices, strategy=strategy, logger=False, enable_checkpointing=False)
    assert compat.grid_of(trainer) == grid
    assert compat.data_ranks(trainer) == (0, grid[0])
