"""Texts from a language model: n samples per prompt, in padded batches; the same seed gives the same draws.

A batch draws from a generator keyed by (seed, batch), so that the steered model and the baseline, asked for the same
prompts, draw the same numbers: with nothing steered the texts are the same, token by token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from lightsae.errors import ConfigError, ModelError, arg
from lightsae.lm import LanguageModel
from lightsae.lm.devices import device_of
from lightsae.lm.model import name_of
from lightsae.progress import NullProgress, Progress
from lightsae.randomness import keyed_generator

SILENCE = NullProgress()


@dataclass(frozen=True)
class Samples:
    """What was generated, by prompt and sample; the prompts are not repeated in it.

    Attributes:
        prompts: Token ids of each prompt, BOS in front if the model has one.
        texts: Texts without special tokens, `texts[prompt][sample]`.
        tokens: Token ids, up to the end-of-sequence token and with it, `tokens[prompt][sample]`.
    """

    prompts: list[list[int]]
    texts: list[list[str]]
    tokens: list[list[list[int]]]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: Temperature of the softmax; 0: always the likeliest token.
        top_p: Only the likeliest tokens that make up this share are drawn from.
        max_new_tokens: Most tokens per sample.
        min_new_tokens: Fewest tokens per sample: the text does not end earlier.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 100
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError("temperature", self.temperature, "write 0 (the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", self.top_p, "write a share above 0, up to 1")
        if self.max_new_tokens < 1:
            raise ConfigError("max_new_tokens", self.max_new_tokens, "write 1 or more")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError("min_new_tokens", self.min_new_tokens, "write 0 to max_new_tokens")


def generate_samples(
    model: Any,
    prompts: Sequence[str | Sequence[int]],
    *,
    tokenizer: Any = None,
    samples: int = 1,
    seed: int = 0,
    sampling: Sampling = Sampling(),
    rows_at_once: int = 32,
    progress: Progress = SILENCE,
) -> Samples:
    """Continue prompts with transformers' `generate`; open it inside `steer` for steered texts.

    The model's own generation settings (top_k, repetition penalty ...) do not count. Torch's global random state is as
    before afterwards.

    Args:
        model: A LanguageModel with its head, or a transformers model that generates.
        prompts: Texts, which get BOS in front if the tokenizer has one and they do not begin with it, or token ids,
            which are taken as they are.
        tokenizer: Needed for a transformers model; a LanguageModel brings its own.
        samples: Texts per prompt.
        seed: Seed for sampling.
        sampling: Temperature, top-p, length.
        rows_at_once: Texts per batch; another number draws other texts.
        progress: Told of the texts that are done.

    Raises:
        ConfigError: A prompt is empty, or does not leave room for the new tokens; or a number does not fit.
        ModelError: The model does not generate, or has no tokenizer.
    """
    inner = model.model if isinstance(model, LanguageModel) else model
    _check(model, inner, prompts, samples, rows_at_once, sampling)
    tokenizer = model.tokenizer if isinstance(model, LanguageModel) and tokenizer is None else tokenizer
    if tokenizer is None:
        missing = f"{arg('tokenizer')} is missing: a transformers model does not bring its own; write tokenizer=..."
        raise ModelError(missing)
    ids = [_encoded(prompt, tokenizer) for prompt in prompts]
    _check_room(inner, ids, sampling)
    settings = _settings(inner, tokenizer, sampling)
    owners = [number for number in range(len(ids)) for _ in range(samples)]
    made: list[list[list[int]]] = [[] for _ in ids]
    device = model.device if isinstance(model, LanguageModel) else device_of(model)
    devices = [device] if device.type == "cuda" else []
    with progress.stage("generate", len(owners)) as done, torch.random.fork_rng(devices=devices):
        for batch, start in enumerate(range(0, len(owners), rows_at_once)):
            part = owners[start : start + rows_at_once]
            tokens, mask = padded([ids[owner] for owner in part], settings.pad_token_id, device)
            torch.manual_seed(keyed_generator(seed, "generate", batch).initial_seed())
            rows = inner.generate(tokens, attention_mask=mask, generation_config=settings)[:, tokens.shape[1] :]
            for owner, row in zip(part, rows.tolist(), strict=True):
                made[owner].append(_until_end(row, settings.eos_token_id))
            done(start + len(part))
    texts = [[tokenizer.decode(row, skip_special_tokens=True) for row in rows] for rows in made]
    return Samples(ids, texts, made)


def padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device, side: str = "left"
) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B S"]]:
    """Return rows of tokens, padded on one side, and what is real of them: 1, else 0."""
    tokens = [torch.tensor(row, dtype=torch.long) for row in rows]
    fill = partial(pad_sequence, batch_first=True, padding_side=side)
    return fill(tokens, padding_value=pad).to(device), fill([torch.ones_like(row) for row in tokens]).to(device)


def encode_prompts(model: LanguageModel, prompts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of prompts, BOS in front if the model has one.

    Raises:
        ConfigError: A prompt is empty, and there is no BOS.
    """
    return [_encoded(prompt, model.tokenizer) for prompt in prompts]


