"""Scores of latents on concepts: against brute force, and where splitting and absorption were planted."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from lightsae.analysis.concepts.detection import LEVELS, Detection
from lightsae.analysis.concepts.figures import concept_figures, latent_scores
from lightsae.analysis.concepts.hierarchy import absorption, sets_of
from lightsae.analysis.concepts.stage import Scored, report_of
from lightsae.analysis.concepts.task import Task
from lightsae.analysis.concepts.truth import Truth
from lightsae.analysis.evaluate.document_sums import draws
from lightsae.analysis.reading.firing_lists import FiringLists

DOCUMENTS, EACH = 12, 100
TOKENS = DOCUMENTS * EACH
OF = np.repeat(np.arange(DOCUMENTS), EACH)


def truth_of(**concepts: NDArray[np.bool_]) -> Truth:
    names = sorted(name.replace("__", ".") for name in concepts)
    holds = np.stack([concepts[name.replace(".", "__")] for name in names], 1).astype(np.int32)
    return Truth(tuple(names), sparse.csr_array(holds), np.ones(len(holds), np.bool_))


def firings_of(dense: NDArray[np.float32]) -> FiringLists:
    latents, tokens = np.nonzero(dense.T > 0)
    starts = np.searchsorted(latents, np.arange(dense.shape[1] + 1))
    counted = np.ones(len(dense), np.bool_)
    return FiringLists(tokens.astype(np.int32), starts, counted, len(dense), dense[tokens, latents], OF)


def task(truth: Truth) -> Task:
    made = Task.of(truth, OF, np.ones(TOKENS, np.bool_))
    assert made is not None
    return made


def f1_of(picked: NDArray[np.bool_], holds: NDArray[np.bool_]) -> float:
    return 2 * (picked & holds).sum() / max(1, picked.sum() + holds.sum())


def test_every_latent_is_scored_on_every_concept_as_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    concepts = {"a": rng.random(TOKENS) < 0.3, "b": rng.random(TOKENS) < 0.1, "c": rng.random(TOKENS) < 0.45}
    dense = (rng.random((TOKENS, 7)) * (rng.random((TOKENS, 7)) < 0.3)).astype(np.float32)
    dense[:, 0] = np.where(concepts["a"], 0.5 + dense[:, 1], 0.1 * dense[:, 2])
    dense[:, 6] = 0
    made = task(truth_of(**concepts))
    detection = Detection.of(made, firings_of(dense))
    assert set(np.unique(OF[made.choosing])).isdisjoint(np.unique(OF[made.testing]))
    assert made.choosing.sum() == made.testing.sum() == TOKENS // 2
    for latent in range(7):
        values = np.sort(dense[made.choosing, latent])
        values = values[values > 0]
        levels = [0.0, *(values[len(values) * level // LEVELS] for level in range(1, LEVELS))] if len(values) else [0.0]
        for place, name in enumerate(made.names):
            holds = concepts[name]
            tried = [(dense[:, latent] > 0) & (dense[:, latent] >= level) for level in levels]
            scores = [f1_of(picked[made.choosing], holds[made.choosing]) for picked in tried]
            best = int(np.argmax(scores))
            assert detection.chosen[latent, place] == pytest.approx(scores[best], abs=1e-6)
            tested = f1_of(tried[best][made.testing], holds[made.testing])
            assert detection.tested[latent, place] == pytest.approx(tested, abs=1e-6)
    assert detection.alive.tolist() == [True] * 6 + [False]
    assert detection.latent_of[made.names.index("a")] == 0
    # The threshold that was chosen leaves out the weak false alarms.
    assert detection.tested[0, made.names.index("a")] == 1
    times = np.ones((1, len(made.test_documents)))
    own = latent_scores(detection, times, np.arange(6))[0]
    assert own == pytest.approx(detection.tested[np.arange(6), detection.concept_of[:6]], abs=1e-6)


def test_concepts_that_hold_rarely_or_mostly_are_not_scored_and_unknown_tokens_do_not_count() -> None:
    rng = np.random.default_rng(1)
    rare = np.zeros(TOKENS, np.bool_)
    rare[:5] = True
    truth = truth_of(rare=rare, most=rng.random(TOKENS) < 0.7, some=rng.random(TOKENS) < 0.2)
    made = task(truth)
    assert made.names == ["some"]
    known = OF != 3
    less = Task.of(Truth(truth.names, truth.holds, known), OF, np.ones(TOKENS, np.bool_))
    assert less is not None
    assert not (less.choosing | less.testing)[~known].any()
    assert Task.of(truth_of(rare=rare), OF, np.ones(TOKENS, np.bool_)) is None


def planted(silent: float) -> tuple[Scored, NDArray[np.float64]]:
    """A parent with two kinds; its latent is silent at a share of the first kind's tokens, which has its own latent."""
    rng = np.random.default_rng(2)
    parent = rng.random(TOKENS) < 0.4
    first = parent & (rng.random(TOKENS) < 0.25)
    second = parent & ~first & (rng.random(TOKENS) < 0.3)
    dense = np.zeros((TOKENS, 3), np.float32)
    dense[:, 0] = parent & ~(first & (rng.random(TOKENS) < silent))
    dense[:, 1], dense[:, 2] = first, second
    return Scored.of(task(truth_of(p=parent, p__one=first, p__two=second)), firings_of(dense)), dense[:, 0]


