"""Sinks by their norms, and the matching that every room uses: dense and sparse give the same pairs."""

import numpy as np
import pytest
import torch
from scipy import sparse

from lightsae.metrics.conventions import NO_PARTNER, assign, is_sink


def test_sinks_lie_above_ten_times_the_median() -> None:
    norms = torch.tensor([[1.0, 10.0], [10.1, 1.0], [1.0, 1.0]])
    assert is_sink(norms).tolist() == [[False, False], [True, False], [False, False]]


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (9, 5)])
def test_dense_and_sparse_make_the_same_pairs(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).uniform(0.1, 1, shape)
    partners = assign(values)
    assert partners.tolist() == assign(sparse.csr_array(values)).tolist()
    made = partners[partners != NO_PARTNER]
    assert len(made) == len(set(made)) == min(shape)


def test_a_pair_less_alike_than_nothing_breaks_up_no_other() -> None:
    assert assign(np.array([[1.0, 0.9], [0.9, -5.0]])).tolist() == [1, 0]
    assert assign(np.array([[1.0, 0.1], [0.1, -5.0]])).tolist() == [0, 1]
    assert assign(sparse.csr_array(np.array([[1.0, 0.0], [0.0, 0.0]]))).tolist() == [0, NO_PARTNER]
