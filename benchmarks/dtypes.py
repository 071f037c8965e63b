"""The quickstart's training in each dtype of the language model, in turn: tokens per second, and the ratio to the best.

    python benchmarks/dtypes.py
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/dtypes.py

The second line hides from the libraries what a processor has beyond AVX2. `auto` is to reach 80% of the best; what it
chose stands beside it. Model, site, rows and SAE are the quickstart's, in fills of eight steps; the median of a few
rounds, with the language model's share of the time.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from lightsae import ActivationDataModule, SAEModule, TopK
from lightsae.lm.dtypes import dtype_name, speed_of_bfloat16
from sweep import seconds_of_run

DTYPES = ("auto", "float32", "bfloat16")
BATCH, STEPS = 2048, 8


def train(dtype: str, folder: Path) -> tuple[float, float, str]:
    """Return tokens per second, the language model's share, and the dtype that was chosen."""
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
        num_workers=0,
        seed=0,
    )
    module = SAEModule(lambda widths: TopK(widths, d_sae=3072, k=20), lr=4e-3)
    report = seconds_of_run(module, data, 2 * STEPS, folder)
    assert data.chosen_dtype is not None
    return report["tokens_per_second"], report["share_language_model"], dtype_name(data.chosen_dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"{speed_of_bfloat16()} (one product)")
    speeds: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for dtype in DTYPES:
                speed, share, chosen = train(dtype, Path(folder))
                speeds[dtype].append(speed)
                told[dtype] = f"{chosen}, language model {share:.0%} of the time"
    medians = {dtype: statistics.median(values) for dtype, values in speeds.items()}
    for dtype, speed in medians.items():
        print(f"{dtype:9s} {speed:9,.0f} tokens/s {speed / max(medians.values()):6.2f} of the best  ({told[dtype]})")


if __name__ == "__main__":
    main()
