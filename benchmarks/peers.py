"""Variants beside other libraries' trainers: the same activations, tokens, width and judge.

    python benchmarks/peers.py activations.npy --d_sae 1024 --steps 3000 --seeds 3

`activations.npy`: (tokens, width) in any unit, shuffled (`small_model.py` makes one); the last 65,536 tokens judge. The
other libraries take part where they are installed (dictionary_learning, sae-lens). One line per training: fraction of
variance explained, latents per token, share of latents silent on the held-out tokens. Every trainer gets the warm-up
and the fall (a fifth each) of SAEModule; 2,048 tokens a step.
"""

import argparse
import importlib
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
    mechanisms,
)
from lightsae.sae.initialise import measure_scale
from lightsae.training.entries import merge_coefficients
from lightsae.training.optimiser import normalise_gradients
from lightsae.training.schedules import Schedule

TOKENS, HELD_OUT, SAMPLE = 2048, 65536, 16384
LR = Schedule(1.0, 0.2, 0.2)
Judged = Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> prediction, dense latents

OURS: dict[str, tuple[Callable[[Widths, int], SparseAutoencoder], dict[str, float]]] = {
    "TopK 4": (lambda w, f: TopK(w, f, 4), {}),
    "TopK 8": (lambda w, f: TopK(w, f, 8), {}),
    "TopK 16": (lambda w, f: TopK(w, f, 16), {}),
    "BatchTopK 8": (lambda w, f: BatchTopK(w, f, 8), {}),
    "JumpReLU 8": (lambda w, f: JumpReLU(w, f, target_l0=8), {}),
    "JumpReLU 16.1": (lambda w, f: JumpReLU(w, f, target_l0=16.1), {}),
    "Matryoshka 8": (lambda w, f: Matryoshka(w, f, mechanisms.BatchTopK(8)), {}),
    "ReLU": (lambda w, f: ReLU(w, f), {"l1": 0.75}),
    "ReLU, l1 0.65": (lambda w, f: ReLU(w, f), {"l1": 0.65}),
    "Gated": (lambda w, f: Gated(w, f), {}),
}
# Module, class and settings of dictionary_learning's trainers.
TRAINERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"TopK {k}": ("top_k", "TopKTrainer", {"k": k}) for k in (4, 8, 16)},
    "BatchTopK 8": ("batch_top_k", "BatchTopKTrainer", {"k": 8}),
    "JumpReLU 8": ("jumprelu", "JumpReluTrainer", {"target_l0": 8.0}),
    "Matryoshka 8": (
        "matryoshka_batch_top_k",
        "MatryoshkaBatchTopKTrainer",
        {"k": 8, "group_fractions": [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]},
    ),
}
# Module, class and settings of SAELens' SAEs.
LENS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"TopK {k}": ("topk_sae", "TopKTrainingSAE", {"k": k}) for k in (4, 8, 16)},
    "BatchTopK 8": ("batchtopk_sae", "BatchTopKTrainingSAE", {"k": 8.0}),
    "ReLU": ("standard_sae", "StandardTrainingSAE", {"l1_coefficient": 0.8}),
}


