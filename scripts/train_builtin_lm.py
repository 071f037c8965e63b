"""Train the language model that ships with lightsae, on the text of Python's own standard library.

    python scripts/train_builtin_lm.py                     # writes src/lightsae/lm/builtin

A small Llama with its own byte-level BPE tokenizer. Training text: the train side of the corpus `builtin`, and the
train side of the standard library's test packages where the interpreter has them. Neither the model nor a dictionary
trained on the corpus ever sees the validation documents. Every draw is seeded. The model card states what came out,
beside gzip and a 5-gram model on the same held-out text.
"""

import argparse
import ctypes
import gzip
import json
import math
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lightsae.activations.corpus.builtin import standard_library_documents

BOS, EOS = "<|begin|>", "<|end|>"
# Words with their leading space, single digits, runs of punctuation, line breaks; indentation is a token of its own.
PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"


def main() -> None:
    args = _arguments()
    torch.manual_seed(args.seed)
    _keep_freed_memory()
    plain = [d.text for d in standard_library_documents("train")]
    tests = [d.text for d in standard_library_documents("train", tests=True)]
    held_out = [d.text for d in standard_library_documents("validation")]
    tokenizer = train_tokenizer(plain + tests, args.vocab_size)
    ids = {name: pack(tokenizer, texts) for name, texts in (("plain", plain), ("tests", tests), ("held_out", held_out))}
    bytes_held_out = sum(len(text.encode()) for text in held_out)
    print({name: f"{len(tokens):,} tokens" for name, tokens in ids.items()}, flush=True)

    model = build_model(args)
    parameters = sum(p.numel() for p in model.parameters())
    rows = torch.cat([to_rows(ids["plain"], args.context)] * 2 + [to_rows(ids["tests"], args.context)])
    print(f"{parameters:,} parameters, {rows.numel():,} tokens an epoch", flush=True)
    held_out_rows = to_rows(ids["held_out"], args.context)
    started = time.perf_counter()

    def save(step: int) -> None:
        nats = held_out_nats(model, held_out_rows)
        facts = {
            "parameters": parameters,
            "training_tokens": step * args.batch_tokens,
            "seconds": round(time.perf_counter() - started),
            "held_out_documents": len(held_out),
            "held_out_tokens": len(ids["held_out"]),
            "held_out_bytes": bytes_held_out,
            "bits_per_byte": nats / math.log(2) / bytes_held_out,
        }
        print(step, facts, flush=True)
        export(model, tokenizer, args.out, facts, args)

    train(model, rows, args, save)
    facts = json.loads((args.out / "facts.json").read_text())
    blob = "\n".join(held_out).encode()
    facts["gzip_bits_per_byte"] = 8 * len(gzip.compress(blob, 9)) / len(blob)
    ngram = ngram_nats(np.concatenate([ids["plain"], ids["tests"]]), ids["held_out"], args.vocab_size)
    facts["five_gram_bits_per_byte"] = ngram / math.log(2) / bytes_held_out
    export(model, tokenizer, args.out, facts, args)
    print(facts, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/lightsae/lm/builtin"))
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--hidden_size", type=int, default=192)
    parser.add_argument("--intermediate_size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch_tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--save_every", type=int, default=400)
    parser.add_argument("--matrix_lr", type=float, default=0.02)
    parser.add_argument("--embedding_lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks; giving them back costs a page fault per 4 KiB at every step (10% here)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer: any text round-trips, no token is unknown."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return all documents as one run of ids, each ended by EOS."""
    eos = tokenizer.token_to_id(EOS)
    assert eos is not None
    encoded = tokenizer.encode_batch_fast(texts)
    return np.concatenate([np.append(np.array(e.ids, dtype=np.int64), eos) for e in encoded])


def to_rows(ids: np.ndarray[Any, np.dtype[np.int64]], context: int) -> Tensor:
    """Cut a run of ids into rows of `context`, the first token of each BOS (id 0); the last row is filled with EOS."""
    body = context - 1
    count = -(-len(ids) // body)
    padded = np.full(count * body, 1, dtype=np.int64)
    padded[: len(ids)] = ids
    return F.pad(torch.from_numpy(padded).reshape(count, body), (1, 0), value=0)


def build_model(args: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=args.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        # Blocks start as the identity: what they write to the residual stream is zero at the first step.
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)
    return model


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean next-token loss whose logits exist a chunk at a time: (tokens, vocabulary) floats never leave the cache."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        half = weight.to(hidden.dtype)
        total = torch.zeros(())
        for h, y, g in zip(hidden.split(1024), targets.split(1024), grad_hidden.split(1024), strict=True):
            log_p = torch.log_softmax((h @ half.T).float(), -1)
            total += F.nll_loss(log_p, y, reduction="sum")
            p = log_p.exp_()
            p[torch.arange(len(y)), y] -= 1
            p = p.to(h.dtype)
            torch.mm(p, half, out=g)
            grad_weight += p.T @ h
        ctx.save_for_backward(grad_hidden / len(targets), grad_weight / len(targets))
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grads[0] * grad_hidden, grads[0] * grad_weight, None


def hidden_states(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, torch.bfloat16):
        out: Tensor = model.model(input_ids=rows, use_cache=False).last_hidden_state
    return out[:, :-1].flatten(0, 1).bfloat16()


def train(model: LlamaForCausalLM, rows: Tensor, args: argparse.Namespace, save: Any) -> None:
    """Muon for the matrices of the blocks, Adam for the rest; the learning rate falls linearly over the last 60%."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=args.matrix_lr, weight_decay=0.05),
        torch.optim.AdamW(others, lr=args.embedding_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    peaks = [args.matrix_lr, args.embedding_lr]
    per_step = args.batch_tokens // args.context
    order = torch.Generator().manual_seed(args.seed)
    queue = torch.empty(0, dtype=torch.long)
    started, running = time.perf_counter(), 0.0
    model.train()
    for step in range(1, args.steps + 1):
        if len(queue) < per_step:
            queue = torch.cat([queue, torch.randperm(len(rows), generator=order)])
        batch, queue = rows[queue[:per_step]], queue[per_step:]
        share = step / args.steps
        factor = min(1.0, step / 50, max(0.02, (1 - share) / 0.6))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        hidden = hidden_states(model, batch)
        loss = ChunkedCrossEntropy.apply(hidden, model.lm_head.weight, batch[:, 1:].flatten())  # type: ignore[no-untyped-call]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 20 == 0:
            rate = step * args.batch_tokens / (time.perf_counter() - started)
            print(f"step {step} loss {running:.3f} ({loss.item():.3f}) {rate:,.0f} tokens/s", flush=True)
        if step % args.save_every == 0 or step == args.steps:
            save(step)


@torch.no_grad()
def held_out_nats(model: LlamaForCausalLM, rows: Tensor) -> float:
    """Return the summed loss, in nats, of every token after a row's BOS; float32 logits, contexts never cross rows."""
    model.eval()
    total = 0.0
    for batch in rows.split(32):
        hidden = hidden_states(model, batch)
        for h, y in zip(hidden.split(1024), batch[:, 1:].flatten().split(1024), strict=True):
            logits = h.float() @ model.lm_head.weight.T
            total += F.cross_entropy(logits, y, reduction="sum").item()
    model.train()
    return total


def ngram_nats(train_ids: Any, test_ids: Any, vocab_size: int, order: int = 5) -> float:
    """Return the summed loss, in nats, of an interpolated Kneser-Ney model of the given order on `test_ids`.

    Source: Chen & Goodman 1999, sec. 2.7 (one discount an order, n1 / (n1 + 2 n2)).
    """

    def keys(ids: Any, n: int) -> Any:
        out = ids[: len(ids) - n + 1].copy()
        for i in range(1, n):
            out = out * vocab_size + ids[i : len(ids) - n + 1 + i]
        return out

    def look_up(table: Any, values: Any, wanted: Any) -> Any:
        at = np.searchsorted(table, wanted).clip(max=len(table) - 1)
        return np.where(table[at] == wanted, values[at], 0.0)

    # Continuation counts: how many distinct tokens precede an n-gram; the highest order counts occurrences.
    distinct = {n: np.unique(keys(train_ids, n), return_counts=True) for n in range(1, order + 1)}
    probability = np.full(len(test_ids), 1 / vocab_size)
    for n in range(1, order + 1):
        if n == order:
            grams, counts = distinct[n]
        else:
            grams, counts = np.unique(distinct[n + 1][0] % vocab_size**n, return_counts=True)
        discount = (counts == 1).sum() / ((counts == 1).sum() + 2 * (counts == 2).sum())
        context = grams // vocab_size
        contexts, first = np.unique(context, return_index=True)
        totals = np.add.reduceat(counts, first)
        types = np.diff(np.append(first, len(grams)))
        wanted = np.concatenate([np.full(n - 1, -1), keys(test_ids, n)])  # -1: no full context yet
        seen = look_up(grams, counts.astype(float), wanted)
        total = look_up(contexts, totals.astype(float), wanted // vocab_size)
        kinds = look_up(contexts, types.astype(float), wanted // vocab_size)
        backed_off = (np.maximum(seen - discount, 0) + discount * kinds * probability) / np.maximum(total, 1)
        probability = np.where(total > 0, backed_off, probability)
    return float(-np.log(probability).sum())


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path, facts: dict[str, Any], args: Any) -> None:
    """Write the model in bfloat16, tokenizer, facts and model card; the folder is replaced as a whole."""
    staging = out.with_name(out.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).save_pretrained(staging)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=args.context,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(staging)
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    facts = facts | machine
    (staging / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    (staging / "README.md").write_text(model_card(facts, args))
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)


def model_card(facts: dict[str, Any], args: argparse.Namespace) -> str:
    def figure(key: str) -> str:
        return f"{facts[key]:.3f}" if key in facts else "not measured yet"

    return f"""# The built-in language model

A Llama of {facts["parameters"]:,} parameters ({args.layers} layers of width {args.hidden_size}, {args.heads} heads,
vocabulary {args.vocab_size}, contexts of {args.context} tokens, tied embeddings, stored in bfloat16), made so that
lightsae runs, shows real features and tests itself without a network. It knows Python source code and the Python
language reference, and nothing else.

- Trained by `python scripts/train_builtin_lm.py --steps {args.steps}` on {facts["training_tokens"]:,} tokens of the
  standard library of Python {facts["python"]}: module sources, the `pydoc_data` topics, and the test packages.
  {facts["seconds"] / 60:.0f} minutes on 2 CPU cores that also did other work.
- Held out: {facts["held_out_documents"]} documents, {facts["held_out_bytes"]:,} bytes, chosen by a hash of the module
  name; the same documents are the validation split of the corpus `builtin`. No test package is among them.

| held-out text, bits per byte | |
|---|---|
| this model | **{figure("bits_per_byte")}** |
| 5-gram, interpolated Kneser-Ney, same tokens and training text | {figure("five_gram_bits_per_byte")} |
| gzip -9 | {figure("gzip_bits_per_byte")} |
"""


if __name__ == "__main__":
    main()
