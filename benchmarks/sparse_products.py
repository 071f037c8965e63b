"""Ways to decode sparse latents and to form the gradient of the decoder, timed in turn.

    python benchmarks/sparse_products.py --tokens 2048 --width 192 --latents 3072 --k 20

Each figure is the median of the repetitions, in milliseconds; the ways take turns, so that a slow moment of the machine
hits all of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lightsae.sae.sparse_ops import SparseLatents, decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 2048), ("width", 192), ("latents", 3072), ("k", 20), ("repeats", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    pre = torch.randn(given.tokens, given.latents)
    W = torch.randn(given.latents, given.width, requires_grad=True)
    upstream = torch.randn(given.tokens, given.width)
    values, indices = pre.topk(given.k, dim=1, sorted=False)
    sparse = SparseLatents.from_rows(values, indices, given.latents)
    dense = sparse.to_dense()

    def gathered() -> Tensor:
        return torch.einsum("tk,tkd->td", values, W[indices])

    def index_added() -> Tensor:
        rows = values.reshape(-1, 1) * upstream.repeat_interleave(given.k, 0)
        return torch.zeros_like(W).index_add(0, indices.reshape(-1), rows)

    def through(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(forward(), W, upstream)[0]

    ways: dict[str, Callable[[], Tensor]] = {
        "decode: embedding_bag (lightsae)": lambda: decode(sparse, W.detach()),
        "decode: gather and einsum": lambda: gathered().detach(),
        "decode: dense product": lambda: dense @ W.detach(),
        "decode and gradient of W_dec: embedding_bag (lightsae)": through(lambda: decode(sparse, W)),
        "decode and gradient of W_dec: gather and einsum": through(gathered),
        "decode and gradient of W_dec: dense product": through(lambda: dense @ W),
        "gradient of W_dec: index_add": index_added,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {vars(given)}")
    for name, times in seconds.items():
        print(f"{statistics.median(times) * 1e3:9.2f} ms  {name}")


if __name__ == "__main__":
    main()
