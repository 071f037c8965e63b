"""lightsae: `lightsae fit`, with all callbacks that it has by default; nothing is validated.

python -m speed.with_lightsae FOLDER OUT
"""

import sys
from pathlib import Path

from transformers import GPT2Model

from lightsae.cli import main as lightsae_main
from speed.cases import MODEL, ROWS, Case
from speed.window import Window


def train(folder: Path, out: Path) -> None:
    case = Case.load(folder)
    window = Window(case, case.steps_of_buffer)
    window.count_tokens_of(GPT2Model)
    options = {
        "trainer.accelerator": "cpu",
        "trainer.max_steps": window.end,
        "trainer.limit_val_batches": 0,
        "trainer.default_root_dir": folder / "runs",
        "trainer.enable_progress_bar": "false",
        "model.sae": case.variant,
        "model.sae.d_sae": case.d_sae,
        # No latent is dead in a run as short as this in the other libraries either.
        "model.dead_after": 10_000_000,
        "data.model": folder / MODEL,
        "data.site": f"resid_post.{case.layer}",
        "data.dataset": folder / ROWS,
        "data.context_size": case.context,
        "data.batch_tokens": case.batch,
        "data.buffer_tokens": case.buffer,
        "data.shuffle_tokens": case.buffer,
        "data.model_batch_tokens": case.rows_at_once * case.context,
        "data.val_tokens": case.context,
        "data.dtype": "float32",
    }
    if case.variant == "TopK":
        options["model.sae.k"] = case.k
    try:
        lightsae_main(["fit", *(f"--{name}={value}" for name, value in options.items())])
    except SystemExit as ended:
        if ended.code:
            raise
    window.write(out, "lightsae")


if __name__ == "__main__":
    train(*map(Path, sys.argv[1:]))