def train(
    variant: str, x: Tensor, lr: float | None, args: argparse.Namespace, seed: int, factor: float = 1.0
) -> Judged:
    """Train a variant as SAEModule does."""
    make, coefficients = OURS[variant]
    sae = make(Widths.of(x.shape[1]), args.d_sae)
    sae.reset_parameters(torch.Generator().manual_seed(seed))
    sae.start_from({next(iter(sae.widths.read)): x[:SAMPLE]}, "none")
    lr = lr or factor * sae.default_lr(args.steps)
    usage, schedules = LatentUsage(sae.d_sae, max(1, args.steps * TOKENS // 100)), merge_coefficients(sae, coefficients)
    adam = torch.optim.Adam(sae.parameters(), lr, sae.mechanism.adam_betas, sae.mechanism.adam_eps, fused=True)
    for step, batch in enumerate(batches(x, args.steps)):
        adam.param_groups[0]["lr"] = lr * LR.factor(step, args.steps)
        sae.progress = step / args.steps
        output = sae(batch)
        terms = sae.loss_terms(batch, output, usage)
        usage.observe(output.latents)
        sae.observe(output)
        adam.zero_grad()
        torch.stack([schedules[term].at(step, args.steps) * value for term, value in terms.items()]).sum().backward()
        sae.before_step()
        normalise_gradients(sae.parameters())
        adam.step()
        sae.commit()
        usage.commit()
    sae.eval()
    return lambda batch: (sae(batch).x_hat, sae.encode(batch))


def train_dictionary_learning(variant: str, x: Tensor, lr: float, args: argparse.Namespace, seed: int) -> Judged:
    module, name, settings = TRAINERS[variant]
    steps = args.steps
    trainer = getattr(importlib.import_module(f"dictionary_learning.trainers.{module}"), name)(
        steps=steps, activation_dim=x.shape[1], dict_size=args.d_sae, layer=0, lm_name="", lr=lr, seed=seed,
        device="cpu", warmup_steps=steps // 5, decay_start=steps * 4 // 5, **settings,
        **({"sparsity_warmup_steps": steps // 3} if variant == "JumpReLU 8" else {"threshold_start_step": steps // 2}),
    )  # fmt: skip
    for step, batch in enumerate(batches(x, steps)):
        trainer.update(step, batch)

    def judged(batch: Tensor) -> tuple[Tensor, Tensor]:
        latents = trainer.ae.encode(batch, **({"use_threshold": False} if variant.startswith("TopK") else {}))
        return trainer.ae.decode(latents), latents

    return judged


def train_sae_lens(variant: str, x: Tensor, lr: float, args: argparse.Namespace, seed: int) -> Judged:
    step_input = importlib.import_module("sae_lens.saes.sae").TrainStepInput
    name, kind, settings = LENS[variant]
    module = importlib.import_module(f"sae_lens.saes.{name}")
    torch.manual_seed(seed)
    sae = getattr(module, kind)(getattr(module, f"{kind}Config")(d_in=x.shape[1], d_sae=args.d_sae, **settings))
    adam = torch.optim.Adam(sae.parameters(), lr)
    silent = torch.zeros(args.d_sae)
    for step, batch in enumerate(batches(x, args.steps)):
        adam.param_groups[0]["lr"] = lr * LR.factor(step, args.steps)
        rise = min(1.0, (step + 1) / (args.steps / 20))
        coefficients = {term: rise * float(getattr(c, "value", c)) for term, c in sae.get_coefficients().items()}
        output = sae.training_forward_pass(step_input(batch, coefficients, silent > args.steps // 20, step, False))
        silent = torch.where(dense(output.feature_acts).any(0), 0, silent + 1)
        adam.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()

    def judged(batch: Tensor) -> tuple[Tensor, Tensor]:
        latents, pre = sae.encode_with_hidden_pre(batch)
        if hasattr(sae, "topk_threshold"):
            latents = torch.where(pre > sae.topk_threshold.float(), pre, 0).relu()
        return sae.decode(latents), dense(latents)

    return judged


def batches(x: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield consecutive batches; from the beginning again where the tokens end."""
    whole = len(x) // TOKENS
    for step in range(steps):
        yield x[(step % whole) * TOKENS :][:TOKENS].float()


def dense(latents: Tensor) -> Tensor:
    return latents.to_dense() if latents.is_sparse else latents


@torch.no_grad()
def judge(judged: Judged, held_out: Tensor) -> tuple[float, float, float]:
    """Return the fraction of variance explained, latents per token, and the share of silent latents."""
    error, counts = 0.0, torch.zeros(())
    for batch in held_out.split(4096):
        x_hat, latents = judged(batch)
        error += (batch - x_hat).double().square().sum().item()
        counts = counts + (latents > 0).sum(0)
    spread = (held_out - held_out.mean(0)).double().square().sum().item()
    return 1 - error / spread, counts.sum().item() / len(held_out), (counts == 0).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activations")
    parser.add_argument("--variants", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--d_sae", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--factors", nargs="*", type=float, default=[1.0, 0.5, 2.0], help="Of our default rates.")
    parser.add_argument("--rates", nargs="*", type=float, default=[1e-3, 4e-3], help="Of all libraries.")
    parser.add_argument("--peers_alone", action="store_true", help="Leave ours out at these rates.")
    args = parser.parse_args()
    raw = np.load(args.activations, mmap_mode="r")
    scale = measure_scale(torch.from_numpy(np.array(raw[:SAMPLE], dtype=np.float32)), "sqrt_d")
    x = torch.from_numpy(np.array(raw)) * scale
    x, held_out = x[:-HELD_OUT], x[-HELD_OUT:].float()

    for variant in args.variants:
        runs: dict[str, Callable[..., Judged]] = {
            f"default x {factor:g}": partial(train, variant, x, None, args, factor=factor) for factor in args.factors
        }
        for lr in args.rates:
            if not args.peers_alone:
                runs[f"{lr:g}"] = partial(train, variant, x, lr, args)
            for package, fit, has in (
                ("dictionary_learning", train_dictionary_learning, TRAINERS),
                ("sae_lens", train_sae_lens, LENS),
            ):
                if variant in has and importlib.util.find_spec(package):
                    runs[f"{lr:g}, {package}"] = partial(fit, variant, x, lr, args)
        for name, run in runs.items():
            fve, l0, dead = zip(*(judge(run(seed=seed), held_out) for seed in range(args.seeds)), strict=True)
            spread = f" +- {statistics.stdev(fve):.4f}" if args.seeds > 1 else ""
            figures = f"FVE {mean(fve):.4f}{spread}  L0 {mean(l0):.2f}  dead {mean(dead):.1%}"
            print(f"{variant:13s} {name:28s} {figures}", flush=True)


if __name__ == "__main__":
    main()
