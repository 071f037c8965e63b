"""Scores against the truth: matching and firing against brute force, and what a perfect and a random dictionary get."""

from itertools import permutations

import pytest
import torch
from torch.nn.functional import normalize

from lightsae.metrics.ground_truth import GroundTruthScores, decades, detection, match

T, n, D = 400, 12, 8


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FEATURES = normalize(random(n, D), dim=1)
PROBABILITIES = torch.logspace(-0.5, -2.5, n)
TRUE = torch.rand(T, n, generator=torch.Generator().manual_seed(1)) < 0.2


def scores(directions: torch.Tensor, fired: torch.Tensor, true: torch.Tensor = TRUE, batches: int = 1) -> dict:
    metric = GroundTruthScores(directions, FEATURES, PROBABILITIES)
    for one, other in zip(fired.chunk(batches), true.chunk(batches), strict=True):
        metric.update(*one.nonzero(as_tuple=True), *other.nonzero(as_tuple=True))
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize(("latents", "features"), [(6, 6), (4, 7), (7, 4), (1, 5)])
def test_no_other_matching_has_a_larger_sum(latents: int, features: int) -> None:
    directions, truth = random(latents, D, seed=2), random(features, D, seed=3)
    cosines = (normalize(directions.double(), dim=1) @ normalize(truth.double(), dim=1).T).abs()
    wide = cosines if latents <= features else cosines.T
    best = max(
        sum(wide[row, column].item() for row, column in enumerate(chosen))
        for chosen in permutations(range(wide.shape[1]), wide.shape[0])
    )
    found = match(directions, truth)
    assert len(found.latents.unique()) == len(found.features.unique()) == min(latents, features)
    assert found.cosines.sum().item() == pytest.approx(best, rel=1e-5)
    torch.testing.assert_close(found.cosines.double(), cosines[found.latents, found.features], rtol=1e-5, atol=1e-6)
    assert found.mcc.item() == pytest.approx(best / min(latents, features), rel=1e-5)


def test_a_zero_direction_matches_nothing_well() -> None:
    directions = FEATURES.clone()
    directions[3] = 0
    found = match(directions, FEATURES)
    assert found.cosines.isfinite().all()
    assert found.recovered(n).tolist() == [feature != 3 for feature in range(n)]


def test_recovered_asks_for_more_than_the_threshold() -> None:
    found = match(FEATURES[:5], FEATURES)._replace(cosines=torch.tensor([0.95, 0.91, 0.9, 0.5, 1.0]))
    expected = torch.zeros(n, dtype=torch.bool)
    expected[found.features[[0, 1, 4]]] = True
    assert torch.equal(found.recovered(n), expected), "features without a partner are not recovered"
    assert found.recovered(n, threshold=0.94).sum() == 2


def test_detection_of_what_fires_and_of_what_never_does() -> None:
    both, latent, feature = torch.tensor([[6, 0, 0, 0], [8, 0, 5, 0], [12, 10, 0, 0]])
    found = detection(both, latent, feature)
    torch.testing.assert_close(found["precision"][:2], torch.tensor([0.75, 0], dtype=torch.float64))
    torch.testing.assert_close(found["recall"][:2], torch.tensor([0.5, 0], dtype=torch.float64))
    torch.testing.assert_close(found["f1"][:2], torch.tensor([0.6, 0], dtype=torch.float64))
    for values in found.values():
        assert values[2:].isnan().all(), "a feature that never fires cannot be detected"


def test_decades_hold_every_feature_once() -> None:
    bands = decades(torch.tensor([0.4, 0.1, 0.0999, 0.01, 0.001, 0.0005, 1.0]))
    assert {name: members.nonzero().squeeze(1).tolist() for name, members in bands.items()} == {
        "1e-4": [5],
        "1e-3": [4],
        "1e-2": [2, 3],
        "1e-1": [0, 1],
        "1e0": [6],
    }


def test_the_truth_itself_scores_one_in_any_order_sign_and_length() -> None:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(4))
    lengths = random(n, 1, seed=5)
    for directions, fired in ((FEATURES, TRUE), (lengths * FEATURES[order], TRUE[:, order])):
        found = scores(directions, fired)
        assert set(found) == {
            *("mcc", "recovered", "f1", "precision", "recall"),
            *(f"{name}_1e-{band}" for name in ("recovered", "f1") for band in (1, 2, 3)),
        }
        assert list(found.values()) == pytest.approx([1] * len(found))


