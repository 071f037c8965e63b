"""What changes in the next-token predictions when a feature is removed from texts on which it fires.

Axes:    F features, B rows (one window of one feature each), S positions, D width of the site, V vocabulary.
Units:   nats per token.

A row is a window taken out of its text, after BOS if the model has one. Out of its row a window has less context, so
that a feature may fire otherwise than it did there: f_i is worked out anew, on the row that is ablated. Where it fires,
x becomes x - f_i(x) d_i / output_scale (with `token_norm`, times the token's own unit). Position 0 is an attention
sink: it is neither touched nor counted.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lightsae.analysis.effects.directions import directions
from lightsae.analysis.reading.firings import NO_TOKEN, Windows
from lightsae.errors import ModelError, SiteError
from lightsae.lm import LanguageModel
from lightsae.lm.hooks import hooked, no_cache
from lightsae.sae import SiteRef, SparseAutoencoder, Widths


@dataclass(frozen=True)
class AblationEffects:
    """What removing each feature does.

    The mean is over the tokens at and after the feature's first firing in each of its windows, but the window's last,
    whose next token is not in it: before the first firing nothing changes.

    Attributes:
        kl: (F,) mean KL(clean || ablated); NaN where `tokens` is 0.
        ce: (F,) mean rise of the cross-entropy of the next token: above 0 where the feature helped; NaN likewise.
        tokens: (F,) tokens of the mean; 0 where the feature has no window, or fires in none out of its row.
    """

    kl: NDArray[np.float32]
    ce: NDArray[np.float32]
    tokens: NDArray[np.int32]


@torch.inference_mode()
def ablation_effects(
    model: LanguageModel,
    sae: SparseAutoencoder,
    windows: Windows,
    *,
    site: SiteRef,
    per_feature: int = 2,
    rows_at_once: int = 64,
) -> AblationEffects:
    """Return what removing each feature does to the predictions on its best windows.

    Args:
        model: The model of the sites that the SAE reads, with its head in memory; causal.
        sae: In eval mode.
        windows: Of each feature, the best first.
        site: Where the feature is removed; one that the SAE predicts. Of a crosscoder the other sites are left.
        per_feature: Windows of each.
        rows_at_once: Windows in one pass.

    Raises:
        SiteError: The SAE does not predict the site, or reads another model too.
        ModelError: The model is in memory without a next-token head.
    """
    rows = directions(sae, site).to(model.device)
    if not model.has_next_token_head:
        raise ModelError(f"{model.name!r} is in memory without a next-token head: nothing to measure ablations on.")
    others = sorted({str(ref) for ref in sae.widths.read if ref.model != site.model})
    if others:
        raise SiteError(f"the SAE also reads {', '.join(others)}, of another model; ablation runs one model.")
    feature_of, slot_of = windows.there[:, :per_feature].nonzero()
    tokens, lengths = _rows(windows.tokens[feature_of, slot_of], model.bos_token_id)
    sums, counts = np.zeros((2, len(windows.scores))), np.zeros(len(windows.scores), np.int32)
    for start in range(0, len(tokens), rows_at_once):
        part = slice(start, start + rows_at_once)
        features = torch.from_numpy(feature_of[part]).to(model.device)
        ids = torch.from_numpy(tokens[part]).to(model.device)
        # Rows are padded on the right: in a causal model no earlier token sees it.
        ends = torch.from_numpy(lengths[part, None]).to(model.device)
        inside = torch.arange(1, ids.shape[1], device=model.device) < ends
        clean, shares, counted = _clean_pass(model, sae, ids, features, inside)
        removed = shares[..., None] * rows[features][:, None]
        with model.intervene(site.site, partial(torch.sub, other=removed)):
            ablated = _log_probabilities(model, ids, counted.clone)
        targets = ids[:, 1:][counted][:, None]
        kl = (clean.exp() * (clean - ablated)).sum(1)
        ce = (clean.gather(1, targets) - ablated.gather(1, targets))[:, 0]
        of_token = features[counted.nonzero()[:, 0]].cpu().numpy()
        for total, values in zip(sums, (kl, ce), strict=True):
            np.add.at(total, of_token, values.double().cpu().numpy())
        np.add.at(counts, of_token, 1)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0).astype(np.float32)
    return AblationEffects(means[0], means[1], counts)


def _rows(windows: NDArray[np.int32], bos: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return windows (B, W) as rows, BOS first, the tokens beyond their row's ends left out; and how long each is."""
    there = windows != NO_TOKEN
    if bos is not None:
        first = windows[np.arange(len(windows)), there.argmax(1)]
        windows = np.concatenate([np.full((len(windows), 1), bos, windows.dtype), windows], 1)
        there = np.concatenate([(first != bos)[:, None], there], 1)
    # A stable sort moves what is there to the front, in its order.
    order = np.argsort(~there, axis=1, kind="stable")
    rows = np.where(np.take_along_axis(there, order, 1), np.take_along_axis(windows, order, 1), 0)
    return rows.astype(np.int64), there.sum(1)


def _clean_pass(
    model: LanguageModel,
    sae: SparseAutoencoder,
    tokens: Int[Tensor, "B S"],
    features: Int[Tensor, " B"],
    inside: Bool[Tensor, "B S-1"],
) -> tuple[Float[Tensor, "N V"], Float[Tensor, "B S"], Bool[Tensor, "B S-1"]]:
    """Run the model as it is, and encode what the SAE reads on the way.

    Returns:
        Log-probabilities at the counted positions; how much of its direction each row's own feature adds, which is its
        activation, times the token's own unit where it has one; which positions count: at or after the feature's first
        firing, with a next token.
    """
    captured: dict[SiteRef, Tensor] = {}
    added = torch.zeros(tokens.shape, device=tokens.device)

    def counted() -> Tensor:
        """All latents are encoded, since in most mechanisms they compete; what they read does not change later."""
        read = Widths.join(captured, sae.widths.read)
        latents = sae.encode_sparse(read)
        of_token = latents.pattern.token_of
        own = latents.indices == features[of_token // tokens.shape[1]]
        added.view(-1)[of_token[own]] = latents.values[own].float()
        added[:, 0] = 0
        fires = added[:, :-1] > 0
        if (units := sae.token_units(read)) is not None:
            added.mul_(units.view_as(added))
        return ((fires & inside).cumsum(1) > 0) & inside

    def note(ref: SiteRef, x: Tensor) -> None:
        # A copy: a later module could write in place.
        captured[ref] = x.flatten(0, 1).clone()

    mask = torch.zeros_like(inside)
    with ExitStack() as stack:
        for ref in sae.widths.read:
            stack.enter_context(hooked(model.model, model.site(ref.site), partial(note, ref), model.device))
        log_probabilities = _log_probabilities(model, tokens, lambda: mask.copy_(counted()))
    return log_probabilities, added, mask


def _log_probabilities(
    model: LanguageModel, tokens: Int[Tensor, "B S"], counted: Callable[[], Bool[Tensor, "B S-1"]]
) -> Float[Tensor, "N V"]:
    """Return the log-probabilities of the next token at some positions; the head runs on these alone.

    `counted` is called when all layers have run.
    """

    def keep(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:, :-1][counted().to(args[0].device)][None],)

    handle = model.model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        logits: Tensor = model.model(tokens, **no_cache(model.model)).logits
        return logits[0].float().log_softmax(-1)
    finally:
        handle.remove()
