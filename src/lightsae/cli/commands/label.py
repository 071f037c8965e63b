"""`lightsae label`: labels by a language model or by people, for a feature dictionary that exists."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.dictionary.figures import NOT_ABOVE
from lightsae.analysis.interpret.relabel import Subjects, rewrite, shown_by_judge, shown_by_people, with_labels
from lightsae.analysis.labels.gate import DEAD, RARE, Gate
from lightsae.analysis.labels.human import export_csv as export_csv_file
from lightsae.analysis.labels.human import import_csv as import_csv_file
from lightsae.analysis.labels.llm.endpoint import open_judge
from lightsae.analysis.labels.llm.label_features import LabelPass, label_features
from lightsae.analysis.labels.llm.material import PassSettings
from lightsae.analysis.labels.llm.prompts import PROMPTS
from lightsae.analysis.labels.neuronpedia_labels import SOURCE as NEURONPEDIA
from lightsae.analysis.labels.neuronpedia_labels import import_neuronpedia as import_neuronpedia_file
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings, open_sae
from lightsae.cli.settings.command import Bars, command
from lightsae.cli.tables import print_tally
from lightsae.errors import ConfigError
from lightsae.formats.files import shown
from lightsae.formats.saved_sae import SavedSAE
from lightsae.metrics.intervals import Interval

_EXAMPLES = (
    "lightsae label dictionary --sae SAE --judge my-model --base_url http://localhost:8000/v1 --budget_tokens 1000000",
    "lightsae label dictionary --sae SAE --judge hf:path/to/model --features '[1, 5, 9]'",
    "lightsae label dictionary --sae SAE --judge my-model --import_neuronpedia explanations.jsonl",
    "lightsae label dictionary --export_csv to_label.csv",
    "lightsae label dictionary --import_csv labelled.csv",
)


@dataclass(frozen=True)
class JudgeSettings:
    """The language model that labels, tests or grades.

    Attributes:
        judge: Model of the endpoint; or hf:NAME for a Hugging Face model here.
        base_url: An OpenAI-compatible endpoint.
        budget_tokens: Stop asking before this many tokens of the model are used.
        cache: File of the answers; null: beside the feature dictionary, FOLDER.answers.sqlite.
    """

    judge: str | None = None
    base_url: str | None = None
    budget_tokens: int | None = None
    cache: str | None = None


@command("FOLDER (--judge MODEL --sae DIR | --export_csv F | --import_csv F)", _EXAMPLES, positional=True)
def run_label(
    folder: str,
    asked: JudgeSettings,
    text: TextSettings,
    sae: str | None = None,
    features: list[int] | None = None,
    concurrency: int = 8,
    export_csv: str | None = None,
    import_csv: str | None = None,
    import_neuronpedia: str | None = None,
    source: str | None = None,
    when: str | None = None,
) -> None:
    """Label the features of a dictionary by a language model, or by people through a CSV file.

    A model explains each feature from its contexts and is then tested on other documents: does a text hold a firing
    token (detection), are the marked tokens the firing ones (fuzzing), which of several texts is this feature's
    (discrimination)? Only a label that passes is shown. Answers are kept beside the dictionary: a second run costs
    nothing, a stopped one goes on.

    Endpoint: LIGHTSAE_LLM_BASE_URL, LIGHTSAE_LLM_MODEL and LIGHTSAE_LLM_API_KEY in the environment, or the options.

    Args:
        folder: A feature dictionary, as `lightsae interpret` writes it.
        sae: The SAE's export: the tests read text through it.
        asked: The language model that labels.
        text: What differs from the training.
        features: Which features; null: all that fire often enough.
        concurrency: Questions under way at once.
        export_csv: File to write, for people to fill in.
        import_csv: File to read, which people filled in.
        import_neuronpedia: Explanations that Neuronpedia exported (JSON, or JSON lines): with --judge and --sae these
            are tested, and none are made.
        source: Which of Neuronpedia's sources, of a file with several.
        when: Time of the imported labels, ISO 8601, if a row has none.
    """
    ways = {"judge": asked.judge, "export_csv": export_csv, "import_csv": import_csv}
    chosen = [f"--{name}" for name, value in ways.items() if value is not None]
    if len(chosen) > 1 or (not chosen and "LIGHTSAE_LLM_MODEL" not in os.environ):
        named = " and ".join(chosen) or "none of them"
        raise ConfigError(f"Give one of --judge, --export_csv and --import_csv; found {named}.")
    if import_neuronpedia is not None and (export_csv, import_csv) != (None, None):
        raise ConfigError(f"--import_neuronpedia is tested by a --judge; leave {chosen[0]} out.")
    dictionary = FeatureDictionary.open(folder)
    if export_csv is not None:
        tables = dictionary.features(), dictionary.contexts()
        written = export_csv_file(*tables, export_csv, dictionary_id=dictionary.id, only=features)
        print(f"{written} features  {shown(Path(export_csv))}")
    elif import_csv is not None:
        _import(dictionary, import_csv, when)
    else:
        if sae is None:
            raise ConfigError("--sae is missing: the labels are tested on text that the SAE reads. Name its folder.")
        given = _of_others(dictionary, import_neuronpedia, source, features)
        saved = dictionary.named(open_sae(sae, text))
        dictionary.check_belongs_to(saved)
        of_others = [int(row["feature"]) for row in given]
        _judge(dictionary, asked, of_others or _chosen(dictionary, features), (saved, text), concurrency, given)


def _import(dictionary: FeatureDictionary, path: str, when: str | None) -> None:
    known = dictionary.features()["feature"].to_pylist()
    rows = import_csv_file(path, dictionary_id=dictionary.id, features=known, when=when)
    if not rows:
        raise ConfigError(f"{path!r} has no row with a human_label; nothing to import.")
    tables = with_labels(dictionary, rows, shown_by_people(rows))
    identity = rewrite(dictionary, tables, {"human": len(rows)})
    print(f"{len(rows)} labels of people  {shown(dictionary.folder)}  (id {identity[:12]})")


def _of_others(
    dictionary: FeatureDictionary, path: str | None, source: str | None, features: Sequence[int] | None
) -> list[dict[str, Any]]:
    """Return Neuronpedia's labels: of the chosen features, or of all that fire often enough; nothing without a file."""
    if path is None:
        if source is not None:
            raise ConfigError("source", source, "it chooses among those of --import_neuronpedia; give it, too")
        return []
    known = range(dictionary.features().num_rows)
    sites = [re.fullmatch(r"\w+\.(\d+)", one["site"]) for one in dictionary.manifest["sae"].get("read", [])]
    layer = int(sites[0][1]) if len(sites) == 1 and sites[0] is not None else None
    rows = import_neuronpedia_file(path, features=known, layer=layer, source=source)
    wanted = set(_chosen(dictionary, None if features is None else list(features)))
    kept = [row for row in rows if row["feature"] in wanted]
    print(f"{len(rows)} labels of Neuronpedia, {len(kept)} of them of features to be tested")
    if not kept:
        raise ConfigError(f"{path!r} has no label of a feature that is to be tested.")
    return kept