def test_latents_beyond_the_features_cost_nothing() -> None:
    extra = random(5, D, seed=6)
    fired = torch.cat([torch.ones(T, 5, dtype=torch.bool), TRUE], dim=1)
    found = scores(torch.cat([extra, FEATURES]), fired)
    assert list(found.values()) == pytest.approx([1] * len(found))


def test_a_random_dictionary_scores_low() -> None:
    width, count = 64, 50
    features, directions = (normalize(random(count, width, seed=seed), dim=1) for seed in (0, 1))
    metric = GroundTruthScores(directions, features, torch.full((count,), 0.05))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        fired, true = (torch.rand(500, count, generator=generator) < 0.05 for _ in range(2))
        metric.update(*fired.nonzero(as_tuple=True), *true.nonzero(as_tuple=True))
    found = metric.compute()
    assert found["mcc"] < 0.4
    assert found["recovered"] == 0
    assert found["f1"] < 0.15


@pytest.mark.parametrize("latents", [5, 12, 20])
def test_figures_against_the_obvious_way(latents: int) -> None:
    directions = random(latents, D, seed=7)
    directions[:4] = FEATURES[[8, 1, 6, 3]] + 0.02 * random(4, D, seed=8)
    fired = torch.rand(T, latents, generator=torch.Generator().manual_seed(9)) < 0.3
    fired[:, :4] = TRUE[:, [8, 1, 6, 3]] ^ (torch.rand(T, 4, generator=torch.Generator().manual_seed(10)) < 0.1)
    found = scores(directions, fired, batches=3)

    pairs = match(directions, FEATURES)
    f1, precision, recall, close = {}, {}, {}, set()
    for latent, feature, cosine in zip(*(part.tolist() for part in pairs), strict=True):
        a, b = fired[:, latent], TRUE[:, feature]
        precision[feature] = (a & b).sum().item() / a.sum().item()
        recall[feature] = (a & b).sum().item() / b.sum().item()
        f1[feature] = 2 / (1 / precision[feature] + 1 / recall[feature]) if (a & b).any() else 0.0
        close |= {feature} if cosine > 0.9 else set()
    assert {8, 1, 6, 3} <= close
    for name, values in (("f1", f1), ("precision", precision), ("recall", recall)):
        assert found[name] == pytest.approx(sum(values.values()) / len(values), rel=1e-6)
    assert found["recovered"] == pytest.approx(len(close) / n)
    if latents < n:
        assert found["recovered_most_frequent"] == pytest.approx(len(close & set(range(latents))) / latents)
    else:
        assert "recovered_most_frequent" not in found
    for name, low, high in (("1e-1", 0.1, 1), ("1e-2", 0.01, 0.1), ("1e-3", 0.001, 0.01)):
        members = [feature for feature, p in enumerate(PROBABILITIES.tolist()) if low <= p < high]
        assert found[f"recovered_{name}"] == pytest.approx(len(close & set(members)) / len(members))
        paired = [f1[feature] for feature in members if feature in f1]
        if paired:
            assert found[f"f1_{name}"] == pytest.approx(sum(paired) / len(paired), rel=1e-6)


def test_features_that_do_not_fire_in_the_data_do_not_count() -> None:
    true = TRUE.clone()
    true[:, :3] = False
    fired = true.clone()
    fired[:, 0] = True
    found = scores(FEATURES, fired, true)
    assert (found["f1"], found["precision"], found["recall"]) == pytest.approx((1, 1, 1))


def test_counts_are_pooled_over_batches_and_processes() -> None:
    fired = TRUE ^ (torch.rand(T, n, generator=torch.Generator().manual_seed(11)) < 0.1)
    assert scores(FEATURES, fired, batches=8) == pytest.approx(scores(FEATURES, fired))
    metrics = [GroundTruthScores(FEATURES, FEATURES, PROBABILITIES) for _ in range(2)]
    for metric, one, other in zip(metrics, fired.split([300, 100]), TRUE.split([300, 100]), strict=True):
        metric.update(*one.nonzero(as_tuple=True), *other.nonzero(as_tuple=True))
    first, second = metrics
    for name in ("both", "latent", "feature"):
        assert first._reductions[name] is not None
        setattr(first, name, getattr(first, name) + getattr(second, name))
    pooled = {name: value.item() for name, value in first.compute().items()}
    assert pooled == pytest.approx(scores(FEATURES, fired))
