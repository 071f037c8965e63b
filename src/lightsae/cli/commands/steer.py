"""`lightsae steer`: a language model with a feature changed, beside the same model without; one dose, or a sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightsae.analysis.labels.llm.endpoint import open_judge
from lightsae.analysis.labels.llm.judge import Budget, Judge
from lightsae.analysis.panels.arms import FEATURE, NONE, RANDOM, SHUFFLED, Arm, Steered
from lightsae.analysis.panels.judged import Judged, judge_texts
from lightsae.analysis.panels.load import load_steered
from lightsae.analysis.panels.measures import Meter
from lightsae.analysis.panels.sweep import KINDS, Sweep, Sweeper, SweepSettings
from lightsae.analysis.panels.sweep_report import show_on_page, side_by_side, write_sweep
from lightsae.analysis.reading.loaded_sae import TextSettings
from lightsae.analysis.steering.interventions import UNITS, Ablate, Intervention, ProjectOut
from lightsae.cli.commands.steer_tables import COLUMNS, FEWEST, print_judged, print_measures
from lightsae.cli.settings.command import Bars, CommandParser, check_folder, settings_from
from lightsae.errors import ConfigError, did_you_mean
from lightsae.formats.files import shown
from lightsae.lm.generate import Sampling, encode_prompts
from lightsae.lm.model import vocabulary_of

_DESCRIPTION = (
    "Change a feature while the language model writes, and show what that does.\n\n"
    "With --strength: baseline and steered texts side by side, drawn with the same seeds, and what effect and cost "
    "are. With --doses: a sweep. The dose is chosen on every other prompt and reported on the rest, beside no "
    "steering, a random direction of the same norm, another feature, and a prompt; written to --out with a figure.\n\n"
    "A strength is in units of the mean activation norm at the site (--unit norm), of the feature's own maximum (max), "
    "or of latents (latent).\n\n"
    "With --judge: a language model grades each text from 0 to 2, whether it expresses the feature's label (concept), "
    "takes up the prompt (instruct) and reads well (fluency). Answers are kept beside the dictionary: asked once, they "
    "cost nothing again. LIGHTSAE_LLM_BASE_URL and LIGHTSAE_LLM_API_KEY say where the endpoint is and let one in."
)
_EXAMPLES = (
    "lightsae steer --sae RUN/sae --feature 406 --prompt 'def main():' --strength 0.5",
    "lightsae steer --sae RUN/sae --feature 406 --prompt 'import os' --strength 1 --kind clamp --unit max",
    "lightsae steer --sae RUN/sae --feature 406 --prompts PANEL.yaml --doses '[0.1, 0.2, 0.4]' --out steer_406",
    "lightsae steer --sae RUN/sae --feature 406 --prompts prompts.txt --strength 0.2 --judge my-model",
)
_USAGE = "--sae DIR --feature N (--prompt TEXT ... | --prompts FILE) (--strength S | --doses LIST --out FOLDER)"
_WITHOUT_STRENGTH: dict[str, type[Ablate] | type[ProjectOut]] = {"ablate": Ablate, "project-out": ProjectOut}


def run_steer(args: Sequence[str]) -> int:
    """Steer and compare; sweep where doses are given."""
    given = _parser().parse_args(list(args))
    features = given.feature if isinstance(given.feature, list) else [given.feature]
    sampling = settings_from(Sampling, given)
    prompts = _prompts(given.prompt, given.prompts)
    if (given.doses is None) == (given.strength is None and given.kind not in _WITHOUT_STRENGTH):
        found = "both" if given.doses is not None else "neither"
        raise ConfigError(f"Give --strength (one dose) or --doses (a sweep); found {found}.")
    text = settings_from(TextSettings, given)
    positions = given.positions if isinstance(given.positions, str) else list(given.positions)
    judge = _judge(given)
    if given.doses is None:
        if given.out is not None:
            raise ConfigError("--out holds the report of a sweep; give --doses with it, or leave it out.")
        interventions = _interventions(features, given)
        steered, origin = load_steered(given.sae, given.dictionary, text, positions=positions)
        grader = _Grader(judge, steered, features[0], given) if judge else None
        vocabulary = vocabulary_of(origin.main_model)
        _compare(steered, vocabulary, prompts, features[0], interventions, given, sampling, grader)
        return 0
    if len(features) > 1:
        raise ConfigError(f"--doses sweeps one feature; found {len(features)}. Give --strength to steer several.")
    if given.out is None:
        raise ConfigError("--out is missing: a sweep writes a folder with its figure, figures and texts. Name it.")
    out = Path(given.out)
    check_folder(out, "steer.json")
    settings = SweepSettings(
        given.doses,
        given.unit,
        given.kind,
        given.choose_by,
        given.max_perplexity_ratio,
        given.prompt_template,
        given.samples,
        given.seed,
        sampling,
    )
    steered, origin = load_steered(given.sae, given.dictionary, text, positions=positions)
    grader = _Grader(judge, steered, features[0], given) if judge else None
    sweeper = Sweeper(steered, vocabulary_of(origin.main_model), prompts, settings)
    sweep = sweeper.sweep(features[0], curves=(FEATURE, RANDOM, SHUFFLED), progress=Bars())
    write_sweep(out, sweep)
    _print_sweep(sweep, out)
    if grader is not None:
        # After the sweep is on the disk: an endpoint that fails costs the grades alone.
        judged = grader.grade(sweep.prompts, {arm: one.samples.texts for arm in COLUMNS if (one := sweep.at(arm))})
        write_sweep(out, sweep, judged)
        print_judged(judged)
    if steered.dictionary is not None:
        show_on_page(steered.dictionary, sweep)
        if (page := steered.dictionary.folder / "index.html").is_file():
            print(f"page     {shown(page)}#/feature/{sweep.concept.feature}")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser("steer", _USAGE, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("-c", "--config", action="config", help="Settings from a YAML file; options win over it.")
    parser.add_argument("--sae", type=str, required=True, help="The SAE: a run's sae/ folder, or an exported one.")
    parser.add_argument("--dictionary", type=str | None, help="Its feature dictionary; null: the one beside the SAE.")
    parser.add_argument("--feature", type=int | list[int], required=True, help="Which feature; or several, [12, 40].")
    parser.add_argument("--prompt", type=str | list[str] | None, help="What the texts begin with; or several, [a, b].")
    parser.add_argument("--prompts", type=str | None, help="File: a prompt a line, \\n for a newline; or a panel.")
    parser.add_argument("--strength", type=float | None, help="One dose, in --unit.")
    parser.add_argument("--doses", type=list[float] | None, help="Several doses: a sweep.")
    parser.add_argument("--unit", type=str, default="norm", help=f"Of a dose: {', '.join(UNITS)}.")
    parser.add_argument("--kind", type=str, default="add", help=f"{', '.join((*KINDS, *_WITHOUT_STRENGTH))}.")
    parser.add_argument("--positions", type=str | list[int], default="all", help="all, generated, or positions [3, 4].")
    parser.add_argument("--samples", type=int, default=3, help="Texts a prompt.")
    parser.add_argument("--seed", type=int, default=0, help="Of draws and random directions.")
    parser.add_argument("--out", type=str | None, help="Folder of a sweep's report; an earlier one is replaced.")
    parser.add_argument("--choose_by", type=str, default="target", help="Effect that the chosen dose makes largest.")
    parser.add_argument("--max_perplexity_ratio", type=float, default=3.0, help="Doses that cost more are not chosen.")
    parser.add_argument(
        "--prompt_template",
        type=str,
        default="{context}\n{prompt}",
        help="What the arm that prompts says: {context} a text on which it fires, {label} its label, {prompt}.",
    )
    parser.add_argument(
        "--judge", type=str | None, help="Model of the endpoint that grades texts; or hf:NAME for one here."
    )
    parser.add_argument("--base_url", type=str | None, help="The judge's OpenAI-compatible endpoint.")
    parser.add_argument("--budget_tokens", type=int | None, help="Stop asking before this many tokens are used.")
    parser.add_argument("--cache", type=str | None, help="File of answers; null: DICTIONARY.answers.sqlite.")
    parser.add_class_arguments(Sampling)
    parser.add_class_arguments(TextSettings)
    return parser


def _prompts(given: str | list[str] | None, file: str | None) -> list[str]:
    if (given is None) == (file is None):
        found = "neither" if given is None else "both"
        raise ConfigError(f"Give --prompt or --prompts; found {found}.")
    if given is not None:
        prompts = [given] if isinstance(given, str) else given
    else:
        assert file is not None
        prompts = _read_prompts(file)
    if not prompts or not all(prompts):
        raise ConfigError("a prompt is empty; write some words.")
    return prompts


def _judge(given: Any) -> Judge | None:
    if given.judge is not None:
        Budget(given.budget_tokens)  # refused here and not after a sweep
        return open_judge(given.judge, base_url=given.base_url)
    for name in ("base_url", "budget_tokens", "cache"):
        if given[name] is not None:
            raise ConfigError(f"--{name} is given without --judge; name the model that grades: --judge MODEL")
    return None


class _Grader:
    """A judge, and the label that texts of one feature are held against."""

    def __init__(self, judge: Judge, steered: Steered, feature: int, given: Any) -> None:
        label = steered.concept(feature).label
        if label is None or steered.dictionary is None:
            if steered.dictionary is None:
                what = f"there is no feature dictionary; make one: lightsae interpret --sae {given.sae} --out FOLDER"
            else:
                what = f"label it (lightsae label {steered.dictionary.folder}), choose another, or leave --judge out"
            raise ConfigError(f"--judge needs a label: feature {feature} is unlabelled; {what}")
        self.judge, self.label, self.budget = judge, label, given.budget_tokens
        self.cache = given.cache or f"{steered.dictionary.folder}.answers.sqlite"

    def grade(self, prompts: Sequence[str], arms: Mapping[Arm, Sequence[Sequence[str]]]) -> Judged:
        return judge_texts(
            self.label, prompts, arms, self.judge, cache=self.cache, budget_tokens=self.budget, progress=Bars()
        )


def _read_prompts(file: str) -> list[str]:
    """Return the prompts of a file: a line each; or those of a panel, where it is YAML."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        if Path(file).suffix not in (".yaml", ".yml"):
            return [line.replace("\\n", "\n") for line in text.splitlines() if line]
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"prompts is {file!r}, which cannot be read: {error}") from None
    prompts = found.get("prompts") if isinstance(found, dict) else None
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(f"prompts is {file!r}, which is YAML without a list `prompts`; a panel has one.")
    return prompts


