"""What a sweep costs: eight TopK dictionaries in one run against one language-model pass and eight steps timed alone.

    python benchmarks/sweep.py builtin
    python benchmarks/sweep.py gpt2-shape

Prints the seconds of the run's parts, and the ratio run / (language model alone over the same fills + sum of the eight
dictionaries' steps alone). `gpt2-shape` is a GPT-2 of the small one's shape with
random weights, read at resid_post.6, on random tokens' text.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from lightsae import ActivationDataModule, LanguageModel, SAEModule, TopK
from lightsae.callbacks import Throughput
from lightsae.sae import LatentUsage, Widths
from lightsae.training.entries import Entry

KS = (8, 16, 32, 64)
BATCH, FILL = 2048, 16384


def language_model(shape: str, folder: Path) -> tuple[str, str, tuple[int, int]]:
    """Return a model, a site and two dictionary sizes."""
    if shape == "builtin":
        return "builtin", "resid_post.2", (1536, 3072)
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = LanguageModel.from_pretrained("builtin").tokenizer
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), "resid_post.6", (3072, 6144)


def seconds_of_run(
    module: SAEModule, data: ActivationDataModule, steps: int, folder: Path, accelerator: str = "cpu"
) -> dict[str, Any]:
    """Train, and return what `throughput.json` says."""
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=steps,
        logger=CSVLogger(folder, name=""),
        callbacks=[Throughput()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    report: dict[str, Any] = json.loads((Path(str(trainer.log_dir)) / "throughput.json").read_text())
    return report


def seconds_of_steps(sae: TopK, batches: list[torch.Tensor], steps: int) -> float:
    """Return the seconds that training steps on given activations take, after a warm-up."""
    site = next(iter(sae.widths.read))
    sae.start_from({site: batches[0]}, "sqrt_d")
    usage, optimizer = LatentUsage(sae.d_sae, 10**7), torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)
    taken = 0.0
    for step in range(steps + 2):
        start = time.perf_counter()
        x = batches[step % len(batches)]
        output = sae(x)
        terms = sae.loss_terms(x, output, usage)
        (terms["mse"] + terms["auxk"] / 32).backward()
        usage.observe(output.latents)
        sae.before_step()
        optimizer.step()
        optimizer.zero_grad()
        sae.commit()
        usage.commit()
        taken += time.perf_counter() - start if step >= 2 else 0.0
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=["builtin", "gpt2-shape"])
    parser.add_argument("--steps", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model, site, sizes = language_model(given.shape, Path(temporary, "model"))
        data = ActivationDataModule(
            model=model, site=site, dataset="builtin", batch_tokens=BATCH, buffer_tokens=FILL, val_tokens=4096
        )
        cases = [(d_sae, k) for d_sae in sizes for k in KS]
        entries = {f"d{d}_k{k}": Entry(lambda w, d=d, k=k: TopK(w, d_sae=d, k=k)) for d, k in cases}  # type: ignore[misc]
        module = SAEModule(saes=entries)
        report = seconds_of_run(module, data, given.steps, Path(temporary, "run"))
        assert data.language_model is not None
        width = module.each_sae()["d{}_k{}".format(*cases[0])].d_in
        # Alone, in turn: the language model on as many tokens, and the steps of each dictionary.
        # The first fill is made before the training's clock starts: the scales are measured on it.
        fills = -(-given.steps * BATCH // FILL) - 1
        lm_alone = language_model_alone(data.language_model, site, fills * FILL)
        batches = [torch.randn(2048, width) + 1 for _ in range(4)]
        alone = {f"d{d}_k{k}": seconds_of_steps(TopK(Widths.of(width), d, k), batches, given.steps) for d, k in cases}
    total, expected = report["seconds"]["total"], lm_alone + sum(alone.values())
    print(json.dumps({"run": report["seconds"], "language_model_alone": lm_alone, "steps_alone": alone}, indent=2))
    print(f"{total:.2f} s for {report['tokens']} tokens; alone {expected:.2f} s; ratio {total / expected:.3f}")


def language_model_alone(model: LanguageModel, site: str, tokens: int) -> float:
    """Return the seconds of the forward passes, up to the site, of as many tokens."""
    ids = torch.randint(0, 100, (64, 128))
    model.capture(ids, [site])
    start = time.perf_counter()
    for _ in range(tokens // ids.numel()):
        model.capture(ids, [site])
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
