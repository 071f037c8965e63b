"""The report of an evaluation: figures, each with its definition, tokens and interval; bands; controls."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightsae.analysis.concepts.report import ConceptReport
from lightsae.errors import FormatError
from lightsae.formats.checks import fits
from lightsae.formats.files import check_fields, check_version, shown, write_atomically
from lightsae.parsing import read_json, with_none_for_nan

FORMAT_VERSION = 1
_AGAIN = "evaluate again"


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        value: In the unit that the definition says.
        low, high: 95% interval over documents; None where there is none (the definition, or too few documents).
        tokens: How many tokens it comes from.
    """

    value: float
    low: float | None
    high: float | None
    tokens: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Band:
    """The reconstruction of some tokens: those of a range of positions, or of a range of frequencies."""

    name: str
    fve: Figure
    l0: Figure


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one SAE on one text.

    Attributes:
        name: As the user wrote it.
        sae: What a manifest says of it: variant, hash, widths.
        text: The corpus, tokens, documents, and the language model.
        figures: By name; `lightsae.analysis.evaluate.figures.DEFINITIONS` says what each is.
        positions: Bands of positions in the row.
        frequencies: Bands of tokens by how often they stand in the text.
        firing_histogram: Number of latents by floor(log10(share of tokens that they fire on)); "never" of silent ones.
        published: What the publisher says, by the same names.
        controls: The figures of SAEs that learned nothing, by name.
        concepts: What its latents know of the text's concepts; None: not measured, or too little text.
        roles: The figures of the tokens of each role, if there are conversations. Those of splicing are about the
            predictions whose target is such a token.
        datasets: The same of each dataset of a mixture.
    """

    name: str
    sae: Mapping[str, Any]
    text: Mapping[str, Any]
    figures: Mapping[str, Figure]
    positions: Sequence[Band]
    frequencies: Sequence[Band]
    firing_histogram: Mapping[str, int]
    published: Mapping[str, float] = field(default_factory=dict)
    controls: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    concepts: ConceptReport | None = None
    roles: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    datasets: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, Mapping[str, Figure]]:
        """The figures of each group of tokens: of roles, and of datasets."""
        return {**self.roles, **self.datasets}


# What is in a report only where the data has it.
_GROUPS = ("roles", "datasets")


def write_report(evaluations: Sequence[Evaluation], definitions: Mapping[str, str], path: Path) -> None:
    """Write the evaluations as JSON, with the definitions of their figures.

    Raises:
        ConfigError: The file cannot be written.
    """
    report = {
        "format_version": FORMAT_VERSION,
        "definitions": dict(definitions),
        "saes": [with_none_for_nan(_entry(one)) for one in evaluations],
    }
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _entry(one: Evaluation) -> dict[str, Any]:
    return {name: value for name, value in asdict(one).items() if value or name not in _GROUPS}


def read_report(path: Path) -> list[Evaluation]:
    """Read what `write_report` wrote.

    Raises:
        FormatError: The file is missing, damaged, or of a newer version.
    """
    where = shown(path)
    try:
        report = read_json(path)
    except OSError as error:
        raise FormatError(f"{where!r} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise FormatError(f"{where!r} is not valid JSON ({error}); {_AGAIN}.") from error
    if not isinstance(report, dict):
        raise FormatError(f"{where!r} is no evaluation; {_AGAIN}.")
    check_version(report, where, "format_version", FORMAT_VERSION, _AGAIN)
    check_fields(report, where, {"saes": list}, _AGAIN)
    return [_evaluation(one, where) for one in report["saes"]]


def _evaluation(entry: Any, where: str) -> Evaluation:
    kinds = {"name": str, "sae": dict, "text": dict, "figures": dict, "positions": list, "frequencies": list}
    kinds |= {"firing_histogram": dict, "published": dict, "controls": dict}
    if not isinstance(entry, dict):
        raise FormatError(f"{where!r}: an SAE is a {type(entry).__name__}, where an object should be; {_AGAIN}.")
    check_fields(entry, where, kinds, _AGAIN)
    figures = {name: _figure(value, where) for name, value in entry["figures"].items()}
    positions, frequencies = (_bands(entry[side], where) for side in ("positions", "frequencies"))
    if not fits(entry["firing_histogram"], dict[str, int]) or not fits(entry["published"], dict[str, float]):
        raise FormatError(f"{where!r}: a count or a published figure is no number; {_AGAIN}.")
    controls = _several(entry["controls"], "a control", where)
    roles, datasets = (_several(entry.get(by, {}), f"one of the {by}", where) for by in _GROUPS)
    told = {key: entry[key] for key in ("name", "sae", "text", "firing_histogram", "published")}
    # Reports of before say nothing of concepts.
    said = entry.get("concepts")
    concepts = None if said is None else ConceptReport.of_entry(said, where, _AGAIN)
    told |= {"positions": positions, "frequencies": frequencies, "controls": controls, "concepts": concepts}
    return Evaluation(**told, figures=figures, roles=roles, datasets=datasets)


def _several(entries: Any, what: str, where: str) -> dict[str, dict[str, Figure]]:
    """Return the figures of several things by name."""
    if not isinstance(entries, dict) or not all(isinstance(one, dict) for one in entries.values()):
        raise FormatError(f"{where!r}: {what} is no object; {_AGAIN}.")
    return {name: {key: _figure(value, where) for key, value in one.items()} for name, one in entries.items()}


def _bands(entries: Sequence[Any], where: str) -> list[Band]:
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in entries):
        raise FormatError(f"{where!r}: a band has no name; {_AGAIN}.")
    return [Band(one["name"], _figure(one.get("fve"), where), _figure(one.get("l0"), where)) for one in entries]


def _figure(entry: Any, where: str) -> Figure:
    number, maybe = float, float | None
    kinds: dict[str, Any] = {"value": maybe, "low": maybe, "high": maybe, "tokens": int}
    if not isinstance(entry, dict) or set(entry) != set(kinds) or not all(fits(entry[k], kinds[k]) for k in kinds):
        raise FormatError(f"{where!r}: {entry!r:.80} is no figure; {_AGAIN}.")
    value = math.nan if entry["value"] is None else number(entry["value"])
    return Figure(value, entry["low"], entry["high"], entry["tokens"])
