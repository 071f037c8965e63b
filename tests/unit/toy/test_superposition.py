"""The toy model: what it learns at the two ends of sparsity, and that its numbers mean what they say."""

import pytest
import torch

from lightsae.errors import ConfigError
from lightsae.toy.picture import draw
from lightsae.toy.superposition import Solution, Superposition, reconstruct, sample, train

SMALL = Superposition(sparsities=[0.0, 0.99], steps=2500, restarts=4, batch=256)


@pytest.fixture(scope="module")
def solutions() -> list[Solution]:
    return train(SMALL)


def test_dense_features_do_not_share(solutions: list[Solution]) -> None:
    dense = solutions[0]
    assert dense.norms.argsort(descending=True)[:2].sort().values.tolist() == [0, 1], "the two most important"
    assert dense.represented == 2
    assert dense.norms[2:].max() < 0.2
    cosine = torch.nn.functional.cosine_similarity(dense.W[:, 0], dense.W[:, 1], dim=0)
    assert abs(float(cosine)) < 0.1, "at right angles"


def test_sparse_features_make_a_pentagon(solutions: list[Solution]) -> None:
    sparse = solutions[1]
    assert sparse.represented == 5
    angles = torch.atan2(sparse.W[1], sparse.W[0]).sort().values
    gaps = torch.cat([angles.diff(), 2 * torch.pi - (angles[-1:] - angles[:1])])
    torch.testing.assert_close(gaps, torch.full((5,), 2 * torch.pi / 5), atol=0.25, rtol=0)
    assert (sparse.interference > 0.1).all()


def test_the_same_seed_gives_the_same_bits() -> None:
    config = Superposition(sparsities=[0.5], steps=20, restarts=2, batch=8)
    (a,), (b,) = train(config), train(config)
    assert torch.equal(a.W, b.W)
    (c,) = train(Superposition(sparsities=[0.5], steps=20, restarts=2, batch=8, seed=1))
    assert not torch.equal(a.W, c.W)


def test_samples_are_as_sparse_as_asked_for() -> None:
    x = sample(SMALL, torch.tensor([0.0, 0.9]), 20_000, torch.Generator().manual_seed(0))
    assert x.shape == (2, 20_000, 5)
    torch.testing.assert_close((x == 0).double().mean((1, 2)), torch.tensor([0.0, 0.9]).double(), atol=0.005, rtol=0)
    assert abs(float(x[0].mean()) - 0.5) < 0.01


def test_reconstruction_follows_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    W, b = torch.randn(3, 2, 5, generator=generator), torch.randn(3, 5, generator=generator)
    x = torch.rand(3, 7, 5, generator=generator)
    expected = torch.stack([torch.relu(x[i] @ W[i].T @ W[i] + b[i]) for i in range(3)])
    torch.testing.assert_close(reconstruct(W, b, x), expected)


def test_interference_is_the_share_of_the_others() -> None:
    solution = Solution(0.5, torch.tensor([[1.0, 0.0, -2.0], [0.0, 1.0, 0.0]]), torch.zeros(3), 0.0)
    torch.testing.assert_close(solution.interference, torch.tensor([4.0, 0.0, 1.0]))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_there_is_a_panel_for_each_sparsity(dimensions: int) -> None:
    solutions = train(Superposition(dimensions=dimensions, sparsities=[0.1] * 8, steps=2, restarts=1))
    titles = [axes.get_title() for axes in draw(solutions).axes if axes.get_title()]
    assert len(titles) == 8


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"features": 0}, "features is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"sparsities": [1.0]}, r"sparsities is \[1.0\]"),
        ({"sparsities": []}, r"sparsities is \[\]"),
    ],
)
def test_settings_that_cannot_work(setting: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Superposition(**setting)
