"""Two processes on one machine: `lightsae fit` starts, trains, validates, exports and resumes."""

import json
import os
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import own_process

SETTINGS = [
    "--data.activations", "../rows.npy", "--data.batch_tokens", "32", "--data.buffer_tokens", "256",
    "--data.val_tokens", "64",
    "--model.sae", "BatchTopK", "--model.sae.d_sae", "24", "--model.sae.k", "2", "--trainer.max_steps", "30",
    "--checkpoint.every_n_train_steps", "10", "--trainer.accelerator", "cpu", "--trainer.devices", "2",
    "--trainer.strategy", "ddp", "--trainer.enable_progress_bar", "false",
    "--trainer.callbacks", "helpers.signal_at.SignalAt",
]  # fmt: skip
RUN = Path("lightning_logs", "version_0")


def fit(folder: Path, *args: str, signal_at: str = "") -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    if signal_at:
        environment["SIGNAL_AT"] = signal_at
    args = ("fit", "--allow_classes", "helpers.signal_at", *args)
    return own_process.finish(list(args), folder, environment, second_rank=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("ddp")
    rows = np.random.default_rng(0).normal(size=(2000, 12)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    done = fit(folder / "whole", *SETTINGS)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "whole"


@pytest.mark.parametrize(
    ("name", "rank", "code", "kept"),
    [
        ("SIGTERM", 0, 143, 15), ("SIGTERM", 1, 143, 15), ("SIGINT", 0, 130, 15), ("SIGINT", 1, 130, 15),
        ("SIGKILL", 0, -9, 10), ("SIGKILL", 1, 2, 10),
    ],
)  # fmt: skip
def test_what_reaches_one_process_ends_both(whole: Path, name: str, rank: int, code: int, kept: int) -> None:
    folder = whole.parent / f"{name}_{rank}"
    done = fit(folder, *SETTINGS, signal_at=f"15 {rank} {name}")
    assert done.returncode == code, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("lightsae: ")]
    assert len(said) == 1, done.stderr[-3000:]
    assert ("Another process of this run ended" if name == "SIGKILL" else "stopped. Go on:") in said[0]
    assert "Traceback" not in done.stderr
    assert torch.load(folder / RUN / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == kept
    if rank == 0 and name != "SIGKILL":
        return  # the same checkpoint as where rank 1 was told
    again = fit(folder, "--config", str(RUN / "config.yaml"), "--ckpt_path", "last")
    assert again.returncode == 0, again.stderr[-3000:]
    saved = Path("sae", "sae.safetensors")
    assert (folder / RUN / saved).read_bytes() == (whole / RUN / saved).read_bytes(), "the same bytes as in one go"


LAUNCHED = {
    "torchrun": lambda rank: {
        "TORCHELASTIC_RUN_ID": "sae", "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    },
    "slurm": lambda rank: {
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "sae",
        "SLURM_NODEID": "0", "SLURM_JOB_ID": "7", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
        "SLURM_NODELIST": "localhost",
    },
}  # fmt: skip


def launch(folder: Path, launcher: str, *args: str) -> None:
    """Run `lightsae ARGS` in two processes, as somebody else starts them."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    shared = os.environ | address | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    said = [folder / f"stderr_{rank}" for rank in (0, 1)]
    processes = [
        own_process.start(list(args), folder, shared | LAUNCHED[launcher](rank), folder / f"stdout_{rank}", said[rank])
        for rank in (0, 1)
    ]
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0], [path.read_text()[-3000:] for path in said]


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_who_starts_the_processes_does_not_matter(whole: Path, launcher: str) -> None:
    """torchrun and srun tell each process who it is; what comes out are the bytes of the run that Lightning started."""
    folder = whole.parent / launcher
    launch(folder, launcher, "fit", "--allow_classes", "helpers.signal_at", *SETTINGS)
    saved = RUN / "sae" / "sae.safetensors"
    assert (folder / saved).read_bytes() == (whole / saved).read_bytes()


def test_latents_dealt_to_two_processes(whole: Path) -> None:
    """Trained, measured and exported as by one process, and measured again by one."""
    alone, dealt = whole.parent / "alone", whole.parent / "dealt"
    for folder, devices, strategy in ((alone, "1", "auto"), (dealt, "2", "model_parallel")):
        settings = [*SETTINGS[:-2], "--trainer.devices", devices, "--trainer.strategy", strategy]
        folder.mkdir()
        if devices == "1":
            run(folder, "fit", *settings)
        else:
            launch(folder, "torchrun", "fit", *settings)
        one = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
        run(folder, "validate", "--config", str(RUN / "config.yaml"), "--ckpt_path", "last", *one)
    results = [
        json.loads((folder / "lightning_logs" / "version_1" / "validation.json").read_text())["figures"]
        for folder in (alone, dealt)
    ]
    assert results[1] == pytest.approx(results[0], rel=1e-3)
    provenance = [json.loads((f / RUN / "sae" / "sae.json").read_text())["provenance"] for f in (alone, dealt)]
    assert provenance[0]["tokens_seen"] == provenance[1]["tokens_seen"] == 30 * 32


def run(folder: Path, *args: str, second_rank: bool = False) -> None:
    done = own_process.finish(list(args), folder, os.environ | {"OMP_NUM_THREADS": "1"}, second_rank=second_rank)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    np.save(tmp_path / "rows.npy", (draw.normal(size=(12000, 12)) + 2).astype(np.float32))
    sae = ["--model.sae", "TopK", "--model.sae.d_sae", "32", "--model.sae.k", "4"]
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    data = ["--data.activations", "rows.npy", "--data.batch_tokens", "128", "--data.training_tokens", "5120"]
    # The second process is started as users' are; in the other tests it is forked.
    run(tmp_path, "fit", *data, *sae, *devices)
    version = tmp_path / "lightning_logs" / "version_0"
    provenance = json.loads((version / "sae" / "sae.json").read_text())["provenance"]
    assert (provenance["step"], provenance["tokens_seen"]) == (20, 5120), "two batches of 128 a step"
    run(tmp_path, "validate", "--config", str(version / "config.yaml"), "--ckpt_path", "last", second_rank=True)
    figures = json.loads((tmp_path / "lightning_logs" / "version_1" / "validation.json").read_text())["figures"]
    assert 0 < figures["val/fve"] < 1
