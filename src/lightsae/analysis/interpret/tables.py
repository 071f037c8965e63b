"""From what the stages found to the tables of a feature dictionary.

Axes: F features, k windows, W tokens in a window.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightsae.analysis.contexts.statistics import ContextStatistics
from lightsae.analysis.dictionary.schema import CONTEXTS, EDGES, FEATURES, LABELS, SHOWN_TIERS
from lightsae.analysis.effects.stage import Effects
from lightsae.analysis.labels.stage import OfflineLabels
from lightsae.analysis.reading.firings import BEFORE, NO_TOKEN, Ints, Windows

STRATA, IN_STRATUM, TOKENS_TOLD, COFIRE_TOLD = 4, 4, 10, 8
Tables = dict[str, pa.Table]


def make_tables(
    statistics: ContextStatistics, effects: Effects, labels: OfflineLabels, vocabulary: Sequence[str]
) -> Tables:
    """Return the four tables of one population.

    Args:
        statistics: What was counted and kept of each feature.
        effects: What its features do and are near to.
        labels: Labels of its features.
        vocabulary: (V,) what each token says.
    """
    texts = pa.array(vocabulary, pa.string())
    return {
        "features": _features(statistics, effects, labels, texts),
        "contexts": _contexts(statistics, texts),
        "edges": _edges(statistics, effects),
        "labels": _labels(labels),
    }


def _features(
    statistics: ContextStatistics, effects: Effects, labels: OfflineLabels, texts: pa.StringArray
) -> pa.Table:
    moments = statistics.moments
    n = len(moments.fires)
    passed = [tier in SHOWN_TIERS for tier in labels.tiers]
    columns: dict[str, Any] = {
        "feature": np.arange(n),
        "fires": moments.fires,
        "frequency": moments.fires / max(1, int(moments.tokens)),
        "l0_share": moments.fires / max(1, int(moments.fires.sum())),
        "mean": moments.mean,
        "std": moments.std,
        "max": moments.maximum,
        "histogram": list(moments.histogram),
        "documents": moments.documents,
        "document_spread": moments.document_spread,
        "window_coherence": effects.window_coherence.values,
        "document_coherence": effects.document_coherence.values,
        **{f"{role}_share": shares for role, shares in statistics.roles.shares().items()},
        "s_in": effects.s_in,
        "s_out": effects.s_out,
        "label": [words if ok else None for words, ok in zip(labels.words, passed, strict=True)],
        "label_source": ["rule" if ok else None for ok in passed],
        "precision": [score.precision if ok else None for score, ok in zip(labels.scores, passed, strict=True)],
        "recall": [score.recall if ok else None for score, ok in zip(labels.scores, passed, strict=True)],
        "tier": labels.tiers,
        "label_patterns": [rule.size if ok else None for rule, ok in zip(labels.rules, passed, strict=True)],
        **_detectors(labels),
    }
    for name, pairs in (("on", statistics.on), ("before", statistics.before), ("after", statistics.after)):
        tokens, counts = pairs.top(TOKENS_TOLD)
        shares = counts / np.maximum(moments.fires, 1)[:, None]
        columns[f"tokens_{name}"] = _structs(tokens >= 0, texts, token=tokens, count=counts, share=shares)
    if (logits := effects.logits) is not None:
        columns |= {
            "promoted": _structs(None, texts, token=logits.promoted, logit=logits.promoted_logits),
            "suppressed": _structs(None, texts, token=logits.suppressed, logit=logits.suppressed_logits),
            "logit_kurtosis": logits.kurtosis,
            "logit_concentration": logits.concentration,
        }
    if (ablation := effects.ablation) is not None:
        columns |= {"ablation_kl": ablation.kl, "ablation_ce": ablation.ce, "ablation_tokens": ablation.tokens}
    for name, near in (("nearest", effects.nearest), ("neurons", effects.neurons)):
        if near is not None:
            columns[name] = _structs(None, texts, feature=near.ids, cosine=near.cosines)
    return _table(columns, FEATURES, n)


def _contexts(statistics: ContextStatistics, texts: pa.StringArray) -> pa.Table:
    top, sampled, near = (kept.windows() for kept in (statistics.top, statistics.sampled, statistics.near_misses))
    return pa.concat_tables(
        [
            _windows(top, "top", texts, top.peaks, *top.there.nonzero()),
            _strata(sampled, texts),
            # The score of a near miss is how near it came; that of a firing is the activation.
            _windows(near, "near_miss", texts, near.scores, *near.there.nonzero()),
        ]
    )


def _strata(windows: Windows, texts: pa.StringArray) -> pa.Table:
    """Cut the sample of each feature into strata: in it a firing's chance goes with its activation."""
    there, place = windows.there, np.arange(windows.scores.shape[1])[None]
    order = np.argsort(np.where(there, windows.peaks, np.inf), axis=1, kind="stable")
    size = there.sum(1)[:, None]
    stratum = place * STRATA // np.maximum(size, 1)
    rank = place - np.ceil(stratum * size / STRATA)
    feature, at = ((place < size) & (rank < IN_STRATUM)).nonzero()
    slot = order[feature, at]
    return _windows(windows, "stratum", texts, windows.peaks, feature, slot, rank[feature, at], stratum[feature, at])


