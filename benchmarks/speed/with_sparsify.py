"""sparsify: its Trainer. It trains on each batch as the language model reads it: without a buffer, without shuffling.

    python -m speed.with_sparsify FOLDER OUT

The model is handed in whole, as its own command does, and all of its blocks run.
"""

import os
import sys
from pathlib import Path

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read where it is imported

from datasets import Dataset
from sparsify import SparseCoderConfig, TrainConfig, Trainer  # type: ignore[import-not-found]
from transformers import AutoModel, GPT2Model

from speed.cases import MODEL, ROWS, Case
from speed.window import Window


def train(folder: Path, out: Path) -> None:
    case = Case.load(folder)
    window = Window(case, 1)
    window.count_tokens_of(GPT2Model)
    rows_of_batch = case.batch // case.context
    rows = Dataset.from_parquet(str(folder / ROWS), cache_dir=str(folder / "cache"))
    config = TrainConfig(
        SparseCoderConfig(num_latents=case.d_sae, k=case.k),
        batch_size=rows_of_batch,
        optimizer="adam",
        layers=[case.layer],
        log_to_wandb=False,
        save_dir=str(folder / "sparsify"),
    )
    rows = rows.select(range(window.end * rows_of_batch)).with_format("torch")
    Trainer(config, rows, AutoModel.from_pretrained(folder / MODEL)).fit()
    window.write(out, "eai-sparsify")


if __name__ == "__main__":
    train(*map(Path, sys.argv[1:]))
