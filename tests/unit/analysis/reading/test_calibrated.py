"""Raw neurons and floors: they fire as often as others do, of both signs, whatever the mechanism."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.fills import ReadSettings
from lightsae.analysis.interpret.floors import comparisons
from lightsae.analysis.reading.calibrated import (
    CalibratedFeatures,
    NeuronFeatures,
    RandomDirections,
    ShuffledEncoder,
    calibrate,
    firings_in,
    neuron_sites,
    spread_of,
)
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import TextRows
from lightsae.lm import LanguageModel
from lightsae.progress import NullProgress
from lightsae.sae import Refinements, SiteRef, SparseAutoencoder, TopK, Widths
from lightsae.sae.token_norm import TokenNorm
from lightsae.sae.variants import VARIANTS

SITE, BESIDE = SiteRef("model", "resid_post.0"), SiteRef("model", "mlp_act.0")
D, ROWS, CONTEXT = 16, 64, 64
# Of the tiny language models.
WIDTH, NEURONS = 12, 16


class GaussianReader(ActivationReader):
    """Activations with a mean, unequal spreads and heavy tails; the first token of each row does not count."""

    def __init__(self) -> None:
        self.reading = ReadSettings((SITE,), torch.float32, 8)

    def batches(self, rows: Any, start: int = 0) -> Iterator[tuple[ActivationBatch, np.ndarray]]:
        for part in rows.batches(self.reading.rows_at_once, start):
            draws = [self.row(int(number)) for number in part.numbers]
            activations = {site: torch.cat([draw[site] for draw in draws]) for site in (SITE, BESIDE)}
            tokens = torch.from_numpy(part.tokens.astype(np.int64)).flatten()
            batch = ActivationBatch(
                activations, tokens, tokens, tokens, tokens, tokens > 0, {}, rows_shape=part.tokens.shape
            )
            counted = np.ones(part.tokens.shape, np.bool_)
            counted[:, 0] = False
            yield batch, counted

    @staticmethod
    def row(number: int) -> dict[SiteRef, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        base = torch.randn(CONTEXT, D, generator=generator) * torch.linspace(0.2, 3, D) + torch.linspace(-1, 1, D)
        hidden = torch.randn(CONTEXT, 2 * D, generator=generator) ** 3
        return {SITE: base, BESIDE: torch.nn.functional.gelu(hidden)}


def rows_of(first: int, count: int = ROWS) -> TextRows:
    shape = (count, CONTEXT)
    return TextRows(np.zeros(shape, np.int32), np.zeros(shape, np.int64), first + np.arange(count))


def fires_of(population: Any, rows: TextRows) -> np.ndarray:
    fires = np.zeros(population.n_features, np.int64)
    for batch, counted in GaussianReader().batches(rows):
        tokens, features, values = population.above(batch.activations, torch.zeros(population.n_features))
        assert (values > 0).all()
        latents = population.encode(batch.activations)
        assert torch.equal(latents.indices, features)
        fires += np.bincount(features[torch.from_numpy(counted.ravel())[tokens]], minlength=population.n_features)
    return fires


def trained(variant: str, token_norm: TokenNorm | None = None) -> SparseAutoencoder:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"TopK": {"k": 3}, "BatchTopK": {"k": 3}}.get(variant, {})
    settings |= {"refinements": Refinements(token_norm=token_norm)}
    sae = VARIANTS[variant](Widths.autoencoder(SITE, D), d_sae=48, **settings)
    sample = torch.cat([GaussianReader.row(number)[SITE] for number in range(1000, 1020)])
    sae.start_from({SITE: sample}, "sqrt_d")
    return sae.eval()


def populations(sae: SparseAutoencoder) -> dict[str, CalibratedFeatures]:
    return comparisons(sae, {BESIDE: 2 * D}, GaussianReader(), rows_of(0), 0, NullProgress())


def test_each_fires_on_exactly_as_many_tokens_of_the_sample_as_it_is_told() -> None:
    counts = torch.tensor([1, 2, 3, 15, 16, 17, 63, 64, 65, 700, 2000, 4000, 4, 5, 6, 7] * 2)
    direction = RandomDirections({SITE: D}, 32, torch.Generator().manual_seed(0))
    neurons = NeuronFeatures({SITE: D})
    both = {"a": direction, "b": neurons}
    calibrate(both, {"a": counts, "b": counts}, GaussianReader(), rows_of(0), NullProgress())
    for population in both.values():
        assert fires_of(population, rows_of(0)).tolist() == counts.tolist()


def test_neurons_fire_where_they_are_high_and_where_they_are_low() -> None:
    neurons = NeuronFeatures({SITE: D})
    calibrate({"n": neurons}, {"n": torch.full((2 * D,), 40)}, GaussianReader(), rows_of(0), NullProgress())
    row = torch.cat([GaussianReader.row(number)[SITE] for number in range(ROWS)])
    values = neurons.values({SITE: row})
    high, low = (values > 0)[:, :D], (values > 0)[:, D:]
    assert not (high & low).any()
    for unit in range(D):
        assert row[high[:, unit], unit].min() > row[~high[:, unit] & ~low[:, unit], unit].max()
        assert row[low[:, unit], unit].max() < row[~high[:, unit] & ~low[:, unit], unit].min()


def test_equal_scores_never_fire_too_often() -> None:
    class Flat(CalibratedFeatures):
        def scores(self, activations: Any) -> torch.Tensor:
            return activations[SITE][:, :3].relu() * torch.tensor([0.0, 1.0, -1.0])

    flat = Flat(3)
    calibrate({"n": flat}, {"n": torch.tensor([10, 10, 3900])}, GaussianReader(), rows_of(0), NullProgress())
    fires = fires_of(flat, rows_of(0))
    assert fires[0] == 0
    assert fires[1] == 10
    assert fires[2] <= 3900


@pytest.mark.parametrize("variant", ["TopK", "BatchTopK", "ReLU", "JumpReLU", "Gated"])
def test_floors_are_matched_in_frequency_on_text_that_set_no_threshold(variant: str) -> None:
    """Quantiles of the frequencies, on other text, within 15% of the latents'; so is the sum over all features."""
    sae = trained(variant)
    latents = firings_in(SAEFeatures(sae), GaussianReader(), rows_of(5000, 256), NullProgress())
    latents = latents[latents > 0]
    at = [0.25, 0.5, 0.75, 0.9]
    for name, population in populations(sae).items():
        fires = fires_of(population, rows_of(5000, 256))
        np.testing.assert_allclose(np.quantile(fires, at), np.quantile(latents, at), rtol=0.15, err_msg=name)
        np.testing.assert_allclose(fires.mean(), latents.mean(), rtol=0.1, err_msg=name)


