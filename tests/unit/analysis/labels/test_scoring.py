from dataclasses import replace

import pytest

from lightsae.analysis.dictionary.schema import LABELS
from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.scoring import (
    Scores,
    derangement,
    discrimination_scores,
    shuffled,
    weakest,
)
from lightsae.errors import ConfigError


def test_verdicts_are_counted_against_the_truth() -> None:
    scores = Scores.of([True, True, True, False, False, False], [True, False, None, True, False, False])
    assert scores == Scores(1, 1, 1, 2, unanswered=1)
    assert (scores.precision, scores.recall) == (0.5, 0.5)
    assert scores.balanced_accuracy == pytest.approx((1 / 2 + 2 / 3) / 2)
    with pytest.raises(ValueError, match="zip"):
        Scores.of([True], [])


def test_a_judge_that_always_says_no_passes_no_gate() -> None:
    scores = Scores.of([True] * 20 + [False] * 20, [False] * 40)
    assert scores.balanced_accuracy == 0.5
    assert scores.precision is None
    assert not Gate(precision=0.01, recall=0.01).passed(scores)
    always_yes = Scores.of([True] * 20 + [False] * 20, [True] * 40)
    assert always_yes.balanced_accuracy == 0.5
    assert not Gate().passed(always_yes)


def test_what_was_not_judged_has_no_score() -> None:
    nothing = Scores.of([True, False], [None, None])
    columns = nothing.columns()
    assert columns["positives_tested"] == columns["negatives_tested"] == 0
    assert {v for k, v in columns.items() if not k.endswith("tested")} == {None}
    assert set(columns) < set(LABELS.names)


def test_a_label_is_as_good_as_its_weakest_test() -> None:
    good, bad, silent = Scores(9, 1, 1, 9), Scores(9, 9, 1, 9), Scores(0, 0, 10, 10)
    assert weakest([good, bad]) == bad
    assert weakest([bad, silent]) == silent


def test_windows_of_one_document_are_no_independent_verdicts() -> None:
    """20 windows of 4 documents, three of which are right throughout: 4 observations, not 20."""
    documents = [i % 4 for i in range(20)]
    verdicts = [document > 0 for document in documents]
    scores = Scores.of([True] * 20, verdicts, documents)
    assert scores == replace(Scores(15, 0, 5, 0), yes_effective=3.0, positives_effective=scores.positives_effective)
    low, high = scores.recall_interval
    assert low < 0.25
    assert high > 0.95
    alone = Scores.of([True] * 20, verdicts)
    assert alone.recall_interval[0] == pytest.approx(0.531, abs=1e-3)
    # Nothing but right, on 3 documents: 3 trials.
    assert scores.precision_interval == pytest.approx((3 / (3 + 1.959964**2), 1))


def test_each_trial_of_a_choice_goes_by_its_document() -> None:
    answers = [i % 4 for i in range(40)]
    perfect = discrimination_scores(answers, answers, 4, documents=[7] * 40)
    assert (perfect.recall, perfect.yes_effective, perfect.positives_effective) == (1, 1, 1)
    spread = discrimination_scores([*answers[:-1], None], answers, 4, documents=list(range(40)))
    assert (spread.recall, spread.yes_effective, spread.unanswered) == (1, 39, 1)


def test_tiers() -> None:
    gate = Gate(0.7, 0.7, min_positives=10)
    assert gate.tier(Scores(50, 0, 0, 50)) == "high"
    assert gate.tier(Scores(8, 2, 2, 8)) == "medium"  # 0.8, but its interval starts at 0.49
    assert gate.tier(Scores(8, 8, 2, 8)) == "unlabelled"
    assert gate.tier(Scores(9, 0, 0, 9)) == "rare"
    assert gate.tier(Scores(0, 0, 20, 20)) == "unlabelled"
    assert gate.tier(Scores(0, 0, 0, 0), fires=0) == "dead"
    # High needs both lower bounds: one sure and one unsure share is medium.
    assert gate.tier(Scores(75, 25, 0, 100)) == "medium"
    assert gate.tier(Scores(75, 0, 25, 100)) == "medium"
    # Nor is a label sure that is right 50 times in one document.
    assert gate.tier(Scores(50, 0, 0, 50, yes_effective=1.0, positives_effective=1.0)) == "medium"
    with pytest.raises(ConfigError, match=r"gate.recall is 1.5"):
        Gate(recall=1.5)


def test_blind_choices_are_worth_half() -> None:
    answers = [i % 4 for i in range(40)]
    blind = discrimination_scores([0] * 40, answers, 4)
    assert (blind.recall, blind.precision, blind.balanced_accuracy) == (0.25, 0.25, 0.5)
    perfect = discrimination_scores(answers, answers, 4)
    assert (perfect.recall, perfect.balanced_accuracy) == (1, 1)
    shy = discrimination_scores([0, -1, None], [0, 1, 2], 4)
    assert shy == Scores(1, 0, 1, 6, unanswered=1)


def test_labels_are_dealt_to_others() -> None:
    for count in (0, 2, 3, 50):
        dealt = derangement(count, seed=1)
        assert sorted(dealt) == list(range(count))
        assert all(i != j for i, j in enumerate(dealt))
    assert derangement(50, 1) == derangement(50, 1) != derangement(50, 2)
    assert shuffled({4: "a", 7: "b"}, seed=0) == {4: "b", 7: "a"}
    with pytest.raises(ValueError, match="two or more"):
        derangement(1, 0)
