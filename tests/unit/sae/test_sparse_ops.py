"""Sparse products against the dense ones that they stand for, in float64."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightsae.sae.sparse_ops import SparseLatents, SparsePattern, decode, encode_selected

T, D, F = 7, 5, 11
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).requires_grad_()


def top(k: int):
    """Select as TopK does, written from its definition."""

    def select(pre: Tensor) -> tuple[Tensor, SparsePattern]:
        indices = pre.argsort(dim=1, descending=True)[:, :k]
        return pre.gather(1, indices).clamp_min(0).flatten(), SparsePattern.from_rows(indices, pre.shape[1])

    return select


def above(threshold: float):
    """Keep whatever passes a threshold: a number of latents that differs from token to token."""

    def select(pre: Tensor) -> tuple[Tensor, SparsePattern]:
        kept = SparseLatents.from_dense(torch.where(pre > threshold, pre, 0))
        return kept.values, kept.pattern

    return select


def dense_top(pre: Tensor, k: int) -> Tensor:
    kept = torch.zeros_like(pre, dtype=torch.bool)
    for token in range(len(pre)):
        kept[token, pre[token].argsort(descending=True)[:k]] = True
    return torch.where(kept & (pre > 0), pre, 0)


def ragged() -> Tensor:
    dense = normal(T, F, seed=3).relu() * (normal(T, F, seed=4) > 0)
    dense[0] = normal(F, seed=5).abs()  # a token on which nearly everything fires
    dense[2] = 0  # a token on which nothing fires
    dense[:, 5] = 0  # a latent that never fires
    return dense


def latents_of(kind: str) -> SparseLatents:
    if kind == "ragged":
        return SparseLatents.from_dense(ragged())
    if kind == "nothing":
        return SparseLatents.from_dense(torch.zeros(T, F, dtype=torch.float64))
    k = {"fixed": 3, "all": F, "zeros": 4}[kind]
    values, indices = normal(T, F, seed=6).abs().topk(k, dim=1)
    if kind == "zeros":
        values = values * (normal(T, k, seed=7) > 0)
    return SparseLatents.from_rows(values, indices, F)


KINDS = ("ragged", "nothing", "fixed", "all", "zeros")


def to_dense_by_hand(latents: SparseLatents) -> Tensor:
    dense = torch.zeros(latents.pattern.tokens, latents.pattern.width, dtype=latents.values.dtype)
    offsets = latents.offsets.tolist()
    for token, (start, end) in enumerate(pairwise(offsets)):
        for place in range(start, end):
            dense[token, latents.indices[place]] = latents.values[place]
    return dense


@pytest.mark.parametrize("kind", KINDS)
def test_to_dense_places_every_entry(kind: str) -> None:
    latents = latents_of(kind)
    assert torch.equal(latents.to_dense(), to_dense_by_hand(latents))


def test_dense_to_sparse_and_back() -> None:
    dense = ragged()
    latents = SparseLatents.from_dense(dense)
    assert torch.equal(latents.to_dense(), dense)
    assert len(latents.values) == int((dense != 0).sum())
    assert latents.offsets.diff().tolist() == (dense != 0).sum(1).tolist()
    assert latents.pattern.token_of.tolist() == dense.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_entries_sorted_by_latent(kind: str) -> None:
    pattern = latents_of(kind).pattern
    order, tokens, offsets = pattern.by_latent
    assert sorted(order.tolist()) == list(range(len(pattern.indices)))
    for latent in range(F):
        part = slice(int(offsets[latent]), int(offsets[latent + 1]))
        assert (pattern.indices[order[part]] == latent).all()
        assert tokens[part].tolist() == pattern.token_of[order[part]].tolist()


def test_rows_are_a_view_where_k_is_fixed() -> None:
    latents = latents_of("fixed")
    values, indices = latents.rows
    assert values.shape == indices.shape == (T, 3)
    with pytest.raises(AssertionError):
        _ = latents_of("ragged").rows


def test_no_tokens_at_all() -> None:
    latents = SparseLatents.from_dense(torch.zeros(0, F, dtype=torch.float64))
    assert latents.to_dense().shape == (0, F)
    assert decode(latents, normal(F, D)).shape == (0, D)


@pytest.mark.parametrize("kind", KINDS)
def test_decode_and_its_gradients(kind: str) -> None:
    latents = latents_of(kind)
    values, W_dec, weights = latents.values.clone().requires_grad_(), leaf(F, D, seed=8), normal(T, D, seed=9)
    x_hat = decode(SparseLatents(values, latents.pattern), W_dec)
    (x_hat * weights).sum().backward()

    reference_values, reference_W = values.detach().clone().requires_grad_(), W_dec.detach().clone().requires_grad_()
    dense = torch.zeros(T, F, dtype=torch.float64)
    dense[latents.pattern.token_of, latents.indices] = reference_values
    expected = dense @ reference_W
    (expected * weights).sum().backward()
    torch.testing.assert_close(x_hat, expected, **CLOSE)
    torch.testing.assert_close(values.grad, reference_values.grad, **CLOSE)
    torch.testing.assert_close(W_dec.grad, reference_W.grad, **CLOSE)
    if kind == "ragged":
        assert (x_hat[2] == 0).all()
        assert (W_dec.grad[5] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_decode(kind: str) -> None:
    latents = latents_of(kind)
    W_dec = leaf(F, D, seed=8)
    if kind != "nothing":
        values = latents.values.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda v, W: decode(SparseLatents(v, latents.pattern), W), (values, W_dec))


@pytest.mark.parametrize("with_centre", [True, False])
@pytest.mark.parametrize("k", [1, 3, F])
def test_encode_top_k_and_its_gradients(k: int, with_centre: bool) -> None:
    x, weights = normal(T, D, seed=1), normal(T, F, seed=2)
    parameters = [leaf(D, seed=3), leaf(D, F, seed=4), leaf(F, seed=5)]
    reference = [tensor.detach().clone().requires_grad_() for tensor in parameters]
    latents = encode_selected(x, parameters[0] if with_centre else None, parameters[1], parameters[2], top(k))
    (latents.to_dense() * weights).sum().backward()

    centred = x - reference[0] if with_centre else x
    expected = dense_top(centred @ reference[1] + reference[2], k)
    (expected * weights).sum().backward()
    torch.testing.assert_close(latents.to_dense(), expected, **CLOSE)
    for mine, theirs in zip(parameters, reference, strict=True):
        if theirs.grad is None:
            assert mine.grad is None
        else:
            torch.testing.assert_close(mine.grad, theirs.grad, **CLOSE)


@pytest.mark.parametrize("threshold", [0.3, 100.0])
def test_encode_with_any_number_of_latents(threshold: float) -> None:
    x, weights = normal(T, D, seed=1), normal(T, F, seed=2)
    parameters = [leaf(D, seed=3), leaf(D, F, seed=4), leaf(F, seed=5)]
    reference = [tensor.detach().clone().requires_grad_() for tensor in parameters]
    latents = encode_selected(x, *parameters, above(threshold))
    (latents.to_dense() * weights).sum().backward()
    pre = (x - reference[0]) @ reference[1] + reference[2]
    expected = torch.where(pre > threshold, pre, 0)
    (expected * weights).sum().backward()
    torch.testing.assert_close(latents.to_dense(), expected, **CLOSE)
    for mine, theirs in zip(parameters, reference, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **CLOSE)


def test_a_kept_entry_that_is_not_positive_passes_no_gradient() -> None:
    W, b = leaf(D, F, seed=4), torch.full((F,), -100.0, dtype=torch.float64, requires_grad=True)
    latents = encode_selected(normal(T, D), None, W, b, top(3))
    latents.values.sum().backward()
    assert (latents.values == 0).all()
    assert (W.grad == 0).all()
    assert (b.grad == 0).all()


@pytest.mark.parametrize("k", [2, F])
def test_gradcheck_of_encode_then_decode(k: int) -> None:
    x = normal(T, D, seed=1)

    def both(centre: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> Tensor:
        return decode(encode_selected(x, centre, W_enc, b_enc, top(k)), W_dec)

    assert torch.autograd.gradcheck(both, (leaf(D, seed=3), leaf(D, F, seed=4), leaf(F, seed=5), leaf(F, D, seed=6)))


def test_more_entries_than_one_chunk_of_products() -> None:
    values, indices = normal(300, 250).abs().topk(240, dim=1)
    latents, weights = SparseLatents.from_rows(values.requires_grad_(), indices, 250), normal(300, 2, seed=2)
    W_dec = leaf(250, 2, seed=1)
    (grad,) = torch.autograd.grad((decode(latents, W_dec) * weights).sum(), values)
    torch.testing.assert_close(grad, (weights @ W_dec.T).detach().gather(1, indices), **CLOSE)
    assert len(latents.values) > 1 << 16


def test_the_same_bits_twice_on_several_threads() -> None:
    def run() -> list[Tensor]:
        x, W = normal(512, 32, dtype=torch.float32), normal(32, 256, seed=1, dtype=torch.float32).requires_grad_()
        W_dec = normal(256, 32, seed=2, dtype=torch.float32).requires_grad_()
        b, c = torch.zeros(256, requires_grad=True), torch.zeros(32, requires_grad=True)
        latents = encode_selected(x, c, W, b, top(16))
        x_hat = decode(latents, W_dec)
        (x_hat - x).square().sum().backward()
        return [latents.values, x_hat, W.grad, W_dec.grad, b.grad, c.grad]

    torch.set_num_threads(2)
    try:
        first = run()
        assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(first, run(), strict=True))
    finally:
        torch.set_num_threads(1)
