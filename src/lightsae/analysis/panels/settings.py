"""How a sweep and a panel are made: doses, draws, which features, what steering may cost."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import torch

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.panels.measures import EFFECTS
from lightsae.analysis.steering.interventions import Add, Clamp, Intervention, MinClamp, Unit
from lightsae.errors import ConfigError, arg, did_you_mean
from lightsae.lm.generate import Sampling
from lightsae.randomness import keyed_generator

# Format of a panel's report. In format 1 verdicts asked for the promoted tokens, and not for other features.
SCHEMA = 2
KINDS: dict[str, type[Add] | type[Clamp] | type[MinClamp]] = {"add": Add, "clamp": Clamp, "min-clamp": MinClamp}


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
        if "{prompt}" not in self.prompt_template:
            raise ConfigError("prompt_template", self.prompt_template, "it has to hold {prompt}")
        for dose in self.doses:
            self.intervention(0, dose)

    def intervention(self, feature: int, dose: float) -> Intervention:
        """Return what a dose is."""
        return KINDS[self.kind](feature, dose, self.unit)

    def chosen_by(self, measured: Container[str]) -> str:
        """Return the effect that a dose is chosen by, among those that are measured of a feature."""
        # Without a rule that passed, or without a token that follows, the SAE's own latent is taken.
        return self.choose_by if self.choose_by in measured else "fires"


@dataclass(frozen=True)
class Choice:
    """Which features a panel looks at.

    Attributes:
        features: Their numbers; null: by the rules that follow.
        tiers: Confidence tiers to take from.
        min_s_out: Least output score (S_out).
        order: sample: drawn by the seed, so that shares hold for all that the rules admit; s_out: the largest first.
        count: How many.
    """

    features: Sequence[int] | None = None
    tiers: Sequence[str] = ("high", "medium")
    min_s_out: float = 0.0
    order: str = "sample"
    count: int = 20

    def __post_init__(self) -> None:
        if self.order not in ("sample", "s_out"):
            raise ConfigError("order", self.order, "write sample or s_out")
        if self.count < 1:
            raise ConfigError("count", self.count, "write how many features, 1 or more")
        if self.features is not None and not self.features:
            raise ConfigError(f"{arg('features')} is empty; write some numbers, or null to choose by the rules.")

    def of(self, dictionary: FeatureDictionary, seed: int) -> list[int]:
        """Return the features.

        Raises:
            ConfigError: No feature fits.
        """
        if self.features is not None:
            return list(dict.fromkeys(self.features))
        admitted = self.admitted(dictionary)
        if not admitted:
            raise ConfigError(
                f"no feature has a tier among {', '.join(self.tiers)} and an S_out of {self.min_s_out} or more; "
                "widen the panel's choice."
            )
        if self.order == "sample":
            admitted.sort()
            drawn = torch.randperm(len(admitted), generator=keyed_generator(seed, "panel"))[: self.count]
            return sorted(admitted[place] for place in drawn.tolist())
        return admitted[: self.count]

    def admitted(self, dictionary: FeatureDictionary) -> list[int]:
        """Return all features that the rules admit, those with the largest output score first."""
        table = dictionary.sql(
            "SELECT feature FROM features WHERE list_contains($tiers, tier) AND coalesce(s_out, 0) >= $least "
            "ORDER BY s_out DESC NULLS LAST, feature",
            {"tiers": list(self.tiers), "least": self.min_s_out},
        )
        admitted: list[int] = table["feature"].to_pylist()
        return admitted


@dataclass(frozen=True)
class Limits:
    """What steering may cost.

    Attributes:
        max_ce_rise: Nats per token on unrelated held-out text.
        max_others_changed: Of the other features that fire there, the share that may change.
    """

    max_ce_rise: float = 0.5
    max_others_changed: float = 1.0


@dataclass(frozen=True)
class PanelSettings:
    """A panel.

    Attributes:
        prompts: The first, third ... choose the dose; the others report.
        choose: Which features.
        sweep: Doses, draws, limits of the choice.
        limits: What steering may cost.
        held_out_rows: Rows of held-out text that side effects are measured on.
        others: Other labelled features, of those that `choose` admits, that each is held against. Those of the panel
            cost nothing more if doses are added norms.
        level: Level of the tests that a reliable feature has to pass; 0.05 needs 19 others or more.
    """

    prompts: Sequence[str]
    choose: Choice = field(default_factory=Choice)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    limits: Limits = field(default_factory=Limits)
    held_out_rows: int = 16
    others: int = 19
    level: float = 0.05

    def __post_init__(self) -> None:
        if len(self.prompts) < 4:
            raise ConfigError(
                f"{arg('prompts')} holds {len(self.prompts)}; write four or more, for intervals on either half."
            )
        if self.held_out_rows < 2:
            raise ConfigError("held_out_rows", self.held_out_rows, "write two or more")
        if self.others < 1:
            raise ConfigError("others", self.others, "write how many other features, 1 or more")
        if not 0 < self.level < 1:
            raise ConfigError("level", self.level, "write a number between 0 and 1, such as 0.05")
