"""Figures from sums over documents: the same as from all tokens at once, and intervals that hold the truth."""

import numpy as np
import pytest
import torch
from scipy import sparse

from lightsae.analysis.evaluate.document_sums import DocumentSums, draws, interval
from lightsae.analysis.evaluate.figures import (
    DEFINITIONS,
    dense_fractions,
    faithfulness,
    l0_quantiles,
    reconstruction,
)
from lightsae.metrics import ReconstructionStatistics

T, D, N = 600, 5, 30


@pytest.fixture
def tokens() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, D, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]) + 4
    return {
        "x": x,
        "x_hat": x + 0.3 * torch.randn(T, D, generator=generator),
        "fired": torch.randint(0, 9, (T,), generator=generator),
        "documents": torch.randint(0, N, (T,), generator=generator).sort().values,
        "sinks": torch.rand(T, generator=generator) < 0.1,
    }


def tables_of(tokens: dict[str, torch.Tensor], batches: int = 7) -> dict[str, np.ndarray]:
    x, x_hat, centre = tokens["x"].double(), tokens["x_hat"].double(), torch.full((D,), 3.5, dtype=torch.float64)
    columns = {
        "tokens": torch.ones(T),
        "error": (x - x_hat).square().sum(1),
        "square": (x - centre).square().sum(1),
        "predicted": x_hat.square().sum(1),
        "product": (x * x_hat).sum(1),
        "cosine": torch.cosine_similarity(x, x_hat),
        "ratio": x_hat.norm(dim=1) / x.norm(dim=1),
        "offset": x - centre,
        "fired": tokens["fired"].double(),
    }
    kept = ~tokens["sinks"]
    columns |= {
        f"{name}_no_sinks": kept.reshape(-1, *[1] * (value.ndim - 1)) * value for name, value in columns.items()
    }
    sums = DocumentSums()
    for part in np.array_split(np.arange(T), batches):
        sums.add(tokens["documents"].numpy()[part], {name: v.double().numpy()[part] for name, v in columns.items()})
    return sums.tables()


def test_the_text_itself_gives_what_the_metrics_give(tokens):
    figures = reconstruction(tables_of(tokens), draws(N))
    statistics = ReconstructionStatistics(D)
    statistics.update(tokens["x"], tokens["x_hat"], tokens["fired"], tokens["sinks"])
    for name, value in statistics.compute().items():
        assert figures[name][0] == pytest.approx(float(value), rel=1e-5), name
    ratio = (tokens["x_hat"].norm(dim=1) / tokens["x"].norm(dim=1)).mean()
    assert figures["l2_ratio"][0] == pytest.approx(float(ratio), rel=1e-5)
    assert set(figures) <= set(DEFINITIONS)


def test_a_draw_gives_what_its_documents_would(tokens):
    times = draws(N, seed=3, count=4)
    figures = reconstruction(tables_of(tokens), times)
    for row in range(1, 5):
        drawn = torch.cat(
            [
                (tokens["documents"] == document).nonzero()[:, 0]
                for document in range(N)
                for _ in range(int(times[row, document]))
            ]
        )
        x, x_hat = tokens["x"][drawn].double(), tokens["x_hat"][drawn].double()
        fve = 1 - (x - x_hat).square().sum() / (x - tokens["x"].double().mean(0)).square().sum()
        assert figures["fve"][row] == pytest.approx(float(fve), rel=1e-9)
        assert figures["l0"][row] == pytest.approx(float(tokens["fired"][drawn].double().mean()))


def test_batches_may_cut_documents_anywhere(tokens):
    whole, cut = tables_of(tokens, 1), tables_of(tokens, 50)
    for name, table in whole.items():
        np.testing.assert_allclose(cut[name], table, rtol=1e-12)


def test_quantiles_of_l0_are_those_of_all_tokens():
    rng = np.random.default_rng(0)
    documents, counts = rng.integers(0, 6, 500), rng.poisson(7, 500)
    values = np.unique(counts)
    table = np.array([[((counts == value) & (documents == d)).sum() for value in values] for d in range(6)], float)
    figures = l0_quantiles(table, values, draws(6, count=20))
    for q in (5, 50, 95):
        assert figures[f"l0_p{q}"][0] == np.percentile(counts, q, method="inverted_cdf")


def test_dense_latents_are_counted_in_every_draw():
    rng = np.random.default_rng(0)
    fires = sparse.csr_array((rng.random((8, 30)) < 0.3) * rng.integers(1, 40, (8, 30)).astype(float))
    sizes = np.full(8, 100.0)
    times = draws(8, count=15)
    figures = dense_fractions(fires, sizes, times)
    rates = (times @ fires.toarray()) / (times @ sizes)[:, None]
    np.testing.assert_allclose(figures["dense_fraction"], (rates > 0.1).mean(1))
    np.testing.assert_allclose(figures["dense_fraction_1pct"], (rates > 0.01).mean(1))


def test_what_splicing_recovers_is_a_ratio_of_means():
    names = ("predictions", "ce_clean", "ce_spliced", "ce_zero", "ce_mean", "kl", "top1")
    tables = {
        name: np.array([value, 2.0 * value]) for name, value in zip(names, (10, 20, 25, 60, 40, 3, 8), strict=True)
    }
    tables |= {f"{name}_no_sinks": tables[name] for name in ("ce_spliced", "ce_zero", "kl")}
    figures = faithfulness(tables, draws(2, count=3))
    assert figures["ce_recovered"][0] == pytest.approx((6.0 - 2.5) / (6.0 - 2.0))
    assert figures["ce_recovered_mean"][0] == pytest.approx((4.0 - 2.5) / (4.0 - 2.0))
    assert figures["top1_agreement"][0] == pytest.approx(0.8)
    assert "top1" not in figures
    assert set(figures) <= set(DEFINITIONS)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Tokens of a document are alike: an interval over tokens would hold it in about half of the worlds."""
    rng, held, naive, worlds = np.random.default_rng(1), 0, 0, 200
    for world in range(worlds):
        sizes = rng.integers(20, 200, 40)
        levels = rng.normal(0.5, 0.2, 40)
        values = [rng.normal(level, 0.3, size) for level, size in zip(levels, sizes, strict=True)]
        sums, counts = np.array([one.sum() for one in values]), sizes.astype(float)
        times = draws(40, seed=world)
        low, high = interval((times @ sums) / (times @ counts), 40)
        held += low <= 0.5 <= high
        everything = np.concatenate(values)
        naive += abs(everything.mean() - 0.5) <= 1.96 * everything.std() / np.sqrt(len(everything))
    assert 0.9 <= held / worlds <= 0.985
    assert naive / worlds < 0.7


def test_the_figure_lies_amid_its_draws_where_documents_are_far_apart():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(N), 20)
    x = rng.normal(size=(N, D))[documents] * 3 + rng.normal(size=(T, D))
    given = {"x": x, "x_hat": x + rng.normal(size=(T, D)), "fired": np.ones(T), "sinks": np.zeros(T, bool)}
    fve = reconstruction(
        tables_of({k: torch.from_numpy(v) for k, v in (given | {"documents": documents}).items()}), draws(N)
    )["fve"]
    assert 0.3 < (fve[1:] < fve[0]).mean() < 0.7


def test_few_documents_have_no_interval():
    values = np.linspace(0, 1, 1001)
    assert interval(values, 9) == (None, None)
    assert interval(values, 10) != (None, None)
    assert interval(np.append(values, np.nan), 50) == (None, None)
