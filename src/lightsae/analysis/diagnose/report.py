"""The report of a diagnosis: what was tried, its figures, the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightsae.analysis.diagnose.case import CAUSES, Alternative, Score
from lightsae.analysis.diagnose.verdict import Verdict
from lightsae.formats.files import write_json
from lightsae.parsing import with_none_for_nan

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Tried:
    """A hypothesis with its figures."""

    cause: str
    what: str
    score: Score

    @classmethod
    def of(cls, alternative: Alternative, score: Score) -> "Tried":
        return cls(alternative.cause, alternative.what, score)


@dataclass(frozen=True)
class Diagnosis:
    """What was found of one SAE.

    Attributes:
        name: As the user wrote it.
        sae: What a manifest says of it.
        text: The model, the text, how many tokens.
        said: The figures of the SAE as its file has it.
        tried: The best hypotheses of each cause, the one that leaves the least error first.
        verdict: Which one explains the data, or that none does.
        published: What the publisher says, by the names of the figures.
        notes: What else a reader has to know, a line each.
    """

    name: str
    sae: Mapping[str, Any]
    text: Mapping[str, Any]
    said: Score
    tried: Sequence[Tried]
    verdict: Verdict
    published: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(diagnosis: Diagnosis, path: Path) -> None:
    """Write a diagnosis as JSON, with the causes in words.

    Raises:
        ConfigError: The file cannot be written.
    """
    report = {"format_version": FORMAT_VERSION, "causes": dict(CAUSES), **with_none_for_nan(asdict(diagnosis))}
    write_json(path, report)