def test_planted_absorption_is_counted() -> None:
    scored, of_parent = planted(0.6)
    made, absorbed = scored.detection.task, scored.absorbed
    one, two = (made.names.index(name) for name in ("p.one", "p.two"))
    assert absorbed.pairs.tolist() == [[made.names.index("p"), one], [made.names.index("p"), two]]
    assert absorbed.latents.tolist() == [1, 2]
    tokens = made.tokens_of(one, made.testing)
    share = float((of_parent[tokens] == 0).mean())
    assert absorbed.of_child.sum(0)[0] == len(tokens)
    assert absorbed.silent.sum(0).tolist() == [round(share * len(tokens)), 0]
    figures = scored.figures(draws(len(made.test_documents)))
    assert figures["absorption"][0] == pytest.approx(share / 2)
    # At the parent's other tokens it is silent only beside the other pair, at the first kind's.
    rest = made.counts[1, 0] - made.counts[1, two]
    assert figures["absorption_elsewhere"][0] == pytest.approx(share * len(tokens) / rest / 2)
    assert figures["concept_f1"][0] == pytest.approx((scored.detection.tested[0, 0] + 2) / 3, abs=1e-6)
    assert figures["concepts_found"][0] == 1
    assert "first_letter_absorption" not in figures


def test_nothing_is_absorbed_where_the_parent_fires() -> None:
    scored, _ = planted(0.0)
    figures = scored.figures(draws(6))
    assert figures["absorption"][0] == 0
    assert figures["latents_per_concept"][0] == 1
    assert figures["concept_f1"].min() == figures["latent_f1"].max() == 1


def test_a_concept_that_is_split_takes_as_many_latents_as_raise_f1() -> None:
    rng = np.random.default_rng(3)
    holds = rng.random(TOKENS) < 0.3
    shares = rng.choice(4, TOKENS, p=[0.5, 0.35, 0.14, 0.01])
    dense = np.stack([holds & (shares == part) for part in range(4)], 1).astype(np.float32)
    detection = Detection.of(task(truth_of(a=holds)), firings_of(dense))
    sets = sets_of(detection)
    # The last adds one percent, which is not worth a latent.
    assert sets.latents == [[0, 1, 2]]
    figures = concept_figures(detection, sets, absorption(detection, sets), draws(6))
    assert figures["latents_per_concept"][0] == 3
    assert figures["concept_f1_of_sets"][0] > 0.97
    assert "absorption" not in figures


def test_draws_without_a_concept_do_not_count() -> None:
    rng = np.random.default_rng(4)
    holds = (OF < 2) & (rng.random(TOKENS) < 0.5)
    made = task(truth_of(a=holds))
    assert made.positives.astype(bool).sum() == 1
    scored = Scored.of(made, firings_of(holds[:, None].astype(np.float32)))
    figures = scored.figures(draws(6))
    assert np.nanmin(figures["concept_f1"]) == np.nanmin(figures["latent_f1"]) == 1
    assert np.isnan(figures["concept_f1"]).any()
    report = report_of(scored, "characters", draws(6), True, {})
    assert (report.concepts[0].f1, report.concepts[0].low) == (1, None)


def test_a_report_says_what_the_figures_say() -> None:
    scored, _ = planted(0.6)
    control = Scored.of(scored.detection.task, firings_of(np.ones((TOKENS, 3), np.float32)))
    report = report_of(scored, "characters", draws(6), True, {"random_sae": control})
    assert [one.name for one in report.concepts] == ["p", "p.one", "p.two"]
    assert [one.latent for one in report.concepts] == [0, 1, 2]
    assert report.concepts[1].f1 == 1
    low, high = report.concepts[0].low, report.concepts[0].high
    assert low is not None
    assert high is not None
    assert low < report.concepts[0].f1 < high
    # A control that always fires has the F1 of always firing.
    for one in report.concepts:
        assert one.controls["random_sae"] == pytest.approx(one.always, abs=1e-3)
    assert report.concept_of == [0, 1, 2]
    assert report.f1_of[1:] == [1, 1]
    assert [(pair.child, pair.latent) for pair in report.pairs] == [("p.one", 1), ("p.two", 2)]
    assert report.pairs[1].absorbed == 0
    assert report.tokens == [600, 600]
    assert report.documents == [6, 6]
