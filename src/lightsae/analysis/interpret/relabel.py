"""New labels for a feature dictionary that exists: by a language model, or by people.

A label that passes its test, and a label by a person, takes the place of the one that is shown; the rest is kept beside
it, with its scores. The result is a new dictionary with a new id, which says from which one it was made.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lightsae.analysis.dashboard.pages import rewrite_features
from lightsae.analysis.dictionary.feature_dictionary import FeatureDictionary
from lightsae.analysis.dictionary.figures import figures
from lightsae.analysis.dictionary.schema import FEATURES, LABELS
from lightsae.analysis.dictionary.writer import write_dictionary
from lightsae.analysis.labels.gate import withheld
from lightsae.analysis.labels.llm.examples import ScorePool
from lightsae.analysis.labels.llm.material import FeatureMaterial, Labelled, material_of
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.firing_collector import FiringCollector, read_firing_lists
from lightsae.analysis.reading.loaded_sae import LoadedSAE
from lightsae.analysis.reading.text import Texts
from lightsae.errors import CorpusError
from lightsae.lm.model import vocabulary_of
from lightsae.metrics.conventions import FIRES_ABOVE
from lightsae.parsing import read_json
from lightsae.progress import Progress

Row = dict[str, Any]


class Subjects:
    """Features of a dictionary as a judge is asked about them, with tests from documents that nothing else saw.

    Args:
        dictionary: The features and their contexts.
        loaded: The SAE, its language models, its corpus: the scoring text is read again.
        progress: Receives the tokens read.

    Raises:
        CorpusError: The corpus is no longer the one that the dictionary was made from.
    """

    def __init__(self, dictionary: FeatureDictionary, loaded: LoadedSAE, progress: Progress) -> None:
        settings = dictionary.manifest["settings"]
        texts = Texts.read(
            loaded.corpus,
            loaded.main_model.vocabulary,
            tokens=settings["tokens"],
            score_tokens=settings["score_tokens"],
            mining_tokens=0,
        )
        made_from = dictionary.manifest["corpus"]["fingerprint"]
        if texts.fingerprint != made_from:
            raise CorpusError(
                f"dataset is now {texts.fingerprint!r}, but the dictionary was made from {made_from!r}; give the same "
                "corpus, or interpret again."
            )
        self.dictionary, self.seed = dictionary, int(settings["seed"])
        maximum = dictionary.features()["max"].to_numpy()
        collector = FiringCollector(SAEFeatures(loaded.sae), maximum, keep_values=True)
        (lists,) = read_firing_lists([collector], loaded.reader(), texts.scores, "reading the tests", progress)
        self.least = FIRES_ABOVE * maximum
        self.pool = ScorePool(
            texts.scores.tokens,
            texts.scores.documents,
            vocabulary_of(loaded.main_model),
            lists.tokens,
            lists.starts,
            lists.counted,
            lists.values,
        )

    def __call__(self, feature: int) -> FeatureMaterial:
        known = self.dictionary.feature(feature)
        return material_of(known.row, known.contexts, self.pool, least=float(self.least[feature]), seed=self.seed)


def with_labels(dictionary: FeatureDictionary, rows: Sequence[Row], shown: Mapping[int, Row]) -> dict[str, pa.Table]:
    """Return the tables of a dictionary with further labels; tiers stay withheld where they were.

    Args:
        dictionary: As it is.
        rows: New rows of the table of labels.
        shown: By feature, what changes in its row of the table of features.
    """
    features = dictionary.features().to_pylist()
    for row in features:
        row |= shown.get(row["feature"], {})
        if dictionary.manifest["summary"].get("above_chance") is False:
            row["tier"] = withheld(row["tier"])
    replaced = {(row["feature"], row["source"]) for row in rows}
    kept = [row for row in dictionary.labels().to_pylist() if (row["feature"], row["source"]) not in replaced]
    return {
        "features": pa.Table.from_pylist(features, schema=FEATURES),
        "contexts": dictionary.contexts(),
        "edges": dictionary.edges(),
        "labels": pa.Table.from_pylist([*kept, *rows], schema=LABELS),
    }


def shown_by_judge(labelled: Sequence[Labelled], source: str = "llm") -> dict[int, Row]:
    """Return what labels that a judge tested change: only what passed is shown. `source` says who made them."""
    changes: dict[int, Row] = {}
    for one in labelled:
        if one.passed:
            weakest = one.weakest
            changes[one.feature] = {
                "label": one.label,
                "label_source": source,
                "label_patterns": None,
                "precision": weakest.precision,
                "recall": weakest.recall,
                "tier": one.tier,
            }
    return changes


def shown_by_people(rows: Sequence[Row]) -> dict[int, Row]:
    """Return what people's labels change: they are shown as theirs, untested, without figures."""
    return {
        row["feature"]: {
            "label": row["label"],
            "label_source": "human",
            "precision": None,
            "recall": None,
            "label_patterns": None,
        }
        for row in rows
    }


def rewrite(dictionary: FeatureDictionary, tables: Mapping[str, pa.Table], labels: Mapping[str, Any]) -> str:
    """Put new tables in a dictionary's place, with everything that lay beside the old ones; return the new id.

    Args:
        dictionary: The one to replace.
        tables: All four.
        labels: What the manifest is to say further under `labels`.
    """
    old = dictionary.folder
    manifest = {k: v for k, v in dictionary.manifest.items() if k not in ("id", "extras", "files", "kind")}
    manifest["labels"] = {**manifest["labels"], **labels}
    manifest["summary"] = {**manifest["summary"], **figures(tables)}
    manifest["made_from"] = dictionary.id
    extras = [old / name for name in dictionary.manifest["extras"]]

    def beside(staged: Path) -> None:
        for path in extras:
            if path.is_dir():
                shutil.copytree(path, staged / path.name)
            else:
                shutil.copyfile(path, staged / path.name)
        if (staged / "index.html").is_file():
            described = read_json(staged / "dictionary.json")
            rewrite_features(staged, dict(tables), described)

    return write_dictionary(old, tables, manifest, beside)
