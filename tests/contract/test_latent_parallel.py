"""Latents dealt to 2 to 4 processes train as in one process: losses, weights, figures, files; and move between them."""

import os
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import ExportSAE, ReconstructionMetrics, RunCheckpoint
from lightsae.errors import ConfigError
from lightsae.formats.native import load_sae
from lightsae.sae import (
    BatchTopK,
    Crosscoder,
    Gated,
    GroupMax,
    JumpReLU,
    LatentUsage,
    Matryoshka,
    Refinements,
    ReLU,
    SiteRef,
    SparseAutoencoder,
    TopK,
    Transcoder,
    Widths,
    mechanisms,
)
from lightsae.training.checkpoint_io import AtomicCheckpointIO
from lightsae.training.entries import Entry
from lightsae.training.latent_parallel import LatentParallelStrategy, check_supported, whole_tensor
from lightsae.training.module import SAEModule

D, F, STEPS = 8, 60, 20
SAES: dict[str, Callable[[Widths], SparseAutoencoder]] = {
    "topk": lambda w: TopK(w, F, k=2, k_aux=2),
    "batch_topk": lambda w: BatchTopK(w, F, k=3, k_aux=2),
    "relu": lambda w: ReLU(w, F, "unit"),
    "relu_free": lambda w: ReLU(w, F),
    "jumprelu": lambda w: JumpReLU(w, F, target_l0=4.0, start_l0=6.0),
    "jumprelu_tanh": lambda w: JumpReLU(w, F, penalty="tanh", start_l0=6.0),
}


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))


def train(
    folder: Path, rows: str, strategy: Any, devices: int, steps: int, goes_on: Path | None = None
) -> dict[str, Any]:
    """Train all SAEs in one run; return losses and figures."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    entries = {name: Entry(make) for name, make in SAES.items()}
    module = SAEModule(saes=entries, lr=0.01, dead_after=64)
    data = ActivationDataModule(
        activations=rows, batch_tokens=64, buffer_tokens=512, val_tokens=256, seed=3, dtype="float32"
    )
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_steps=steps,
        callbacks=[RunCheckpoint(1000), ExportSAE(), ReconstructionMetrics(every_n_steps=5), losses],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        default_root_dir=str(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=STEPS,
    )
    trainer.fit(module, data, ckpt_path=goes_on)
    figures = {key: float(value) for key, value in trainer.callback_metrics.items() if "val/" in key}
    dead = {name: int(whole_tensor(module.latent_usage(name).known_dead).sum()) for name in SAES}
    return {"losses": losses.losses, "figures": figures, "tokens": module.tokens_seen, "dead": dead}


def in_processes(devices: int, *args: Any) -> list[dict[str, Any]]:
    """Call `train` in processes that know of each other as torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, devices, port, queue, args)) for rank in range(devices)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=240) for _ in processes)
    for process in processes:
        process.join(60)
    for result in results.values():
        if isinstance(result, str):
            pytest.fail(result)
    return [results[rank] for rank in range(devices)]


def _rank(rank: int, devices: int, port: int, queue: Any, args: tuple[Any, ...]) -> None:
    here = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": devices, "LOCAL_WORLD_SIZE": devices}
    told = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **here}
    os.environ.update({name: str(value) for name, value in told.items()})
    try:
        folder, rows, grid, steps, goes_on = args
        strategy = LatentParallelStrategy(*grid)
        queue.put((rank, train(folder, rows, strategy, devices, steps, goes_on)))
    except BaseException:
        queue.put((rank, traceback.format_exc()))


