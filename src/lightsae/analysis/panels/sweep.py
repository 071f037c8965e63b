"""Doses of one feature's steering, measured beside what could explain them away.

The dose is chosen on the prompts with even numbers and reported on the others. At the chosen dose all arms are
measured; curves hold the arms that a sweep asks for, on the reporting prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightsae.analysis.panels.arms import FEATURE, NONE, PROMPT, RANDOM, SHUFFLED, Arm, Steered
from lightsae.analysis.panels.concepts import Concept
from lightsae.analysis.panels.measures import Measure, Values, interval, shift
from lightsae.analysis.panels.meter import Meter
from lightsae.analysis.panels.settings import SweepSettings
from lightsae.errors import ConfigError
from lightsae.lm.generate import SILENCE, Samples, encode_prompts
from lightsae.metrics.intervals import Interval
from lightsae.progress import Progress
from lightsae.randomness import derived_seed


@dataclass(frozen=True)
class Measured:
    """One arm at one dose, on the reporting prompts.

    Attributes:
        arm: Which.
        dose: In the sweep's unit; 0 for no steering and for the prompt.
        values: By measure, one per prompt.
        samples: Its texts.
    """

    arm: Arm
    dose: float
    values: Values
    samples: Samples


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
    def label_measures(self) -> tuple[Measure, Measure]:
        """The two measures of what the label says: its rule on the text (or, without one, firing), what follows."""
        return (Measure.CONCEPT if "concept" in self.plain.values else Measure.FIRES), Measure.FOLLOWS

    def at(self, arm: Arm, dose: float | None = None) -> Measured | None:
        """Return an arm's figures at a dose, by default the one that was taken."""
        dose = 0.0 if arm in (NONE, PROMPT) else self.taken if dose is None else dose
        return next((one for one in self.measured if one.arm == arm and one.dose == dose), None)

    def shift(self, arm: Arm, measure: str, dose: float | None = None) -> Interval | None:
        """Return what an arm gains over no steering, as `measures.shift` does; None if that is not known."""
        measured = self.at(arm, dose)
        if measured is None or measure not in measured.values:
            return None
        return shift(measure, measured.values[measure], self.plain.values[measure])

    def report(self) -> dict[str, Any]:
        """Return everything but the texts, as JSON values."""
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
                    "measures": {name: interval(name, values).report() for name, values in one.values.items()},
                    "shifts": {n: shift(n, v, self.plain.values[n]).report() for n, v in one.values.items()},
                }
                for one in self.measured
            ],
        }


class Sweeper:
    """Sweeps features of one SAE over the same prompts.

    Args:
        steered: The model and the SAE.
        vocabulary: (V,) what each token says.
        prompts: Two or more, so that each half has one.
        settings: Doses and draws.
    """

    def __init__(
        self, steered: Steered, vocabulary: Sequence[str], prompts: Sequence[str], settings: SweepSettings
    ) -> None:
        if len(prompts) < 2:
            raise ConfigError(
                f"there is {len(prompts)} prompt; a sweep chooses the dose on one half of the prompts and reports on "
                "the other: write two or more."
            )
        self.steered, self.settings = steered, settings
        self.prompts = list(prompts[1::2])
        ids = encode_prompts(steered.model, prompts)
        self._choosing = Meter(steered, vocabulary, ids[::2], settings)
        # Other draws than those the dose is chosen on, of this seed or of any other.
        reporting = replace(settings, seed=derived_seed(settings.seed, "doses that are reported"))
        self._reporting = Meter(steered, vocabulary, ids[1::2], reporting)

    def sweep(
        self,
        feature: int,
        *,
        curves: Sequence[Arm] = (),
        arms: Sequence[Arm] = (RANDOM, SHUFFLED, PROMPT),
        progress: Progress = SILENCE,
    ) -> Sweep:
        """Choose a feature's dose and measure it.

        Args:
            feature: Which.
            curves: Arms that are measured at every dose.
            arms: Arms that are measured beside the feature at the dose that is taken.
            progress: Told of every measurement.

        Raises:
            ConfigError: There is no such feature.
        """
        settings, concept = self.settings, self.steered.concept(feature)
        if self.steered.dictionary is None:
            arms = [arm for arm in arms if arm != PROMPT]  # there is no text of it to prompt with
        doses = sorted(set(settings.doses))
        ordered = list(dict.fromkeys((NONE, FEATURE, *arms, *curves)))
        total = len(doses) + sum(len(doses) if arm in curves else 1 for arm in ordered)
        with progress.stage(f"feature {feature}", total) as done:
            choosing = {}
            plain, _ = self._choosing.measure((), concept)
            by = settings.chosen_by(plain)
            for step, dose in enumerate(doses, start=1):
                values, _ = self._choosing.measure([settings.intervention(feature, dose)], concept)
                ratio = shift("ppl_untouched", values["ppl_untouched"], plain["ppl_untouched"])
                choosing[dose] = (float((values[by] - plain[by]).mean()), ratio.mean)
                done(step)
            allowed = [dose for dose in doses if choosing[dose][1] <= settings.max_perplexity_ratio]
            chosen = max(allowed, key=lambda dose: choosing[dose][0], default=None)
            taken = min(doses, key=abs) if chosen is None else chosen
            places = [(arm, dose) for arm in ordered for dose in (doses if arm in curves else [taken])]
            measured = []
            for step, (arm, dose) in enumerate(places, start=1 + len(doses)):
                measured.append(self._measure(arm, dose, concept))
                done(step)
        with self.steered.by([settings.intervention(feature, taken)]) as steering:
            written = steering.report()
        return Sweep(concept, settings, chosen, taken, choosing, measured, self.prompts, written)

    def _measure(self, arm: Arm, dose: float, concept: Concept) -> Measured:
        interventions = self.steered.arm(arm, [self.settings.intervention(concept.feature, dose)], self.settings.seed)
        prompts = self._prompted(concept) if arm == PROMPT else None
        values, samples = self._reporting.measure(interventions, concept, prompts)
        return Measured(arm, 0.0 if arm in (NONE, PROMPT) else dose, values, samples)

    def _prompted(self, concept: Concept) -> list[list[int]]:
        """Return the prompts of the arm that asks for the concept in words."""
        assert self.steered.dictionary is not None
        windows = self.steered.dictionary.feature(concept.feature).contexts
        context = next(("".join(window["texts"]) for window in windows if window["kind"] == "top"), "")
        template = self.settings.prompt_template.replace("{context}", context).replace("{label}", concept.label or "")
        return encode_prompts(self.steered.model, [template.replace("{prompt}", prompt) for prompt in self.prompts])
