"""The limit: how long the dense products with weights take that a step and the language model cannot do without.

    python -m speed.limit FOLDER OUT

Left out are attention's products of activations with each other and all that is no product of matrices: what a library
needs beside these products is its own. Sparse latents are no dense product: of a TopK SAE the encoder alone counts.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from speed.cases import Case

SECONDS, REPEATS = 0.5, 3
Product = tuple[int, int, int]  # (M, K) times (K, N)


def products_of_model(case: Case) -> dict[Product, int]:
    """Return the products of one forward pass up to the site, and how often each occurs."""
    tokens, d = case.rows_at_once * case.context, case.d_in
    blocks = case.layer + 1
    shapes = [(tokens, d, 3 * d), (tokens, d, d), (tokens, d, 4 * d), (tokens, 4 * d, d)]
    return dict.fromkeys(shapes, blocks)


def products_of_step(case: Case) -> dict[Product, int]:
    """Return those of one step of the SAE."""
    tokens, d, f = case.batch, case.d_in, case.d_sae
    encode = (tokens, d, f)
    if case.variant == "TopK":
        return {encode: 1}
    # Forward: encoder, decoder. Backward: latents (of the shape of the encoder's), and both weights.
    return {encode: 2, (tokens, f, d): 1, (d, tokens, f): 1, (f, tokens, d): 1}


def seconds(product: Product) -> tuple[float, float]:
    """Return the median times of a product of matrices, by the clock and of the CPU."""
    rows, inner, columns = product
    a, b, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    torch.mm(a, b, out=out)
    taken: list[tuple[float, float]] = []
    together = 0.0
    while len(taken) < REPEATS or together < SECONDS:
        start, cpu_start = time.perf_counter(), time.process_time()
        torch.mm(a, b, out=out)
        taken.append((time.perf_counter() - start, time.process_time() - cpu_start))
        together += taken[-1][0]
    clock, cpu = (statistics.median(times) for times in zip(*taken, strict=True))
    return clock, cpu


def measure(folder: Path, out: Path) -> None:
    case = Case.load(folder)
    clock = cpu = 0.0
    for products, tokens in (
        (products_of_model(case), case.rows_at_once * case.context),
        (products_of_step(case), case.batch),
    ):
        for product, count in products.items():
            by_clock, of_cpu = seconds(product)
            clock, cpu = clock + count * by_clock / tokens, cpu + count * of_cpu / tokens
    out.write_text(json.dumps({"tokens_per_second": 1 / clock, "tokens_per_cpu_second": 1 / cpu}))


if __name__ == "__main__":
    measure(*map(Path, sys.argv[1:]))
