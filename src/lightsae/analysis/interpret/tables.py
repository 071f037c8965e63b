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
from lightsae.analysis.contexts.token_counts import PairCounts
from lightsae.analysis.dictionary.schema import CONTEXTS, EDGES, FEATURES, LABELS
from lightsae.analysis.effects.stage import Effects
from lightsae.analysis.labels.stage import OfflineLabels
from lightsae.analysis.reading.windows import BEFORE, NO_TOKEN, Windows

STRATA, IN_STRATUM, TOKENS_TOLD, COFIRE_TOLD = 4, 4, 10, 8
Tables = dict[str, pa.Table]
Rows = list[list[dict[str, Any]]]


def make_tables(found: ContextStatistics, effects: Effects, labels: OfflineLabels, vocabulary: Sequence[str]) -> Tables:
    """Return the four tables of one population."""
    return {
        "features": _features(found, effects, labels, vocabulary),
        "contexts": _contexts(found, vocabulary),
        "edges": _edges(found, effects),
        "labels": _labels(labels),
    }


def _features(found: ContextStatistics, effects: Effects, labels: OfflineLabels, vocabulary: Sequence[str]) -> pa.Table:
    moments = found.moments
    n = len(moments.fires)
    shown = [tier in ("high", "medium") for tier in labels.tiers]
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
        "tokens_on": _token_counts(found.on, moments.fires, vocabulary),
        "tokens_before": _token_counts(found.before, moments.fires, vocabulary),
        "tokens_after": _token_counts(found.after, moments.fires, vocabulary),
        "window_coherence": _null_for_nan(effects.window_coherence.values),
        "document_coherence": _null_for_nan(effects.document_coherence.values),
        "s_in": _null_for_nan(effects.s_in),
        "s_out": _null_for_nan(effects.s_out),
        "label": [words if ok else None for words, ok in zip(labels.words, shown, strict=True)],
        "label_source": ["rule" if ok else None for ok in shown],
        "precision": [s.precision if ok else None for s, ok in zip(labels.scores, shown, strict=True)],
        "recall": [s.recall if ok else None for s, ok in zip(labels.scores, shown, strict=True)],
        "tier": labels.tiers,
    }
    if (logits := effects.logits) is not None:
        columns |= {
            "promoted": _tokens_with(logits.promoted, logits.promoted_logits, vocabulary),
            "suppressed": _tokens_with(logits.suppressed, logits.suppressed_logits, vocabulary),
            "logit_kurtosis": _null_for_nan(logits.kurtosis),
            "logit_concentration": _null_for_nan(logits.concentration),
        }
    if (ablation := effects.ablation) is not None:
        columns |= {
            "ablation_kl": _null_for_nan(ablation.kl),
            "ablation_ce": _null_for_nan(ablation.ce),
            "ablation_tokens": ablation.tokens,
        }
    for name, near in (("nearest", effects.nearest), ("neurons", effects.neurons)):
        if near is not None:
            pairs = zip(near.ids.tolist(), near.cosines.tolist(), strict=True)
            columns[name] = [
                [{"feature": i, "cosine": c} for i, c in zip(ids, cosines, strict=True)] for ids, cosines in pairs
            ]
    return _table(columns, FEATURES, n)


def _contexts(found: ContextStatistics, vocabulary: Sequence[str]) -> pa.Table:
    parts = [_kind(found.top.windows(), "top", vocabulary), _strata(found.sampled.windows(), vocabulary)]
    parts.append(_kind(found.near_misses.windows(), "near_miss", vocabulary))
    return pa.concat_tables(parts)


def _kind(windows: Windows, kind: str, vocabulary: Sequence[str]) -> pa.Table:
    feature, slot = windows.there.nonzero()
    # Of a near miss the score is how near it came; of a firing it is the activation.
    scores = windows.scores if kind == "near_miss" else windows.peaks
    return _windows(windows, feature, slot, kind, slot, None, scores[feature, slot], vocabulary)


def _strata(windows: Windows, vocabulary: Sequence[str]) -> pa.Table:
    """Cut the sample of each feature into strata: in it a firing's chance goes with its activation."""
    k = windows.scores.shape[1]
    there = windows.there
    order = np.argsort(np.where(there, windows.peaks, np.inf), axis=1, kind="stable")
    size = there.sum(1)
    place = np.arange(k)[None]
    stratum = place * STRATA // np.maximum(size, 1)[:, None]
    first = np.ceil(stratum * size[:, None] / STRATA)
    rank = place - first
    kept = (place < size[:, None]) & (rank < IN_STRATUM)
    feature, at = kept.nonzero()
    slot = order[feature, at]
    return _windows(
        windows,
        feature,
        slot,
        "stratum",
        rank[feature, at],
        stratum[feature, at],
        windows.peaks[feature, slot],
        vocabulary,
    )


