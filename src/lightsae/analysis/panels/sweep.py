"""Doses of a feature's steering, measured beside what could explain them away.

The dose is chosen on the prompts with even numbers and reported on the others. At the chosen dose all arms are
measured; curves hold the arms that a sweep asks for, on the reporting prompts.

Where the norm of what is added says all of a dose (`add`, unit `norm`), the texts of one feature are also those of
«another feature» for all others, and a random direction serves several: a sweeper measures each once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.panels.arms import FEATURE, NONE, PROMPT, RANDOM, RANDOMS, SHUFFLED, Arm, Steered
from lightsae.analysis.panels.concepts import Concept
from lightsae.analysis.panels.measures import Measure, Values, interval, shift
from lightsae.analysis.panels.meter import Meter
from lightsae.analysis.panels.settings import SweepSettings
from lightsae.errors import ConfigError
from lightsae.lm.generate import SILENCE, Samples, encode_prompts
from lightsae.metrics.intervals import Interval
from lightsae.progress import Progress

_CHOOSING, _REPORTING = slice(0, None, 2), slice(1, None, 2)


@dataclass(frozen=True)
class Measured:
    """One arm at one dose, on the reporting prompts.

    Attributes:
        arm: Which.
        dose: In the sweep's unit; 0 for no steering and for the prompt.
        values: By measure, one per prompt.
        samples: Its texts.
        number: Whose direction was written: the other feature's number, or that of the random draw.
    """

    arm: Arm
    dose: float
    values: Values
    samples: Samples
    number: int | None = None


@dataclass(frozen=True)
class Sweep:
    """One feature, swept.

    Attributes:
        concept: What the feature stands for.
        settings: How.
        chosen: The chosen dose; None if every dose cost more than allowed.
        taken: The dose that is reported: the chosen one, or the smallest.
        choosing: By dose, the effect and the perplexity ratio on the choosing prompts.
        measured: Arms and doses on the reporting prompts.
        prompts: The reporting prompts.
        written: What `Steering.report` says of the taken dose: units, norms, site.
    """

    concept: Concept
    settings: SweepSettings
    chosen: float | None
    taken: float
    choosing: Mapping[float, tuple[float, float]]
    measured: list[Measured]
    prompts: list[str]
    written: dict[str, Any]

    @property
    def plain(self) -> Measured:
        """No steering."""
        return self.measured[0]

    @property
    def chosen_by(self) -> str:
        """The effect that the dose was chosen by."""
        return self.settings.chosen_by(self.plain.values)

    @property
    def label_measure(self) -> Measure:
        """The measure of what the label says: its rule on the text; without a rule, whether the feature fires on it."""
        return Measure.CONCEPT if "concept" in self.plain.values else Measure.FIRES

    @property
    def others(self) -> list[Measured]:
        """Other features in its place, at the dose that was taken."""
        return [one for one in self.measured if one.arm == SHUFFLED and one.dose == self.taken]

    def at(self, arm: Arm, dose: float | None = None) -> Measured | None:
        """Return an arm's figures at a dose, by default the one that was taken."""
        dose = 0.0 if arm in (NONE, PROMPT) else self.taken if dose is None else dose
        return next((one for one in self.measured if one.arm == arm and one.dose == dose), None)

    def shift(self, arm: Arm, measure: str, dose: float | None = None) -> Interval | None:
        """Return what an arm gains over no steering, as `measures.shift` does; None if that is not known."""
        return self.shift_of(self.at(arm, dose), measure)

    def shift_of(self, measured: Measured | None, measure: str) -> Interval | None:
        """Return what something measured gains over no steering; None if that is not known."""
        if measured is None or measure not in measured.values or measure not in self.plain.values:
            return None
        return shift(measure, measured.values[measure], self.plain.values[measure])

    def gains(self, measured: Sequence[Measured], measure: str) -> NDArray[np.float64]:
        """Return what several gain over no steering, (arms, prompts)."""
        return np.stack([one.values[measure] for one in measured]) - self.plain.values[measure]

    def report(self) -> dict[str, Any]:
        """Return everything but the texts, as JSON values; of several other features, all but the first in short."""
        others, short = self.others, (self.label_measure, Measure.FOLLOWS, Measure.TARGET)
        in_short = {id(one) for one in others[1:]}
        return {
            **self.concept.report(),
            "kind": self.settings.kind,
            "unit": self.settings.unit,
            "chosen_dose": self.chosen,
            "reported_dose": self.taken,
            "chosen_by": self.chosen_by,
            "choosing": [
                {"dose": dose, "effect": effect, "perplexity_ratio": ratio}
                for dose, (effect, ratio) in self.choosing.items()
            ],
            "steering": self.written,
            "arms": [
                {
                    "arm": one.arm,
                    "dose": one.dose,
                    "number": one.number,
                    "measures": {name: interval(name, values).report() for name, values in one.values.items()},
                    "shifts": {n: shift(n, v, self.plain.values[n]).report() for n, v in one.values.items()},
                }
                for one in self.measured
                if id(one) not in in_short
            ],
            "others": [
                {"feature": one.number, **{n: gain.mean for n in short if (gain := self.shift_of(one, n)) is not None}}
                for one in others
            ],
        }


