"""The synthetic world: what fires how often and together, the directions, fills that are drawn by number."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import foldnorm, multivariate_normal, norm

from lightsae.activations.stream import ActivationStream, HeldOut, Process, StreamPlan
from lightsae.activations.synthetic.fills import SITE, SyntheticFills, held_out_samples
from lightsae.activations.synthetic.world import SyntheticConfig, SyntheticWorld, spread_out
from lightsae.activations.timings import Timings
from lightsae.errors import ConfigError
from lightsae.randomness import keyed_generator
from lightsae.sae import SparseLatents

CPU = torch.device("cpu")
ZIPF = SyntheticConfig(features=100, width=16, frequencies="zipf", max_probability=0.4, min_probability=0.01)
# 2 * (1 + 3 + 9) = 26 features in trees, 74 outside.
TREES = replace(ZIPF, roots=2, branching=3, depth=2, zipf_exponent=1.0)
WORLDS = {
    "default": SyntheticConfig(),
    "zipf": ZIPF,
    "exclusive": TREES,
    "not exclusive": replace(TREES, exclusive=False),
    "uniform trees": replace(TREES, frequencies="uniform", exclusive=False),
    "correlated": replace(ZIPF, correlation_rank=3, correlation_strength=0.5),
    "everything": replace(TREES, correlation_rank=3, scale_children=True, noise=0.1, bias_norm=1.0),
}


def drawn(config: SyntheticConfig, tokens: int = 40_000) -> tuple[SyntheticWorld, SparseLatents]:
    world = SyntheticWorld(config)
    return world, world.sample(tokens, keyed_generator(0, "test"))


def fires(truth: SparseLatents) -> torch.Tensor:
    return truth.to_dense() > 0


# -- what fires --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_every_feature_fires_as_often_as_designed(name: str) -> None:
    world, truth = drawn(WORLDS[name])
    p, found = world.probabilities, fires(truth).double().mean(0)
    assert (0 < p).all()
    assert (p < 1).all()
    deviations = (found - p) / (p * (1 - p) / truth.pattern.tokens).sqrt()
    assert deviations.abs().max() < 5
    assert deviations.square().mean() == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("name", WORLDS)
def test_a_sample_is_in_order_and_positive(name: str) -> None:
    world, truth = drawn(WORLDS[name], 3_000)
    assert truth.pattern.tokens == 3_000
    assert truth.pattern.width == len(world.probabilities)
    assert truth.values.dtype == torch.float32
    assert (truth.values > 0).all()
    places = truth.pattern.token_of * truth.pattern.width + truth.indices
    assert (places.diff() > 0).all(), "by token, then by feature, each once"


def test_the_default_world_is_that_of_the_contract() -> None:
    world, truth = drawn(SyntheticConfig())
    assert world.features.shape == (256, 64)
    torch.testing.assert_close(world.features.norm(dim=1), torch.ones(256))
    assert torch.allclose(world.probabilities, torch.tensor(5 / 256, dtype=torch.float64))
    together = fires(truth).double().T.cov()
    together.fill_diagonal_(0)
    assert together.abs().max() < 6 * 5 / 256 / 40_000**0.5, "independent"


def test_zipf_falls_by_a_power_of_the_rank_between_its_ends() -> None:
    p = SyntheticWorld(replace(ZIPF, zipf_exponent=0.5)).probabilities
    assert p[0].item() == pytest.approx(0.4)
    assert p[-1].item() == pytest.approx(0.01)
    # Rank 1 has weight 1, rank 100 weight 0.1, rank 4 weight 0.5.
    assert p[3].item() == pytest.approx(0.01 + 0.39 * (0.5 - 0.1) / (1 - 0.1))


def parents_of(world: SyntheticWorld) -> dict[int, int]:
    return {
        child: above.start + place // world.config.branching
        for above, below in zip(world.levels, world.levels[1:], strict=False)
        for place, child in enumerate(below)
    }


@pytest.mark.parametrize("name", ["exclusive", "not exclusive", "uniform trees", "everything"])
def test_a_child_fires_only_where_its_parent_does(name: str) -> None:
    world, truth = drawn(WORLDS[name])
    parents = parents_of(world)
    assert sorted(parents) == list(range(2, 26))
    assert [parents[child] for child in (2, 4, 5, 7, 8, 10, 11, 25)] == [0, 0, 1, 1, 2, 2, 3, 7]
    on = fires(truth)
    for child, parent in parents.items():
        assert on[:, child].any()
        assert not (on[:, child] & ~on[:, parent]).any()


@pytest.mark.parametrize("name", ["exclusive", "not exclusive"])
def test_exclusive_siblings_never_fire_together(name: str) -> None:
    world, truth = drawn(WORLDS[name])
    on = fires(truth)
    together = on[:, 2:26].view(len(on), 8, 3).sum(2)
    assert together.max() == (1 if world.config.exclusive else 3)


def test_children_are_taken_down_to_what_their_parent_allows() -> None:
    # All are to fire equally often: the three children of each feature share what it has, or each has all of it.
    uniform = replace(TREES, frequencies="uniform")
    p = SyntheticWorld(uniform).probabilities * 20
    expected = {"roots": (slice(0, 2), 1.0), "children": (slice(2, 8), 1 / 3), "leaves": (slice(8, 26), 1 / 9)}
    for part, share in (*expected.values(), (slice(26, 100), 1.0)):
        torch.testing.assert_close(p[part], torch.full_like(p[part], share))
    assert torch.allclose(SyntheticWorld(replace(uniform, exclusive=False)).probabilities * 20, torch.ones(()).double())


@pytest.mark.parametrize("name", ["correlated", "everything"])
def test_pairs_fire_together_as_the_copula_says(name: str) -> None:
    world, truth = drawn(replace(WORLDS[name], correlation_strength=0.8), 100_000)
    on = fires(truth).double()
    parentless = [feature for feature in range(100) if feature not in parents_of(world)]
    latent = world.factors @ world.factors.T
    torch.testing.assert_close(latent.diagonal(), torch.full((len(parentless),), 0.8))
    assert latent[:5, :5].min() < -0.3, "both signs are tested"
    for i in range(5):
        for j in range(i):
            a, b = parentless[i], parentless[j]
            limits = norm.isf([world.probabilities[a], world.probabilities[b]])
            rho = latent[i, j].item()
            # Both pass their limits: by symmetry, both lie under the negative ones.
            expected = multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf(-limits)
            found = (on[:, a] * on[:, b]).mean().item()
            assert found == pytest.approx(expected, abs=5 * (expected / len(on)) ** 0.5)


def test_without_strength_the_copula_ties_nothing() -> None:
    _, truth = drawn(replace(WORLDS["correlated"], correlation_strength=0.0))
    together = fires(truth)[:, :10].double().T.corrcoef()
    together.fill_diagonal_(0)
    assert together.abs().max() < 5 / 40_000**0.5


def test_everything_may_always_fire() -> None:
    _, truth = drawn(SyntheticConfig(features=8, width=4, active=8.0), 500)
    assert fires(truth).all()


def test_how_much_is_drawn_at_once_changes_no_frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightsae.activations.synthetic.world._CHUNK", {"cpu": 700})
    for config in (ZIPF, WORLDS["everything"]):
        world, truth = drawn(config, 10_001)
        assert truth.pattern.tokens == 10_001
        p, found = world.probabilities, fires(truth).double().mean(0)
        assert ((found - p) / (p * (1 - p) / 10_001).sqrt()).abs().max() < 5


# -- magnitudes and activations ----------------------------------------------------------------------------------------


def test_magnitudes_have_the_mean_and_deviation_of_the_settings() -> None:
    config = SyntheticConfig(
        features=4, width=4, active=4.0, magnitude_mean=3.0, magnitude_mean_last=1.5, magnitude_std=0.3
    )
    values = drawn(config)[1].to_dense()
    torch.testing.assert_close(values.mean(0), torch.tensor([3, 2.5, 2, 1.5]), rtol=0, atol=0.01)
    torch.testing.assert_close(values.std(0), torch.full((4,), 0.3), rtol=0, atol=0.01)
    spread = drawn(replace(config, features=200, width=200, active=200.0, magnitude_std_spread=0.3), 2_000)[
        1
    ].to_dense()
    assert spread.std(0).std().item() == pytest.approx(0.25, abs=0.05)


def test_magnitudes_are_folded_not_cut() -> None:
    config = SyntheticConfig(features=4, width=4, active=4.0, magnitude_mean=0.5, magnitude_std=1.0)
    values = drawn(config)[1].values
    assert values.mean().item() == pytest.approx(foldnorm(0.5).mean(), abs=0.01)
    assert (values < 0.01).double().mean().item() == pytest.approx(foldnorm(0.5).cdf(0.01), rel=0.2)


def test_a_child_is_scaled_by_its_parent() -> None:
    config = replace(TREES, magnitude_mean=2.0, magnitude_std=0.5)
    for scaled, expected in ((True, 0.7), (False, 0.0)):
        values = drawn(replace(config, scale_children=scaled))[1].to_dense()
        both = values[:, 2] > 0
        pair = torch.stack([values[both, 0], values[both, 2]])
        # The product of two independent ones of relative deviation 1/4 has correlation 0.7 with each of them.
        assert pair.corrcoef()[0, 1].item() == pytest.approx(expected, abs=0.05)
        assert pair[1].mean().item() == pytest.approx(2, abs=0.03)


def test_activations_are_the_sum_of_what_fires() -> None:
    config = replace(WORLDS["everything"], noise=0.0, bias_norm=3.0)
    world, truth = drawn(config, 500)
    x = world.activations(truth, keyed_generator(0, "noise"))
    rest = x - truth.to_dense() @ world.features
    torch.testing.assert_close(rest, rest[:1].expand_as(rest), atol=1e-5, rtol=0)
    assert rest[0].norm().item() == pytest.approx(3, abs=1e-4)
    noisy = SyntheticWorld(replace(config, noise=0.2)).activations(truth, keyed_generator(0, "noise"))
    assert (noisy - x).std().item() == pytest.approx(0.2, rel=0.05)
    assert (noisy - x).mean().abs() < 0.01


# -- directions --------------------------------------------------------------------------------------------------------


def mean_max_cosine(features: torch.Tensor) -> float:
    return (features @ features.T).fill_diagonal_(0).abs().amax(1).mean().item()


def test_features_are_turned_away_from_each_other_down_to_the_target() -> None:
    config = SyntheticConfig(features=128, width=32)
    random = SyntheticWorld(config).features
    turned = SyntheticWorld(replace(config, orthogonalise_steps=100, orthogonalise_target=0.35)).features
    assert 0.3 < mean_max_cosine(turned) <= 0.35 < 0.45 < mean_max_cosine(random)
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(128))
    assert (turned * random).sum(1).min() > 0.7, "turned, not drawn anew"


def test_turning_stops_at_the_target_and_after_the_steps() -> None:
    features = SyntheticWorld(SyntheticConfig(features=128, width=32)).features
    assert torch.equal(spread_out(features, 50, 0.9), features)
    once, twice = (mean_max_cosine(spread_out(features, steps, 0.2)) for steps in (1, 2))
    assert mean_max_cosine(features) > once > twice > 0.2


# -- the same again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_the_same_key_draws_the_same(name: str) -> None:
    results = []
    for _ in range(2):
        world, generator = SyntheticWorld(WORLDS[name]), keyed_generator(3, "again")
        truth = world.sample(700, generator)
        results.append((truth.values, truth.indices, truth.offsets, world.activations(truth, generator)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    other = SyntheticWorld(WORLDS[name]).sample(700, keyed_generator(4, "again"))
    assert not torch.equal(other.values[:100], results[0][0][:100])


def test_the_seed_is_that_of_the_world() -> None:
    one, other = (SyntheticWorld(SyntheticConfig(seed=seed)) for seed in (0, 1))
    assert (one.features * other.features).sum(1).abs().mean() < 0.2
    generators = (keyed_generator(0, "test") for _ in range(2))
    samples = [world.sample(100, generator) for world, generator in zip((one, other), generators, strict=True)]
    assert torch.equal(samples[0].indices, samples[1].indices), "what is drawn follows the generator alone"


PLAN = StreamPlan(batch_tokens=64, batches_per_fill=4, total_batches=40, seed=0)
WORLD = SyntheticWorld(WORLDS["everything"])


def fills(plan: StreamPlan = PLAN, dtype: torch.dtype = torch.float32) -> SyntheticFills:
    return SyntheticFills(WORLD, plan, torch.empty(256, WORLD.width, dtype=dtype), Timings())


def test_a_fill_follows_from_its_number_and_rank() -> None:
    source = fills()
    first = [source.fill(number).everything.activations[SITE].clone() for number in range(3)]
    assert torch.equal(fills().fill(2).everything.activations[SITE], first[2]), "random access"
    assert source.state_dict() == {}
    distinct = [*first, fills(replace(PLAN, rank=1, world=2)).fill(0).everything.activations[SITE]]
    assert len({tensor.sum().item() for tensor in distinct}) == 4
    assert 0 < source.timings.totals()["text"]


def test_a_fill_is_made_of_ordinary_samples() -> None:
    fill = fills(replace(PLAN, rank=1, world=2), torch.bfloat16).fill(3)
    batch = fill.everything
    assert batch.activations[SITE].shape == (256, WORLD.width)
    assert batch.activations[SITE].dtype == torch.bfloat16
    assert fill.served.tolist() == list(range(256))
    assert batch.rows.tolist() == list(range(7 * 256, 8 * 256))
    assert (batch.tokens == -1).all()
    assert not batch.special.any()
    assert not batch.sinks[SITE].any()
    assert batch.truth is None


def test_a_stream_goes_on_where_it_was() -> None:
    def stream() -> ActivationStream:
        return ActivationStream(fills(), PLAN, Timings())

    whole = [batch.activations[SITE].clone() for batch in stream()]
    assert len(whole) == 40
    begun = stream()
    for _ in zip(range(7), begun, strict=False):
        pass
    resumed = stream()
    resumed.load_state_dict(begun.state_dict())
    for index, batch in enumerate(resumed, start=begun.served_batches):
        assert torch.equal(batch.activations[SITE], whole[index])


def validation(tokens: int = 1000, rank: int = 0, world_size: int = 1, seed: int = 0) -> HeldOut:
    return held_out_samples(WORLD, tokens, 300, seed, Process((), CPU, torch.float32, rank, world_size))


def test_validation_is_the_same_each_time_and_tells_the_truth() -> None:
    held_out = validation()
    first, second = list(held_out), list(held_out)
    assert [batch.index for batch in first] == [0, 1, 2]
    assert len(held_out) == 3
    world = SyntheticWorld(replace(WORLD.config, noise=0.0))
    for one, other in zip(first, second, strict=True):
        assert len(one) == 300
        assert torch.equal(one.activations[SITE], other.activations[SITE])
        assert one.truth is not None
        difference = one.activations[SITE] - world.activations(one.truth, keyed_generator(0, "unused"))
        assert difference.std().item() == pytest.approx(WORLD.config.noise, rel=0.1)
    sums = {batch.activations[SITE].sum().item() for batch in [*first, *validation(seed=1)]}
    assert len(sums) == 6


def test_ranks_validate_on_different_samples_of_one_number() -> None:
    for tokens in (1000, 300, 10, 1):
        ranks = [list(validation(tokens, rank, 2)) for rank in range(2)]
        assert len({tuple(len(batch) for batch in batches) for batches in ranks}) == 1
        rows = [row for batches in ranks for batch in batches for row in batch.rows.tolist()]
        assert len(set(rows)) == len(rows)
        assert len(rows) <= max(tokens, 2)
    assert len(validation(10)) == 1, "less than a batch"
    assert len(next(iter(validation(10)))) == 10


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_presets_are_as_described() -> None:
    large = SyntheticWorld(SyntheticConfig(preset="synthsaebench-16k"))
    assert (large.config.features, large.width) == (16_384, 768)
    assert len(parents_of(large)) + 128 == 10_880
    p = large.probabilities
    assert (p.max().item(), p[-1].item()) == pytest.approx((0.4, 5e-4))
    assert p.sum().item() == pytest.approx(34, abs=1.5), "about 34 active"
    small = SyntheticWorld(SyntheticConfig(preset="synthsaebench-2k"))
    assert small.features.shape == (2_048, 128)
    assert mean_max_cosine(small.features) < 0.3
    per_dimension = [world.probabilities.sum().item() / world.width for world in (large, small)]
    assert per_dimension[0] == pytest.approx(per_dimension[1], rel=0.05)
    truth = small.sample(2_000, keyed_generator(0, "test"))
    assert len(truth.indices) / 2_000 == pytest.approx(small.probabilities.sum().item(), rel=0.1)


def test_settings_go_on_top_of_a_preset() -> None:
    world = SyntheticWorld(SyntheticConfig(preset="synthsaebench-2k", noise=0.5, roots=8, seed=3))
    assert (world.config.noise, world.config.roots, world.config.seed) == (0.5, 8, 3)
    assert world.config.correlation_rank == 25
    assert SyntheticWorld(world.config).config == world.config, "what is stored gives the same world"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "synthsaebench-2K"}, r"preset is 'synthsaebench-2K'; known are .*Did you mean 'synthsaebench-2k'"),
        ({"features": 1}, r"features is 1; write 2 or more"),
        ({"features": 3}, r"features is 3; write 5 or more, or active"),
        ({"width": 0}, r"width is 0; write 2 or more"),
        ({"active": 0.0}, r"active is 0.0; write more than 0 and at most features \(256\)"),
        ({"active": 300.0}, r"active is 300.0; write more than 0"),
        ({"active": 5.0, "frequencies": "zipf"}, r"active is 5.0; zipf frequencies follow from max_probability"),
        ({"frequencies": "zipfian"}, r"frequencies is 'zipfian'; known are uniform, zipf. Did you mean 'zipf'"),
        ({"frequencies": "zipf", "zipf_exponent": 0.0}, r"zipf_exponent is 0.0; write a number above 0"),
        ({"frequencies": "zipf", "max_probability": 1.5}, r"max_probability is 1.5; write a share"),
        ({"frequencies": "zipf", "min_probability": 0.5}, r"min_probability is 0.5; .*max_probability \(0.4\)"),
        ({"roots": -1}, r"roots is -1; write 0 or more"),
        (
            {"roots": 16},
            r"roots is 16; with branching 4 and depth 3 these trees hold 1360 features, more than .*\(256\)",
        ),
        ({"branching": 0}, r"branching is 0; write 1 or more"),
        ({"depth": 0}, r"depth is 0; write 1 or more"),
        ({"correlation_rank": -2}, r"correlation_rank is -2; write 0 or more"),
        ({"correlation_strength": 1.0}, r"correlation_strength is 1.0; write 0 or more, below 1"),
        ({"orthogonalise_steps": -1}, r"orthogonalise_steps is -1; write 0 or more"),
        ({"orthogonalise_target": 0.0}, r"orthogonalise_target is 0.0; write a cosine"),
        ({"magnitude_mean": 0.0}, r"magnitude_mean is 0.0; write a number above 0"),
        ({"magnitude_mean_last": -1.0}, r"magnitude_mean_last is -1.0; write a number above 0"),
        ({"magnitude_std": -0.1}, r"magnitude_std is -0.1; write 0 or more"),
        ({"magnitude_std_spread": -0.1}, r"magnitude_std_spread is -0.1; write 0 or more"),
        ({"noise": float("nan")}, r"noise is nan; write 0 or more"),
        ({"bias_norm": float("inf")}, r"bias_norm is inf; write 0 or more"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    config = SyntheticConfig()
    for key, value in settings.items():
        object.__setattr__(config, key, value)  # past the run-time checks of types, which users don't have
    with pytest.raises(ConfigError, match=rf"^{message}"):
        SyntheticWorld(config)
