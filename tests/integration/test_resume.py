"""SIGKILL at a random step, then `--ckpt_path last`, twice: the same bytes as the run that was never killed."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).parent
STEPS = 60
VARIANTS = {
    "relu, resampling": """
model:
  sae: {class_path: ReLU, init_args: {d_sae: 96}}
  coefficients: {l1: {value: 8.0, warm_up: 0.2}}
  lr: 0.01
  dead_after: 200
trainer:
  callbacks:
    - {class_path: kill_at.KillAt}
    - {class_path: DeadLatentResampling, init_args: {steps: [12, 22, 33, 44, 52]}}
""",
    "topk, auxk": """
model:
  sae: {class_path: TopK, init_args: {d_sae: 256, k: 4}}
  lr: 0.01
  dead_after: 300
trainer:
  callbacks: [{class_path: kill_at.KillAt}]
""",
}
COMMON = """
seed_everything: 3
checkpoint: {every_n_train_steps: 5}
data:
  site: resid_post.1
  context_size: 16
  batch_tokens: 64
  buffer_tokens: 512
  shuffle_tokens: 1024
  val_tokens: 256
  num_workers: 2
"""


def run_fit(folder: Path, *args: str, kill_at: int | None = None) -> str:
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    if kill_at is not None:
        environment["KILL_AT_STEP"] = str(kill_at)
    command = [sys.executable, "-m", "lightsae", "fit", *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    expected = -9 if kill_at is not None else 0
    assert done.returncode == expected, f"ended with {done.returncode}, not {expected}:\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def largest(run: Path, tag: str) -> float:
    """Return the largest value of a curve in a run's TensorBoard files."""
    events = EventAccumulator(str(run))
    events.Reload()
    return max(event.value for event in events.Scalars(tag))


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_twice_ends_in_the_same_bytes(
    variant: str, make_model: Callable[..., Path], tiny_corpus: Path, tmp_path: Path
) -> None:
    config = tmp_path / "given.yaml"
    config.write_text(COMMON + f"  model: {make_model()}\n  dataset: {tiny_corpus}\n" + VARIANTS[variant])
    common = ["--config", str(config), f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=25"]
    first = random.SystemRandom().randrange(10, 30)
    second = random.SystemRandom().randrange(first + 6, STEPS)

    said = run_fit(tmp_path, *common)
    run_fit(tmp_path, *common, kill_at=first)
    again = ["--config", "lightning_logs/version_1/config.yaml", "--ckpt_path", "last"]
    run_fit(tmp_path, *again, kill_at=second)
    run_fit(tmp_path, *again)

    whole, resumed = (tmp_path / "lightning_logs" / f"version_{n}" for n in (0, 1))
    # What the variant is here for did happen.
    assert "resampled" in said if "relu" in variant else largest(whole, "train/auxk") > 0
    a, b = ((run / "sae" / "sae.safetensors").read_bytes() for run in (whole, resumed))
    assert a == b, f"killed at steps {first} and {second}: the dictionaries differ"
    assert sorted(p.name for p in resumed.glob("config*.yaml")) == [
        "config.resume-1.yaml",
        "config.resume-2.yaml",
        "config.yaml",
    ]
    assert not (tmp_path / "lightning_logs" / "version_2").exists()