class Sweeper:
    """Sweeps features of one SAE over the same prompts.

    Args:
        steered: The model and the SAE.
        vocabulary: (V,) what each token says.
        prompts: Two or more, so that each half has one.
        settings: Doses and draws.
        features: Those that will be swept.
        as_steered: Whether texts are read under steering too; see `Meter`.

    Raises:
        ConfigError: There is no such feature, or too few prompts.
    """

    def __init__(
        self,
        steered: Steered,
        vocabulary: Sequence[str],
        prompts: Sequence[str],
        settings: SweepSettings,
        features: Sequence[int],
        as_steered: bool = True,
    ) -> None:
        if len(prompts) < 2:
            raise ConfigError(
                f"there is {len(prompts)} prompt; a sweep chooses the dose on one half of the prompts and reports on "
                "the other: write two or more."
            )
        self.steered, self.settings = steered, settings
        self.prompts = list(prompts)
        self.concepts = {feature: steered.concept(feature) for feature in features}
        self._meter = Meter(steered, vocabulary, encode_prompts(steered.model, prompts), settings, as_steered)
        self._measured: dict[tuple[Any, ...], tuple[dict[int, Values], Samples]] = {}

    def sweep(
        self,
        feature: int,
        *,
        curves: Sequence[Arm] = (),
        arms: Sequence[Arm] = (RANDOM, SHUFFLED, PROMPT),
        others: Sequence[int] | None = None,
        randoms: Mapping[Arm, int] | None = None,
        progress: Progress = SILENCE,
    ) -> Sweep:
        """Choose a feature's dose and measure it.

        Args:
            feature: One of those named at first.
            curves: Arms that are measured at every dose.
            arms: Arms that are measured beside the feature at the dose that is taken.
            others: The other features, each of them an arm; None: one that is drawn.
            randoms: By arm, which of the directions drawn for all features; None: some drawn for this one.
            progress: Told of every measurement.
        """
        settings, concept = self.settings, self.concepts[feature]
        if self.steered.dictionary is None:
            arms = [arm for arm in arms if arm != PROMPT]  # there is no text of it to prompt with
        others = [self.steered.other_feature(feature, settings.seed)] if others is None else others
        doses = sorted(set(settings.doses))
        ordered = list(dict.fromkeys((NONE, FEATURE, *arms, *curves)))
        numbers = {SHUFFLED: list(others), **{arm: [number] for arm, number in (randoms or {}).items()}}
        each = [(arm, number) for arm in ordered for number in numbers.get(arm, [None])]
        total = len(doses) + sum(len(doses) if arm in curves else 1 for arm, _ in each)
        with progress.stage(f"feature {feature}", total) as done:
            choosing = {}
            plain, _ = self._values(NONE, None, 0.0, concept, _CHOOSING)
            by = settings.chosen_by(plain)
            for step, dose in enumerate(doses, start=1):
                values, _ = self._values(FEATURE, None, dose, concept, _CHOOSING)
                ratio = shift("ppl_untouched", values["ppl_untouched"], plain["ppl_untouched"])
                choosing[dose] = (float((values[by] - plain[by]).mean()), ratio.mean)
                done(step)
            allowed = [dose for dose in doses if choosing[dose][1] <= settings.max_perplexity_ratio]
            chosen = max(allowed, key=lambda dose: choosing[dose][0], default=None)
            taken = min(doses, key=abs) if chosen is None else chosen
            places = [(arm, n, dose) for arm, n in each for dose in (doses if arm in curves else [taken])]
            measured = []
            for step, (arm, number, dose) in enumerate(places, start=1 + len(doses)):
                dose = 0.0 if arm in (NONE, PROMPT) else dose
                values, samples = self._values(arm, number, dose, concept, _REPORTING)
                measured.append(Measured(arm, dose, values, samples, number))
                done(step)
        with self.steered.by([settings.intervention(feature, taken)]) as steering:
            written = steering.report()
        return Sweep(concept, settings, chosen, taken, choosing, measured, self.prompts[_REPORTING], written)

    def prepare(self, feature: int) -> None:
        """Measure a feature at every dose, so that its sweep, and those of others beside it, find it done."""
        for dose in self.settings.doses:
            self._values(FEATURE, None, dose, self.concepts[feature], _CHOOSING)

    def _values(
        self, arm: Arm, number: int | None, dose: float, concept: Concept, half: slice
    ) -> tuple[Values, Samples]:
        """Return what an arm does to a concept on one half of the prompts."""
        settings, feature = self.settings, concept.feature
        # Additions of one norm are the same whichever feature they stand beside.
        alike = settings.kind == "add" and settings.unit == "norm" and not (arm in RANDOMS and number is None)
        if arm == NONE:
            key: tuple[Any, ...] = (NONE,)
        elif arm == FEATURE or (arm == SHUFFLED and alike):
            key = (FEATURE, dose, feature if number is None else number)
        elif arm in RANDOMS and alike:
            key = (RANDOM, dose, number)
        else:
            key = (arm, number, dose, feature)
        if key not in self._measured:
            if key[0] == FEATURE:
                interventions = [settings.intervention(key[2], dose)]
            elif arm == NONE:
                interventions = []
            else:
                own = [settings.intervention(feature, dose)]
                interventions = self.steered.arm(arm, own, settings.seed, number)
            prompts = self._prompted(concept) if arm == PROMPT else None
            values, samples = self._meter.measure_all(interventions, list(self.concepts.values()), prompts)
            self._measured[key] = dict(zip(self.concepts, values, strict=True)), samples
        values_of, samples = self._measured[key]
        own_half = {name: value[half] for name, value in values_of[feature].items()}
        return own_half, Samples(samples.prompts[half], samples.texts[half], samples.tokens[half])

    def _prompted(self, concept: Concept) -> list[list[int]]:
        """Return the prompts of the arm that asks for the concept in words."""
        assert self.steered.dictionary is not None
        windows = self.steered.dictionary.feature(concept.feature).contexts
        context = next(("".join(window["texts"]) for window in windows if window["kind"] == "top"), "")
        template = self.settings.prompt_template.replace("{context}", context).replace("{label}", concept.label or "")
        return encode_prompts(self.steered.model, [template.replace("{prompt}", prompt) for prompt in self.prompts])
