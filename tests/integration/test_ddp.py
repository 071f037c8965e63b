"""Two processes on one machine: `lightsae fit` starts, trains, validates, exports and resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np


def run(folder: Path, *args: str) -> None:
    command = [sys.executable, "-m", "lightsae", *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    np.save(tmp_path / "rows.npy", (draw.normal(size=(12000, 12)) + 2).astype(np.float32))
    sae = ["--model.sae", "TopK", "--model.sae.d_sae", "32", "--model.sae.k", "4"]
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    data = ["--data.activations", "rows.npy", "--data.batch_tokens", "128", "--data.training_tokens", "5120"]
    run(tmp_path, "fit", *data, *sae, *devices)
    version = tmp_path / "lightning_logs" / "version_0"
    provenance = json.loads((version / "sae" / "sae.json").read_text())["provenance"]
    assert (provenance["step"], provenance["tokens_seen"]) == (20, 5120), "two batches of 128 a step"
    run(tmp_path, "validate", "--config", str(version / "config.yaml"), "--ckpt_path", "last")
    figures = json.loads((tmp_path / "lightning_logs" / "version_1" / "validation.json").read_text())["figures"]
    assert 0 < figures["val/fve"] < 1