def _check(model: Any, inner: Any, prompts: Sequence[Any], samples: int, rows: int, sampling: Sampling) -> None:
    if (isinstance(model, LanguageModel) and not model.has_next_token_head) or not hasattr(inner, "generate"):
        raise ModelError(f"{name_of(model)!r} is in memory without a next-token head, so it generates no text.")
    if isinstance(prompts, str) or not prompts:
        raise ConfigError("prompts", prompts, "write a list of at least one prompt")
    if samples < 1 or rows < 1:
        raise ConfigError(f"{arg('samples')} is {samples} and {arg('rows_at_once')} is {rows}; write 1 or more.")
    if sampling.temperature == 0 and samples > 1:
        raise ConfigError(
            f"{arg('samples')} is {samples}, but with temperature 0 they are all the same; write samples=1."
        )


def _encoded(prompt: str | Sequence[int], tokenizer: Any) -> list[int]:
    if not isinstance(prompt, str):
        ids = [int(token) for token in prompt]
    else:
        ids = list(tokenizer.encode(prompt, add_special_tokens=False))
        bos = tokenizer.bos_token_id
        # A prompt that was copied with its BOS has one: a second one would move every position.
        ids = ids if bos is None or ids[:1] == [bos] else [bos, *ids]
    if not ids:
        raise ConfigError("a prompt is empty, and the model has no token that opens a text; write some words.")
    return ids


def _check_room(inner: Any, ids: list[list[int]], sampling: Sampling) -> None:
    longest = max(map(len, ids))
    context = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest + sampling.max_new_tokens > context:
        raise ConfigError(
            f"max_new_tokens is {sampling.max_new_tokens} and the longest prompt has {longest} tokens, but the model "
            f"takes {context} in all; write {max(context - longest, 0)} or fewer, or shorter prompts."
        )


def _settings(inner: Any, tokenizer: Any, sampling: Sampling) -> GenerationConfig:
    # Some models end with one of several tokens, which the tokenizer does not know of.
    own = getattr(inner, "generation_config", None)
    end = getattr(own, "eos_token_id", None)
    end = tokenizer.eos_token_id if end is None else end
    first = end[0] if isinstance(end, list) else end
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (0 if first is None else first)
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
    return GenerationConfig(
        do_sample=sampling.temperature > 0,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens,
        eos_token_id=end,
        pad_token_id=pad,
        use_cache=True,
        **drawn,
    )


def _until_end(row: list[int], end: int | list[int] | None) -> list[int]:
    ends = {end} if isinstance(end, int) else set(end or ())
    return next((row[: place + 1] for place, token in enumerate(row) if token in ends), row)
