"""The pass of a language model over features: it explains each one, then judges what was said on other documents.

A feature is shown by windows of the documents that may be looked at, and judged on windows of documents that no label
was made from. Deciding are the detection tests, one for each kind of negatives: a label passes where it clears the gate
on all of them. Fuzzing and discrimination are told beside it. What was answered is kept in the cache, so that a pass
that was stopped, or killed, goes on where it was when it is run again.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from lightsae.analysis.dictionary.schema import LABELS
from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.llm.cache import AnswerCache
from lightsae.analysis.labels.llm.endpoint import Budget, BudgetSpent, Judge
from lightsae.analysis.labels.llm.examples import NEGATIVES
from lightsae.analysis.labels.llm.prompts import EXPLAIN, PROMPTS, explain_messages, parse_explanation
from lightsae.analysis.labels.llm.questions import Questions, Tally
from lightsae.analysis.labels.llm.scoring_tests import detect, discriminate, fuzz
from lightsae.analysis.labels.llm.subjects import Labelled, Subject
from lightsae.analysis.labels.scoring import Scores, shuffled
from lightsae.errors import ConfigError

Value = TypeVar("Value")
Progress = Callable[[str, int, int], None]


@dataclass
class LabelPass:
    """What a pass came to.

    Attributes:
        labelled: Features that were explained and tested to the end.
        rare: Features with fewer positives than the gate asks for; nothing was asked about them.
        unexplained: Features in which the model saw no common property, or whose explanation failed.
        unfinished: Features that the budget did not reach.
        rows: Of the table `labels`.
        floor: Detection by labels of other features; None where it was not asked for, or not reached.
        tally: Questions, tokens and failures.
        stopped: Why the pass ended early; None where it did not.
    """

    labelled: list[Labelled] = field(default_factory=list)
    rare: list[int] = field(default_factory=list)
    unexplained: list[int] = field(default_factory=list)
    unfinished: list[int] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    floor: dict[str, float | int | None] | None = None
    tally: Tally = field(default_factory=Tally)
    stopped: str | None = None

    def table(self) -> pa.Table:
        """Return the rows as a table of `schema.LABELS`."""
        return pa.Table.from_pylist(self.rows, schema=LABELS)


@dataclass(frozen=True)
class PassSettings:
    """How the pass goes.

    Attributes:
        gate: What a label has to reach.
        seed: Of the order of windows, of misplaced marks and of the floor.
        batch: Windows in one question.
        floor: Features whose tests are repeated with labels of others; 0 for none.
        at_once: Features that are under way at once.
    """

    gate: Gate = field(default_factory=Gate)
    seed: int = 0
    batch: int = 10
    floor: int = 20
    at_once: int = 16

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("floor", 0), ("at_once", 1)):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"{name} of the labelling pass is {value}; it must be at least {least}.")


def label_features(
    features: Sequence[int],
    subject_of: Callable[[int], Subject],
    judge: Judge,
    *,
    cache: str | Path | None = None,
    budget_tokens: int | None = None,
    settings: PassSettings | None = None,
    given: Sequence[Mapping[str, Any]] = (),
    progress: Progress | None = None,
) -> LabelPass:
    """Explain features and test what was said. Not to be called from a running event loop.

    Args:
        features: Which ones.
        subject_of: Returns what is to be asked about one. It is called again at each stage, so that no more than some
            are in memory, and has to return the same each time.
        judge: Explains and judges.
        cache: File in which answers are kept; the same one makes a second run free, and a stopped one go on.
        budget_tokens: Cap on the tokens of this run; what the cache answers costs nothing.
        settings: How.
        given: Labels that are there already, one a feature at most: rows of the table `labels`, such as people's from
            `import_csv`. They are tested, not made, and keep who made them, when, and from what. Features without one
            are explained.
        progress: Called with (stage, done, all): `explain`, `score`, `floor`.

    Returns:
        What it came to; failures of single questions are counted there.

    Raises:
        ModelError: The judge answers nothing at all: no connection, no such model, a wrong key. What was answered is
            in the cache.
        ConfigError, FormatError: The cache cannot be used.
    """
    opened = AnswerCache(cache) if cache is not None else None
    try:
        questions = Questions(judge, opened, Budget(budget_tokens))
        work = _Pass(features, subject_of, questions, settings or PassSettings(), given, progress)
        return asyncio.run(work.run())
    finally:
        if opened is not None:
            opened.close()


class _Pass:
    """One run of `label_features`."""

    def __init__(
        self,
        features: Sequence[int],
        subject_of: Callable[[int], Subject],
        questions: Questions,
        settings: PassSettings,
        given: Sequence[Mapping[str, Any]],
        progress: Progress | None,
    ) -> None:
        self.features, self.subject_of, self.questions, self.settings = features, subject_of, questions, settings
        self.given = {row["feature"]: row for row in given}
        self.progress = progress
        self.result = LabelPass(tally=questions.tally)

    async def run(self) -> LabelPass:
        try:
            unnamed = [f for f in self.features if f not in self.given]
            labels = {feature: row["label"] for feature, row in self.given.items()}
            labels |= await self._each("explain", unnamed, self._explain)
            named = [f for f in self.features if f in labels]
            told = await self._each("score", named, lambda subject: self._score(subject, labels[subject.feature]))
            for labelled, rows in (told[f] for f in named if f in told):
                self.result.labelled.append(labelled)
                self.result.rows += rows
            done = {*told, *self.result.rare, *self.result.unexplained}
            self.result.unfinished = [f for f in self.features if f not in done]
            await self._find_floor([f for f in named if f in told], labels)
        finally:
            await self.questions.judge.close()
        for features in (self.result.rare, self.result.unexplained):
            features.sort()
        return self.result

    async def _each(
        self, stage: str, features: Sequence[int], work: Callable[[Subject], Awaitable[Value | None]]
    ) -> dict[int, Value]:
        """Do some work for each feature, several at once; left out are the rare, and what the budget does not reach."""
        found: dict[int, Value] = {}
        waiting = iter(features)
        done = 0

        async def worker() -> None:
            nonlocal done
            for feature in waiting:
                subject = self.subject_of(feature)
                if len(subject.positives) < self.settings.gate.min_positives:
                    self.result.rare.append(feature)
                else:
                    try:
                        value = await work(subject)
                    except BudgetSpent as error:
                        # The others go on: what the cache knows is free.
                        self.result.stopped = str(error)
                        continue
                    if value is not None:
                        found[feature] = value
                done += 1
                if self.progress is not None:
                    self.progress(stage, done, len(features))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.settings.at_once, len(features))):
                    group.create_task(worker())
        except ExceptionGroup as group_error:
            # One is enough to say what is wrong; the other workers met the same, or were stopped.
            raise group_error.exceptions[0] from None
        return found

    async def _explain(self, subject: Subject) -> str | None:
        messages = explain_messages(
            subject.shown,
            near_misses=subject.shown_near_misses,
            tokens=subject.tokens,
            promoted=subject.promoted,
        )
        said = await self.questions.ask(EXPLAIN, messages, parse_explanation)
        if said is None or said.label is None:
            self.result.unexplained.append(subject.feature)
            return None
        return said.label

    async def _score(self, subject: Subject, label: str) -> tuple[Labelled, list[dict[str, Any]]]:
        scores = await self._detect(subject, label)
        seed = self.settings.seed
        if (marks := await fuzz(self.questions, label, subject.positives, seed, self.settings.batch)) is not None:
            scores["fuzzing", "mismarked"] = marks
        near = subject.negatives.get("near", ())
        if (choices := await discriminate(self.questions, label, subject.positives, near, seed)) is not None:
            scores["discrimination", "near"] = choices
        labelled = Labelled(subject.feature, label, scores, self.settings.gate)
        return labelled, [self._row(subject, labelled, *key) for key in scores]

    async def _detect(self, subject: Subject, label: str) -> dict[tuple[str, str], Scores]:
        found = await detect(
            self.questions, label, subject.positives, subject.negatives, self.settings.seed, self.settings.batch
        )
        return {("detection", kind): found[kind] for kind in NEGATIVES if kind in found}

    def _row(self, subject: Subject, labelled: Labelled, test: str, negatives: str) -> dict[str, Any]:
        """Return a row of the table `labels`."""
        scores, judge = labelled.scores[test, negatives], self.questions.judge.name
        prompts = {test: PROMPTS[test].version}
        if given := self.given.get(labelled.feature):
            made = {key: given.get(key) for key in ("source", "rule", "model", "made")}
            evidence: dict[str, Any] = {"made_from": given.get("evidence")}
        else:
            made = {"source": "llm", "rule": None, "model": judge, "made": None}
            evidence = {"windows": len(subject.shown), "near_misses": len(subject.shown_near_misses)}
            prompts["explain"] = EXPLAIN.version
        evidence |= {"judge": judge, "prompts": prompts, "unanswered": scores.unanswered}
        return {
            "feature": labelled.feature,
            "label": labelled.label,
            **made,
            "evidence": json.dumps(evidence, sort_keys=True, ensure_ascii=False),
            "test": test,
            "negatives": negatives,
            **scores.columns(),
            "passed": labelled.gate.passed(scores) if test == "detection" else None,
        }

    async def _find_floor(self, features: Sequence[int], labels: Mapping[int, str]) -> None:
        """Repeat the detection tests with each label dealt to another feature."""
        chosen = features[: self.settings.floor]
        if len(chosen) < 2:
            return
        dealt = shuffled({feature: labels[feature] for feature in chosen}, self.settings.seed)
        tests = await self._each("floor", chosen, lambda subject: self._detect(subject, dealt[subject.feature]))
        if not tests:
            return
        results = [Labelled(feature, dealt[feature], scores, self.settings.gate) for feature, scores in tests.items()]
        accuracies = [s.balanced_accuracy for r in results for s in r.deciding if s.balanced_accuracy is not None]
        self.result.floor = {
            "features": len(results),
            "passed": sum(r.passed for r in results) / len(results),
            "balanced_accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        }
