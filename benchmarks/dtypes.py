"""The quickstart's training in each dtype of the language model, in turn: tokens per CPU second, ratios to the best.

    OMP_NUM_THREADS=1 python benchmarks/dtypes.py
    OMP_NUM_THREADS=1 python benchmarks/dtypes.py --avx2

`--avx2` hides from the libraries what a processor has beyond AVX2. `auto` is to reach 80% of the best. Model, site,
rows and SAE are the quickstart's; a fill of the language model with the steps on it is timed, after one that warms up.
CPU seconds, because other work on the machine leaves them nearly alone; a clock's tokens per second stand beside.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, get_args

from lightning import Callback, Trainer

from lightsae import ActivationDataModule, SAEModule, TopK
from lightsae.lm.dtypes import dtype_name, speed_of_bfloat16

Dtype = Literal["auto", "float32", "bfloat16"]
BATCH, STEPS = 2048, 8
HIDDEN = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


class Clocks(Callback):
    """Reads the clocks after the first fill's last step, and after the second's. Observes only."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % STEPS == 0:
            self.times.append((time.process_time(), time.perf_counter()))


def train(dtype: Dtype, folder: Path) -> tuple[list[float], str]:
    """Return tokens per CPU second and per second, and the dtype that was chosen."""
    data = ActivationDataModule(
        model="builtin",
        site="resid_post.2",
        dataset="builtin",
        context_size=256,
        batch_tokens=BATCH,
        buffer_tokens=BATCH * STEPS,
        shuffle_tokens=BATCH * STEPS,
        val_tokens=BATCH,
        dtype=dtype,
        seed=0,
    )
    module, clocks = SAEModule(lambda widths: TopK(widths, d_sae=3072, k=20), lr=4e-3), Clocks()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2 * STEPS,
        default_root_dir=folder,
        callbacks=[clocks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    assert data.chosen_dtype is not None
    start, end = clocks.times
    return [BATCH * STEPS / (b - a) for a, b in zip(start, end, strict=True)], dtype_name(data.chosen_dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--avx2", action="store_true")
    given = parser.parse_args()
    if given.avx2 and not HIDDEN.items() <= os.environ.items():
        # The libraries read them when they are loaded.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | HIDDEN)
    print(f"{speed_of_bfloat16()} (one product)", flush=True)
    speeds: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for dtype in get_args(Dtype):
                speed, chosen = train(dtype, Path(folder))
                speeds.setdefault(f"{dtype} ({chosen})" if dtype == "auto" else dtype, []).append(speed)
    medians = {
        dtype: [statistics.median(each) for each in zip(*rounds, strict=True)] for dtype, rounds in speeds.items()
    }
    best = max(of_cpu for of_cpu, _ in medians.values())
    for dtype, (of_cpu, of_clock) in medians.items():
        print(
            f"{dtype:16s} {of_cpu:8,.0f} tokens per CPU second: {of_cpu / best:4.2f} of the best   {of_clock:8,.0f}/s"
        )


if __name__ == "__main__":
    main()
