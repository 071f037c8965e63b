"""Training steps of every variant alone, on activations in memory: milliseconds and tokens per second, medians.

    python benchmarks/steps.py --width 192 --d_sae 1536

2,048 tokens a step, k 16; forward, backward, clipping's preparation, Adam, constraints.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lightsae.sae import (
    BatchTopK,
    Gated,
    JumpReLU,
    LatentUsage,
    Matryoshka,
    Refinements,
    ReLU,
    SparseAutoencoder,
    TopK,
    Widths,
    mechanisms,
)
from lightsae.training.entries import merge_coefficients

TOKENS, K = 2048, 16
SECOND = Refinements(second_step=0.3)
CASES: dict[str, Callable[[Widths, int], SparseAutoencoder]] = {
    "ReLU": lambda w, d: ReLU(w, d),
    "TopK": lambda w, d: TopK(w, d, K),
    "TopK, second step": lambda w, d: TopK(w, d, K, refinements=SECOND),
    "BatchTopK": lambda w, d: BatchTopK(w, d, K),
    "BatchTopK, aligned, second step": lambda w, d: BatchTopK(w, d, K, refinements=Refinements(True, 0.3)),
    "Matryoshka over BatchTopK": lambda w, d: Matryoshka(w, d, mechanisms.BatchTopK(K)),
    "JumpReLU": lambda w, d: JumpReLU(w, d, target_l0=K),
    "Gated": lambda w, d: Gated(w, d),
}


def seconds_of_a_step(sae: SparseAutoencoder, batches: list[torch.Tensor], steps: int) -> float:
    """Return the median over steps, after two that warm up."""
    site = next(iter(sae.widths.read))
    sae.start_from({site: batches[0]}, "sqrt_d")
    usage, coefficients = LatentUsage(sae.d_sae, 10**7), merge_coefficients(sae)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)
    taken = []
    for step in range(steps + 2):
        start = time.perf_counter()
        x = batches[step % len(batches)]
        output = sae(x)
        terms = sae.loss_terms(x, output, usage)
        torch.stack([coefficients[term].at(step, steps + 2) * value for term, value in terms.items()]).sum().backward()
        usage.observe(output.latents)
        sae.observe(output)
        sae.before_step()
        optimizer.step()
        optimizer.zero_grad()
        sae.commit()
        usage.commit()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--d_sae", type=int, default=1536)
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, given.width, generator=generator)
    batches = [(torch.randn(TOKENS, 600, generator=generator) - 2).relu() @ features + 3 for _ in range(4)]
    for name, make in CASES.items():
        seconds = seconds_of_a_step(make(Widths.of(given.width), given.d_sae), batches, given.steps)
        print(f"{name:34s} {1000 * seconds:7.1f} ms {TOKENS / seconds:10,.0f} tokens/s")


if __name__ == "__main__":
    main()
