"""One SAE, one text, three evaluators: ours, SAELens' `run_evals` and SAEBench's `core`, figure beside figure.

    python benchmarks/evaluators.py make FOLDER
    make .venv-peers/.ready
    PYTHONPATH=$SAE_BENCH .venv-peers/bin/python -P benchmarks/evaluators.py peers FOLDER

The first trains a small SAE on the built-in language model, evaluates it here, and writes it as SAELens' files, with
the rows of tokens that were read. The second has the others evaluate it on the same rows, and prints the table.
SAEBench is left out where it cannot be imported: it asks for numpy below 2 and is not in .venv-peers. Its files, with
those of sae-probes, tabulate and collectibles, go into a folder ($SAE_BENCH) by `pip install --no-deps --target`.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SITE, MODULE, LAYER = "resid_post.2", "model.layers.2", 2
CONTEXT, TOKENS, STEPS, LATENTS = 128, 8192, 150, 384
ROWS, FIGURES, EXPORT, MODEL = "rows.npy", "figures.json", "sae_lens", "model"
# A figure of ours, what it is called there, and by how much ours is multiplied to have its unit.
SAME = (
    ("fve", "explained_variance"),
    ("fve_no_sinks", "explained_variance"),
    (None, "explained_variance_legacy"),
    ("mse_no_sinks", "mse"),
    ("cosine_no_sinks", "cossim"),
    ("l2_ratio_no_sinks", "l2_ratio"),
    ("relative_reconstruction_bias_no_sinks", "relative_reconstruction_bias"),
    ("l0", "l0"),
    ("dead_fraction", "dead"),
    ("ce_clean", "ce_loss_without_sae"),
    ("ce_zero", "ce_loss_with_ablation"),
    ("ce_spliced", "ce_loss_with_sae"),
    ("ce_spliced_no_sinks", "ce_loss_with_sae"),
    ("ce_recovered", "ce_loss_score"),
    ("ce_recovered_no_sinks", "ce_loss_score"),
    ("kl", "kl_div_with_sae"),
    ("kl_no_sinks", "kl_div_with_sae"),
)


def make(folder: Path) -> None:
    """Train the SAE, evaluate it, and write what the others need."""
    import contextlib
    import shutil

    from lightsae.analysis.evaluate import EvaluateSettings, evaluate
    from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
    from lightsae.cli import main as main_of_lightsae
    from lightsae.formats.convert import convert
    from lightsae.formats.saved_sae import SavedSAE
    from lightsae.lm.config import BUILTIN

    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "lightning_logs" / "version_0"
    if not (run / "sae" / "sae.json").is_file():
        options = f"""
            --data.model builtin --data.site {SITE} --data.dataset builtin --data.context_size {CONTEXT}
            --data.batch_tokens 512 --data.buffer_tokens 8192 --data.val_tokens 1024 --data.num_workers 0
            --data.dtype float32 --model.sae TopK --model.sae.d_sae {LATENTS} --model.sae.k 16
            --trainer.max_steps {STEPS} --trainer.accelerator cpu --language_model_metrics.max_rows 1
        """
        with contextlib.chdir(folder), contextlib.suppress(SystemExit):
            main_of_lightsae(["fit", *options.split()])
    text = TextSettings(num_workers=0)
    loaded = LoadedSAE.load(str(run / "sae"), text)
    np.save(folder / ROWS, loaded.held_out_rows(TOKENS).tokens.astype(np.int64))
    settings = EvaluateSettings(TOKENS, TOKENS, controls=(), concepts="none")
    figures = evaluate(str(run / "sae"), text, settings).figures
    (folder / FIGURES).write_text(json.dumps({name: figure.value for name, figure in figures.items()}))
    convert(SavedSAE.open(run / "sae"), "sae_lens", folder / EXPORT)
    shutil.copytree(BUILTIN, folder / MODEL, dirs_exist_ok=True)


class Rows:
    """The rows, as far as the evaluators ask what they take for a store of activations."""

    def __init__(self, tokens: Any, batch: int) -> None:
        self.tokens, self.store_batch_size_prompts, self.context_size, self._next = tokens, batch, CONTEXT, 0

    @property
    def batches(self) -> int:
        return len(self.tokens) // self.store_batch_size_prompts

    def get_batch_tokens(self, count: int) -> Any:
        part = self.tokens[self._next : self._next + count]
        self._next += count
        return part

    def reset_input_dataset(self) -> None:
        self._next = 0


def peers(folder: Path) -> None:
    """Have the others evaluate it, and print the table."""
    import torch
    from sae_lens import SAE  # type: ignore[import-not-found]
    from sae_lens.evals import get_eval_everything_config, run_evals  # type: ignore[import-not-found]
    from sae_lens.load_model import load_model  # type: ignore[import-not-found]
    from sae_lens.training.activation_scaler import ActivationScaler  # type: ignore[import-not-found]
    from sae_lens.util import get_special_token_ids  # type: ignore[import-not-found]

    rows = Rows(torch.from_numpy(np.load(folder / ROWS)), batch=8)
    model = load_model(
        "AutoModelForCausalLM",
        str(folder / MODEL),
        device="cpu",
        model_from_pretrained_kwargs={"dtype": torch.float32},
        hook_names=[MODULE],
    )
    sae = SAE.load_from_disk(folder / EXPORT)
    sae.cfg.metadata.hook_name = MODULE
    counts = (rows.store_batch_size_prompts, rows.batches, rows.batches)
    found, features = run_evals(sae, rows, model, ActivationScaler(), get_eval_everything_config(*counts))
    columns = {"SAELens": flat(found, features["feature_density"])}
    try:
        from sae_bench.evals.core import main as core  # type: ignore[import-not-found]
        from sae_bench.evals.core.eval_config import CoreEvalConfig  # type: ignore[import-not-found]
    except ImportError as error:
        print(f"SAEBench is left out: {error}")
    else:
        rows.reset_input_dataset()
        # Of an SAE its evaluation asks for the site in the terms of SAELens before version 6.
        settings = SimpleNamespace(hook_name=MODULE, hook_layer=LAYER, hook_head_index=None, d_sae=LATENTS)
        old = SimpleNamespace(cfg=settings, encode=sae.encode, decode=sae.decode, device="cpu", W_enc=sae.W_enc)
        old.W_dec, old.b_enc = sae.W_dec, getattr(sae, "b_enc", None)
        asked = ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics", "featurewise_density_statistics")
        config = CoreEvalConfig(
            batch_size_prompts=counts[0],
            n_eval_reconstruction_batches=counts[1],
            n_eval_sparsity_variance_batches=counts[2],
            **{f"compute_{name}": True for name in asked},
        )
        special = set(get_special_token_ids(model.tokenizer))
        found, features = core.run_evals(old, rows, model, config, ignore_tokens=special)
        columns["SAEBench"] = flat(found, features["feature_density"])
    print_table(json.loads((folder / FIGURES).read_text()), columns)


def flat(found: Mapping[str, Mapping[str, float]], density: Any) -> dict[str, float]:
    """Return the figures of all groups by name, and the share of latents that never fire."""
    figures = {name: value for group in found.values() for name, value in group.items()}
    return figures | {"dead": float((np.asarray(density) == 0).mean())}


def print_table(ours: Mapping[str, float], columns: Mapping[str, Mapping[str, float]]) -> None:
    print("| here | | " + " | ".join(f"| {name}" for name in columns)[2:] + " | called there |")
    print("|---|" + "---|" * (len(columns) + 2))
    for name, there in SAME:
        cells = ["", ""] if name is None else [f"`{name}`", f"{ours[name]:.4g}"]
        cells += [f"{one[there]:.4g}" if there in one else "" for one in columns.values()]
        print("| " + " | ".join([*cells, f"`{there}`"]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("make", "peers"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    (make if options.step == "make" else peers)(options.folder)


if __name__ == "__main__":
    main()
