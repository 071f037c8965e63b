"""How figures vary with the text: what the draws say, and for dead latents what leaving out a document says."""

import numpy as np
import pytest
from scipy import sparse

from lightsae.analysis.evaluate.document_sums import draws
from lightsae.analysis.evaluate.spread import dead_spread, spreads


def test_squares_of_differences_add_up_to_the_variance_of_the_difference():
    rng, sizes = np.random.default_rng(0), np.full(40, 100.0)
    common = rng.normal(size=40)
    one, other = common + 0.1 * rng.normal(size=40), common + 0.1 * rng.normal(size=40)
    times = draws(40, count=4000)
    found = spreads({"one": times @ one / 40, "other": times @ other / 40}, sizes)
    apart = found["one"].deviations - found["other"].deviations
    assert found["one"].documents == pytest.approx(40)
    # The variance of a mean of 40 independent documents.
    assert apart @ apart == pytest.approx((one - other).var(ddof=1) / 40, rel=0.06)
    assert found["one"].deviations @ found["one"].deviations > 20 * (apart @ apart)


def test_few_documents_and_draws_without_a_figure_say_nothing():
    values = {"fve": np.linspace(0, 1, 101)}
    assert spreads(values, np.ones(9)) == {}
    assert spreads({"fve": np.append(values["fve"], np.nan)}, np.ones(20)) == {}
    assert dead_spread(sparse.csr_array(np.ones((9, 4))), np.ones(9)) is None


def test_dead_latents_by_leaving_out_each_document():
    rng = np.random.default_rng(1)
    fires = (rng.random((25, 60)) < 0.04) * rng.integers(1, 9, (25, 60)).astype(float)
    found = dead_spread(sparse.csr_array(fires), np.ones(25))
    without = np.array([(np.delete(fires, i, 0).sum(0) == 0).mean() for i in range(25)])
    assert without.std() > 0
    np.testing.assert_allclose(found.deviations, np.sqrt(24 / 25) * (without - without.mean()), atol=1e-12)


def test_the_spread_of_dead_latents_is_no_smaller_than_that_of_other_texts():
    """40 documents of a world in which latents are rare: what other texts of 40 documents find, and what one says."""
    rng, rates = np.random.default_rng(2), np.random.default_rng(3).exponential(0.03, 300)
    dead, said = [], []
    for _ in range(200):
        fires = (rng.random((40, 300)) < rates).astype(float)
        dead.append((fires.sum(0) == 0).mean())
        deviations = dead_spread(sparse.csr_array(fires), np.ones(40)).deviations
        said.append(deviations @ deviations)
    assert 0.9 <= np.mean(said) / np.var(dead) <= 2.0
