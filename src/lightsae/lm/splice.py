"""Other activations in the place of a model's own, and what it predicts then.

Axes: B rows, S positions, D width of a site, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightsae.lm.hooks import Intervention
from lightsae.lm.model import LanguageModel


@contextmanager
def spliced(
    model: LanguageModel,
    replacements: Mapping[str, Float[Tensor, "*_ D"]],
    kept: Mapping[str, Bool[Tensor, "B S"]] | None = None,
) -> Iterator[None]:
    """While open, other activations take the place of a model's own at some sites.

    Args:
        model: What predicts.
        replacements: By site, (B, S, D), or one (D,) for all positions.
        kept: By site, where the model's own stay.
    """

    def putting(new: Tensor, own: Tensor | None) -> Intervention:
        return lambda x: (
            new.to(x.dtype).expand_as(x) if own is None else torch.where(own[..., None], x, new.to(x.dtype))
        )

    with ExitStack() as stack:
        for site, new in replacements.items():
            stack.enter_context(model.intervene(site, putting(new, None if kept is None else kept[site])))
        yield


def spliced_logits(
    model: LanguageModel,
    tokens: Int[Tensor, "B S"],
    replacements: Mapping[str, Float[Tensor, "*_ D"]],
    kept: Mapping[str, Bool[Tensor, "B S"]] | None = None,
) -> Float[Tensor, "B S V"]:
    """Return the logits with other activations at some sites; see `spliced`."""
    with spliced(model, replacements, kept):
        return model.logits(tokens)
