"""What a cache brings: tokens per second of training made from text, ahead or in turn, and read from a cache.

    python benchmarks/cache.py
    python benchmarks/cache.py --device cuda --fill_tokens 262144 --batch_tokens 4096 --steps 256

A GPT-2 of the small one's shape with random weights, read at resid_post.6 on the built-in corpus; a TopK SAE. The ways
are taken in turn, several rounds, and the median of each is printed, so that what else the machine does falls on all of
them. The weights at the end are compared: those of fills made ahead have to be those of fills made in turn.
"""

import argparse
import hashlib
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lightsae import ActivationDataModule, SAEModule, TopK
from lightsae.activations.cache.plan import plan_cache
from lightsae.activations.cache.writer import write_cache
from lightsae.activations.settings import DataSettings
from sweep import language_model, seconds_of_run


def train(data: ActivationDataModule, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, and return what `throughput.json` says, with a digest of the weights."""
    module = SAEModule(lambda widths: TopK(widths, given.d_sae, given.k), lr=1e-3)
    report = seconds_of_run(module, data, given.steps, folder, "gpu" if given.device == "cuda" else "cpu")
    weights = module.each_sae()["sae"].W_dec.detach().cpu().contiguous()
    return report | {"weights": hashlib.sha256(weights.view(torch.uint8).numpy().tobytes()).hexdigest()[:12]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--d_sae", type=int, default=6144)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch_tokens", type=int, default=2048)
    parser.add_argument("--fill_tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model, site, _ = language_model("gpt2-shape", root / "model")
        text = {"model": model, "dataset": "builtin", "site": site, "val_tokens": 1024}
        sizes = {"batch_tokens": given.batch_tokens, "buffer_tokens": given.fill_tokens, "seed": 0}
        tokens = given.steps * given.batch_tokens
        began = time.perf_counter()
        manifest = write_cache(plan_cache(DataSettings(**text), root / "cache", tokens, device=given.device))  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in (root / "cache").iterdir()) / 1e6
        written = manifest.tokens("train") + manifest.tokens("validation")
        print(f"written: {written:,} tokens, {size:,.0f} MB, {written / seconds:,.0f} tokens/s")
        ways: dict[str, dict[str, Any]] = {
            "text, in turn": text | {"prefetch": False},
            "text, ahead": text | {"prefetch": True},
            "cache, in turn": {"cache": str(root / "cache"), "val_tokens": 1024, "prefetch": False},
            "cache, ahead": {"cache": str(root / "cache"), "val_tokens": 1024, "prefetch": True},
        }
        reports: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for number in range(given.rounds):
            for way, settings in ways.items():
                data = ActivationDataModule(**(settings | sizes))
                reports[way].append(train(data, given, root / f"{way.replace(', ', '_')}_{number}"))
    speeds = {way: statistics.median(r["tokens_per_second"] for r in each) for way, each in reports.items()}
    for way, each in reports.items():
        waiting = statistics.median(report["share_waiting"] for report in each)
        ratio = speeds[way] / speeds["text, in turn"]
        print(f"{way:16s} {speeds[way]:10,.0f} tokens/s  {ratio:5.2f} x  waiting {waiting:5.1%}  {each[0]['weights']}")
    for source in ("text", "cache"):
        digests = {r["weights"] for way, each in reports.items() if way.startswith(source) for r in each}
        assert len(digests) == 1, f"{source}: the weights differ"
    print(json.dumps(next(iter(reports.values()))[0]["machine"] | {"processor": platform.processor()}))


if __name__ == "__main__":
    main()