def test_shuffled_weights_keep_each_coordinates_own_and_no_direction() -> None:
    sae = trained("TopK")
    shuffled = ShuffledEncoder(sae, 48, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.columns.sort(dim=1).values, sae.W_enc.detach().sort(dim=1).values)
    cosines = torch.nn.functional.normalize(shuffled.columns.T) @ torch.nn.functional.normalize(sae.W_enc.detach())
    same = torch.nn.functional.normalize(sae.W_enc.detach().T) @ torch.nn.functional.normalize(sae.W_enc.detach())
    same.fill_diagonal_(-1)
    assert abs(float(cosines.max(1).values.mean() - same.max(1).values.mean())) < 0.05
    assert shuffled.k == 3
    assert ShuffledEncoder(sae, 16, torch.Generator()).k == 1
    assert ShuffledEncoder(trained("ReLU"), 16, torch.Generator()).k is None


@pytest.mark.parametrize("token_norm", ["layer_norm", "rescale"])
def test_shuffled_weights_see_tokens_normalised_as_the_sae_does(token_norm: TokenNorm) -> None:
    """A token's scores, one that is far from the others included, are those of the same token in other units."""
    shuffled = ShuffledEncoder(trained("ReLU", token_norm), 48, torch.Generator().manual_seed(0))
    x = GaussianReader.row(3)[SITE]
    torch.testing.assert_close(shuffled.scores({SITE: 50 * x}), shuffled.scores({SITE: x}), rtol=1e-4, atol=1e-4)
    read = x - x.mean(1, keepdim=True) if token_norm == "layer_norm" else x
    read = read / (read.square().sum(1, keepdim=True) / (D - (token_norm == "layer_norm"))).sqrt()
    expected = (read * shuffled.scale) @ shuffled.columns
    torch.testing.assert_close(shuffled.scores({SITE: x}), expected, rtol=1e-3, atol=1e-3)


def test_floors_are_the_same_for_a_seed() -> None:
    sae = trained("TopK")
    first, again = populations(sae), populations(sae)
    for name, population in first.items():
        assert torch.equal(population.thresholds, again[name].thresholds)


def test_frequencies_are_spread_over_those_of_the_living() -> None:
    counts = np.r_[np.zeros(50, np.int64), np.arange(1, 101)]
    drawn = spread_of(counts, 512, torch.Generator().manual_seed(0))
    assert drawn.min() == 1
    assert drawn.max() == 100
    assert abs(float(drawn.double().mean()) - 50.5) < 0.5
    assert not torch.equal(drawn, drawn.sort().values)


def test_neurons_are_those_of_the_block_that_is_read(make_model: Callable[..., Path]) -> None:
    name = str(make_model())
    models = {name: LanguageModel.from_pretrained(name)}

    def sites(read: str) -> dict[str, int]:
        sae = TopK(Widths.autoencoder(SiteRef(name, read), WIDTH), d_sae=4, k=1)
        return {ref.site: width for ref, width in neuron_sites(sae, models).items()}

    assert sites("resid_post.1") == sites("mlp_out.1") == {"mlp_act.1": NEURONS}
    assert sites("resid_pre.1") == sites("resid_pre.0") == {"mlp_act.0": NEURONS}
    # Where no block is known, the coordinates of the site take their place.
    assert sites("model.norm.output") == {"model.norm.output": WIDTH}


def test_which_tokens_count_does_not_depend_on_what_is_read_beside(make_model: Callable[..., Path]) -> None:
    name = str(make_model())
    models = {name: LanguageModel.from_pretrained(name)}
    read, beside = SiteRef(name, "resid_post.1"), SiteRef(name, "mlp_act.1")
    tokens = np.random.default_rng(0).integers(3, 100, (6, 9)).astype(np.int32)
    rows = TextRows(tokens, np.zeros((6, 9), np.int64), np.arange(6))
    settings = ReadSettings((read,), torch.float32, 4)
    plain, more = (list(ActivationReader(models, settings, also).batches(rows)) for also in ((), (beside,)))
    for (_, counted), (batch, counted_too) in zip(plain, more, strict=True):
        assert np.array_equal(counted, counted_too)
        assert batch.activations[beside].shape[1] == NEURONS
