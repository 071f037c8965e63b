"""Two recipes or more, read on one text: the evaluations of their SAEs, and a verdict on every figure of every pair.

Axes: n SAEs of a recipe, K deviations by the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lightsae.analysis.compare.noise import Readings
from lightsae.analysis.compare.recipes import Recipe, check_recipes, read_words, with_seeds
from lightsae.analysis.compare.verdicts import Verdict, dominant, same_l0, verdicts
from lightsae.analysis.concepts.figures import PROBES, WORDS
from lightsae.analysis.evaluate.evaluate import EvaluateSettings, evaluate_on_text
from lightsae.analysis.evaluate.figures import DEFINITIONS
from lightsae.analysis.evaluate.report import Evaluation
from lightsae.analysis.evaluate.spread import Spread
from lightsae.analysis.reading.loaded_sae import TextSettings, open_sae
from lightsae.analysis.reading.models import LanguageModels
from lightsae.errors import ConfigError, arg, did_you_mean, under
from lightsae.formats.saved_sae import SavedSAE
from lightsae.progress import NullProgress, Progress

# Few, since each one more takes from what the others can tell: one of each kind.
JUDGED = ("fve_no_sinks", "ce_recovered_no_sinks", "kl_no_sinks", "dead_fraction", "dense_fraction")


@dataclass(frozen=True)
class CompareSettings:
    """What is compared.

    Args:
        judged: The figures that get a verdict. All of them share one probability of a wrong verdict, so that every
            further one makes the others' smallest visible difference larger.
        level: That probability: of any wrong verdict in a comparison of recipes that do not differ.
        l0_tolerance: By what share the latents per token of two recipes may differ and still count as as many.
        tokens: Held-out tokens that reconstruction and sparsity are measured on.
        ce_tokens: So many of them, from all over the text, measure what splicing costs the language model; 0: not
            measured.
        seed: Of the draws of documents.
        concepts: The truth that latents are held against: `auto` or a file, as for `evaluate`, which adds figures of
            concepts and takes longer; `none`: nothing. Verdicts on them are for `judged` to ask for.

    Raises:
        ConfigError: A number is out of its range, or a figure is unknown, has no better value or is not measured.
    """

    judged: tuple[str, ...] = JUDGED
    level: float = 0.05
    l0_tolerance: float = 0.05
    tokens: int = 200_000
    ce_tokens: int = 20_000
    seed: int = 0
    concepts: str = "none"

    def __post_init__(self) -> None:
        for name in self.judged:
            if name not in DEFINITIONS:
                raise ConfigError(f"{arg('judged')} has {name!r}, which is no figure.{did_you_mean(name, DEFINITIONS)}")
            if DEFINITIONS[name].better is None:
                raise ConfigError(f"{arg('judged')} has {name!r}, of which no value is the better one; leave it out.")
            if name in PROBES:
                raise ConfigError(f"{arg('judged')} has {name!r}, and nothing is probed here; leave it out.")
            if name in WORDS and self.concepts == "none":
                raise ConfigError(
                    f"{arg('judged')} has {name!r}, but {arg('concepts')} is 'none'; write auto or a file."
                )
        if not self.judged or len(set(self.judged)) < len(self.judged):
            raise ConfigError("judged", list(self.judged), "name figures, each once")
        if not 0 < self.level < 1:
            raise ConfigError("level", self.level, "write a probability between 0 and 1")
        if not 0 <= self.l0_tolerance < 1:
            raise ConfigError("l0_tolerance", self.l0_tolerance, "write a share from 0 up, below 1")
        self.evaluation()

    def evaluation(self) -> EvaluateSettings:
        """Return how each SAE is evaluated."""
        return EvaluateSettings(self.tokens, self.ce_tokens, (), self.seed, self.concepts)


@dataclass(frozen=True)
class Compared:
    """A recipe in a comparison.

    Attributes:
        name: As it stands in tables.
        evaluations: Of its SAEs.
        readings: The figures of all of them, with their noise.
    """

    name: str
    evaluations: Sequence[Evaluation]
    readings: Mapping[str, Readings]

    @property
    def l0(self) -> float:
        return self.readings["l0"].mean


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        recipes: In the order in which they were named.
        verdicts: Of every pair in every judged figure.
        dominant: By pair the name of the recipe that is the better choice, where one is: ahead with no more latents.
        matched: By pair, whether the latents per token are as many.
        settings: What was compared.
        notes: What else a reader has to know.
    """

    recipes: Sequence[Compared]
    verdicts: Sequence[Verdict]
    dominant: Mapping[tuple[str, str], str | None]
    matched: Mapping[tuple[str, str], bool]
    settings: CompareSettings
    notes: Sequence[str]

    def of_pair(self, pair: tuple[str, str]) -> list[Verdict]:
        return [one for one in self.verdicts if (one.first, one.second) == pair]


