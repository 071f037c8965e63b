"""The toy model of superposition: its parts against what they say, what it learns against the paper, its picture."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.transforms import Bbox

from lightsae.errors import ConfigError
from lightsae.toy import superposition
from lightsae.toy.picture import draw
from lightsae.toy.superposition import Solution, Superposition, reconstruct, sparse_inputs, train, weighted_loss

SPARSITIES = [0.0, 0.75, 0.99]


@pytest.fixture(scope="module")
def learned() -> dict[float, Solution]:
    """What is learned at three sparsities, in less time than by default."""
    solutions = train(Superposition(sparsities=SPARSITIES, restarts=4, steps=2000, batch=256, lr=0.03))
    assert [solution.sparsity for solution in solutions] == SPARSITIES
    return dict(zip(SPARSITIES, solutions, strict=True))


def cosines(W: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(W, dim=0)
    return unit.T @ unit


# -- what is learned ---------------------------------------------------------------------------------------------------


def test_dense_features_two_are_kept_at_right_angles(learned: dict[float, Solution]) -> None:
    solution = learned[0.0]
    assert solution.represented == 2
    torch.testing.assert_close(solution.norms[:2], torch.ones(2), atol=0.03, rtol=0)
    assert solution.norms[2:].max() < 0.05
    assert abs(cosines(solution.W)[0, 1]) < 0.02
    assert solution.interference[:2].max() < 0.01
    assert solution.dimensions_per_feature == pytest.approx(1, abs=0.05)
    # Of a feature that is not kept its mean is guessed: what is lost is its variance, 1/12.
    assert solution.loss == pytest.approx((0.9**2 + 0.9**3 + 0.9**4) / 12, rel=0.02)
    torch.testing.assert_close(solution.b[2:], torch.full((3,), 0.5), atol=0.03, rtol=0)


def test_in_between_four_make_two_pairs_of_opposites(learned: dict[float, Solution]) -> None:
    solution = learned[0.75]
    assert solution.represented == 4
    assert solution.norms[4] < 0.1
    by_size = cosines(solution.W)[:4, :4].sort(dim=1).values
    torch.testing.assert_close(by_size, torch.tensor([[-1.0, 0.0, 0.0, 1.0]] * 4), atol=0.05, rtol=0)
    assert solution.dimensions_per_feature == pytest.approx(0.5, abs=0.05)


def test_sparse_features_all_five_make_a_pentagon(learned: dict[float, Solution]) -> None:
    solution = learned[0.99]
    assert solution.represented == 5
    assert solution.norms.min() > 0.5
    angles = torch.atan2(solution.W[1], solution.W[0]).rad2deg().sort().values
    gaps = torch.cat([angles.diff(), angles[:1] + 360 - angles[-1:]])
    torch.testing.assert_close(gaps, torch.full((5,), 72.0), atol=5, rtol=0)
    # A share of the features that are not 0; all of their loss would be 4.1 / 3.
    assert 0.05 < solution.loss < 0.12


def test_with_room_for_all_all_are_kept_apart() -> None:
    (solution,) = train(Superposition(features=3, dimensions=4, sparsities=[0.5], restarts=2, steps=1000, batch=128))
    torch.testing.assert_close(solution.W.T @ solution.W, torch.eye(3), atol=0.03, rtol=0)
    assert solution.W.shape == (4, 3)
    assert solution.loss < 1e-3


# -- how it is trained -------------------------------------------------------------------------------------------------

SHORT = {"restarts": 2, "steps": 20, "batch": 16}


def test_same_seed_same_bits() -> None:
    first, again, other = (train(Superposition(seed=seed, **SHORT)) for seed in (3, 3, 4))
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one.W, same.W)
        assert torch.equal(one.b, same.b)
        assert one.loss == same.loss
        assert not torch.allclose(one.W, different.W, atol=1e-3)


def test_a_sparsity_does_not_depend_on_the_others() -> None:
    together = train(Superposition(sparsities=[0.2, 0.9], **SHORT))
    alone = [train(Superposition(sparsities=[sparsity], **SHORT))[0] for sparsity in (0.2, 0.9)]
    for one, same in zip(together, alone, strict=True):
        torch.testing.assert_close(one.W, same.W, atol=1e-4, rtol=1e-4)
        assert one.loss == pytest.approx(same.loss, rel=1e-4)


def test_the_caller_learns_how_far_it_is() -> None:
    told: list[int] = []
    train(Superposition(**SHORT), told.append)
    assert told == list(range(1, 21))


def test_the_number_of_threads_changes_nothing_and_is_given_back() -> None:
    assert torch.get_num_threads() == 1
    within: list[int] = []
    (alone,) = train(Superposition(sparsities=[0.5], **SHORT))
    torch.set_num_threads(2)
    try:
        (same,) = train(Superposition(sparsities=[0.5], **SHORT), lambda step: within.append(torch.get_num_threads()))
        with pytest.raises(ConfigError):
            train(Superposition(lr=1e30, **SHORT))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(within) == {1}
    assert torch.equal(alone.W, same.W)


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("what", [0.0, math.nan], ids=["dead", "nan"])
def test_the_best_start_is_kept(bad: int, what: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.randn

    def randn(*shape: int, **settings: Any) -> torch.Tensor:
        starts = real(*shape, **settings)
        starts[bad] = what  # at W = 0 the gradient is 0
        return starts

    monkeypatch.setattr(superposition.torch, "randn", randn)
    (solution,) = train(Superposition(sparsities=[0.0], restarts=2, steps=300, batch=64))
    nothing_kept = sum(0.9**i for i in range(5)) / 12
    assert solution.loss < 0.8 * nothing_kept
    assert solution.norms.max() > 0.5


def test_a_learning_rate_that_is_too_high() -> None:
    with pytest.raises(ConfigError, match=r"^lr is 1e\+30"):
        train(Superposition(lr=1e30, **SHORT))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"features": 0}, "features is 0; write 1 or more"),
        ({"dimensions": -1}, "dimensions is -1"),
        ({"restarts": 0}, "restarts is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"importance": 0.0}, "importance is 0"),
        ({"importance": math.inf}, "importance is inf"),
        ({"lr": math.nan}, "lr is nan"),
        ({"sparsities": []}, r"sparsities is \[\]"),
        ({"sparsities": [0.5, 1.0]}, r"sparsities is \[0.5, 1.0\]; write probabilities from 0 to 0.9999"),
        ({"sparsities": [-0.1]}, "sparsities is"),
        ({"sparsities": [math.nan]}, "sparsities is"),
        ({"device": "gpu"}, "device is 'gpu'.*write cpu"),
        ({"device": "cuda:99"}, "device is 'cuda:99'"),
    ],
    ids=str,
)
def test_settings_that_cannot_work(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        Superposition(**settings)
    assert "\n" not in str(raised.value)


# -- its parts ---------------------------------------------------------------------------------------------------------


def test_inputs_are_zero_with_their_probability_and_else_uniform() -> None:
    uniform = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    x = sparse_inputs(uniform, torch.tensor([0.0, 0.9]))
    assert torch.equal(x[0], uniform)
    assert x.shape == (2, 20_000, 3)
    assert float((x[1] == 0).float().mean()) == pytest.approx(0.9, abs=0.01)
    kept = x[1][x[1] > 0]
    for share in (0.1, 0.5, 0.9):
        assert float(kept.quantile(share)) == pytest.approx(share, abs=0.02)
    # Features are 0 independently of one another.
    both = ((x[1, :, 0] == 0) & (x[1, :, 1] == 0)).float().mean()
    assert float(both) == pytest.approx(0.81, abs=0.02)


def test_model_and_loss_against_sums_written_out() -> None:
    generator = torch.Generator().manual_seed(1)
    W, b, x = (torch.randn(shape, generator=generator) for shape in ((2, 3, 4), (2, 4), (2, 6, 4)))
    importance = torch.tensor([1.0, 0.5, 0.2, 0.1])
    got, losses = reconstruct(W, b, x), weighted_loss(W, b, x, importance)
    for i in range(2):
        total = 0.0
        for s in range(6):
            h = [sum(float(W[i, d, j] * x[i, s, j]) for j in range(4)) for d in range(3)]
            for j in range(4):
                out = max(0.0, sum(float(W[i, d, j]) * h[d] for d in range(3)) + float(b[i, j]))
                assert float(got[i, s, j]) == pytest.approx(out, abs=1e-5)
                total += float(importance[j]) * (float(x[i, s, j]) - out) ** 2
        assert float(losses[i]) == pytest.approx(total / 6, rel=1e-5)


def test_norms_and_interference_by_hand() -> None:
    W = torch.tensor([[2.0, 0.0, 0.3, 0.0], [0.0, 1.0, 0.4, 0.0]])
    solution = Solution(0.5, W, torch.zeros(4), 0.0)
    torch.testing.assert_close(solution.norms, torch.tensor([2.0, 1.0, 0.5, 0.0]))
    assert solution.represented == 2
    # Along (1, 0) lies 0.3 of the third; along (0, 1) 0.4 of it; along (0.6, 0.8) 1.2 of the first, 0.8 of the second.
    torch.testing.assert_close(solution.interference, torch.tensor([0.09, 0.16, 2.08, 0.0]))
    assert solution.dimensions_per_feature == pytest.approx(2 / 5.25)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (3, 3), (1, 4)], ids=str)
def test_turning_changes_no_product(shape: tuple[int, int]) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    turned = superposition._turned(W)
    torch.testing.assert_close(turned.T @ turned, W.T @ W)
    assert torch.equal(turned, turned.triu())
    assert (turned.diagonal() > 0).all()


# -- the picture -------------------------------------------------------------------------------------------------------


def solutions(dimensions: int, count: int, features: int = 5) -> list[Solution]:
    generator = torch.Generator().manual_seed(0)
    return [
        Solution(i / 10, torch.randn(dimensions, features, generator=generator), torch.zeros(features), 0.1)
        for i in range(count)
    ]


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_title()]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 6, 8])
def test_a_panel_for_each_sparsity(dimensions: int, count: int) -> None:
    given = solutions(dimensions, count)
    titles = [axes.get_title() for axes in panels(draw(given))]
    assert titles == [f"S = {solution.sparsity:g}" for solution in given]
    below = [axes.texts[0].get_text() for axes in panels(draw(given))]
    assert below == [f"{solution.represented} of 5 features" for solution in given]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(("count", "features"), [(1, 5), (1, 40), (7, 10)])
def test_nothing_is_cut_off_and_nothing_overlaps(dimensions: int, count: int, features: int) -> None:
    figure = draw(solutions(dimensions, count, features))
    FigureCanvasAgg(figure).draw()
    boxes = [part.get_tightbbox() for part in (*figure.axes, *figure.legends)]
    page = figure.bbox
    for box in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1, box
        assert page.y0 <= box.y0 < box.y1 <= page.y1, box
    for first, second in itertools.combinations(boxes, 2):
        overlap = Bbox.intersection(first, second)
        assert overlap is None or min(overlap.width, overlap.height) < 2, (first, second)


def test_directions_are_the_columns_and_lighter_is_more_important() -> None:
    (solution,) = given = solutions(2, 1)
    (axes,) = panels(draw(given))
    lines = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_zorder() >= 2]
    ends = {tuple(float(data[-1]) for data in line.get_data()): line.get_color() for line in lines}
    columns = [tuple(column) for column in solution.W.T.tolist()]
    assert set(ends) == set(columns)
    light = [float(np.dot(to_rgb(ends[column]), (0.2126, 0.7152, 0.0722))) for column in columns]
    assert light == sorted(light, reverse=True)
    low, high = axes.get_xlim()
    assert all(low < x < high for x, _ in columns), "an arrow leaves its panel"


def test_more_dimensions_products_and_norms() -> None:
    (solution,) = given = solutions(3, 1)
    figure = draw(given)
    (image,) = panels(figure)[0].images
    np.testing.assert_allclose(image.get_array(), solution.W.T @ solution.W, rtol=1e-5)
    heights = next([bar.get_height() for bar in axes.patches] for axes in figure.axes if axes.get_ylabel() == "norm")
    assert heights == pytest.approx(solution.norms.tolist())


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("features", [1, 5, 40])
def test_it_can_be_saved(dimensions: int, features: int, tmp_path: Any) -> None:
    draw(solutions(dimensions, 2, features)).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_colours_are_named() -> None:
    def legend(features: int) -> list[str]:
        return [text.get_text() for text in draw(solutions(2, 1, features)).legends[0].get_texts()]

    assert legend(3) == ["Features, the most important first:", "1", "2", "3"]
    assert legend(40) == ["feature 1 (most important)", "feature 40"]
