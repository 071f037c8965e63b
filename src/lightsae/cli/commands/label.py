"""`lightsae label`: labels by a language model or by people, for a feature dictionary that exists."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.interpret.relabel import Subjects, rewrite, shown_by_judge, shown_by_people, with_labels
from lightsae.analysis.labels.gate import DEAD, RARE, Gate
from lightsae.analysis.labels.human import export_csv, import_csv
from lightsae.analysis.labels.llm.endpoint import Judge, open_judge
from lightsae.analysis.labels.llm.label_features import LabelPass, PassSettings, label_features
from lightsae.analysis.labels.llm.prompts import PROMPTS
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.cli.settings.command import Bars, CommandParser, settings_from
from lightsae.errors import ConfigError
from lightsae.formats.files import shown

_DESCRIPTION = (
    "Label the features of a dictionary by a language model, or by people through a CSV file.\n\n"
    "A model explains each feature from its contexts and is then tested on other documents: does a text hold a firing "
    "token (detection), are the marked tokens the firing ones (fuzzing), which of several texts is this feature's "
    "(discrimination)? Only a label that passes is shown. Answers are kept beside the dictionary: a second run costs "
    "nothing, a stopped one goes on.\n\n"
    "Endpoint: LIGHTSAE_LLM_BASE_URL, LIGHTSAE_LLM_MODEL and LIGHTSAE_LLM_API_KEY in the environment, or the options."
)
_USAGE = "FOLDER (--judge MODEL --sae DIR | --export_csv F | --import_csv F)"
_EXAMPLES = (
    "lightsae label dictionary --sae SAE --judge my-model --base_url http://localhost:8000/v1 --budget_tokens 1000000",
    "lightsae label dictionary --sae SAE --judge hf:path/to/model --features '[1, 5, 9]'",
    "lightsae label dictionary --export_csv to_label.csv",
    "lightsae label dictionary --import_csv labelled.csv",
)


def run_label(args: Sequence[str]) -> int:
    """Label, write the dictionary anew, say what came of it."""
    parser = CommandParser(
        "label", "FOLDER (--judge MODEL --sae DIR | --export_csv F | --import_csv F)", _DESCRIPTION, _EXAMPLES
    )
    parser.add_argument("folder", type=str, help="A feature dictionary, as `lightsae interpret` writes it.")
    parser.add_argument(
        "--judge", type=str | None, help="Model of the endpoint; or hf:NAME for a Hugging Face model here."
    )
    parser.add_argument("--base_url", type=str | None, help="An OpenAI-compatible endpoint.")
    parser.add_argument("--sae", type=str | None, help="The SAE's export: the tests read text through it.")
    parser.add_argument("--features", type=list[int] | None, help="Which features; null: all that fire often enough.")
    parser.add_argument("--budget_tokens", type=int | None, help="Stop before this many tokens of the model are used.")
    parser.add_argument("--concurrency", type=int, default=8, help="Questions under way at once.")
    parser.add_argument("--cache", type=str | None, help="File of the answers; null: FOLDER.answers.sqlite.")
    parser.add_argument("--export_csv", type=str | None, help="Write a file for people to fill in.")
    parser.add_argument("--import_csv", type=str | None, help="Read a file that people filled in.")
    parser.add_argument("--when", type=str | None, help="Time of the imported labels, ISO 8601, where a row has none.")
    parser.add_class_arguments(TextSettings)
    given = parser.parse_args(list(args))
    asked = [name for name in ("judge", "export_csv", "import_csv") if given[name] is not None]
    if len(asked) > 1 or (not asked and "LIGHTSAE_LLM_MODEL" not in os.environ):
        found = " and ".join(f"--{name}" for name in asked) or "none of them"
        raise ConfigError(f"Give one of --judge, --export_csv and --import_csv; found {found}.")
    dictionary = FeatureDictionary.open(given.folder)
    if given.export_csv is not None:
        written = export_csv(
            dictionary.features(),
            dictionary.contexts(),
            given.export_csv,
            dictionary_id=dictionary.id,
            only=given.features,
        )
        print(f"{written} features  {shown(Path(given.export_csv))}")
    elif given.import_csv is not None:
        _import(dictionary, given.import_csv, given.when)
    else:
        _judge(dictionary, given)
    return 0


def _import(dictionary: FeatureDictionary, path: str, when: str | None) -> None:
    known = dictionary.features()["feature"].to_pylist()
    rows = import_csv(path, dictionary_id=dictionary.id, features=known, when=when)
    if not rows:
        raise ConfigError(f"{path!r} has no row with a human_label; nothing to import.")
    tables = with_labels(dictionary, rows, shown_by_people(rows))
    identity = rewrite(dictionary, tables, {"human": len(rows)})
    print(f"{len(rows)} labels of people  {shown(dictionary.folder)}  (id {identity[:12]})")


def _judge(dictionary: FeatureDictionary, given: Any) -> None:
    if given.sae is None:
        raise ConfigError("--sae is missing: the labels are tested on text that the SAE reads. Name its folder.")
    dictionary.check_belongs_to(given.sae)
    features = _chosen(dictionary, given.features)
    judge = open_judge(given.judge, base_url=given.base_url, concurrency=given.concurrency)
    bars = Bars()
    loaded = LoadedSAE.load(given.sae, settings_from(TextSettings, given), whole_model=False)
    subjects = Subjects(dictionary, loaded, bars)
    gate = Gate(**dictionary.manifest["labels"]["offline"]["gate"])
    cache = given.cache or f"{dictionary.folder}.answers.sqlite"
    with bars.stage("labels", 3 * len(features)) as done:
        stages = ("explain", "score", "floor")
        result = label_features(
            features,
            subjects,
            judge,
            cache=cache,
            budget_tokens=given.budget_tokens,
            settings=PassSettings(gate=gate, seed=subjects.seed),
            progress=lambda stage, n, _: done(stages.index(stage) * len(features) + n),
        )
    if not result.rows:
        _report(result, 0)
        print("nothing was labelled; the dictionary is as it was")
        return
    changes = shown_by_judge(result.labelled)
    identity = rewrite(dictionary, with_labels(dictionary, result.rows, changes), {"llm": _told(result, judge)})
    _report(result, len(changes))
    print(f"dictionary  {shown(dictionary.folder)}  (id {identity[:12]})")


def _chosen(dictionary: FeatureDictionary, given: list[int] | None) -> list[int]:
    """Return the features that are to be labelled: those given, or all that fire often enough."""
    features = dictionary.features()
    if given is not None:
        unknown = sorted(set(given) - set(features["feature"].to_pylist()))
        if not given or unknown:
            what = f"holds {unknown[0]}" if unknown else "is empty"
            raise ConfigError(f"features {what}; the dictionary has {len(features)} features, from 0.")
        return given
    tiers = zip(features["feature"].to_pylist(), features["tier"].to_pylist(), strict=True)
    return [feature for feature, tier in tiers if tier not in (DEAD, RARE)]


def _told(result: LabelPass, judge: Judge) -> dict[str, Any]:
    prompts = {name: prompt.version for name, prompt in PROMPTS.items()}
    return {"model": judge.name, "prompts": prompts, "floor": result.floor, "labelled": len(result.labelled)}


def _report(result: LabelPass, passed: int) -> None:
    tally = result.tally
    print(
        f"{len(result.labelled)} explained and tested, {passed} passed; {len(result.unexplained)} unexplained, "
        f"{len(result.rare)} too rare, {len(result.unfinished)} not reached"
    )
    print(
        f"{tally.asked} questions asked, {tally.cached} answered before; "
        f"{tally.prompt_tokens:,} + {tally.completion_tokens:,} tokens"
    )
    for failure, times in tally.failures.most_common():
        print(f"{times} x {failure}")
    if result.floor is not None:
        print(f"with labels of other features, {result.floor['passed']} of {result.floor['features']} pass")
    if result.stopped is not None:
        print(f"stopped early: {result.stopped} Start it again to go on: answered questions cost nothing.")