def compare(
    saes: Sequence[str],
    text: TextSettings | None = None,
    settings: CompareSettings | None = None,
    seeds: Sequence[str] = (),
    progress: Progress | None = None,
) -> Comparison:
    """Evaluate SAEs on one held-out text, and say which recipe is better.

    Args:
        saes: Two recipes or more, each `[NAME=]SAE[,SAE...]`: SAEs that differ by their seed.
        text: What differs from the training.
        settings: What is compared.
        seeds: Further SAEs; each goes to the recipe that it is of.
        progress: Who is told.

    Raises:
        ConfigError: The SAEs of a recipe differ in more than the seed, or SAEs would be read on different texts.
        FormatError, ModelError, SiteError, CorpusError: As `evaluate`.
    """
    text, settings, progress = text or TextSettings(), settings or CompareSettings(), progress or NullProgress()
    recipes = read_words(saes)
    saved = {name: _opened(name, text, "sae") for one in recipes for name in one.saes}
    saved |= {name: _opened(name, text, "seeds") for name in seeds if name not in saved}
    recipes = with_seeds(recipes, seeds, saved)
    notes = check_recipes(recipes, saved)
    return judge(_evaluated(recipes, text, settings, progress), settings, notes)


def judge(recipes: Sequence[Compared], settings: CompareSettings, notes: Sequence[str] = ()) -> Comparison:
    """Return the comparison of recipes whose figures are known."""
    better = {name: side for name in settings.judged if (side := DEFINITIONS[name].better) is not None}
    levels = {"level": settings.level, "l0_tolerance": settings.l0_tolerance}
    judged = verdicts({one.name: one.readings for one in recipes}, better, **levels)
    best: dict[tuple[str, str], str | None] = {}
    matched = {}
    for first, second in combinations(recipes, 2):
        pair, l0 = (first.name, second.name), (first.l0, second.l0)
        of_pair = [one for one in judged if (one.first, one.second) == pair]
        ahead = dominant(of_pair, l0, **levels)
        best[pair] = None if ahead is None else pair[ahead]
        matched[pair] = same_l0(*l0, settings.l0_tolerance)
    return Comparison(recipes, judged, best, matched, settings, notes)


def readings_of(values: Sequence[float], spreads: Sequence[Spread | None]) -> Readings:
    """Return one figure of SAEs of a recipe; its noise by the text is known where that of all of them is."""
    known = [one for one in spreads if one is not None]
    if len(known) < len(values):
        return Readings(np.asarray(values, np.float64), None, 0.0)
    return Readings(
        np.asarray(values, np.float64),
        np.stack([one.deviations for one in known]),
        min(one.documents for one in known),
    )


def _opened(name: str, text: TextSettings, argument: str) -> SavedSAE:
    with under(folder=argument, sae=argument):
        return open_sae(name, text)


def _evaluated(
    recipes: Sequence[Recipe], text: TextSettings, settings: CompareSettings, progress: Progress
) -> list[Compared]:
    first: tuple[Evaluation, str] | None = None
    compared, shared = [], LanguageModels()
    for recipe in recipes:
        evaluations, spreads = [], []
        for name in recipe.saes:
            evaluation, spread, rows = evaluate_on_text(name, text, settings.evaluation(), progress, shared)
            first = first or (evaluation, rows)
            if rows != first[1]:
                raise ConfigError(_other_text(evaluation, first[0]))
            evaluations.append(evaluation)
            spreads.append(spread)
        common = [name for name in DEFINITIONS if all(name in one.figures for one in evaluations)]
        readings = {
            name: readings_of([one.figures[name].value for one in evaluations], [one.get(name) for one in spreads])
            for name in common
        }
        compared.append(Compared(recipe.name, evaluations, readings))
    return compared


def _other_text(one: Evaluation, first: Evaluation) -> str:
    """Say that two SAEs would be read on different texts, and by what."""
    keys = [key for key in first.text if one.text[key] != first.text[key] and key not in ("tokens", "documents")]
    apart = ", ".join(f"{key} ({one.text[key]!r:.60} and {first.text[key]!r:.60})" for key in keys) or "its documents"
    options = " ".join(f"--data.{key} {first.text[key]}" for key in keys if first.text[key] is not None)
    advice = f": {options}" if options else ""
    return f"{one.name!r} would be read on another text than {first.name!r}, by {apart}; name one text for all{advice}."
