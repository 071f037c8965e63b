"""The cost of steering: a steered `generate` against the same one unsteered, with the KV cache.

    python benchmarks/steering.py
    python benchmarks/steering.py --rows 8 --new-tokens 64 --rounds 15

The built-in model, with dictionaries of random weights at resid_post.2 (8 latents a width): what they hold does not
change the cost. Prompts are padded on the left, all texts have the same length, and steered and unsteered runs take
turns. Prints the median over the rounds of steered / unsteered - 1. Targets: at most 5% for add, and for clamp where a
latent is computed from its own column (ReLU, JumpReLU, Gated); for the TopK family one encode a token, also checked.
`hooks alone` holds a hook that does nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lightsae.analysis.steering import Ablate, Add, Clamp, Fires, Sampling, Steering, generate_samples, steer
from lightsae.lm import LanguageModel
from lightsae.sae import BatchTopK, Gated, JumpReLU, ReLU, SiteRef, SparseAutoencoder, TopK, Widths

SITE = "resid_post.2"


def dictionaries(lm: LanguageModel, d_sae: int) -> dict[str, SparseAutoencoder]:
    """Dictionaries whose scales and thresholds fit the model's activations."""
    ref, width = SiteRef(lm.name, SITE), lm.width(SITE)
    rows = torch.randint(2, 4000, (16, 128), generator=torch.Generator().manual_seed(0))
    sample = {ref: lm.capture(rows, [SITE])[SITE][:, 1:].flatten(0, 1).clone()}
    widths = Widths.autoencoder(ref, width)
    made: dict[str, SparseAutoencoder] = {
        "ReLU": ReLU(widths, d_sae),
        "JumpReLU": JumpReLU(widths, d_sae),
        "Gated": Gated(widths, d_sae),
        "TopK": TopK(widths, d_sae, k=32),
        "BatchTopK": BatchTopK(widths, d_sae, k=32),
    }
    for sae in made.values():
        sae.start_from(sample, "sqrt_d")
        sae.eval()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--d-sae", type=int, default=1536)
    given = parser.parse_args()
    lm = LanguageModel.from_pretrained()
    saes = dictionaries(lm, given.d_sae)
    prompts = [[0, *range(10, 14 + 3 * row)] for row in range(given.rows)]
    sampling = Sampling(max_new_tokens=given.new_tokens, min_new_tokens=given.new_tokens)

    def steered(kind: str, *interventions: Any) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: steer(lm, interventions, sae=saes[kind], mean_norm=60.0)

    cases: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "hooks alone": lambda: lm.intervene(SITE, lambda x: x),
        "add": steered("ReLU", Add(3, 0.5)),
        "add, three": steered("ReLU", Add(3, 0.5), Add(4, 0.2), Add(5, 0.1)),
    }
    for kind in saes:
        cases[f"clamp, {kind}"] = steered(kind, Clamp(3, 2.0))
    cases["clamp, add where it fires, ablate, ReLU"] = steered(
        "ReLU", Clamp(3, 2.0), Add(4, 0.2, when=Fires()), Ablate(5)
    )

    def seconds(case: Callable[[], AbstractContextManager[Any]]) -> tuple[float, Any]:
        start = time.perf_counter()
        with case() as steering:
            generate_samples(lm, prompts, sampling=sampling, rows_at_once=given.rows)
        return time.perf_counter() - start, steering

    seconds(nullcontext)
    overheads: dict[str, list[float]] = {name: [] for name in cases}
    tokens = given.rows * (max(map(len, prompts)) + given.new_tokens - 1)
    for _ in range(given.rounds):
        for name, case in cases.items():
            # One unsteered run on each side: what else the machine does drifts.
            before = seconds(nullcontext)[0]
            taken, steering = seconds(case)
            after = seconds(nullcontext)[0]
            overheads[name].append(2 * taken / (before + after) - 1)
            if isinstance(steering, Steering):
                assert steering.encodes <= tokens, (name, steering.encodes, tokens)
    plain = statistics.median(seconds(nullcontext)[0] for _ in range(3))
    print(f"unsteered: {plain:.3f} s, {given.rows * given.new_tokens / plain:,.0f} tokens/s, {given.rows} rows")
    for name, found in overheads.items():
        quartiles = statistics.quantiles(found, n=4)
        print(f"{name:42} {statistics.median(found):+7.1%}  (quartiles {quartiles[0]:+.1%} to {quartiles[2]:+.1%})")


if __name__ == "__main__":
    main()
