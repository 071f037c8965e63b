"""What training a saved SAE further brings on a language model that was itself trained further.

    python benchmarks/further.py runs/

The built-in model learns the docstrings of the packages that are installed beside this Python. Then the quickstart is
trained on the text and the activations of that model from scratch, with all of its tokens and with a share of them,
and with that share from the SAE of the model before (`model.start`). Beside these stands that SAE as it is. All are
judged on the same held-out text, and `lightsae drift` says which features were kept.

The folder keeps what is done: a run that was stopped goes on with the next part.
"""

import argparse
import contextlib
import json
from pathlib import Path

import torch

from lightsae.cli import main as lightsae
from lightsae.lm import LanguageModel
from small_model import docstrings, learn

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
CONTEXT, ROWS, RATE = 256, 16, 3e-4
FIGURES = ("fve", "fve_no_sinks", "l0", "ce_recovered", "kl", "dead_fraction")


def written_text(folder: Path) -> Path:
    """Write the docstrings, a document a line, unless they are there."""
    path = folder / "docstrings.jsonl"
    if not path.is_file():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in docstrings()))
    return path


def trained_model(folder: Path, text: Path, steps: int) -> Path:
    """Write the built-in model after so many steps on the text, unless it is there."""
    out = folder / "model"
    if (out / "config.json").is_file():
        return out
    language_model = LanguageModel.from_pretrained("builtin", dtype="float32")
    model, tokenizer = language_model.model.train().requires_grad_(), language_model.tokenizer
    ids = [
        id_
        for line in text.open()
        for id_ in [tokenizer.bos_token_id, *tokenizer.encode(json.loads(line)["text"], add_special_tokens=False)]
    ]
    rows = torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    torch.manual_seed(0)
    learn(model, rows, steps, RATE, ROWS, rise=20, weight_decay=0.01)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def called(*args: str) -> None:
    """Run a command, which has to end well."""
    try:
        lightsae(list(args))
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"lightsae {' '.join(args)} ended with {end.code}") from end


def run(folder: Path, *options: str) -> dict[str, float]:
    """Run `lightsae fit` in a folder, unless it is done, and return its figures on held-out text."""
    trained, reports = folder / "lightning_logs" / "version_0", "lightning_logs/*/validation.json"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("a") as log, contextlib.chdir(folder), contextlib.redirect_stderr(log):
        with contextlib.redirect_stdout(log):
            if not (trained / "sae").is_dir():
                called("fit", "--config", str(QUICKSTART), "--trainer.limit_val_batches", "0", *options)
            if not list(folder.glob(reports)):
                last = ["--config", str(trained / "config.yaml"), "--ckpt_path", "last"]
                called("validate", *last, "--trainer.limit_val_batches", "1.0")
    figures: dict[str, float] = json.loads(next(folder.glob(reports)).read_text())["figures"]
    return {name.removeprefix("val/"): figure for name, figure in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1500, help="of the run from scratch")
    parser.add_argument("--share", type=float, default=0.1, help="of its tokens")
    parser.add_argument("--model_steps", type=int, default=300, help="of the language model")
    given = parser.parse_args()
    folder: Path = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    text = written_text(folder)
    model = trained_model(folder, text, given.model_steps)

    def steps(share: float) -> list[str]:
        number = str(round(share * given.steps))
        return ["--trainer.max_steps", number, "--trainer.val_check_interval", number]

    there = ["--data.model", str(model), "--data.dataset", str(text)]
    run(folder / "before", *steps(1))
    start = ["--model.start", str(folder / "before" / "lightning_logs" / "version_0" / "sae")]
    rows = {
        "from scratch": run(folder / "scratch", *there, *steps(1)),
        f"from scratch, {given.share:.0%} of the tokens": run(folder / "short", *there, *steps(given.share)),
        f"further, {given.share:.0%} of the tokens": run(folder / "further", *there, *start, *steps(given.share)),
        "as it was": run(folder / "as_it_was", *there, *start, "--model.lr", "1e-12", *steps(1 / given.steps)),
    }
    print("| | " + " | ".join(f"`{figure}`" for figure in FIGURES) + " |\n" + "|---" * (len(FIGURES) + 1) + "|")
    for name, figures in rows.items():
        print(f"| {name} | " + " | ".join(f"{figures[figure]:.4f}" for figure in FIGURES) + " |")
    exports = [str(folder / name / "lightning_logs" / "version_0" / "sae") for name in ("before", "further")]
    print("\nlightsae drift, before and further, on the text and the model of the latter:")
    called("drift", *exports, "--tokens", "50000", "--rows", "1", "--out", str(folder / "drift.json"))


if __name__ == "__main__":
    main()
