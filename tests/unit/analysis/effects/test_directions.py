"""Neighbours against all pairs, with ties and zero rows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lightsae.analysis.effects.directions import aligned_neurons, nearest_by_cosine, neuron_directions
from lightsae.lm import LanguageModel


def test_nearest_is_that_of_all_pairs() -> None:
    W = (
        torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        * torch.arange(1, 51)[:, None]
    )
    found = nearest_by_cosine(W, 4, chunk=7)
    unit = W.double() / W.double().norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).numpy()
    np.fill_diagonal(cosines, -np.inf)
    assert np.array_equal(found.ids, np.argsort(-cosines, axis=1)[:, :4])
    np.testing.assert_allclose(found.cosines, -np.sort(-cosines, axis=1)[:, :4], atol=2e-6)


def test_ties_go_to_the_lower_id_also_at_the_cut() -> None:
    W = torch.zeros(9, 4)
    W[torch.arange(9), torch.tensor([0, 1, 1, 0, 0, 1, 0, 0, 2])] = torch.arange(1, 10.0)
    W[7] = 0
    found = nearest_by_cosine(W, 3, chunk=4)
    assert found.ids[0].tolist() == [3, 4, 6]
    assert found.ids[6].tolist() == [0, 3, 4]
    assert found.ids[1].tolist() == [2, 5, 0]
    assert found.ids[7].tolist() == [0, 1, 2]
    assert found.cosines[1].tolist() == [1, 1, 0]
    assert found.cosines[7].tolist() == [0, 0, 0]


def test_fewer_features_than_asked_for() -> None:
    assert nearest_by_cosine(torch.eye(3), 8).ids.shape == (3, 2)
    assert nearest_by_cosine(torch.ones(1, 3), 8).ids.shape == (1, 0)


def test_aligned_neurons_are_signed_and_sorted_by_size() -> None:
    W = torch.tensor([[3.0, 0.0, -4.0, 0.0], [-1.0, 1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    found = aligned_neurons(W, 2)
    assert found.ids.tolist() == [[2, 0], [0, 1], [0, 1]]
    np.testing.assert_allclose(found.cosines, [[-0.8, 0.6], [-0.5, 0.5], [0, 0]], atol=1e-6)


def test_neurons_are_near_by_what_they_write() -> None:
    W = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    written = torch.tensor([[0.0, 3.0], [0.6, 0.8], [1.0, 0.0]])
    found = aligned_neurons(W, 2, written)
    assert found.ids.tolist() == [[2, 1], [0, 1]]
    np.testing.assert_allclose(found.cosines, [[1.0, 0.6], [-1.0, -0.8]], atol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_what_neurons_write_adds_up_to_the_output_of_the_mlp(model_type: str, make_model: Callable[..., Path]) -> None:
    model = LanguageModel.from_pretrained(str(make_model(model_type)))
    read = model.capture(torch.arange(3, 12)[None], ["mlp_act.1", "mlp_out.1"])
    directions = neuron_directions(model, "mlp_act.1")
    assert directions is not None
    # The tiny models' biases are zero.
    torch.testing.assert_close(read["mlp_act.1"] @ directions, read["mlp_out.1"])
