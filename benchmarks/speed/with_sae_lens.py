"""SAELens: its LanguageModelSAETrainingRunner with its ActivationsStore and a HookedTransformer.

python -m speed.with_sae_lens FOLDER OUT
"""

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from sae_lens import (  # type: ignore[import-not-found]
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from transformer_lens import HookedTransformer  # type: ignore[import-not-found]
from transformer_lens.loading_from_pretrained import get_pretrained_model_config  # type: ignore[import-not-found]
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights  # type: ignore[import-not-found]
from transformers import AutoTokenizer, GPT2LMHeadModel

from speed.cases import MODEL, ROWS, Case
from speed.window import Window


def train(folder: Path, out: Path) -> None:
    case = Case.load(folder)
    # Half of the buffer is served, then as much of it filled again.
    window = Window(case, max(1, case.steps_of_buffer // 2))
    window.count_tokens_of(HookedTransformer)
    sae: Any = {"d_in": case.d_in, "d_sae": case.d_sae}
    sae = (
        TopKTrainingSAEConfig(k=case.k, **sae)
        if case.variant == "TopK"
        else StandardTrainingSAEConfig(l1_coefficient=5.0, **sae)
    )
    config = LanguageModelSAERunnerConfig(
        sae=sae,
        model_name="gpt2",
        hook_name=f"blocks.{case.layer}.hook_resid_post",
        dataset_path="rows",
        context_size=case.context,
        prepend_bos=False,
        training_tokens=window.end * case.batch,
        train_batch_size_tokens=case.batch,
        n_batches_in_buffer=case.buffer // case.context,
        store_batch_size_prompts=case.rows_at_once,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
        verbose=False,
    )
    rows = Dataset.from_parquet(str(folder / ROWS), cache_dir=str(folder / "cache"))
    LanguageModelSAETrainingRunner(config, rows, hooked_transformer(str(folder / MODEL))).run()
    window.write(out, "sae-lens")


def hooked_transformer(folder: str) -> Any:
    config = get_pretrained_model_config(folder, device="cpu")
    model = HookedTransformer(config, AutoTokenizer.from_pretrained(folder), move_to_device=False)
    weights = convert_gpt2_weights(GPT2LMHeadModel.from_pretrained(folder), config)
    model.load_and_process_state_dict(weights, fold_ln=False, center_writing_weights=False, center_unembed=False)
    return model


if __name__ == "__main__":
    train(*map(Path, sys.argv[1:]))
