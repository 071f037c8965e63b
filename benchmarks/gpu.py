"""What a card does with lightsae: right kernels, no waiting, exact resume, tokens per second. At most ten minutes.

    python benchmarks/gpu.py --out gpu.md                   # on a card, with the installed package
    python benchmarks/gpu.py --device cpu --tiny            # everything at a tiny size; no figure of it counts

Writes a table in Markdown with the card's name. Triton's kernels (`pip install lightsae[gpu]`) and other libraries
(sae-lens, eai-sparsify) take part where they are installed. Language models have the shapes of the named ones and
random weights; a forward pass ends at the middle layer. Exit code 1 if a check failed.
"""

import argparse
import copy
import importlib
import importlib.util
import io
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightsae.sae import (
    BatchTopK,
    Gated,
    JumpReLU,
    LatentUsage,
    Matryoshka,
    ReLU,
    SparseAutoencoder,
    TopK,
    Widths,
    kernels,
    mechanisms,
)
from lightsae.training.entries import merge_coefficients
from lightsae.training.optimiser import normalise_gradients

Make = Callable[[Widths, int], SparseAutoencoder]
STEPS_OF_RUN = 1000


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is run."""

    tokens: int
    k: int
    latents: tuple[int, ...]
    steps: int
    models: dict[str, tuple[str, dict[str, int]]]
    context: int


def shape(layers: int, width: int, inner: int, heads: int, kv: int, vocabulary: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads,
        "num_key_value_heads": kv, "vocab_size": vocabulary, "head_dim": max(8, width // heads),
    }  # fmt: skip


FULL = Scale(
    4096, 64, (16384, 65536, 131072), 20,
    {
        "GPT-2 small": ("gpt2", {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}),
        "Qwen2.5-0.5B": ("qwen2", shape(24, 896, 4864, 14, 2, 151936)),
        "Qwen3-8B": ("qwen3", shape(36, 4096, 12288, 32, 8, 151936)),
    },
    512,
)  # fmt: skip
TINY = Scale(
    32, 4, (96,), 2,
    {
        "GPT-2 small": ("gpt2", {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50}),
        "Qwen2.5-0.5B": ("qwen2", shape(2, 16, 24, 2, 1, 50)),
        "Qwen3-8B": ("qwen3", shape(2, 16, 24, 2, 1, 50)),
    },
    16,
)  # fmt: skip


def every_variant(k: int) -> dict[str, Make]:
    return {
        "ReLU": lambda w, f: ReLU(w, f),
        "TopK": lambda w, f: TopK(w, f, k),
        "BatchTopK": lambda w, f: BatchTopK(w, f, k),
        "Matryoshka": lambda w, f: Matryoshka(w, f, mechanisms.BatchTopK(k), order="frequency"),
        "JumpReLU": lambda w, f: JumpReLU(w, f, target_l0=float(k), start_l0=float(k)),
        "Gated": lambda w, f: Gated(w, f, start_l0=float(k)),
    }


class Training:
    """An SAE in training, step by step, as SAEModule trains it."""

    def __init__(self, make: Make, batches: list[Tensor], d_sae: int, bf16: bool = False) -> None:
        device, self.bf16 = batches[0].device, bf16
        sae = make(Widths.of(batches[0].shape[1]), d_sae)
        sae.reset_parameters(torch.Generator().manual_seed(0))
        self.sae, self.usage = sae.to(device), LatentUsage(d_sae, 20 * len(batches[0])).to(device)
        sae.start_from({next(iter(sae.widths.read)): batches[0]}, "sqrt_d")
        self.coefficients, self.batches, self.number = merge_coefficients(sae), batches, 0
        own = sae.mechanism
        self.adam = torch.optim.Adam(sae.parameters(), 1e-4, own.adam_betas, own.adam_eps, fused=True)

    def step(self) -> None:
        x, sae = self.batches[self.number % len(self.batches)], self.sae
        sae.progress = self.number / STEPS_OF_RUN
        with torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            output = sae(x)
            terms = sae.loss_terms(x, output, self.usage)
            weighted = [self.coefficients[t].at(self.number, STEPS_OF_RUN) * value for t, value in terms.items()]
            loss = torch.stack(weighted).sum()
        self.usage.observe(output.latents)
        sae.observe(output)
        self.adam.zero_grad()
        loss.backward()
        sae.before_step()
        normalise_gradients(sae.parameters())
        self.adam.step()
        sae.commit()
        self.usage.commit()
        self.number += 1

    def state(self) -> dict[str, Any]:
        return {"sae": self.sae.state_dict(), "usage": self.usage.state_dict(), "adam": self.adam.state_dict()}

    def resume(self, saved: bytes, number: int) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        for name, part in (("sae", self.sae), ("usage", self.usage), ("adam", self.adam)):
            part.load_state_dict(state[name])
        self.number = number


def activations(width: int, tokens: int, device: torch.device, count: int = 4) -> list[Tensor]:
    """Sums of a few of 600 directions around a mean; the same on every device."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(600, width, generator=generator).to(device)
    return [
        (torch.randn(tokens, 600, generator=generator).to(device) - 2).relu() @ directions + 3 for _ in range(count)
    ]