def _interventions(features: list[int], given: Any) -> list[Intervention]:
    known = (*KINDS, *_WITHOUT_STRENGTH)
    if given.kind not in known:
        raise ConfigError(f"kind is {given.kind!r}; write one of {', '.join(known)}.{did_you_mean(given.kind, known)}")
    if given.kind in _WITHOUT_STRENGTH:
        if given.strength is not None:
            raise ConfigError(f"kind is {given.kind!r}, which has no strength; leave --strength out.")
        return [_WITHOUT_STRENGTH[given.kind](feature) for feature in features]
    return [KINDS[given.kind](feature, given.strength, given.unit) for feature in features]


def _compare(
    steered: Steered,
    vocabulary: Sequence[str],
    prompts: list[str],
    feature: int,
    interventions: list[Intervention],
    given: Any,
    sampling: Sampling,
    grader: _Grader | None,
) -> None:
    concept = steered.concept(feature)
    with steered.by(interventions) as steering:
        told = str(steering)
    meter = Meter(
        steered,
        vocabulary,
        encode_prompts(steered.model, prompts),
        samples=given.samples,
        sampling=sampling,
        seed=given.seed,
    )
    arms = (NONE, FEATURE, RANDOM, SHUFFLED)
    found = {arm: meter.measure(steered.arm(arm, interventions, given.seed), concept) for arm in arms}
    print(told)
    for one in dict.fromkeys(intervention.feature for intervention in interventions):
        print(f"feature {one}: {steered.concept(one).label or 'unlabelled'}")
    print()
    for number, prompt in enumerate(prompts):
        sides = [(words, found[arm][1].texts[number]) for arm, words in ((NONE, "baseline"), (FEATURE, "steered"))]
        print("\n".join(side_by_side(prompt, sides)), end="\n\n")
    print_measures({arm: values for arm, (values, _) in found.items()})
    if grader is not None:
        print_judged(grader.grade(prompts, {arm: samples.texts for arm, (_, samples) in found.items()}))
    if len({intervention.feature for intervention in interventions}) > 1:
        print(f"label, firing, activation and probabilities are those of feature {feature}")
    if not found[FEATURE][0]["kl"].any():
        print("nothing was changed: no token was in scope, or the feature does not fire on these texts")
    if len(prompts) < FEWEST:
        print(f"intervals over prompts need {FEWEST} prompts or more: --prompt '[A, B, ...]' or --prompts FILE")


def _print_sweep(sweep: Sweep, out: Path) -> None:
    settings = sweep.settings
    print(f"feature {sweep.concept.feature}: {sweep.concept.label or 'unlabelled'}")
    for dose, (effect, ratio) in sweep.choosing.items():
        print(f"  dose {dose:g}: {sweep.chosen_by} {effect:+.3g}, perplexity x {ratio:.2f}  (choosing prompts)")
    if sweep.chosen is None:
        print(f"no dose keeps the perplexity within x {settings.max_perplexity_ratio:g}; shown: {sweep.taken:g}")
    else:
        print(f"chosen dose {sweep.chosen:g}; what follows is from the other prompts")
    print_measures({arm: one.values for arm in COLUMNS if (one := sweep.at(arm))})
    for words, name in (("report", "steer.json"), ("figure", "steer.png"), ("texts", "texts.md")):
        print(f"{words:<8} {shown(out / name)}")
