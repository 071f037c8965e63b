"""The cost of watching: a monitored `generate` against the same one unmonitored, with the KV cache.

    python benchmarks/monitor.py
    python benchmarks/monitor.py --rows 8 --new-tokens 64 --rounds 15 --device cuda

The built-in model, with dictionaries of random weights at resid_post.2 (8 latents a width) and made-up feature
dictionaries: what they hold does not change the cost, how often features fire does, and is printed. Prompts are padded
on the left, and monitored and unmonitored runs take turns. Prints the median over the rounds of monitored / unmonitored
- 1. `hooks alone` holds a hook that does nothing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lightsae.analysis.dictionary import FeatureDictionary, write_dictionary
from lightsae.analysis.dictionary.schema import TABLES
from lightsae.analysis.steering import Sampling, generate_samples
from lightsae.formats.native import save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm import LanguageModel
from lightsae.production.monitor import JsonLines, Monitor, monitor
from lightsae.sae import JumpReLU, ReLU, SiteRef, SparseAutoencoder, TopK, Widths

SITE = "resid_post.2"


def dictionaries(lm: LanguageModel, d_sae: int) -> dict[str, tuple[SparseAutoencoder, torch.Tensor]]:
    """Dictionaries whose scales fit the model's activations, and their latents on random tokens."""
    ref, width = SiteRef(lm.name, SITE), lm.width(SITE)
    rows = torch.randint(2, 4000, (16, 128), generator=torch.Generator().manual_seed(0))
    sample = lm.capture(rows, [SITE])[SITE][:, 1:].flatten(0, 1).float().cpu().clone()
    widths = Widths.autoencoder(ref, width)
    made: dict[str, SparseAutoencoder] = {
        "ReLU": ReLU(widths, d_sae),
        "JumpReLU": JumpReLU(widths, d_sae),
        "TopK": TopK(widths, d_sae, k=32),
    }
    found = {}
    for kind, sae in made.items():
        sae.start_from({ref: sample}, "sqrt_d")
        with torch.no_grad():
            found[kind] = (sae.eval(), sae.encode(sample))
    return found


def described(sae: SparseAutoencoder, folder: Path) -> FeatureDictionary:
    """A feature dictionary for `sae` that holds nothing but its name."""
    save_sae(sae, folder / "sae")
    rows = [{"feature": i, "fires": 1, "frequency": 0.01, "max": 1.0, "tier": "unlabelled"} for i in range(sae.d_sae)]
    tables = {name: pa.Table.from_pylist([], schema=schema) for name, schema in TABLES.items()}
    tables["features"] = pa.Table.from_pylist(rows, schema=TABLES["features"])
    manifest: dict[str, Any] = {
        "sae": SavedSAE.open(folder / "sae").entry,
        "model": {"name": "builtin", "revision": None},
        "tokenizer": {"name": "builtin"},
        "corpus": {"name": "none", "fingerprint": "none"},
        "tokens": {"contexts": 1, "scores": 1},
        "seeds": {"contexts": 0, "scores": 0},
        "code_version": "none",
        "histogram_edges": [0.0, 1.0],
        "labels": {},
        "summary": {"features": sae.d_sae, "alive": sae.d_sae, "labelled": 0, "floors": {}},
    }
    write_dictionary(folder / "dictionary", tables, manifest)
    return FeatureDictionary.open(folder / "dictionary")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--d-sae", type=int, default=1536)
    parser.add_argument("--rate", type=float, default=0.01, help="share of tokens on which a feature fires")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    lm = LanguageModel.from_pretrained(device=given.device)
    prompts = [[0, *range(10, 14 + 3 * row)] for row in range(given.rows)]
    sampling = Sampling(max_new_tokens=given.new_tokens, min_new_tokens=given.new_tokens)

    with tempfile.TemporaryDirectory() as temporary:
        cases: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            "hooks alone": lambda: lm.intervene(SITE, lambda x: x)
        }
        for kind, (sae, latents) in dictionaries(lm, given.d_sae).items():
            folder = Path(temporary) / kind
            folder.mkdir()
            dictionary = described(sae, folder)
            limits = np.quantile(latents.numpy(), 1 - given.rate, axis=0)

            def watched(
                n: int,
                sae: SparseAutoencoder = sae,
                dictionary: FeatureDictionary = dictionary,
                limits: Any = limits,
                path: Path = folder / "events.jsonl",
            ) -> Callable[[], AbstractContextManager[Monitor]]:
                features = list(range(n))
                thresholds = {i: float(limits[i]) for i in features}
                return lambda: monitor(
                    lm, dictionary, sae=sae, features=features, thresholds=thresholds, sinks=JsonLines(path)
                )

            cases |= {f"{n} features, {kind}": watched(n) for n in (1, 10, 100)}
        measure(lm, prompts, sampling, given.rounds, cases)


def measure(
    lm: LanguageModel,
    prompts: list[list[int]],
    sampling: Sampling,
    rounds: int,
    cases: dict[str, Callable[[], AbstractContextManager[Any]]],
) -> None:
    def seconds(case: Callable[[], AbstractContextManager[Any]]) -> tuple[float, Any]:
        # Opening compares hashes, once; what runs inside is what is paid for each time.
        with case() as opened:
            start = time.perf_counter()
            generate_samples(lm, prompts, sampling=sampling, rows_at_once=len(prompts))
            taken = time.perf_counter() - start
        return taken, opened

    seconds(nullcontext)
    overheads: dict[str, list[float]] = {name: [] for name in cases}
    told: dict[str, str] = {}
    for _ in range(rounds):
        for name, case in cases.items():
            # One unmonitored run on each side: what else the machine does drifts.
            before = seconds(nullcontext)[0]
            taken, watch = seconds(case)
            after = seconds(nullcontext)[0]
            overheads[name].append(2 * taken / (before + after) - 1)
            if isinstance(watch, Monitor):
                told[name] = f"{sum(f.firings for f in watch.summary().features)} events, {watch.tokens} tokens"
    plain = statistics.median(seconds(nullcontext)[0] for _ in range(3))
    new = len(prompts) * sampling.max_new_tokens
    print(f"unmonitored: {plain:.3f} s, {new / plain:,.0f} tokens/s, {len(prompts)} rows")
    for name, found in overheads.items():
        low, _, high = statistics.quantiles(found, n=4)
        print(
            f"{name:24} {statistics.median(found):+7.1%}  (quartiles {low:+.1%} to {high:+.1%})  {told.get(name, '')}"
        )


if __name__ == "__main__":
    main()
