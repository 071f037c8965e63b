"""What this package uses of others beyond their public interfaces, each in one function with a test.

Held against Lightning 2.6, PyTorch 2.13 and transformers 5.23: when a version breaks something, it breaks here.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module


def render_chat(
    template: str, messages: list[dict[str, Any]], special_tokens: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """Return a conversation in a chat template, and the stretches of it that stand in the template's generation tags.

    Transformers says them in characters here; `apply_chat_template` only in tokens of its own making.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    # As `apply_chat_template` does: templates ask whether a key is there, not whether it is null.
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    tagged = has_generation_tags(template)
    (text,), spans = render_jinja_template(
        [plain], chat_template=template, return_assistant_tokens_mask=tagged, **special_tokens
    )
    return text, [(start, end) for start, end in spans[0]] if tagged else []


def has_generation_tags(template: str) -> bool:
    """Return whether a chat template says itself what the assistant generates."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def is_dry_run(trainer: Trainer) -> bool:
    """Return whether the Trainer was asked for a `fast_dev_run`, which leaves nothing behind."""
    return bool(getattr(trainer, "fast_dev_run", False))


def writes_files(trainer: Trainer) -> bool:
    """Return whether this process writes the run's files: rank 0 does, unless it is a dry run."""
    return trainer.is_global_zero and not is_dry_run(trainer)


def unknown_monitor(error: RuntimeError) -> str | None:
    """Return the metric that EarlyStopping waits for and nothing logs, if that is what it raised; else None."""
    found = re.match("Early stopping conditioned on metric `(.+?)` which is not available", str(error))
    return found[1] if found else None


def logs_after(trainer: Trainer, step: int) -> bool:
    """Return whether Lightning writes figures after optimiser step `step`, counted from 0."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and ((step + 1) % every == 0 or step == 0)


def savers(trainer: Trainer) -> tuple[Any, ...]:
    """Return what may write files during a run: the callbacks, and what writes checkpoints."""
    return (*trainer.callbacks, trainer.strategy.checkpoint_io)  # type: ignore[attr-defined]


def set_max_steps(trainer: Trainer, steps: int) -> None:
    """Set the length of a fit that is about to begin."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def validate_after_this_batch(trainer: Trainer) -> None:
    """Validate after the batch whose `on_train_batch_end` is running.

    Lightning asks right after this hook whether the batch number is a multiple of the interval.
    """
    trainer.val_check_batch = 1


def save_now(checkpoints: ModelCheckpoint, trainer: Trainer) -> None:
    """Save a checkpoint of the present step, if there is none yet and it is no dry run."""
    if checkpoints._last_global_step_saved != trainer.global_step and not is_dry_run(trainer):
        checkpoints._save_none_monitor_checkpoint(trainer, checkpoints._monitor_candidates(trainer))


def fit_progress(trainer: Trainer) -> dict[str, Any]:
    """Return what a checkpoint says of how far a fit is, under "loops" and "fit_loop"."""
    progress = trainer.fit_loop.state_dict()
    forget_loaders(progress)
    return progress


def forget_loaders(progress: MutableMapping[str, Any]) -> None:
    """Take out of a fit's progress what Lightning noted of the loaders: the data module says it, too."""
    progress["state_dict"].pop("combined_loader", None)


def steps_trained(progress: Mapping[str, Any]) -> int:
    """Return the optimiser steps of a fit's progress."""
    return int(progress["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"])


def batches_trained(progress: Mapping[str, Any]) -> int:
    """Return the batches of a fit's progress, over all epochs."""
    return int(progress["epoch_loop.batch_progress"]["total"]["ready"])


def child_processes(trainer: Trainer) -> "list[subprocess.Popen[bytes]]":
    """Return the other processes of a run on this machine, where this one has started them."""
    return list(getattr(trainer.strategy.launcher, "procs", []))


@contextmanager
def without_observer() -> Iterator[None]:
    """Keep Lightning from killing this process when one that it started has ended: it would not have time to say so."""
    name, module = "_launch_process_observer", subprocess_script
    launch = getattr(module, name)
    setattr(module, name, lambda child_processes: None)
    try:
        yield
    finally:
        setattr(module, name, launch)


def keep_from_ddp(module: LightningModule, names: Iterable[str]) -> None:
    """Have DDP leave these parameters and buffers as each rank has them."""
    module._ddp_params_and_buffers_to_ignore = list(names)  # type: ignore[assignment]


def swapped_tensors(module: nn.Module, tensors: dict[str, Tensor]) -> AbstractContextManager[None]:
    """While open, a module's parameters and buffers of these names are the given tensors, whatever is called."""
    context: AbstractContextManager[None] = _reparametrize_module(module, tensors)
    return context


def data_ranks(trainer: Trainer) -> tuple[int, int]:
    """Return this process's number among those with batches of their own, and how many there are.

    With a model-parallel strategy several processes share a batch; otherwise each has its own.
    """
    data, shards = grid_of(trainer)
    return trainer.global_rank // shards, data


def grid_of(trainer: Trainer) -> tuple[int, int]:
    """Return how many processes have batches of their own, and to how many a model is dealt; also before they start."""
    strategy: Any = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        # Until processes have started, the trainer knows of one.
        return max(trainer.world_size, trainer.num_devices * trainer.num_nodes), 1
    sizes = strategy._data_parallel_size, strategy._tensor_parallel_size
    data = trainer.num_nodes if sizes[0] == "auto" else int(sizes[0])
    return data, trainer.num_devices if sizes[1] == "auto" else int(sizes[1])
