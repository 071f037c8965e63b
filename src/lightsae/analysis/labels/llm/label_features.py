"""The pass of a language model over features: it explains each one, then judges what was said on other documents.

A feature is shown by windows of the documents that may be looked at, and judged on windows of documents that no label
was made from. The detection tests decide, one for each kind of negatives: a label passes if it clears the gate on all
of them. Fuzzing and discrimination are reported beside it. What was answered is kept in the cache, so that a pass
that was stopped, or killed, goes on where it was when it is run again.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from lightsae.analysis.dictionary.schema import LABELS
from lightsae.analysis.labels.llm.judge import Judge
from lightsae.analysis.labels.llm.material import FeatureMaterial, Labelled, PassSettings
from lightsae.analysis.labels.llm.prompts import EXPLAIN, PROMPTS, explain_messages, parse_explanation
from lightsae.analysis.labels.llm.scoring_tests import Results, detect, discriminate, fuzz
from lightsae.analysis.labels.llm.session import JudgeSession, Tally, run_session
from lightsae.analysis.labels.scoring import shuffled

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
        rows: Rows of the table `labels`.
        floor: Detection by labels of other features; None if it was not asked for, or not reached.
        tally: Questions, tokens and failures.
        stopped: Why the pass ended early; None if it did not.
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


def label_features(
    features: Sequence[int],
    material_of: Callable[[int], FeatureMaterial],
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
        material_of: Returns what one is explained from and tested on. It is called again at each stage, so that only
            some are in memory, and has to return the same each time.
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
    people = {row["feature"]: row for row in given}

    async def work(session: JudgeSession) -> LabelPass:
        return await _Pass(session, features, material_of, settings or PassSettings(), people, progress).run()

    return run_session(judge, cache, budget_tokens, work)


@dataclass
class _Pass:
    """One run of `label_features`, whose arguments these are; `given` by feature."""

    session: JudgeSession
    features: Sequence[int]
    material_of: Callable[[int], FeatureMaterial]
    settings: PassSettings
    given: Mapping[int, Mapping[str, Any]]
    progress: Progress | None
    result: LabelPass = field(default_factory=LabelPass)

    async def run(self) -> LabelPass:
        result = self.result
        labels = {feature: row["label"] for feature, row in self.given.items()}
        labels |= await self._each("explain", [f for f in self.features if f not in labels], self._explain)
        named = [f for f in self.features if f in labels]
        tested = await self._each("score", named, lambda material: self._score(material, labels[material.feature]))
        for labelled, rows in (tested[f] for f in named if f in tested):
            result.labelled.append(labelled)
            result.rows += rows
        done = {*tested, *result.rare, *result.unexplained}
        result.unfinished = [f for f in self.features if f not in done]
        await self._find_floor([f for f in named if f in tested], labels)
        result.rare.sort()
        result.unexplained.sort()
        result.tally, result.stopped = self.session.tally, self.session.stopped
        return result

    async def _each(
        self, stage: str, features: Sequence[int], work: Callable[[FeatureMaterial], Awaitable[Value | None]]
    ) -> dict[int, Value]:
        """Do some work for each feature, several at once; left out are the rare, and what the budget does not reach."""

        async def unless_rare(feature: int) -> Value | None:
            material = self.material_of(feature)
            if len(material.positives) >= self.settings.gate.min_positives:
                return await work(material)
            self.result.rare.append(feature)
            return None

        def done(count: int) -> None:
            if self.progress is not None:
                self.progress(stage, count, len(features))

        return await self.session.each(features, unless_rare, at_once=self.settings.at_once, done=done)

    async def _explain(self, material: FeatureMaterial) -> str | None:
        label = await self.session.ask(EXPLAIN, explain_messages(material), parse_explanation)
        if not label:
            self.result.unexplained.append(material.feature)
            return None
        return label

    async def _score(self, material: FeatureMaterial, label: str) -> tuple[Labelled, list[dict[str, Any]]]:
        scores: Results = {}
        for test in (detect, fuzz, discriminate):
            scores |= await test(self.session, label, material, self.settings)
        labelled = Labelled(material.feature, label, scores, self.settings.gate)
        return labelled, [self._row(material, labelled, *key) for key in scores]

    def _row(self, material: FeatureMaterial, labelled: Labelled, test: str, negatives: str) -> dict[str, Any]:
        """Return a row of the table `labels`."""
        scores, judge = labelled.scores[test, negatives], self.session.judge.name
        prompts = {test: PROMPTS[test].version}
        if kept := self.given.get(labelled.feature):
            made = {key: kept.get(key) for key in ("source", "rule", "model", "made")}
            evidence: dict[str, Any] = {"made_from": kept.get("evidence")}
        else:
            made = {"source": "llm", "rule": None, "model": judge, "made": None}
            evidence = {"windows": len(material.shown), "near_misses": len(material.shown_near_misses)}
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
        tests = await self._each(
            "floor", chosen, lambda material: detect(self.session, dealt[material.feature], material, self.settings)
        )
        if not tests:
            return
        results = [Labelled(feature, dealt[feature], scores, self.settings.gate) for feature, scores in tests.items()]
        accuracies = [s.balanced_accuracy for r in results for s in r.deciding if s.balanced_accuracy is not None]
        self.result.floor = {
            "features": len(results),
            "passed": sum(r.passed for r in results) / len(results),
            "balanced_accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        }