def _windows(
    windows: Windows,
    feature: NDArray[np.int64],
    slot: NDArray[np.int64],
    kind: str,
    rank: NDArray[Any],
    stratum: NDArray[Any] | None,
    scores: NDArray[np.float32],
    vocabulary: Sequence[str],
) -> pa.Table:
    tokens, values = windows.tokens[feature, slot], windows.values[feature, slot]
    inside = tokens != NO_TOKEN
    starts = np.r_[0, np.cumsum(inside.sum(1))].astype(np.int32)
    flat = pa.array(tokens[inside], pa.int32())
    texts = pa.array(vocabulary, pa.string()).take(flat)
    columns = {
        "feature": feature,
        "kind": pa.array([kind] * len(feature), pa.string()),
        "stratum": stratum,
        "rank": rank,
        "score": scores,
        "document": windows.documents[feature, slot],
        "row": windows.rows[feature, slot],
        "position": windows.positions[feature, slot],
        "tokens": pa.ListArray.from_arrays(starts, flat),
        "texts": pa.ListArray.from_arrays(starts, texts),
        "values": pa.ListArray.from_arrays(starts, pa.array(values[inside], pa.float32())),
        "peak": inside[:, :BEFORE].sum(1),
    }
    return _table(columns, CONTEXTS, len(feature))


def _edges(found: ContextStatistics, effects: Effects) -> pa.Table:
    parts = []
    if (near := effects.nearest) is not None:
        n, k = near.ids.shape
        columns = {"source": np.repeat(np.arange(n), k), "target": near.ids.ravel(), "weight": near.cosines.ravel()}
        parts.append(_table(columns | {"kind": ["cosine"] * (n * k)}, EDGES, n * k))
    if found.cofiring is not None:
        sources, targets, both, phi = found.cofiring.edges(COFIRE_TOLD)
        columns = {"source": sources, "target": targets, "weight": phi, "count": both}
        parts.append(_table(columns | {"kind": ["cofire"] * len(sources)}, EDGES, len(sources)))
    return pa.concat_tables(parts) if parts else EDGES.empty_table()


def _labels(labels: OfflineLabels) -> pa.Table:
    rows = []
    for feature, (words, rule, score, tier) in enumerate(
        zip(labels.words, labels.rules, labels.scores, labels.tiers, strict=True)
    ):
        if rule.patterns:
            rows.append(
                {
                    "feature": feature,
                    "label": words,
                    "source": "rule",
                    "rule": json.dumps({"patterns": rule.patterns, "shares": [round(s, 5) for s in rule.shares]}),
                    "evidence": "firings on training documents; length chosen on the documents of the contexts",
                    "test": "tokens",
                    "negatives": "natural",
                    **score.columns(),
                    "passed": tier in ("high", "medium"),
                }
            )
    return pa.Table.from_pylist(rows, schema=LABELS)


def _token_counts(
    counts: PairCounts, fires: NDArray[np.int64], vocabulary: Sequence[str]
) -> list[list[dict[str, Any]]]:
    tokens, times = counts.top(TOKENS_TOLD)
    return [
        [
            {"token": t, "text": vocabulary[t], "count": c, "share": c / max(1, n)}
            for t, c in zip(ids, numbers, strict=True)
            if t >= 0
        ]
        for ids, numbers, n in zip(tokens.tolist(), times.tolist(), fires.tolist(), strict=True)
    ]


def _tokens_with(
    tokens: NDArray[np.int32], logits: NDArray[np.float32], vocabulary: Sequence[str]
) -> list[list[dict[str, Any]]]:
    return [
        [{"token": t, "text": vocabulary[t], "logit": x} for t, x in zip(ids, values, strict=True)]
        for ids, values in zip(tokens.tolist(), logits.tolist(), strict=True)
    ]


def _null_for_nan(values: NDArray[np.float32] | None) -> pa.Array | None:
    return None if values is None else pa.array(values, from_pandas=True)


def _table(columns: Mapping[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    """Return a table of the schema; columns that are not given, or None, are null."""
    arrays = []
    for column in schema:
        given = columns.get(column.name)
        if given is None:
            arrays.append(pa.nulls(rows, column.type))
        elif isinstance(given, pa.Array):
            arrays.append(given.cast(column.type))
        else:
            arrays.append(
                pa.array(given, column.type) if isinstance(given, list) else pa.array(given).cast(column.type)
            )
    return pa.table(arrays, schema=schema)
