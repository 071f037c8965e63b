"""The three tests that a judge gives a label, with nothing but the label and windows of text to go by.

    detection       which windows hold a firing token?             all windows mixed, unmarked
    fuzzing         which windows have the firing tokens marked?   every positive twice, once with misplaced marks
    discrimination  which window is this feature's?                one positive among windows of similar features

Windows are shuffled, so that neither their number nor their place tells anything. Source: arXiv:2410.13928.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from lightsae.analysis.labels.llm.examples import NEGATIVES
from lightsae.analysis.labels.llm.material import FeatureMaterial, PassSettings
from lightsae.analysis.labels.llm.prompts import (
    DETECTION,
    DISCRIMINATION,
    FUZZING,
    Prompt,
    judge_messages,
    marked,
    misplaced,
    parse_choice,
    parse_matches,
    plain,
)
from lightsae.analysis.labels.llm.session import JudgeSession
from lightsae.analysis.labels.scoring import Scores, discrimination_scores

# Windows of similar features beside the right one, and how often a choice is asked for.
OTHERS, TRIALS = 3, 10
Value = TypeVar("Value")
Results = dict[tuple[str, str], Scores]  # by test and kind of negatives


async def detect(session: JudgeSession, label: str, material: FeatureMaterial, settings: PassSettings) -> Results:
    """Return the scores of detection against each kind of negatives; a kind without windows is left out.

    The verdicts on the positives are the same in all of them.
    """
    windows, kinds = list(material.positives), ["positive"] * len(material.positives)
    for kind, examples in material.negatives.items():
        windows += examples
        kinds += [kind] * len(examples)
    order = np.random.default_rng(settings.seed).permutation(len(windows)).tolist()
    in_order = await _verdicts(session, DETECTION, label, [plain(windows[i]) for i in order], settings.batch)
    verdicts = dict(zip(order, in_order, strict=True))
    scores = {}
    for kind in NEGATIVES:
        if material.positives and material.negatives.get(kind):
            chosen = [i for i in range(len(windows)) if kinds[i] in ("positive", kind)]
            truths = [kinds[i] == "positive" for i in chosen]
            documents = [windows[i].document for i in chosen]
            scores["detection", kind] = Scores.of(truths, [verdicts[i] for i in chosen], documents)
    return scores


async def fuzz(session: JudgeSession, label: str, material: FeatureMaterial, settings: PassSettings) -> Results:
    """Return the scores of fuzzing; none if no window's marks can be misplaced.

    A window's two versions never stand in one question: side by side, they would betray each other.
    """
    draw = np.random.default_rng(settings.seed)
    misplacements = [(e, misplaced(e, draw)) for e in material.positives]
    pairs = [(e.document, marked(e), marked(e, wrong)) for e, wrong in misplacements if wrong is not None]
    if not pairs:
        return {}
    rounds: list[list[tuple[bool, int, str]]] = [[], []]
    for number, (document, right, wrong_text) in enumerate(pairs):
        rounds[number % 2].append((True, document, right))
        rounds[1 - number % 2].append((False, document, wrong_text))
    mixed = [[windows[i] for i in draw.permutation(len(windows)).tolist()] for windows in rounds]
    verdicts: list[bool | None] = []
    for windows in mixed:
        verdicts += await _verdicts(session, FUZZING, label, [text for *_, text in windows], settings.batch)
    truths, documents, _ = zip(*mixed[0], *mixed[1], strict=True)
    return {("fuzzing", "mismarked"): Scores.of(truths, verdicts, documents)}


async def discriminate(session: JudgeSession, label: str, material: FeatureMaterial, settings: PassSettings) -> Results:
    """Return the scores of discrimination; none if there are too few windows of similar features.

    The positives are taken evenly from their strata, one per trial.
    """
    positives, near = material.positives, material.negatives.get("near", ())
    if len(near) < OTHERS or not positives:
        return {}
    draw = np.random.default_rng(settings.seed)
    chosen = np.linspace(0, len(positives) - 1, min(TRIALS, len(positives))).round().astype(int).tolist()
    asked, answers = [], []
    for i in chosen:
        excerpts = [plain(near[j]) for j in draw.choice(len(near), OTHERS, replace=False).tolist()]
        answers.append(int(draw.integers(OTHERS + 1)))
        excerpts.insert(answers[-1], plain(positives[i]))
        messages = judge_messages(DISCRIMINATION, label, excerpts)
        asked.append(session.ask(DISCRIMINATION, messages, partial(parse_choice, count=OTHERS + 1)))
    documents = [positives[i].document for i in chosen]
    return {("discrimination", "near"): discrimination_scores(await _all(asked), answers, OTHERS + 1, documents)}


async def _verdicts(
    session: JudgeSession, prompt: Prompt, label: str, excerpts: Sequence[str], batch: int
) -> list[bool | None]:
    """Return a verdict on each excerpt; None for all of a question without a usable answer."""

    async def ask(part: Sequence[str]) -> list[bool | None]:
        messages = judge_messages(prompt, label, part)
        verdicts = await session.ask(prompt, messages, partial(parse_matches, count=len(part)))
        return list(verdicts) if verdicts is not None else [None] * len(part)

    parts = [excerpts[i : i + batch] for i in range(0, len(excerpts), batch)]
    return [verdict for verdicts in await _all(map(ask, parts)) for verdict in verdicts]


async def _all(questions: Iterable[Coroutine[Any, Any, Value]]) -> list[Value]:
    """Wait for all of them, even if one cannot be asked: what is under way is paid, and has to reach the cache."""
    done = await asyncio.gather(*questions, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return [result for result in done if not isinstance(result, BaseException)]
