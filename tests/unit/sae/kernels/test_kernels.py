"""Every kernel against PyTorch's form, in Triton's interpreter on the CPU, over shapes that do not divide."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed (pip install lightsae[gpu])")

from lightsae.sae import BatchTopK, JumpReLU, LatentUsage, SiteRef, TopK, Widths
from lightsae.sae.kernels import jump_relu, sparse_products, topk
from lightsae.sae.sparse_ops import SparseLatents, SparsePattern

DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-7, "atol": 1e-3}}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ragged(tokens: int, width: int, dtype: torch.dtype) -> SparseLatents:
    dense = normal(tokens, width, seed=3, dtype=dtype).relu()
    dense[0] = 1.5  # a token on which everything fires
    dense[-1] = 0  # one on which nothing does
    dense[:, width // 2] = 0  # a latent that never fires
    return SparseLatents.from_dense(dense)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (9, 20, 129), (4, 6, 257)])
def test_decoding_and_gradients_by_latent(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens, width, d = shape
    latents = ragged(tokens, width, dtype)
    table, rows = normal(width, d, dtype=dtype), normal(tokens, d, seed=1, dtype=dtype)
    dense = latents.to_dense().double()
    decoded = sparse_products.weighted_rows(table, latents.indices, latents.offsets, latents.values)
    order, token_of, offsets = latents.pattern.by_latent
    by_latent = sparse_products.weighted_rows(rows, token_of, offsets, latents.values[order])
    assert decoded.dtype == by_latent.dtype == dtype
    torch.testing.assert_close(decoded.double(), dense @ table.double(), **CLOSE[dtype])
    torch.testing.assert_close(by_latent.double(), dense.T @ rows.double(), **CLOSE[dtype])
    products = sparse_products.row_products(rows, table, latents.pattern.token_of, latents.indices)
    expected = (rows.double() @ table.double().T)[latents.pattern.token_of, latents.indices]
    torch.testing.assert_close(products.double(), expected, **CLOSE[dtype])


def test_no_entries_at_all() -> None:
    pattern = SparsePattern(torch.zeros(0, dtype=torch.long), torch.zeros(4, dtype=torch.long), 5)
    nothing = torch.zeros(0)
    assert torch.equal(
        sparse_products.weighted_rows(normal(5, 3), pattern.indices, pattern.offsets, nothing), torch.zeros(3, 3)
    )
    assert sparse_products.row_products(normal(3, 3), normal(5, 3), pattern.token_of, pattern.indices).shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "k"), [(1, 1), (7, 3), (40, 40), (2049, 5), (300, 129)])
def test_the_largest_of_each_row(width: int, k: int, dtype: torch.dtype) -> None:
    pre = normal(3, width, dtype=dtype)
    pre[1] -= 10  # nothing is positive
    values, indices = topk.topk_relu(pre, k)
    assert (indices.diff(dim=1) > 0).all()
    assert torch.equal(values, pre.gather(1, indices).relu())
    assert torch.equal(pre.gather(1, indices).sort(dim=1, descending=True).values, pre.topk(k, dim=1).values)


def test_of_equal_values_the_first() -> None:
    pre = torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0, -1.0], [0.0, -0.0, 0.0, -1.0, -1.0, 0.0]])
    values, indices = topk.topk_relu(pre, 3)
    assert indices.tolist()[0] == [1, 2, 4]
    assert values.tolist() == [[2.0, 2.0, 3.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (17, 129), (300, 5)])
def test_jump_relu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    pre, grad = normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
    threshold, bandwidth = normal(shape[1], seed=2).abs() * 0.5, 0.7
    above, near = pre > threshold, (pre - threshold).abs() <= bandwidth / 2
    assert torch.equal(jump_relu.forward(pre, threshold), torch.where(above, pre, 0))
    grad_pre, of_threshold = jump_relu.backward(pre, threshold, grad, bandwidth)
    assert torch.equal(grad_pre, torch.where(above, grad, 0))
    torch.testing.assert_close(of_threshold, torch.where(near, grad, 0).sum(0, dtype=torch.float32))
    assert torch.equal(jump_relu.counts(pre, threshold, None), above.sum(0).float())
    assert torch.equal(jump_relu.counts(pre, threshold, bandwidth), near.sum(0).float())


@pytest.mark.parametrize("make", [TopK, JumpReLU, BatchTopK], ids=lambda make: make.__name__)
def test_a_training_step_with_kernels_is_one_without(make: type, monkeypatch: pytest.MonkeyPatch) -> None:
    x, called = 3 * normal(19, 6) + 1, []

    def step() -> list[Tensor]:
        sae = make(Widths.of(6), 23, **({} if make is JumpReLU else {"k": 4}))
        sae.reset_parameters(torch.Generator().manual_seed(0))
        sae.start_from({SiteRef("", "activations"): x}, "sqrt_d")
        terms = sae.loss_terms(x, sae(x), LatentUsage(23, 100))
        sum(terms.values()).backward()
        return [*terms.values(), *(parameter.grad for parameter in sae.parameters())]

    plain = step()
    monkeypatch.setattr("lightsae.sae.kernels.used_for", lambda *tensors: called.append(tensors) or True)
    for mine, theirs in zip(step(), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert called
