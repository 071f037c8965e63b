import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers.judging_server import WORDS, excerpts, planted_pool, reader
from lightsae.analysis.dictionary.schema import LABELS
from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.llm.endpoint import EndpointJudge
from lightsae.analysis.labels.llm.examples import NEGATIVES, negatives, positives
from lightsae.analysis.labels.llm.label_features import LabelPass, label_features
from lightsae.analysis.labels.llm.material import FeatureMaterial, PassSettings
from lightsae.errors import ModelError

FEATURES = [0, 1, 3, 5]
SHOWN, TESTED = planted_pool(first_document=10_000, seed=1), planted_pool()


def material(feature: int) -> FeatureMaterial:
    return FeatureMaterial(
        feature,
        shown=positives(SHOWN, feature, 6, 0),
        positives=positives(TESTED, feature, 12, 0),
        negatives=negatives(TESTED, feature, 12, 0, similar=[7, 8]),
        tokens=[(WORDS[feature], 1.0)],
    )


def run(server: Any, cache: Path | None = None, **kwargs: Any) -> LabelPass:
    judge = EndpointJudge("a-model", base_url=server.url, retries=kwargs.pop("retries", 0), concurrency=4)
    settings = kwargs.pop("settings", PassSettings(floor=0))
    return label_features(kwargs.pop("features", FEATURES), material, judge, cache=cache, settings=settings, **kwargs)


