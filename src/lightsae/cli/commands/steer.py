"""`lightsae steer`: a language model with a feature changed, beside the same model without; one dose, or a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightsae.analysis.labels.llm.endpoint import open_judge
from lightsae.analysis.labels.llm.judge import Budget, Judge
from lightsae.analysis.panels.arms import FEATURE, NONE, PROMPT, RANDOM, SHUFFLED, Arm, Steered
from lightsae.analysis.panels.judged import BEST, HARMONIC, Judged, judge_texts
from lightsae.analysis.panels.load import load_steered
from lightsae.analysis.panels.measures import Measure, Values, interval
from lightsae.analysis.panels.meter import Meter
from lightsae.analysis.panels.settings import KINDS, SweepSettings
from lightsae.analysis.panels.sweep import Sweep, Sweeper
from lightsae.analysis.panels.sweep_report import show_on_page, side_by_side, write_sweep
from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.analysis.steering.control_vector import write_control_vector
from lightsae.analysis.steering.interventions import Ablate, Intervention, ProjectOut
from lightsae.cli.commands.label import JudgeSettings
from lightsae.cli.settings.command import Bars, check_file, check_folder, command
from lightsae.cli.tables import console, print_paths, print_tally, table
from lightsae.errors import ConfigError, did_you_mean
from lightsae.formats.files import shown
from lightsae.lm.generate import Sampling, encode_prompts
from lightsae.lm.model import vocabulary_of
from lightsae.metrics.intervals import Interval
from lightsae.parsing import parse_yaml

_EXAMPLES = (
    "lightsae steer --sae RUN/sae --feature 406 --prompt 'def main():' --strength 0.5",
    "lightsae steer --sae RUN/sae --feature 406 --prompt 'import os' --strength 1 --kind clamp --unit max",
    "lightsae steer --sae RUN/sae --feature 406 --prompts PANEL.yaml --doses '[0.1, 0.2, 0.4]' --out steer_406",
    "lightsae steer --sae RUN/sae --feature 406 --prompts prompts.txt --strength 0.2 --judge my-model",
)
_USAGE = "--sae DIR --feature N (--prompt TEXT ... | --prompts FILE) (--strength S | --doses LIST --out FOLDER)"
_WITHOUT_STRENGTH: dict[str, type[Ablate] | type[ProjectOut]] = {"ablate": Ablate, "project-out": ProjectOut}
# Columns of what is printed.
_ARMS = (NONE, FEATURE, RANDOM, SHUFFLED, PROMPT)
_GRADES = {
    "concept": "the label is expressed",
    "instruct": "the prompt is taken up",
    "fluency": "it reads well",
    HARMONIC: "harmonic mean",
}
# Five columns of intervals need so much; a narrower terminal wraps them.
_WIDTH = 120
# Prompts from which on intervals are shown.
_FEWEST = 5


@dataclass(frozen=True)
class SteerSettings:
    r"""What to change, and on what.

    Attributes:
        sae: The SAE: a run's folder, an export, a checkpoint, or files of another library.
        feature: Which feature; or several, [12, 40].
        dictionary: Its feature dictionary; null: the one beside the SAE.
        prompt: What the texts begin with; or several, [a, b].
        prompts: File: a prompt per line, \n for a newline; or a panel.
        strength: One dose, in --unit.
        doses: Several doses: a sweep.
        unit: Unit of a dose: norm, max, latent.
        kind: add, clamp, min-clamp, ablate, project-out.
        positions: all, generated, or positions [3, 4].
        samples: Texts per prompt.
        seed: Seed for sampling and for random directions.
        out: Folder of a sweep's report; an earlier one is replaced.
        gguf: File to write one dose of add to, as a control vector for llama.cpp.
        choose_by: Effect that the chosen dose makes largest.
        max_perplexity_ratio: Doses that cost more are not chosen.
        prompt_template: What the arm that prompts says: {context} a text on which it fires, {label} its label,
            {prompt}.
    """

    sae: str
    feature: int | list[int]
    dictionary: str | None = None
    prompt: str | list[str] | None = None
    prompts: str | None = None
    strength: float | None = None
    doses: list[float] | None = None
    unit: str = "norm"
    kind: str = "add"
    positions: str | list[int] = "all"
    samples: int = 3
    seed: int = 0
    out: str | None = None
    gguf: str | None = None
    choose_by: str = "target"
    max_perplexity_ratio: float = 3.0
    prompt_template: str = "{context}\n{prompt}"

    @property
    def features(self) -> list[int]:
        """The features, as a list."""
        return self.feature if isinstance(self.feature, list) else [self.feature]

    def check(self) -> None:
        """Raise if a dose and a sweep are asked for at once, or neither."""
        if (self.doses is None) == (self.strength is None and self.kind not in _WITHOUT_STRENGTH):
            number = "both" if self.doses is not None else "neither"
            raise ConfigError(f"Give --strength (one dose) or --doses (a sweep); found {number}.")
        if self.gguf is not None:
            if self.doses is not None:
                raise ConfigError("--gguf holds one dose; give --strength in the place of --doses.")
            check_file("gguf", self.gguf, ".gguf")
        if self.doses is None:
            if self.out is not None:
                raise ConfigError("--out holds the report of a sweep; give --doses with it, or leave it out.")
            return
        if len(self.features) > 1:
            raise ConfigError(
                f"--doses sweeps one feature; found {len(self.features)}. Give --strength to steer several."
            )
        if self.out is None:
            raise ConfigError("--out is missing: a sweep writes a folder with its figure, figures and texts. Name it.")
        check_folder(Path(self.out), "steer.json")

    def read_prompts(self) -> list[str]:
        """Return the prompts that were given, or those of the file."""
        if (self.prompt is None) == (self.prompts is None):
            raise ConfigError(f"Give --prompt or --prompts; found {'neither' if self.prompt is None else 'both'}.")
        if self.prompts is not None:
            prompts = _prompts_of(self.prompts)
        else:
            prompts = self.prompt if isinstance(self.prompt, list) else [str(self.prompt)]
        if not prompts or not all(prompts):
            raise ConfigError("a prompt is empty; write some words.")
        return prompts

    def interventions(self) -> list[Intervention]:
        """Return what one dose does to each feature."""
        known = (*KINDS, *_WITHOUT_STRENGTH)
        if self.kind not in known:
            near = did_you_mean(self.kind, known)
            raise ConfigError(f"kind is {self.kind!r}; write one of {', '.join(known)}.{near}")
        if self.kind in _WITHOUT_STRENGTH:
            if self.strength is not None:
                raise ConfigError(f"kind is {self.kind!r}, which has no strength; leave --strength out.")
            return [_WITHOUT_STRENGTH[self.kind](feature) for feature in self.features]
        assert self.strength is not None
        return [KINDS[self.kind](feature, self.strength, self.unit) for feature in self.features]

    def sweep(self, sampling: Sampling) -> SweepSettings:
        """Return the settings of a sweep."""
        shared = ("doses", "unit", "kind", "choose_by", "max_perplexity_ratio", "prompt_template", "samples", "seed")
        return SweepSettings(**{name: getattr(self, name) for name in shared}, sampling=sampling)


@command(_USAGE, _EXAMPLES)
def run_steer(settings: SteerSettings, asked: JudgeSettings, sampling: Sampling, text: TextSettings) -> None:
    """Change a feature while the language model writes, and show what that does.

    With --strength: baseline and steered texts side by side, drawn with the same seeds, and what effect and cost are.
    With --doses: a sweep. The dose is chosen on every other prompt and reported on the rest, beside no steering, a
    random direction of the same norm, another feature, and a prompt; written to --out with a figure.

    A strength is in units of the mean activation norm at the site (--unit norm), of the feature's own maximum (max), or
    of latents (latent).

    With --gguf: the same as a control vector, for llama.cpp's --control-vector. It is added at every token.

    With --judge: a language model grades each text from 0 to 2, whether it expresses the feature's label (concept),
    takes up the prompt (instruct) and reads well (fluency). Answers are kept beside the dictionary: asked once, they
    cost nothing again. LIGHTSAE_LLM_BASE_URL and LIGHTSAE_LLM_API_KEY say where the endpoint is and let one in.
    """
    prompts = settings.read_prompts()
    settings.check()
    judge = _judge(asked)
    feature, is_sweep = settings.features[0], settings.doses is not None
    interventions = [] if is_sweep else settings.interventions()
    plan = settings.sweep(sampling) if is_sweep else None
    positions = settings.positions if isinstance(settings.positions, str) else list(settings.positions)
    steered, origin = load_steered(settings.sae, settings.dictionary, text, positions=positions)
    grader = _Grader(judge, asked, steered, settings) if judge else None
    vocabulary = vocabulary_of(origin.main_model)
    if plan is None:
        # First, since these refuse features that cannot be steered.
        steered.concept(feature)
        with steered.by(interventions) as steering:
            caption = str(steering)
            if settings.gguf is not None:
                kind = str(steered.model.model.config.model_type)
                layer = write_control_vector(steering, settings.gguf, kind)
                print(f"control vector  {shown(Path(settings.gguf))}  (layer {layer} of llama.cpp, scale 1)")
        draws = SweepSettings(samples=settings.samples, seed=settings.seed, sampling=sampling)
        meter = Meter(steered, vocabulary, encode_prompts(steered.model, prompts), draws)
        _compare(meter, caption, prompts, interventions, settings, grader)
        return
    assert settings.out is not None
    out = Path(settings.out)
    sweeper = Sweeper(steered, vocabulary, prompts, plan, [feature])
    sweep = sweeper.sweep(feature, curves=(FEATURE, RANDOM, SHUFFLED), progress=Bars())
    write_sweep(out, sweep)
    _print_sweep(sweep, out)
    if grader is not None:
        # After the sweep is on the disk: an endpoint that fails costs the grades alone.
        judged = grader.grade(sweep.prompts, {arm: one.samples.texts for arm in _ARMS if (one := sweep.at(arm))})
        write_sweep(out, sweep, judged)
        _print_judged(judged)
    if steered.dictionary is not None:
        show_on_page(steered.dictionary, sweep)
        if (page := steered.dictionary.folder / "index.html").is_file():
            print(f"page     {shown(page)}#/feature/{sweep.concept.feature}")


def _prompts_of(file: str) -> list[str]:
    """Return the prompts of a file: a line each; or those of a panel if it is YAML."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        if Path(file).suffix not in (".yaml", ".yml"):
            return [line.replace("\\n", "\n") for line in text.splitlines() if line]
        panel = parse_yaml(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompts is {file!r}, which cannot be read: {error}") from None
    prompts = panel.get("prompts") if isinstance(panel, dict) else None
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(f"prompts is {file!r}, which is YAML without a list `prompts`; a panel has one.")
    return prompts


def _judge(asked: JudgeSettings) -> Judge | None:
    if asked.judge is not None:
        Budget(asked.budget_tokens)  # refused here and not after a sweep
        return open_judge(asked.judge, base_url=asked.base_url)
    for name in ("base_url", "budget_tokens", "cache"):
        if getattr(asked, name) is not None:
            raise ConfigError(f"--{name} is given without --judge; name the model that grades: --judge MODEL")
    return None


class _Grader:
    """A judge, and the label that texts of one feature are held against."""

    def __init__(self, judge: Judge, asked: JudgeSettings, steered: Steered, settings: SteerSettings) -> None:
        feature = settings.features[0]
        label = steered.concept(feature).label
        if label is None or steered.dictionary is None:
            if steered.dictionary is None:
                what = f"there is no feature dictionary; make one: lightsae interpret --sae {settings.sae} --out FOLDER"
            else:
                what = f"label it (lightsae label {steered.dictionary.folder}), choose another, or leave --judge out"
            raise ConfigError(f"--judge needs a label: feature {feature} is unlabelled; {what}")
        self.judge, self.label, self.budget = judge, label, asked.budget_tokens
        self.cache = asked.cache or f"{steered.dictionary.folder}.answers.sqlite"

    def grade(self, prompts: Sequence[str], arms: Mapping[Arm, Sequence[Sequence[str]]]) -> Judged:
        return judge_texts(
            self.label, prompts, arms, self.judge, cache=self.cache, budget_tokens=self.budget, progress=Bars()
        )


def _compare(
    meter: Meter,
    caption: str,
    prompts: list[str],
    interventions: list[Intervention],
    settings: SteerSettings,
    grader: _Grader | None,
) -> None:
    steered, feature = meter.steered, settings.features[0]
    concept = steered.concept(feature)
    arms = (NONE, FEATURE, RANDOM, SHUFFLED)
    measured = {arm: meter.measure(steered.arm(arm, interventions, settings.seed), concept) for arm in arms}
    print(caption)
    for one in dict.fromkeys(settings.features):
        print(f"feature {one}: {steered.concept(one).label or 'unlabelled'}")
    print()
    for number, prompt in enumerate(prompts):
        sides = [(words, measured[arm][1].texts[number]) for arm, words in ((NONE, "baseline"), (FEATURE, "steered"))]
        print("\n".join(side_by_side(prompt, sides)), end="\n\n")
    _print_measures({arm: values for arm, (values, _) in measured.items()})
    if grader is not None:
        _print_judged(grader.grade(prompts, {arm: samples.texts for arm, (_, samples) in measured.items()}))
    if len(set(settings.features)) > 1:
        print(f"label, firing, activation and probabilities are those of feature {feature}")
    if not measured[FEATURE][0]["kl"].any():
        print("nothing was changed: no token was in scope, or the feature does not fire on these texts")
    if len(prompts) < _FEWEST:
        print(f"intervals over prompts need {_FEWEST} prompts or more: --prompt '[A, B, ...]' or --prompts FILE")


def _print_sweep(sweep: Sweep, out: Path) -> None:
    print(f"feature {sweep.concept.feature}: {sweep.concept.label or 'unlabelled'}")
    for dose, (effect, ratio) in sweep.choosing.items():
        print(f"  dose {dose:g}: {sweep.chosen_by} {effect:+.3g}, perplexity x {ratio:.2f}  (choosing prompts)")
    if sweep.chosen is None:
        limit = f"x {sweep.settings.max_perplexity_ratio:g}"
        print(f"no dose keeps the perplexity within {limit}; shown: {sweep.taken:g}")
    else:
        print(f"chosen dose {sweep.chosen:g}; what follows is from the other prompts")
    _print_measures({arm: one.values for arm in _ARMS if (one := sweep.at(arm))})
    print_paths(("report", out / "steer.json"), ("figure", out / "steer.png"), ("texts", out / "texts.md"))


def _print_measures(arms: Mapping[Arm, Values]) -> None:
    """Print the measures by arm; those that are not known of the feature are left out."""

    def cell(values: Values, measure: Measure) -> Interval | None:
        if measure not in values:  # a prompt has no direction that would promote anything
            return None
        known = interval(measure, values[measure])
        # Of too few prompts, the interval is wider than the measure's range.
        return known if len(values[measure]) >= _FEWEST else Interval(known.mean, None, None)

    known = [measure for measure in Measure if measure.words and measure in arms[NONE]]
    _print_arms(arms, {measure.words: [cell(values, measure) for values in arms.values()] for measure in known})


def _print_judged(judged: Judged) -> None:
    """Print the grades by arm, and what became of the questions."""
    rated = judged.arms.values()
    print(f"\ngrades by {judged.judge}, 0 to {BEST}")
    _print_arms(judged.arms, {words: [one.interval(name) for one in rated] for name, words in _GRADES.items()})
    texts = sum(one.grades[HARMONIC].size for one in rated)
    graded = texts - sum(one.unrated[HARMONIC] for one in rated)
    print(f"{graded} of {texts} texts have all three grades; the others count where they have one")
    print_tally(judged.tally, judged.stopped)


def _print_arms(arms: Mapping[Arm, Any], rows: Mapping[str, Sequence[Interval | None]]) -> None:
    figures = table("", *(arm.column for arm in arms), words=range(1 + len(arms)))
    for column in figures.columns:
        column.no_wrap = True
    for words, intervals in rows.items():
        figures.add_row(words, *map(_cell, intervals))
    wide = console(_WIDTH)
    wide.width = max(wide.width, _WIDTH)
    wide.print(figures, highlight=False)


def _cell(value: Interval | None) -> str:
    """Return a mean, and how far its interval reaches to either side if that is the same."""
    if value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.mean:.3g}"
    if abs(value.high + value.low - 2 * value.mean) > 1e-6 * abs(value.high):
        return f"{value.mean:.3g} [{value.low:.2g}, {value.high:.2g}]"
    half = value.high - value.mean
    reach = f"{half:.1g}" if half < 10 else f"{half:.0f}"
    return f"{value.mean:.2g} ±{reach}" if half else f"{value.mean:.2g}"
