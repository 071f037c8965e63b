"""Doses of one feature's steering, measured beside what could explain them away.

The dose is chosen on the prompts with even numbers and reported on the others. At the chosen dose all arms are
measured; curves hold the arms that a sweep asks for, on the reporting prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from lightsae.analysis.panels.arms import FEATURE, NONE, PROMPT, RANDOM, SHUFFLED, Arm, Steered
from lightsae.analysis.panels.concepts import Concept
from lightsae.analysis.panels.measures import EFFECTS, Measure, Meter, Values, interval, shift
from lightsae.analysis.steering.interventions import Add, Clamp, Intervention, MinClamp, Unit
from lightsae.errors import ConfigError, arg, did_you_mean
from lightsae.lm.generate import SILENCE, Samples, Sampling, encode_prompts
from lightsae.metrics.intervals import Interval
from lightsae.progress import Progress

KINDS: dict[str, type[Add] | type[Clamp] | type[MinClamp]] = {"add": Add, "clamp": Clamp, "min-clamp": MinClamp}
_CONTEXT, _LABEL, _PROMPT = "{context}", "{label}", "{prompt}"


@dataclass(frozen=True)
class SweepSettings:
    """How doses are tried.

    Attributes:
        doses: Strengths, in `unit`.
        unit: norm: mean activation norms of the site; max: the feature's largest activation; latent: latent units.
        kind: add, clamp or min-clamp.
        choose_by: The effect that the chosen dose is to make largest: concept, fires, activation, follows or target.
        max_perplexity_ratio: Doses that multiply the perplexity of the text for the untouched model by more than this
            are not chosen.
        prompt_template: What the arm that prompts says; {context} is a text on which the feature fires, {label} its
            label, {prompt} the prompt.
        samples: Texts per prompt.
        seed: Seed for sampling and for the random directions.
        sampling: Temperature, top-p, lengths.
        rows_at_once: Texts per pass.
    """

    doses: Sequence[float] = (0.125, 0.25, 0.5)
    unit: Unit = "norm"
    kind: str = "add"
    choose_by: str = "target"
    max_perplexity_ratio: float = 3.0
    prompt_template: str = "{context}\n{prompt}"
    samples: int = 1
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    rows_at_once: int = 64

    def __post_init__(self) -> None:
        if not self.doses or 0 in self.doses:
            raise ConfigError("doses", list(self.doses), "write some strengths other than 0, which is measured anyway")
        for name, known in (("kind", list(KINDS)), ("choose_by", list(map(str, EFFECTS)))):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(
                    f"{arg(name)} is {value!r}; write one of {', '.join(known)}.{did_you_mean(value, known)}"
                )
        if not self.max_perplexity_ratio >= 1:
            raise ConfigError("max_perplexity_ratio", self.max_perplexity_ratio, "write 1 or more")
        if _PROMPT not in self.prompt_template:
            raise ConfigError("prompt_template", self.prompt_template, f"it has to hold {_PROMPT}")
        for dose in self.doses:
            self.intervention(0, dose)

    def intervention(self, feature: int, dose: float) -> Intervention:
        """Return what a dose is."""
        return KINDS[self.kind](feature, dose, self.unit)


def chosen_by(settings: SweepSettings, plain: Values) -> str:
    """Return the effect that a dose is chosen by, among those that are measured."""
    # Without a rule that passed, or without a token that follows, the SAE's own latent is taken.
    return settings.choose_by if settings.choose_by in plain else "fires"


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

    def shift(self, measure: str, plain: "Measured") -> Interval | None:
        """Return what a measure gained over no steering, prompt by prompt; see `measures.shift`."""
        return shift(measure, self.values[measure], plain.values[measure]) if measure in self.values else None

    def report(self, plain: "Measured") -> dict[str, Any]:
        """Return it as JSON values, without the texts."""
        return {
            "arm": self.arm,
            "dose": self.dose,
            "measures": {name: interval(name, values).report() for name, values in self.values.items()},
            "shifts": {name: shift(name, v, plain.values[name]).report() for name, v in self.values.items()},
        }


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
        return chosen_by(self.settings, self.plain.values)

    @property
    def label_measures(self) -> tuple[Measure, Measure]:
        """The two measures of what the label says: its rule on the text (or, without one, firing), what follows."""
        return (Measure.CONCEPT if "concept" in self.plain.values else Measure.FIRES), Measure.FOLLOWS

    def shift(self, arm: Arm, measure: str) -> Interval | None:
        """Return what an arm gains over no steering at the dose that was taken; None if that is not known."""
        measured = self.at(arm)
        return None if measured is None else measured.shift(measure, self.plain)

    def at(self, arm: Arm, dose: float | None = None) -> Measured | None:
        """Return an arm's figures at a dose, by default the one that was taken."""
        dose = 0.0 if arm in (NONE, PROMPT) else self.taken if dose is None else dose
        return next((one for one in self.measured if one.arm == arm and one.dose == dose), None)

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
            "arms": [one.report(self.plain) for one in self.measured],
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
        meter = partial(
            Meter,
            steered,
            vocabulary,
            samples=settings.samples,
            sampling=settings.sampling,
            rows_at_once=settings.rows_at_once,
        )
        self._choosing = meter(ids[::2], seed=settings.seed)
        self._reporting = meter(ids[1::2], seed=settings.seed + 1)

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
        doses = sorted(settings.doses)
        different = list(dict.fromkeys(doses))
        ordered = list(dict.fromkeys((NONE, FEATURE, *arms, *curves)))
        total = len(doses) + sum(len(different) if arm in curves else 1 for arm in ordered)
        steps = count(1)
        with progress.stage(f"feature {feature}", total) as done:
            choosing = self._try(concept, doses, lambda: done(next(steps)))
            allowed = [dose for dose in doses if choosing[dose][1] <= settings.max_perplexity_ratio]
            chosen = max(allowed, key=lambda dose: choosing[dose][0], default=None)
            taken = min(doses, key=abs) if chosen is None else chosen
            measured = []
            for arm in ordered:
                for dose in different if arm in curves else [0.0 if arm in (NONE, PROMPT) else taken]:
                    measured.append(self._measure(arm, dose, concept))
                    done(next(steps))
        with self.steered.by([settings.intervention(feature, taken)]) as steering:
            written = steering.report()
        return Sweep(concept, settings, chosen, taken, choosing, measured, self.prompts, written)

    def _try(
        self, concept: Concept, doses: Sequence[float], step: Callable[[], None]
    ) -> dict[float, tuple[float, float]]:
        """Return, by dose, the effect over no steering and the perplexity's ratio, on the choosing prompts."""
        plain, _ = self._choosing.measure((), concept)
        by = chosen_by(self.settings, plain)
        choosing = {}
        for dose in doses:
            values, _ = self._choosing.measure([self.settings.intervention(concept.feature, dose)], concept)
            effect = float((values[by] - plain[by]).mean())
            choosing[dose] = (effect, shift("ppl_untouched", values["ppl_untouched"], plain["ppl_untouched"]).mean)
            step()
        return choosing

    def _measure(self, arm: Arm, dose: float, concept: Concept) -> Measured:
        prompts = self._prompted(concept) if arm == PROMPT else None
        own = [] if arm in (NONE, PROMPT) else [self.settings.intervention(concept.feature, dose)]
        interventions = self.steered.arm(arm, own, self.settings.seed)
        values, samples = self._reporting.measure(interventions, concept, prompts)
        return Measured(arm, dose, values, samples)

    def _prompted(self, concept: Concept) -> list[list[int]]:
        """Return the prompts of the arm that asks for the concept in words."""
        assert self.steered.dictionary is not None
        windows = self.steered.dictionary.feature(concept.feature).contexts
        top = [one for one in windows if one["kind"] == "top"]
        context = "".join(top[0]["texts"]) if top else ""
        template = self.settings.prompt_template.replace(_CONTEXT, context).replace(_LABEL, concept.label or "")
        return encode_prompts(self.steered.model, [template.replace(_PROMPT, prompt) for prompt in self.prompts])
