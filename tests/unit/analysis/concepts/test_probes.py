"""Probes: AUC against brute force, over draws of documents too, and where what tells a concept is known."""

import numpy as np
import pytest
from scipy import sparse

from lightsae.analysis.concepts.probes import Sample, _aucs, auc, draw_samples, full_probe, probe_figures, sparse_probes
from lightsae.analysis.concepts.task import Task
from lightsae.analysis.concepts.truth import Truth

N = 400


def brute_auc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    won = whole = 0.0
    for place in np.flatnonzero(truth):
        for other in np.flatnonzero(~truth):
            weight = weights[place] * weights[other]
            won += weight * ((scores[place] > scores[other]) + 0.5 * (scores[place] == scores[other]))
            whole += weight
    return won / whole


def test_auc_over_draws_is_that_of_documents_repeated() -> None:
    rng = np.random.default_rng(0)
    scores, truth, documents = rng.integers(0, 6, 60) / 2, rng.random(60) < 0.4, rng.integers(0, 5, 60)
    times = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 0, 2], [0, 3, 1, 1, 0]], np.float64)
    expected = [brute_auc(scores, truth, row[documents]) for row in times]
    assert _aucs(scores, truth, documents, times) == pytest.approx(expected)
    assert auc(scores, truth) == pytest.approx(expected[0])


def sample_of(truth: np.ndarray) -> tuple[Sample, np.ndarray]:
    half = np.arange(N // 2)
    return Sample(0, half, half + N // 2, truth[: N // 2], truth[N // 2 :]), np.arange(N) % 4


def test_a_probe_finds_the_columns_that_tell() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(N) < 0.5
    columns = (rng.random((N, 9)) * (rng.random((N, 9)) < 0.3)).astype(np.float32)
    # Two latents each have half of the concept; the scale of one is small.
    part = rng.random(N) < 0.5
    columns[:, 4] = 1000.0 * (truth & part)
    columns[:, 7] = 0.001 * (truth & ~part)
    sample, documents = sample_of(truth)
    times = np.ones((1, 4))
    for given in (columns, sparse.csr_array(columns)):
        found = sparse_probes(sample, given, documents, times)
        assert set(found[2].columns) == {4, 7}
        assert len(found[16].columns) == 9
        assert found[1].auc[0] == pytest.approx(0.75, abs=0.05)
        assert found[2].auc[0] == 1
        assert found[2].accuracy[0] == 1
    full = full_probe(sample, columns, documents, times)
    assert full.auc[0] > 0.99
    assert full.columns == []


def test_what_tells_nothing_has_an_auc_of_a_half() -> None:
    rng = np.random.default_rng(2)
    sample, documents = sample_of(rng.random(N) < 0.5)
    noise = rng.standard_normal((N, 30)).astype(np.float32)
    times = np.vstack([np.ones(4), rng.multinomial(4, np.full(4, 0.25), 20)]).astype(np.float64)
    found = {0: full_probe(sample, noise, documents, times)} | sparse_probes(sample, noise, documents, times, (1, 2))
    for probe in found.values():
        assert probe.auc[0] == pytest.approx(0.5, abs=0.12)
    figures = probe_figures([found, found])
    assert figures["probe_auc_k1"] == pytest.approx(found[1].auc)
    assert set(figures) == {f"probe_{what}_{k}" for what in ("auc", "accuracy") for k in ("full", "k1", "k2")}


def test_samples_are_balanced_and_of_different_documents() -> None:
    rng = np.random.default_rng(3)
    holds = np.stack([rng.random(2000) < share for share in (0.2, 0.1, 0.3)], 1)
    truth = Truth(("a", "b", "c"), sparse.csr_array(holds.astype(np.int32)), np.ones(2000, np.bool_))
    documents = np.repeat(np.arange(20), 100)
    task = Task.of(truth, documents, np.ones(2000, np.bool_))
    assert task is not None
    readable = np.arange(2000) % 2 == 0
    samples = draw_samples(task, 2, readable, 0)
    assert [sample.concept for sample in samples.each] == [0, 2]
    assert readable[samples.tokens].all()
    for sample in samples.each:
        assert sample.is_training.mean() == sample.is_test.mean() == 0.5
        for places, said, half in (
            (sample.training, sample.is_training, task.choosing),
            (sample.tests, sample.is_test, task.testing),
        ):
            tokens = samples.tokens[places]
            assert half[tokens].all()
            assert (holds[tokens, sample.concept] == said).all()
    again = draw_samples(task, 2, readable, 0)
    assert np.array_equal(again.tokens, samples.tokens)