def _windows(
    windows: Windows,
    kind: str,
    texts: pa.StringArray,
    scores: NDArray[np.float32],
    feature: Ints,
    slot: Ints,
    rank: NDArray[Any] | None = None,
    stratum: Ints | None = None,
) -> pa.Table:
    """Return some windows as rows: of the features `feature` those in the slots `slot`, which are their ranks too."""
    tokens = windows.tokens[feature, slot]
    inside = tokens != NO_TOKEN
    flat = pa.array(tokens[inside], pa.int32())
    columns = {
        "feature": feature,
        "kind": [kind] * len(feature),
        "stratum": stratum,
        "rank": slot if rank is None else rank,
        "score": scores[feature, slot],
        "document": windows.documents[feature, slot],
        "row": windows.rows[feature, slot],
        "position": windows.positions[feature, slot],
        "tokens": _lists(inside, flat),
        "texts": _lists(inside, texts.take(flat)),
        "values": _lists(inside, pa.array(windows.values[feature, slot][inside])),
        "peak": inside[:, :BEFORE].sum(1),
    }
    return _table(columns, CONTEXTS, len(feature))


def _edges(statistics: ContextStatistics, effects: Effects) -> pa.Table:
    parts = [EDGES.empty_table()]
    if (near := effects.nearest) is not None:
        n, k = near.ids.shape
        columns = {"source": np.repeat(np.arange(n), k), "target": near.ids.ravel(), "weight": near.cosines.ravel()}
        parts.append(_table(columns | {"kind": ["cosine"] * (n * k)}, EDGES, n * k))
    if statistics.cofiring is not None:
        sources, targets, both, phi = statistics.cofiring.edges(COFIRE_TOLD)
        columns = {"source": sources, "target": targets, "weight": phi, "count": both}
        parts.append(_table(columns | {"kind": ["cofire"] * len(sources)}, EDGES, len(sources)))
    return pa.concat_tables(parts)


def _detectors(labels: OfflineLabels) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "patterns": [rule.size for rule in labels.detectors],
        "precision": [score.precision for score in labels.detector_scores],
        "recall": [score.recall for score in labels.detector_scores],
        "passed": labels.detected,
    }
    known = [rule.size > 0 for rule in labels.detectors]
    return {
        f"detector_{name}": [value if ok else None for value, ok in zip(values, known, strict=True)]
        for name, values in columns.items()
    }


def _labels(labels: OfflineLabels) -> pa.Table:
    shown = (labels.words, labels.rules, labels.scores, [tier in SHOWN_TIERS for tier in labels.tiers])
    detecting = (labels.detector_words, labels.detectors, labels.detector_scores, labels.detected)
    rows = []
    for source, columns in (("rule", shown), ("detector", detecting)):
        for feature, (words, rule, score, passed) in enumerate(zip(*columns, strict=True)):
            if rule.patterns:
                rows.append(
                    {
                        "feature": feature,
                        "label": words,
                        "source": source,
                        "rule": json.dumps({"patterns": rule.patterns, "shares": [round(s, 5) for s in rule.shares]}),
                        "patterns": rule.size,
                        "evidence": "firings on training documents; chosen on the documents of the contexts",
                        "test": "tokens",
                        "negatives": "natural",
                        **score.columns(),
                        "passed": passed,
                    }
                )
    return pa.Table.from_pylist(rows, schema=LABELS)


def _lists(there: NDArray[np.bool_], values: pa.Array) -> pa.ListArray:
    """Return a list per row of `there`; `values` are those of its set places, row by row."""
    return pa.ListArray.from_arrays(np.r_[0, np.cumsum(there.sum(1))].astype(np.int32), values)


def _structs(there: NDArray[np.bool_] | None, texts: pa.StringArray, **fields: NDArray[Any]) -> pa.ListArray:
    """Return a list of structs per row of the fields' arrays, (F, k); a field `token` brings its `text` along."""
    if there is None:
        there = np.ones(next(iter(fields.values())).shape, np.bool_)
    columns = {name: pa.array(values[there]) for name, values in fields.items()}
    if "token" in columns:
        token = columns.pop("token")
        columns = {"token": token, "text": texts.take(token), **columns}
    return _lists(there, pa.StructArray.from_arrays(list(columns.values()), names=list(columns)))


def _table(columns: Mapping[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    """Return a table of the schema; columns that are not given, or None, are null, and so is what is NaN."""
    arrays = []
    for column in schema:
        values = columns.get(column.name)
        if values is None:
            arrays.append(pa.nulls(rows, column.type))
        elif isinstance(values, list):
            arrays.append(pa.array(values, column.type))
        else:
            array = values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)
            arrays.append(array.cast(column.type))
    return pa.table(arrays, schema=schema)