def equal(a: Any, b: Any) -> bool:
    """Whether two nested states agree in every bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


# -- checks ----------------------------------------------------------------------------------------------------------


def check_kernels(scale: Scale, device: torch.device) -> Iterator[tuple[str, str]]:
    """Each kernel against PyTorch's form in float64, at the largest size and at one that divides by nothing."""
    if not kernels.has_triton():
        yield "kernels", "left out: Triton is not installed"
        return
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        yield "kernels", "left out: they need a card (or TRITON_INTERPRET=1)"
        return
    jump_relu, sparse_products, topk = (
        importlib.import_module(f"lightsae.sae.kernels.{name}") for name in ("jump_relu", "sparse_products", "topk")
    )
    generator = torch.Generator().manual_seed(0)
    for tokens, width, latents, k in (
        (min(1024, scale.tokens), 8 * scale.k, max(scale.latents), scale.k),
        (min(37, scale.tokens // 4), 131, 1009, 7),
    ):
        for dtype in kernels.DTYPES:
            pre = torch.randn(tokens, latents, generator=generator).to(device, dtype)
            table, rows = (torch.randn(n, width, generator=generator).to(device, dtype) for n in (latents, tokens))
            name, near = (
                f"{tokens} x {latents}, {str(dtype).removeprefix('torch.')}",
                2e-2 if dtype.itemsize == 2 else 1e-4,
            )

            def close(a: Tensor, b: Tensor, near: float = near) -> str:
                off = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
                return "right" if off < near else f"WRONG: off by {off:.1e}"

            values, indices = topk.topk_relu(pre, k)
            same = torch.equal(values.sort(1).values, pre.topk(k, dim=1).values.relu().sort(1).values)
            yield f"topk, {name}", "right" if same and torch.equal(values, pre.gather(1, indices).relu()) else "WRONG"
            flat, entries = values.flatten(), indices.flatten()
            offsets = torch.arange(0, tokens * k + 1, k, device=device)
            bag = torch.nn.functional.embedding_bag
            expected = bag(entries, table.double(), offsets, mode="sum", per_sample_weights=flat.double(),
                           include_last_offset=True)  # fmt: skip
            decoded = sparse_products.weighted_rows(table, entries, offsets, flat)
            yield f"decode, {name}", close(decoded, expected)
            again = sparse_products.weighted_rows(table, entries, offsets, flat)
            yield f"decode twice, {name}", "same bits" if torch.equal(decoded, again) else "WRONG: other bits"
            token_of = torch.arange(tokens, device=device).repeat_interleave(k)
            products = sparse_products.row_products(rows, table, token_of, entries)
            yield f"row products, {name}", close(products, (rows.double()[token_of] * table.double()[entries]).sum(1))
            theta = torch.rand(latents, generator=generator).to(device)
            grad = torch.randn(tokens, latents, generator=generator).to(device, dtype)
            above, around = pre > theta, (pre - theta).abs() <= 0.35
            grad_pre, of_theta = jump_relu.backward(pre, theta, grad, 0.7)
            same = torch.equal(jump_relu.forward(pre, theta), torch.where(above, pre, 0))
            same &= torch.equal(grad_pre, torch.where(above, grad, 0))
            same &= torch.equal(jump_relu.counts(pre, theta, None), above.sum(0).float())
            yield f"JumpReLU, {name}", "right" if same else "WRONG"
            yield f"JumpReLU's threshold, {name}", close(of_theta, torch.where(around, grad, 0).double().sum(0))


@contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_steps(scale: Scale, device: torch.device) -> Iterator[tuple[str, str]]:
    """That no step waits for the card after the first refresh, and that a resumed training ends in the same bits."""
    batches = activations(64, 16 * scale.k, device)
    with_kernels = ("0", "1") if device.type == "cuda" and kernels.has_triton() else ("0",)
    for (variant, make), asked in itertools.product(every_variant(scale.k).items(), with_kernels):
        os.environ[kernels.VARIABLE] = asked
        name = f"{variant}, kernels" if asked == "1" else variant
        whole = Training(make, batches, 32 * scale.k)
        for _ in range(LatentUsage.REFRESH_STEPS + 1):
            whole.step()
        buffer, number = io.BytesIO(), whole.number
        torch.save(whole.state(), buffer)
        try:
            with waiting_is_an_error(device):
                for _ in range(2 * LatentUsage.REFRESH_STEPS):
                    whole.step()
        except RuntimeError as error:
            yield f"waits in a step, {name}", f"WRONG: {str(error).splitlines()[0]}"
            continue
        yield f"waits in a step, {name}", "none" if device.type == "cuda" else "not looked for: no card"
        resumed = Training(make, batches, 32 * scale.k)
        resumed.resume(buffer.getvalue(), number)
        for _ in range(2 * LatentUsage.REFRESH_STEPS):
            resumed.step()
        yield f"resume, {name}", "same bits" if equal(whole.state(), resumed.state()) else "WRONG: other bits"


# -- speed -----------------------------------------------------------------------------------------------------------


def seconds(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """Return the median time of a step; the card is waited for once per step, and three warm up."""
    taken = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[3:])


@torch.no_grad()
def language_model(kind: str, sizes: dict[str, int], scale: Scale, device: torch.device) -> Callable[[], object]:
    """Return a forward pass over `scale.tokens` tokens, as far as the middle layer, in bfloat16."""
    from transformers import AutoConfig, AutoModel

    layers = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    special = {"bos_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model(kind, **(sizes | special | {layers: sizes[layers] // 2}))
    with device:
        model = AutoModel.from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.randint(sizes["vocab_size"], (max(1, scale.tokens // scale.context), scale.context), device=device)

    def forward() -> object:
        with torch.inference_mode():
            return model(ids, use_cache=False)

    return forward


def ours(make: Make, batches: list[Tensor], d_sae: int, bf16: bool) -> Callable[[], object]:
    """Return a training step of lightsae."""
    return Training(make, batches, d_sae, bf16).step


def sae_lens(mechanism: str, d_sae: int, k: int, batches: list[Tensor]) -> Callable[[], object]:
    """Return a training step of SAELens."""
    package = importlib.import_module("sae_lens")
    name, settings = ("TopK", {"k": k}) if mechanism == "TopK" else ("JumpReLU", {})
    device = batches[0].device
    made = getattr(package, f"{name}TrainingSAEConfig")(
        d_in=batches[0].shape[1], d_sae=d_sae, device=str(device), **settings
    )
    sae = getattr(package, f"{name}TrainingSAE")(made).to(device)
    step_input = importlib.import_module("sae_lens.saes.sae").TrainStepInput
    adam, dead = torch.optim.Adam(sae.parameters(), 1e-4), torch.zeros(d_sae, dtype=torch.bool, device=device)
    coefficients = {term: float(getattr(c, "value", c)) for term, c in sae.get_coefficients().items()}

    def step() -> None:
        adam.zero_grad()
        sae.training_forward_pass(step_input(batches[0], coefficients, dead, 0, False)).loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()

    return step


def sparsify(mechanism: str, d_sae: int, k: int, batches: list[Tensor]) -> Callable[[], object]:
    """Return a training step of sparsify, which has TopK alone."""
    package = importlib.import_module("sparsify")
    settings = importlib.import_module("sparsify.config").SparseCoderConfig(num_latents=d_sae, k=k)
    sae = package.SparseCoder(batches[0].shape[1], settings, device=batches[0].device)
    adam = torch.optim.Adam(sae.parameters(), 1e-4)

    def step() -> None:
        adam.zero_grad()
        sae(batches[0]).fvu.backward()
        adam.step()
        sae.set_decoder_norm_to_unit_norm()

    return step


def ways(
    mechanism: str, d_sae: int, scale: Scale, batches: list[Tensor]
) -> dict[str, tuple[bool, Callable[[], Callable[[], object]]]]:
    """Return, by name, whether Triton's kernels are on, and what makes a training step."""
    make, on_card = every_variant(scale.k)[mechanism], batches[0].is_cuda
    made: dict[str, tuple[bool, Callable[[], Callable[[], object]]]] = {}
    for precision, bf16 in (("float32", False), ("bf16-mixed", True)):
        made[f"lightsae, {precision}"] = (False, partial(ours, make, batches, d_sae, bf16))
        if on_card and kernels.has_triton():
            made[f"lightsae, {precision}, kernels"] = (True, partial(ours, make, batches, d_sae, bf16))
    for name, package, of in (("SAELens", "sae_lens", sae_lens), ("sparsify", "sparsify", sparsify)):
        if importlib.util.find_spec(package) and (package == "sae_lens" or mechanism == "TopK"):
            made[f"{name}, float32"] = (False, partial(of, mechanism, d_sae, scale.k, batches))
    return made


def speeds(scale: Scale, device: torch.device, end: float) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table; what does not fit the memory, or the time, says so."""
    for model, (kind, sizes) in scale.models.items():
        width = sizes.get("hidden_size", sizes.get("n_embd", 0))
        figures = timed(partial(language_model, kind, sizes, scale, device), scale, device, end)
        yield (model, "", "language model", "half of the layers, bfloat16", *figures)
        batches = activations(width, scale.tokens, device)
        for d_sae in scale.latents:
            for mechanism in ("TopK", "JumpReLU"):
                for name, (asked, make) in ways(mechanism, d_sae, scale, batches).items():
                    os.environ[kernels.VARIABLE] = "1" if asked else "0"
                    yield (model, f"{d_sae:,}", mechanism, name, *timed(make, scale, device, end))


def timed(
    make: Callable[[], Callable[[], object]], scale: Scale, device: torch.device, end: float
) -> tuple[str, str, str]:
    """Return tokens per second, milliseconds of a step and the most GPU memory, or why there are none."""
    if time.monotonic() > end:
        return "left out: out of time", "", ""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        taken = seconds(make(), device, scale.steps)
    except torch.OutOfMemoryError:
        return "out of memory", "", ""
    except Exception as error:  # another library, or another version of it
        return f"failed: {type(error).__name__}: {str(error)[:60]}".replace("|", "/").replace("\n", " "), "", ""
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device.type == "cuda" else "-"
    return f"{scale.tokens / taken:,.0f}", f"{1000 * taken:.2f}", peak


# -- report ----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="Sizes at which everything runs in seconds.")
    parser.add_argument("--minutes", type=float, default=9.0, help="Begin nothing new after these.")
    parser.add_argument("--out", type=Path, help="Markdown file to write; left out: the terminal alone.")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but PyTorch finds no card here; write --device cpu --tiny")
    device, scale = torch.device(args.device), copy.deepcopy(TINY if args.tiny else FULL)
    end = time.monotonic() + 60 * args.minutes
    card = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {platform.machine()}"
    lines: list[str] = []

    def say(line: str = "") -> None:
        lines.append(line)
        print(line, flush=True)

    size = "tiny sizes, of which no figure counts" if args.tiny else f"{scale.tokens:,} tokens a step, k {scale.k}"
    products = torch.get_float32_matmul_precision()
    say(f"# {card}\n\nPyTorch {torch.__version__}, {size}; products in float32 at precision {products!r}.\n")
    say("| check | |\n|---|---|")
    failed = False
    for check in (check_kernels, check_steps):
        for name, result in check(scale, device):
            failed |= "WRONG" in result
            say(f"| {name} | {result} |")
    say("\n| shape | latents | | | tokens/s | ms a step | GiB |\n|---|---|---|---|---|---|---|")
    for row in speeds(scale, device, end):
        say(f"| {' | '.join(row)} |")
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
