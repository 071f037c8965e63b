"""What a language model is shown of a feature and tested on, how, and the label that came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.llm.examples import Example, ScorePool, negatives, positives, windows_of
from lightsae.analysis.labels.scoring import Scores, weakest
from lightsae.errors import ConfigError, arg

# Windows that a model is shown: the strongest, and some of all strengths.
_STRONGEST, _SAMPLED = 8, 10


@dataclass(frozen=True)
class FeatureMaterial:
    """What a feature is explained from and what its label is tested on.

    Attributes:
        feature: Which.
        shown: Windows in which it fires, for the explanation: the strongest first, then a sample of all strengths.
        shown_near_misses: Windows in which it nearly fires, for the explanation.
        tokens: Tokens that it fires on, with their share of its firings.
        promoted: Next tokens that it makes likelier.
        positives: Windows in which it fires, for the tests, from documents that no shown window is from.
        negatives: Windows in which it does not, for the tests, by kind.

    Raises:
        ConfigError: A document is shown and tested.
    """

    feature: int
    shown: Sequence[Example]
    positives: Sequence[Example]
    negatives: Mapping[str, Sequence[Example]]
    shown_near_misses: Sequence[Example] = ()
    tokens: Sequence[tuple[str, float]] = ()
    promoted: Sequence[str] = ()

    def __post_init__(self) -> None:
        tested = {e.document for part in (self.positives, *self.negatives.values()) for e in part}
        if both := sorted(tested & {e.document for e in (*self.shown, *self.shown_near_misses)}):
            raise ConfigError(
                f"Document {both[0]} is shown for the label of feature {self.feature} and used to test it; "
                "take the tests from documents of their own."
            )


def material_of(
    row: Mapping[str, Any],
    contexts: Sequence[Mapping[str, Any]],
    pool: ScorePool,
    *,
    least: float,
    windows: int = 20,
    seed: int = 0,
) -> FeatureMaterial:
    """Return what the dictionary's tables show of a feature, and tests drawn from other documents.

    Args:
        row: Its row of the table `features`.
        contexts: Its rows of the table `contexts`.
        pool: Text for the tests.
        least: It fires above this activation, the same as in the pool.
        windows: Positives, and negatives of each kind, to draw.
        seed: Seed of the draw.

    Raises:
        ConfigError: The pool holds documents that are shown.
    """
    # A window may be among the strongest and in the sample.
    by_place = {(c["row"], c["position"]): c for c in sorted(contexts, key=lambda c: c["kind"] == "top")}
    ranked = sorted(by_place.values(), key=lambda c: (c["rank"], -(c["stratum"] or 0)))
    chosen = {
        kind: windows_of([c for c in ranked if c["kind"] == kind], least) for kind in ("top", "stratum", "near_miss")
    }
    firing = {kind: [e for e in examples if e.fires] for kind, examples in chosen.items()}
    similar = [near["feature"] for near in row["nearest"] or []]
    return FeatureMaterial(
        row["feature"],
        shown=firing["top"][:_STRONGEST] + firing["stratum"][:_SAMPLED],
        shown_near_misses=[e for e in chosen["near_miss"] if not e.fires],
        tokens=[(t["text"], t["share"]) for t in (row["tokens_on"] or [])[:10]],
        promoted=[t["text"] for t in (row["promoted"] or [])[:10]],
        positives=positives(pool, row["feature"], windows, seed),
        negatives=negatives(pool, row["feature"], windows, seed, similar=similar),
    )


@dataclass(frozen=True)
class Labelled:
    """A feature's label with its tests.

    Attributes:
        feature: Which.
        label: What the model, or a person, called it.
        scores: By (test, negatives).
        gate: What the label has to reach.
    """

    feature: int
    label: str
    scores: Mapping[tuple[str, str], Scores]
    gate: Gate

    @property
    def deciding(self) -> list[Scores]:
        """The scores that the label has to pass: detection, against each kind of negatives."""
        return [scores for (test, _), scores in self.scores.items() if test == "detection"]

    @property
    def weakest(self) -> Scores:
        """The worst of the deciding scores; scores of nothing if there is none."""
        return weakest(self.deciding) if self.deciding else Scores(0, 0, 0, 0)

    @property
    def tier(self) -> str:
        return self.gate.tier(self.weakest)

    @property
    def passed(self) -> bool:
        """Whether the label may be shown."""
        return all(self.gate.passed(scores) for scores in self.deciding) and bool(self.deciding)


@dataclass(frozen=True)
class PassSettings:
    """How the pass goes.

    Attributes:
        gate: What a label has to reach.
        seed: Seed for the order of windows, misplaced marks and the floor.
        batch: Windows per question.
        floor: Features whose tests are repeated with labels of others; 0 for none.
        at_once: Features under way at once.
    """

    gate: Gate = field(default_factory=Gate)
    seed: int = 0
    batch: int = 10
    floor: int = 20
    at_once: int = 16

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("floor", 0), ("at_once", 1)):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"{arg(name)} of the labelling pass is {value}; it must be at least {least}.")
