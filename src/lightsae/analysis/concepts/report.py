"""What an evaluation says of concepts beside its figures: each concept, each pair of parent and child, each latent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from lightsae.errors import FormatError
from lightsae.formats.checks import fits
from lightsae.markdown import markdown_row

# Of the table of concepts; and the pairs that are shown, the most absorbed.
_HEAD = ("concepts", "scored", "mean F1", "found by a latent", "latents each", "always firing")
_PAIRS = 20


@dataclass(frozen=True)
class ConceptScore:
    """One concept.

    Attributes:
        name: With dots for what it is a kind of.
        tokens: At which it holds, in the documents of the tests.
        f1: Of the latent that detects it best, chosen on other documents.
        low, high: 95% interval over documents; None of too few.
        always: F1 of a latent that always fires.
        latent: That latent.
        threshold: The activation from which on it detects the concept, in normalised units; 0: any.
        latents: Those that the concept takes, the best first.
        f1_of_set: F1 of their union.
        controls: F1 of the best latent of each SAE that learned nothing.
    """

    name: str
    tokens: int
    f1: float
    low: float | None
    high: float | None
    always: float
    latent: int
    threshold: float
    latents: list[int]
    f1_of_set: float
    controls: dict[str, float]


@dataclass(frozen=True)
class PairScore:
    """A concept and a kind of it that has a latent of its own.

    Attributes:
        parent, child: Their names.
        latent: The child's.
        tokens: Of the child, at which it fires, in the documents of the tests.
        absorbed: The share of them at which no latent of the parent fires.
        elsewhere: That share of the parent's other tokens; None if there are none.
    """

    parent: str
    child: str
    latent: int
    tokens: int
    absorbed: float
    elsewhere: float | None


@dataclass(frozen=True)
class ProbeScore:
    """The probes of one concept.

    Attributes:
        name: The concept's.
        tokens: Of the tests, half of them the concept's.
        latents: The SAE's that the largest probe sees, the most telling first.
        auc: AUC of `sae`, `neurons` and controls, each by `k1`, `k2`, ...; of the whole activation as `full` of `sae`.
    """

    name: str
    tokens: int
    latents: list[int]
    auc: dict[str, dict[str, float]]


@dataclass(frozen=True)
class ConceptReport:
    """The concepts of a text.

    Attributes:
        source: `python`, `characters`, or the file that names them.
        named: How many there are in the text; those that are scored hold at enough tokens.
        tokens: On which was chosen, and was tested.
        documents: So many of them.
        concepts: Those that are scored.
        pairs: Those that count for absorption.
        concept_of: Of each latent, the place in `concepts` of the one that it detects best; -1 where it never fires.
        f1_of: Its F1.
        probes: Of the concepts that were probed.
    """

    source: str
    named: int
    tokens: list[int]
    documents: list[int]
    concepts: list[ConceptScore]
    pairs: list[PairScore]
    concept_of: list[int]
    f1_of: list[float]
    probes: list[ProbeScore] = field(default_factory=list)

    @classmethod
    def of_entry(cls, entry: Any, where: str, again: str) -> "ConceptReport":
        """Read what `dataclasses.asdict` made of one.

        Raises:
            FormatError: It is damaged.
        """
        plain = {"concepts": list, "pairs": list, "probes": list}
        values = _checked(entry, cls, where, again, plain)
        concepts = [ConceptScore(**_checked(one, ConceptScore, where, again)) for one in values.pop("concepts")]
        pairs = [PairScore(**_checked(one, PairScore, where, again)) for one in values.pop("pairs")]
        if not all(-1 <= place < len(concepts) for place in values["concept_of"]):
            raise FormatError(f"{where!r}: a latent's concept is none of the list; {again}.")
        probes = [ProbeScore(**_checked(one, ProbeScore, where, again)) for one in values.pop("probes")]
        return cls(**values, concepts=concepts, pairs=pairs, probes=probes)


_Made = TypeVar("_Made")


def _checked(
    entry: Any, kind: type[_Made], where: str, again: str, instead: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    kinds = get_type_hints(kind) | dict(instead or {})
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(entry, dict) or set(entry) != names or not all(fits(entry[name], kinds[name]) for name in names):
        raise FormatError(f"{where!r}: {entry!r:.80} is no {kind.__name__}; {again}.")
    return dict(entry)


def concept_lines(report: ConceptReport) -> list[str]:
    """Return tables of Markdown: how well concepts are detected, by the first part of their names; absorbed pairs."""
    controls = list(report.concepts[0].controls)
    lines = [
        f"{len(report.concepts)} of {report.named} concepts ({report.source}) hold often enough to be scored: "
        f"latents and thresholds chosen on {report.tokens[0]:,} tokens of {report.documents[0]} documents, tested on "
        f"{report.tokens[1]:,} tokens of {report.documents[1]} others.",
        "",
        markdown_row([*_HEAD, *(name.replace("_", " ") for name in controls)]),
        "|---" * (len(_HEAD) + len(controls)) + "|",
    ]
    for name, some in _families(report):
        means = [sum(one.controls[control] for one in some) / len(some) for control in controls]
        found = sum(one.f1 >= (1 + one.always) / 2 for one in some)
        cells = [
            f"`{name}`",
            str(len(some)),
            f"{sum(one.f1 for one in some) / len(some):.2f}",
            str(found),
            f"{sum(len(one.latents) for one in some) / len(some):.1f}",
            f"{sum(one.always for one in some) / len(some):.2f}",
        ]
        lines.append(markdown_row([*cells, *(f"{mean:.2f}" for mean in means)]))
    absorbed = sorted(report.pairs, key=lambda pair: -pair.absorbed)[:_PAIRS]
    if absorbed:
        lines += [
            "",
            markdown_row(["parent", "child", "its latent", "tokens", "parent silent", "elsewhere"]),
            "|---" * 6 + "|",
        ]
        for pair in absorbed:
            elsewhere = "" if pair.elsewhere is None else f"{pair.elsewhere:.2f}"
            cells = [f"`{pair.parent}`", f"`{pair.child}`", str(pair.latent), f"{pair.tokens:,}"]
            lines.append(markdown_row([*cells, f"{pair.absorbed:.2f}", elsewhere]))
    return lines


def _families(report: ConceptReport) -> list[tuple[str, Sequence[ConceptScore]]]:
    """Return the concepts by the first part of their names, in order."""
    found: dict[str, list[ConceptScore]] = {}
    for one in report.concepts:
        found.setdefault(one.name.partition(".")[0], []).append(one)
    return sorted(found.items())