@pytest.fixture(scope="module", autouse=True)
def _quick_refresh() -> Iterator[None]:
    """Dead latents are known after two steps, not after thirty, in all processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentUsage, "REFRESH_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    draw = np.random.default_rng(0)
    strengths = draw.exponential(size=(3000, 16)) * (draw.random((3000, 16)) < 0.15)
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, (strengths @ draw.normal(size=(16, D)) + 2).astype(np.float32))
    return str(path)


@pytest.fixture(scope="module")
def alone(rows: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, train(folder, rows, "auto", 1, STEPS)


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_sae(folder / "sae" / name).state_dict() for name in SAES}


def agree(folder: Path, other: Path) -> None:
    """Assert that exports and checkpoints of two runs hold the same names, shapes and, to rounding, values."""
    first, second = weights(folder), weights(other)
    for name, tensors in first.items():
        for key, value in tensors.items():
            torch.testing.assert_close(
                second[name][key], value, rtol=2e-3, atol=2e-4, msg=lambda m, n=name, k=key: f"{n}.{k}: {m}"
            )
    kept = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (folder, other)]
    for key, value in kept[0]["state_dict"].items():
        assert type(kept[1]["state_dict"][key]) is type(value), key
        if isinstance(value, torch.Tensor):
            assert kept[1]["state_dict"][key].shape == value.shape, key
    a, b = (one["optimizer_states"][0] for one in kept)
    assert a["param_groups"] == b["param_groups"]
    for number, state in a["state"].items():
        for key, value in state.items():
            assert b["state"][number][key].shape == value.shape


def test_two_shares_train_as_the_whole(rows: str, alone: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, whole = alone
    for result in in_processes(2, tmp_path, rows, (1, 2), STEPS, None):
        assert result["losses"] == pytest.approx(whole["losses"], rel=1e-4)
        assert result["tokens"] == whole["tokens"]
        assert result["dead"] == whole["dead"]
        # More dead latents than learn from a token's error: they are chosen among those of both processes.
        assert whole["dead"]["topk"] > 2
        assert result["figures"] == pytest.approx(whole["figures"], rel=2e-3, abs=1e-4)
    agree(folder, tmp_path)


def test_a_checkpoint_goes_on_at_another_number_of_devices(rows: str, tmp_path: Path) -> None:
    """Ten steps on three devices, and ten more on one, or on two."""
    shares, one = tmp_path / "shares", tmp_path / "one"
    in_processes(3, shares, rows, (1, 3), STEPS // 2, None)
    rest = train(one, rows, "auto", 1, STEPS, shares / "checkpoints" / "last.ckpt")
    assert len(rest["losses"]) == STEPS // 2
    again = in_processes(2, tmp_path / "two", rows, (1, 2), STEPS, shares / "checkpoints" / "last.ckpt")[0]
    assert again["losses"] == pytest.approx(rest["losses"], rel=1e-4)
    agree(one, tmp_path / "two")


def test_data_parallel_on_top(rows: str, tmp_path: Path) -> None:
    """A grid of 2 x 2 against 2 x 1, batches of their own in both."""
    plain = in_processes(2, tmp_path / "plain", rows, (2, 1), STEPS, None)[0]
    grid = in_processes(4, tmp_path / "grid", rows, (2, 2), STEPS, None)[0]
    assert grid["tokens"] == plain["tokens"] == STEPS * 64 * 2
    assert grid["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    agree(tmp_path / "plain", tmp_path / "grid")


A, B = SiteRef("m", "a"), SiteRef("m", "b")
SELF, ACROSS, BOTH = Widths.autoencoder(A, D), Widths({A: D}, {B: D}), Widths({A: D, B: D}, {A: D, B: D})
REFUSED: dict[str, tuple[Callable[[], SparseAutoencoder], str]] = {
    "Gated": (lambda: Gated(SELF, F), "not Gated"),
    "GroupMax": (lambda: GroupMax(SELF, F, k=4), "not GroupMax"),
    "Matryoshka": (lambda: Matryoshka(SELF, F, mechanisms.TopK(3)), "not Matryoshka"),
    "Transcoder": (lambda: Transcoder(ACROSS, F, mechanisms.TopK(3)), "not Transcoder"),
    "Crosscoder": (lambda: Crosscoder(BOTH, F, mechanisms.TopK(3)), "not Crosscoder"),
    "refinements": (lambda: TopK(SELF, F, 3, refinements=Refinements(aligned=True)), "leave refinements of 'one' out"),
    "width": (lambda: TopK(SELF, 25, 3), "d_sae of 'one' is 25, which cannot be dealt to 2 devices"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    build, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said):
        check_supported("one", build(), 2)


@pytest.mark.parametrize("make", SAES.values(), ids=SAES)
def test_what_is_supported_is_not_refused(make: Callable[[Widths], SparseAutoencoder]) -> None:
    check_supported("one", make(SELF), 2)
