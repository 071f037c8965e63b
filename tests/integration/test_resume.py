"""SIGKILL at a random step, then `--ckpt_path last`, twice: the same bytes as the run that was never killed."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import own_process

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
    - {class_path: helpers.kill_at.KillAt}
    - {class_path: DeadLatentResampling, init_args: {steps: [12, 22, 33, 44, 52]}}
""",
    "topk, auxk": """
model:
  sae: {class_path: TopK, init_args: {d_sae: 256, k: 4}}
  lr: 0.01
  dead_after: 300
trainer:
  callbacks: [{class_path: helpers.kill_at.KillAt}]
""",
}
# Every variant with what it keeps beside its weights: thresholds, frequencies, powers, counts of steps.
SWEEP = """
model:
  lr: 0.01
  dead_after: 300
  saes:
    relu: {sae: {class_path: ReLU, init_args: {d_sae: 96, p_end: 0.2}}, coefficients: {l1: 8.0}}
    topk: {sae: {class_path: TopK, init_args: {d_sae: 96, k: 4, k_start: 12, multi_k: 16}}, start: data}
    batch_topk:
      sae:
        class_path: BatchTopK
        init_args: {d_sae: 256, k: 4, refinements: {tilt: 0.1, aligned: true, second_step: 0.3}}
    jumprelu: {sae: {class_path: JumpReLU, init_args: {d_sae: 96}}, site: resid_post.0}
    gated: {sae: {class_path: Gated, init_args: {d_sae: 96}}}
    matryoshka:
      sae:
        class_path: Matryoshka
        init_args: {d_sae: 96, order: frequency, mechanism: {class_path: BatchTopK, init_args: {k: 4}}}
    transcoder:
      sae:
        class_path: Transcoder
        init_args: {d_sae: 96, skip: true, mechanism: {class_path: TopK, init_args: {k: 4}}}
      site: mlp_in.1
      target_site: mlp_out.1
    crosscoder:
      sae: {class_path: Crosscoder, init_args: {d_sae: 96, mechanism: {class_path: BatchTopK, init_args: {k: 4}}}}
      site: [resid_post.0, resid_post.1]
    layer_norm:
      sae: {class_path: TopK, init_args: {d_sae: 96, k: 4, refinements: {token_norm: layer_norm}}}
      start: data
    rescaled: {sae: {class_path: JumpReLU, init_args: {d_sae: 96, refinements: {token_norm: rescale}}}}
trainer:
  gradient_clip_val: 1.0
  callbacks:
    - {class_path: helpers.kill_at.KillAt}
    - {class_path: DeadLatentResampling, init_args: {steps: [12, 22, 33, 44, 52]}}
"""
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
  dtype: float32
"""


def run_fit(folder: Path, *args: str, kill_at: int | None = None) -> str:
    environment = os.environ | {
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
    }
    if kill_at is not None:
        environment["KILL_AT_STEP"] = str(kill_at)
    done = own_process.finish(["fit", "--allow_classes", "helpers.kill_at", *args], folder, environment)
    expected = -9 if kill_at is not None else 0
    assert done.returncode == expected, f"ended with {done.returncode}, not {expected}:\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def largest(run: Path, tag: str) -> float:
    """Return the largest value of a curve in a run's TensorBoard files."""
    events = EventAccumulator(str(run))
    events.Reload()
    return max(event.value for event in events.Scalars(tag))


def whole_and_killed_twice(folder: Path, config: Path) -> tuple[Path, Path, str]:
    """Run to the end, and once more with two kills; return the folders of both, and what the first one said."""
    common = ["--config", str(config), f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=25"]
    first = random.SystemRandom().randrange(10, 30)
    second = random.SystemRandom().randrange(first + 6, STEPS)
    print(f"killed at steps {first} and {second}")  # pytest shows it where the test fails
    said = run_fit(folder, *common)
    run_fit(folder, *common, kill_at=first)
    again = ["--config", "lightning_logs/version_1/config.yaml", "--ckpt_path", "last"]
    run_fit(folder, *again, kill_at=second)
    run_fit(folder, *again)
    return folder / "lightning_logs/version_0", folder / "lightning_logs/version_1", said


def assert_same_exports(whole: Path, resumed: Path) -> None:
    exports = sorted(path.relative_to(whole) for path in whole.glob("sae/**/sae.safetensors"))
    assert exports == sorted(path.relative_to(resumed) for path in resumed.glob("sae/**/sae.safetensors"))
    for export in exports:
        assert (whole / export).read_bytes() == (resumed / export).read_bytes(), f"{export} differs"


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_twice_ends_in_the_same_bytes(
    variant: str, make_model: Callable[..., Path], tiny_corpus: Path, tmp_path: Path
) -> None:
    config = tmp_path / "given.yaml"
    config.write_text(COMMON + f"  model: {make_model()}\n  dataset: {tiny_corpus}\n" + VARIANTS[variant])
    whole, resumed, said = whole_and_killed_twice(tmp_path, config)
    # What the variant is here for did happen.
    assert "resampled" in said if "relu" in variant else largest(whole, "train/auxk") > 0
    assert_same_exports(whole, resumed)
    assert sorted(p.name for p in resumed.glob("config*.yaml")) == [
        "config.resume-1.yaml",
        "config.resume-2.yaml",
        "config.yaml",
    ]
    assert not (tmp_path / "lightning_logs" / "version_2").exists()


def test_every_variant_at_once_ends_in_the_same_bytes(
    make_model: Callable[..., Path], tiny_corpus: Path, tmp_path: Path
) -> None:
    config = tmp_path / "given.yaml"
    config.write_text(COMMON + f"  model: {make_model()}\n  dataset: {tiny_corpus}\n" + SWEEP)
    whole, resumed, _ = whole_and_killed_twice(tmp_path, config)
    assert {path.parent.name for path in whole.glob("sae/*/sae.safetensors")} == set(
        yaml.safe_load(SWEEP)["model"]["saes"]
    )
    assert_same_exports(whole, resumed)
