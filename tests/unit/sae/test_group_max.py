"""GroupMax: which latents are kept, the loss against a dense reference, and what is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightsae.errors import ConfigError
from lightsae.sae import GroupMax, LatentUsage, Matryoshka, SparseAutoencoder, Widths, mechanisms

T, D, F = 9, 6, 12
Normal = Callable[..., Tensor]
Weights = dict[str, Tensor]


def largest_of_groups(pre: Tensor, k: int) -> Tensor:
    """One group after the other, one token after the other."""
    kept, size = torch.zeros_like(pre), pre.shape[1] // k
    for t, row in enumerate(pre):
        for first in range(0, len(row), size):
            place = max(range(first, first + size), key=lambda f, row=row: row[f].item())
            kept[t, place] = max(row[place].item(), 0.0)
    return kept


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6, F])
def test_a_token_keeps_the_largest_of_each_group(normal: Normal, k: int) -> None:
    pre = normal(T, F, seed=3)
    values, pattern = mechanisms.GroupMax(k).select(pre)
    dense = torch.zeros_like(pre)
    dense[pattern.token_of, pattern.indices] = values
    assert torch.equal(dense, largest_of_groups(pre, k))
    assert (dense > 0).sum(1).max() <= k
    assert pattern.per_token == k


def test_the_loss_and_its_gradients(
    normal: Normal, arbitrary: Callable[[SparseAutoencoder], SparseAutoencoder], agree: Callable[..., None]
) -> None:
    sae, x = arbitrary(GroupMax(Widths.of(D), F, k=3)), normal(T, D, seed=1) + 3
    target = x * sae.output_scale

    def mse(w: Weights) -> Tensor:
        latents = largest_of_groups((target - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 3)
        error = target - latents @ w["W_dec"] - w["b_dec"]
        return error.square().sum() / (target - target.mean(0)).square().sum()

    agree(sae, x, x, "mse", mse)


def test_dead_latents_learn_from_the_error(
    normal: Normal,
    arbitrary: Callable[[SparseAutoencoder], SparseAutoencoder],
    with_dead: Callable[[int, tuple[int, ...]], LatentUsage],
) -> None:
    sae, x = arbitrary(GroupMax(Widths.of(D), F, k=3, k_aux=2)), normal(T, D, seed=1) + 3
    sae.loss_terms(x, sae(x), with_dead(F, (1, 5, 6)))["auxk"].backward()
    assert sae.W_dec.grad is not None
    moved = set(sae.W_dec.grad.abs().sum(1).nonzero().flatten().tolist())
    assert moved <= {1, 5, 6}
    assert moved


@pytest.mark.parametrize("k", [0, 5, F + 1])
def test_groups_have_one_size(k: int) -> None:
    with pytest.raises(ConfigError, match=rf"k is {k}[;,]"):
        GroupMax(Widths.of(D), F, k=k)


def test_prefixes_do_not_cut_groups() -> None:
    with pytest.raises(ConfigError, match="mechanism is GroupMax; Matryoshka takes TopK or BatchTopK"):
        Matryoshka(Widths.of(D), F, mechanisms.GroupMax(3))
