"""What a language model makes of texts that were generated: how likely they are, what it expects next.

Axes: n texts, L generated positions, V vocabulary.

The prompt is one pass, padded on the left; the text is another on top of its KV cache. So the tokens that `generate`
steered are steered here too, whatever the scope: all, generated, or positions.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightsae.lm import LanguageModel
from lightsae.lm.generate import padded
from lightsae.lm.hooks import hooked


@dataclass(frozen=True)
class Reading:
    """What a model expected along some texts.

    Attributes:
        log_probs: (n, L, V) log-probabilities of the next token, before each generated one; float32.
        tokens: (n, L) generated tokens.
        there: (n, L) False beyond a text's end.
    """

    log_probs: Float[Tensor, "n L V"]
    tokens: Int[Tensor, "n L"]
    there: Bool[Tensor, "n L"]

    def surprise(self) -> Float[Tensor, " n"]:
        """Return the mean -log p of each text's tokens, in nats."""
        return self.mean(-self.log_probs.gather(2, self.tokens[..., None])[..., 0])

    def mass(self, tokens: Sequence[int]) -> Float[Tensor, " n"]:
        """Return the probability of some tokens taken together, mean over each text."""
        return self.mean(self.log_probs[..., list(tokens)].exp().sum(-1))

    def divergence(self, other: "Reading") -> Float[Tensor, " n"]:
        """Return KL(self || other), mean over each text, in nats per token."""
        return self.mean((self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1))

    def mean(self, values: Float[Tensor, "n L"]) -> Float[Tensor, " n"]:
        """Return each text's mean over its tokens."""
        return (values * self.there).sum(1) / self.there.sum(1).clamp(min=1)


@torch.no_grad()
def read(
    model: LanguageModel, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], pad: int = 0
) -> Reading:
    """Return what the model, steered or not, makes of texts after their prompts; all in one batch.

    Args:
        model: With its head.
        prompts: (n,) token ids, none empty.
        texts: (n,) token ids, not all of them empty.
        pad: Any token; it is masked.
    """
    device = model.device
    opened, real = padded(prompts, pad, device)
    tokens, there = padded(texts, pad, device, side="right")
    before, length = opened.shape[1], tokens.shape[1]
    mask = torch.cat([real, torch.ones_like(tokens)], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    # Some models work positions out from the mask, and take none.
    takes = "position_ids" in inspect.signature(model.model.forward).parameters

    def placed(part: slice) -> dict[str, Tensor]:
        return {"position_ids": places[:, part]} if takes else {}

    first = model.model(opened, attention_mask=mask[:, :before], use_cache=True, **placed(slice(before)))
    logits = [first.logits[:, -1:]]
    if length > 1:
        # What comes after the last token is not needed.
        rest = model.model(
            tokens[:, :-1],
            attention_mask=mask[:, :-1],
            past_key_values=first.past_key_values,
            use_cache=True,
            **placed(slice(before, -1)),
        )
        logits.append(rest.logits)
    return Reading(torch.cat(logits, 1).float().log_softmax(-1), tokens, there.bool())


@contextmanager
def watched(model: LanguageModel, sites: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """While open, note the activations at some sites: by site, one (B, S, D) per pass. Open steering is seen."""
    seen: dict[str, list[Tensor]] = {site: [] for site in sites}

    def note(kept: list[Tensor], x: Tensor) -> None:
        # A copy: a later module could write in place.
        kept.append(x.detach().clone())

    with ExitStack() as stack:
        for site, kept in seen.items():
            stack.enter_context(hooked(model.model, model.site(site), partial(note, kept), model.device))
        yield seen


def in_parts(count: int, at_once: int) -> Iterator[slice]:
    """Yield slices of at most `at_once` texts."""
    for start in range(0, count, at_once):
        yield slice(start, start + at_once)