def _judge(
    dictionary: FeatureDictionary,
    asked: JudgeSettings,
    features: Sequence[int],
    read: tuple[SavedSAE, TextSettings],
    concurrency: int,
    given: Sequence[Mapping[str, Any]],
) -> None:
    judge = open_judge(asked.judge, base_url=asked.base_url, concurrency=concurrency)
    bars = Bars()
    subjects = Subjects(dictionary, LoadedSAE.load(*read, whole_model=False), bars)
    gate = Gate(**dictionary.manifest["labels"]["offline"]["gate"])
    with bars.stage("labels", 3 * len(features)) as done:
        stages = ("explain", "score", "floor")
        result = label_features(
            features,
            subjects,
            judge,
            cache=asked.cache or f"{dictionary.folder}.answers.sqlite",
            budget_tokens=asked.budget_tokens,
            settings=PassSettings(gate=gate, seed=subjects.seed),
            given=given,
            progress=lambda stage, n, _: done(stages.index(stage) * len(features) + n),
        )
    if not result.rows:
        _report(result, 0)
        print("nothing was labelled; the dictionary is as it was")
        return
    kind = NEURONPEDIA if given else "llm"
    changes = shown_by_judge(result.labelled, kind)
    prompts = {name: prompt.version for name, prompt in PROMPTS.items()}
    entry = {"model": judge.name, "prompts": prompts, "floor": result.floor, "labelled": len(result.labelled)}
    identity = rewrite(dictionary, with_labels(dictionary, result.rows, changes), {kind: entry})
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
    rows = features.select(["feature", "tier"]).to_pylist()
    return [row["feature"] for row in rows if row["tier"] not in (DEAD, RARE)]


def _report(result: LabelPass, passed: int) -> None:
    tested = len(result.labelled)
    print(
        f"{tested} labelled and tested, {passed} passed; {len(result.unexplained)} unexplained, "
        f"{len(result.rare)} too rare, {len(result.unfinished)} not reached"
    )
    if result.floor is not None and tested:
        share, features = float(result.floor["passed"] or 0), int(result.floor["features"] or 0)
        apart = Interval.difference(passed, tested, round(share * features), features)
        mean, low, high = (f"{100 * (end or 0):+.1f}" for end in (apart.mean, apart.low, apart.high))
        above = "" if (apart.low or 0) > 0 else f"{NOT_ABOVE}: "
        print(
            f"{above}with labels of other features {share:.1%} of {features} pass; own labels minus that: "
            f"{mean} points, 95% {low} to {high}"
        )
    print_tally(result.tally, result.stopped)
