"""A small language model that has nothing to do with the built-in one, and its activations, for `peers.py`.

    python benchmarks/small_model.py small.npy

A Llama of width 64 with 512 tokens and four blocks learns the docstrings of the packages that are installed beside this
Python; what leaves its third block goes to a file, tokens in random order, float16. One CPU core: five minutes.
"""

import argparse
import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

WIDTH, VOCABULARY, CONTEXT, ROWS, RATE = 64, 512, 128, 24, 3e-3
CHARACTERS = 16_000_000


def docstrings() -> Iterator[str]:
    """Yield the docstrings of each installed module with some, in a drawn order that is always the same."""
    characters, paths = 0, sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    for place in np.random.default_rng(0).permutation(len(paths)).tolist():
        try:
            tree = ast.parse(paths[place].read_text())
        except (SyntaxError, ValueError):
            continue
        holders = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
        text = "\n\n".join(docstring for node in holders if (docstring := ast.get_docstring(node)))
        if len(text) > 500:
            yield text
            if (characters := characters + len(text)) > CHARACTERS:
                return


def rows_of(texts: list[str]) -> Tensor:
    """Return (rows, CONTEXT) token ids, a mark in front of each text; the tokenizer learns from the first texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts[:800], trainer)
    ids = np.concatenate([np.array([0, *encoded.ids], np.int64) for encoded in tokenizer.encode_batch(texts)])
    return torch.from_numpy(ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT))


def trained(rows: Tensor, steps: int) -> LlamaForCausalLM:
    """Return a model that has learned from rows drawn at random."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    learn(model, rows, steps, RATE, ROWS, rise=100, weight_decay=0.1)
    return model


def learn(
    model: PreTrainedModel, rows: Tensor, steps: int, rate: float, batch: int, *, rise: int, weight_decay: float
) -> None:
    """Train a language model on random rows; the rate rises over some steps, and falls over the last two thirds."""
    adam = torch.optim.AdamW(model.parameters(), rate, weight_decay=weight_decay)
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * min(1, (step + 1) / rise, 1.5 * (steps - step) / steps)
        drawn = rows[torch.randint(len(rows), (batch,))]
        loss = model(drawn, labels=drawn).loss
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}, loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activations", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=6_250_000)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = rows_of(list(docstrings()))
    rows = rows[torch.randperm(len(rows))]
    model = trained(rows, args.steps)
    with torch.no_grad():
        parts = [
            # The first token of a row is a sink.
            model.model(part, output_hidden_states=True).hidden_states[3][:, 1:].reshape(-1, WIDTH).half().numpy()
            for part in rows[: args.tokens // (CONTEXT - 1)].split(256)
        ]
    activations = np.concatenate(parts)
    np.random.default_rng(0).shuffle(activations)
    np.save(args.activations, activations)
    print(f"{len(activations):,} tokens in {args.activations}")


if __name__ == "__main__":
    main()
