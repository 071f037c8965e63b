"""Fingerprints of what a refactoring must not change: trained weights, a feature dictionary's tables, a panel's report.

    python scripts/fingerprints.py > before.txt      # before the change
    python scripts/fingerprints.py | diff before.txt -

Runs the command line alone, so that it works on any layout of the package. Figures depend on the machine and on the
versions of the libraries: compare prints of one machine. About six minutes on two cores.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
# In one dtype, whatever the processor is fast with.
SMALLER = (
    "--data.dtype float32 --data.val_tokens 16384 --language_model_metrics.max_rows 4 --trainer.max_steps 60 "
    "--trainer.val_check_interval 60"
)
# Each begins with the quickstart, so that a variant is named before its settings.
VARIANTS = {
    "topk": "",
    "relu_resampled": "--model.sae ReLU --model.sae.d_sae 3072 --model.coefficients.l1 2 --trainer.callbacks "
    "DeadLatentResampling --trainer.callbacks.steps [20,40] --model.dead_after 4000",
    "batch_topk": "--model.sae BatchTopK --model.sae.d_sae 3072 --model.sae.k 20",
    "jumprelu": "--model.sae JumpReLU --model.sae.d_sae 3072",
    "gated": "--model.sae Gated --model.sae.d_sae 3072",
    "matryoshka": "--model.sae Matryoshka --model.sae.d_sae 3072 --model.sae.mechanism BatchTopK "
    "--model.sae.mechanism.k 20",
    "transcoder": "--model.sae Transcoder --model.sae.d_sae 3072 --model.sae.mechanism TopK --model.sae.mechanism.k 20 "
    "--data.site mlp_in.2 --data.target_site mlp_out.2",
    "crosscoder": "--model.sae Crosscoder --model.sae.d_sae 3072 --model.sae.mechanism BatchTopK "
    "--model.sae.mechanism.k 20 --data.site [resid_post.1,resid_post.2]",
}
INTERPRET = "--tokens 40000 --score_tokens 40000 --mining_tokens 60000 --ablation_windows 1"
PANEL = """\
choose: {tiers: [high, medium], order: sample, count: 3}
sweep:
  doses: [0.2, 0.4]
  unit: norm
  choose_by: target
  max_perplexity_ratio: 2.5
  samples: 1
  sampling: {temperature: 1.0, top_p: 1.0, max_new_tokens: 8, min_new_tokens: 8}
limits: {max_ce_rise: 0.6, max_others_changed: 0.9}
held_out_rows: 2
others: 2
prompts: ["import os\\n", "class Parser:\\n", "for i in range(", "if not ", "x = ", "try:\\n    ", "print(", "self."]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="Run in this new folder and keep it; a temporary one otherwise.")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, options in VARIANTS.items():
            run(folder, "fit", "--config", str(QUICKSTART), *options.split(), *SMALLER.split(), *at(name))
            print(f"{name:<32}{weights(folder / name)}", flush=True)
        sae = str(folder / "topk" / "lightning_logs" / "version_0" / "sae")
        run(folder, "interpret", "--sae", sae, "--out", "dictionary", *INTERPRET.split())
        for table in sorted((folder / "dictionary").rglob("*.parquet")):
            print(f"{table.relative_to(folder)!s:<32}{content(table)}")
        (folder / "panel.yaml").write_text(PANEL)
        run(folder, "panel", "--sae", sae, "--dictionary", "dictionary", "--panel", "panel.yaml", "--out", "panel")
        print(f"{'panel/panel.json':<32}{report(folder / 'panel' / 'panel.json')}")


def at(name: str) -> list[str]:
    return ["--trainer.default_root_dir", name, "--trainer.enable_progress_bar", "false"]


def run(folder: Path, *args: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "lightsae", *args],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if ended.returncode != 0:
        sys.exit(f"lightsae {' '.join(args)}\n{ended.stderr}")


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "lightning_logs/version_0/sae/sae.safetensors").read_bytes()).hexdigest()


def content(table: Path) -> str:
    """Hash the rows, not the file: Parquet's own metadata may differ."""
    return hashlib.sha256(repr(pq.read_table(table).to_pydict()).encode()).hexdigest()


def report(file: Path) -> str:
    return hashlib.sha256(json.dumps(without_paths(json.loads(file.read_text())), sort_keys=True).encode()).hexdigest()


def without_paths(value: Any) -> Any:
    """Leave out what names the folder or the time of the run."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items() if "second" not in key and "time" not in key}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value


if __name__ == "__main__":
    main()
