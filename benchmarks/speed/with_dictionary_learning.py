"""dictionary_learning: its trainSAE with its ActivationBuffer on an nnsight model.

python -m speed.with_dictionary_learning FOLDER OUT
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from dictionary_learning import ActivationBuffer  # type: ignore[import-not-found]
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate  # type: ignore[import-not-found]
from dictionary_learning.trainers.top_k import TopKTrainer  # type: ignore[import-not-found]
from dictionary_learning.training import trainSAE  # type: ignore[import-not-found]
from nnsight import LanguageModel  # type: ignore[import-not-found]
from transformers import GPT2Model

from speed.cases import MODEL, ROWS, Case
from speed.window import Window


class Buffer(ActivationBuffer):  # type: ignore[misc]
    """Reads rows of one length, without padding."""

    activations: torch.Tensor
    read: torch.Tensor

    def refresh(self) -> None:
        kept = self.activations[~self.read]
        new = kept.new_empty(self.activation_buffer_size, self.d_submodule)
        new[: len(kept)] = kept
        self.activations, end = new, len(kept)
        while end < len(new):
            with torch.no_grad(), self.model.trace(torch.tensor(self.text_batch())) as tracer:
                hidden = self.submodule.output.save()
                tracer.stop()
            values = (hidden[0] if isinstance(hidden, tuple) else hidden).flatten(0, 1)[: len(new) - end]
            new[end : end + len(values)] = values
            end += len(values)
        self.read = torch.zeros(len(new), dtype=torch.bool)


def train(folder: Path, out: Path) -> None:
    case = Case.load(folder)
    # Filled again as soon as less than half is left.
    window = Window(case, case.steps_of_buffer // 2 + 1)
    window.count_tokens_of(GPT2Model)
    # Passes of one size that make up a fill: what is left of a pass beyond the buffer would be thrown away.
    rows_of_fill = window.cycle * case.batch // case.context
    rows_at_once = max(size for size in range(1, case.rows_at_once + 1) if rows_of_fill % size == 0)
    rows = Dataset.from_parquet(str(folder / ROWS), cache_dir=str(folder / "cache"))
    model = LanguageModel(str(folder / MODEL), device_map="cpu", dispatch=True)
    buffer = Buffer(
        iter(rows["input_ids"]),
        model,
        model.transformer.h[case.layer],
        d_submodule=case.d_in,
        n_ctxs=case.buffer // case.context,
        ctx_len=case.context,
        refresh_batch_size=rows_at_once,
        out_batch_size=case.batch,
        device="cpu",
    )
    trainer = {"trainer": StandardTrainerAprilUpdate, "sparsity_warmup_steps": None}
    if case.variant == "TopK":
        trainer = {"trainer": TopKTrainer, "k": case.k}
    trainer |= {
        "steps": window.end,
        "activation_dim": case.d_in,
        "dict_size": case.d_sae,
        "warmup_steps": 0,
        "layer": case.layer,
        "lm_name": "model",
        "device": "cpu",
    }
    trainSAE(buffer, [trainer], window.end, device="cpu")
    window.write(out, "dictionary-learning")


if __name__ == "__main__":
    train(*map(Path, sys.argv[1:]))