def test_planted_features_get_their_names_and_pass(server: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    result = run(server, settings=PassSettings(floor=4), progress=lambda *step: seen.append(step))
    names = {labelled.feature: labelled.label for labelled in result.labelled}
    assert names == {0: "the word cat", 1: "the word dog", 3: "the word run", 5: "the word sea"}
    by_feature = {labelled.feature: labelled for labelled in result.labelled}
    assert by_feature[0].passed
    assert by_feature[0].scores["detection", "near"].balanced_accuracy == 1
    assert by_feature[0].scores["fuzzing", "mismarked"].balanced_accuracy == 1
    assert by_feature[0].scores["fuzzing", "mismarked"].positives == 12
    assert by_feature[0].scores["discrimination", "near"].recall == 1
    # Every « cat» fires, half of « run» does: the name does not tell which, and hard negatives show it.
    assert ("detection", "hard") not in by_feature[0].scores
    assert by_feature[3].scores["detection", "hard"].precision == 0.5
    assert by_feature[3].weakest == by_feature[3].scores["detection", "hard"]
    assert not by_feature[3].passed
    assert by_feature[3].tier == "unlabelled"
    assert result.floor is not None
    assert result.floor["passed"] == 0
    assert result.floor["features"] == 4
    assert result.stopped is None
    assert not result.tally.failures
    assert result.tally.asked == len(server.requests)
    assert result.tally.prompt_tokens == 100 * len(server.requests)
    assert {stage for stage, _, _ in seen} == {"explain", "score", "floor"}
    assert max(done for _, done, _ in seen) == 4


def test_rows_fit_the_table(server: Any) -> None:
    result = run(server)
    table = result.table()
    assert table.schema == LABELS
    rows = [row for row in table.to_pylist() if row["feature"] == 3]
    assert [(row["test"], row["negatives"]) for row in rows] == [
        *(("detection", kind) for kind in NEGATIVES),
        ("fuzzing", "mismarked"),
        ("discrimination", "near"),
    ]
    assert {row["source"] for row in rows} == {"llm"}
    assert {row["model"] for row in rows} == {"a-model"}
    assert [row["passed"] for row in rows[2:]] == [False, None, None]
    evidence = json.loads(rows[0]["evidence"])
    assert set(evidence["prompts"]) == {"explain", "detection"}
    assert evidence["windows"] == 6


def test_nothing_of_the_tests_is_shown_to_the_explainer(server: Any) -> None:
    run(server)
    explained = [r for r in server.requests if "Name what the marked" in r["messages"][0]["content"]]
    assert len(explained) == len(FEATURES)
    # Nor does a judge see more than the label and plain windows.
    for request in server.requests:
        system, user = (m["content"] for m in request["messages"])
        if '"matches"' in system and "marked with" not in system:
            assert "«" not in user


def test_the_two_versions_of_a_window_never_meet(server: Any) -> None:
    run(server, features=[0])
    fuzzing = [r["messages"][1]["content"] for r in server.requests if "marked with" in r["messages"][0]["content"]]
    asked = [[re.sub("[«»]", "", text) for text in excerpts(user)] for user in fuzzing]
    assert all(len(set(texts)) == len(texts) for texts in asked)
    assert {n for n in Counter(text for texts in asked for text in texts).values()} == {2}


def test_a_judge_that_always_says_no_passes_nothing(server: Any) -> None:
    def no(system: str, user: str) -> str:
        return (
            '{"matches": []}'
            if '"matches"' in system
            else '{"choice": 0}'
            if "choice" in system
            else reader(system, user)
        )

    server.say = no
    result = run(server)
    assert not any(labelled.passed for labelled in result.labelled)
    assert {s.balanced_accuracy for labelled in result.labelled for s in labelled.scores.values()} == {0.5}


def test_garbage_is_counted_and_never_a_verdict(server: Any) -> None:
    def half(system: str, user: str) -> str:
        return "I would say numbers 1 and 2." if '"matches"' in system else reader(system, user)

    server.say = half
    result = run(server, features=[0])
    (labelled,) = result.labelled
    detection = labelled.scores["detection", "random"]
    assert (detection.positives, detection.negatives, detection.unanswered) == (0, 0, 24)
    assert labelled.tier == "rare"
    assert not labelled.passed
    assert result.tally.failures == Counter({"detection: not parseable": 4, "fuzzing: not parseable": 4})
    server.say = lambda system, user: "no idea"
    unnamed = run(server, features=[0, 1])
    assert unnamed.unexplained == [0, 1]
    assert unnamed.rows == []
    assert unnamed.tally.failures["explain: not parseable"] == 2


def test_no_common_property_is_no_failure(server: Any) -> None:
    server.say = lambda system, user: '{"label": null}'
    result = run(server, features=[0])
    assert (result.unexplained, result.labelled) == ([0], [])
    assert not result.tally.failures


def test_servers_that_fail_now_and_then_cost_single_questions(server: Any) -> None:
    server.script = lambda n, body: (500, {"error": {"message": "oops"}}, {}) if n % 5 == 0 else None
    result = run(server)
    assert result.tally.failures.total() == len(server.requests) // 5
    assert all("server error (500)" in kind for kind in result.tally.failures)
    unanswered = sum(s.unanswered for labelled in result.labelled for s in labelled.scores.values())
    assert unanswered > 0


def test_a_second_run_asks_nothing_and_says_the_same(server: Any, tmp_path: Path) -> None:
    first = run(server, tmp_path / "answers.db")
    asked = len(server.requests)
    second = run(server, tmp_path / "answers.db", budget_tokens=0)
    assert len(server.requests) == asked
    assert (second.tally.asked, second.tally.cached) == (0, asked)
    assert second.rows == first.rows
    assert second.stopped is None


def test_a_budget_stops_cleanly_and_the_next_run_goes_on(server: Any, tmp_path: Path) -> None:
    whole = run(server)
    needed = len(server.requests)
    # What is set aside for questions under way is free again once they are answered.
    assert run(server, budget_tokens=110 * needed + 2000).stopped is None
    server.requests.clear()
    cap = 5_000
    first = run(server, tmp_path / "answers.db", budget_tokens=cap)
    assert first.stopped is not None
    assert str(cap) in first.stopped
    assert first.unfinished
    assert first.tally.prompt_tokens + first.tally.completion_tokens <= cap
    assert len(server.requests) == first.tally.asked < needed
    runs = 1
    result = first
    while result.stopped:
        result = run(server, tmp_path / "answers.db", budget_tokens=cap)
        runs += 1
        assert runs < 20
    assert runs > 2
    assert result.rows == whole.rows
    assert len(server.requests) == needed  # none of them twice


def test_a_run_that_broke_off_goes_on(server: Any, tmp_path: Path) -> None:
    whole = run(server)
    needed = len(server.requests)
    server.requests.clear()
    server.script = lambda n, body: (401, {"error": {"message": "expired"}}, {}) if n > 20 else None
    with pytest.raises(ModelError, match="LIGHTSAE_LLM_API_KEY"):
        run(server, tmp_path / "answers.db")
    server.script = lambda n, body: None
    kept = needed - run(server, tmp_path / "answers.db").tally.asked
    assert 16 <= kept <= 20  # up to four were under way
    assert run(server, tmp_path / "answers.db").rows == whole.rows


def test_an_endpoint_that_only_fails_ends_the_run(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightsae.analysis.labels.llm.session._HOPELESS", 3)
    server.script = lambda n, body: (500, {"error": {"message": "oops"}}, {})
    with pytest.raises(ModelError, match="failed on 3 questions in a row, the last with: server error"):
        run(server)


def test_rare_features_are_not_asked_about(server: Any) -> None:
    settings = PassSettings(gate=Gate(min_positives=13), floor=0)
    result = run(server, settings=settings)
    assert result.rare == FEATURES
    assert server.requests == []


def test_labels_of_people_are_tested_as_they_are(server: Any) -> None:
    mine = {"feature": 0, "label": "the word dog", "source": "human", "model": "Ana", "made": "2030-01-31"}
    result = run(server, features=[0, 1], given=[{**mine, "evidence": "top 0"}])
    by_feature = {labelled.feature: labelled for labelled in result.labelled}
    assert by_feature[0].label == "the word dog"
    assert not by_feature[0].passed
    assert by_feature[1].passed
    rows = [row for row in result.rows if row["feature"] == 0]
    assert {(row["source"], row["model"], row["made"]) for row in rows} == {("human", "Ana", "2030-01-31")}
    evidence = json.loads(rows[0]["evidence"])
    assert (evidence["made_from"], evidence["judge"]) == ("top 0", "a-model")
    assert set(evidence["prompts"]) == {"detection"}
