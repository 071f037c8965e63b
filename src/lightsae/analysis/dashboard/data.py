"""The data of a dashboard, as scripts: a page opened from disk may load scripts, but no browser lets it read files.

Each script calls `lightsae.receive(name, value)`. The value is JSON in plain ASCII without `<`, `>` and `&`: no text of
a corpus can end the script, open a comment or be taken for markup, whatever the file's encoding is taken to be.

    list_columns     for the list of features, all features at once, by column: 30,000 features make some megabytes
    feature_chunks   everything about each feature, a hundred features per script, loaded when one of them is opened
    word_index       the words of the contexts, loaded when contexts are searched
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lightsae.analysis.dictionary.schema import KEYS, ROLE_SHARES

_DIGITS = 4
_HARMLESS = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def write_script(path: Path, name: str, value: Any) -> None:
    """Write a value to a script; `name` is what the page asks for it by."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"lightsae.receive({_json(name)},{_json(value)})\n", encoding="ascii")


def rounded(value: float | int | None) -> float | int | None:
    """Return a number with the digits that a page shows, counts whole; None where there is none, or no finite one."""
    if value is None or not math.isfinite(value):
        return None
    if isinstance(value, int):
        return value
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() else short


def plain(value: Any) -> Any:
    """Return a value of a table with all its numbers rounded; JSON has no NaN."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def _json(value: Any) -> str:
    # Inside JSON, <, > and & can only stand in strings.
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_HARMLESS)


# Columns of numbers, as the schema names them.
NUMBERS = (
    "fires",
    "frequency",
    "precision",
    "recall",
    "mean",
    "max",
    "window_coherence",
    "document_coherence",
    "document_spread",
    "ablation_kl",
    "ablation_ce",
    "s_in",
    "s_out",
    "logit_kurtosis",
    *ROLE_SHARES,
)
_TOKENS_LISTED = 4


def list_columns(features: pa.Table) -> dict[str, Any]:
    """Return the columns of the list.

    Args:
        features: The table `features`, sorted by feature.

    Returns:
        n; feature (null where they are 0..n-1); label; tier and label_source as {names, codes}, code -1 for none;
        numbers by name, only those of which any is known, of the roles only those with firings; tokens: {texts, of},
        of = indices into texts, a list for each feature; neuron: the coordinate it aligns with most, as [number,
        cosine].
    """
    numbers = features["feature"].to_numpy()
    columns: dict[str, Any] = {
        "n": len(features),
        "feature": None if np.array_equal(numbers, np.arange(len(numbers))) else numbers.tolist(),
        "label": features["label"].to_pylist(),
        "tier": _codes(features["tier"]),
        "label_source": _codes(features["label_source"]),
        "tokens": _most_frequent(features["tokens_on"]),
    }
    for name in NUMBERS:
        column = features[name]
        if column.null_count < len(column) and (name not in ROLE_SHARES or pc.any(pc.greater(column, 0)).as_py()):
            columns[name] = [rounded(value) for value in column.to_pylist()]
    if features["neurons"].null_count < len(features):
        nearest = features["neurons"].to_pylist()
        columns["neuron"] = [[n[0]["feature"], rounded(n[0]["cosine"])] if n else None for n in nearest]
    return columns


def _codes(column: pa.ChunkedArray) -> dict[str, Any]:
    coded = column.combine_chunks().dictionary_encode()
    codes = coded.indices.fill_null(-1).to_pylist()
    return {"names": coded.dictionary.to_pylist(), "codes": codes}


def _most_frequent(column: pa.ChunkedArray) -> dict[str, Any]:
    """Tokens come by count, the most frequent first."""
    places: dict[str, int] = {}
    of = [
        [places.setdefault(entry["text"] or "", len(places)) for entry in entries[:_TOKENS_LISTED]] if entries else []
        for entries in column.to_pylist()
    ]
    return {"texts": list(places), "of": of}


FEATURES_A_CHUNK = 100
_TOKENS_SHOWN = 12
_TOKEN_LISTS = ("tokens_on", "tokens_before", "tokens_after", "promoted", "suppressed")
_NEIGHBOURS = 12
_KINDS = ("top", "stratum", "near_miss")


def feature_chunks(tables: dict[str, pa.Table]) -> Iterator[dict[str, Any]]:
    """Yield the chunks in order.

    Args:
        tables: The four tables; `features` is sorted by feature, the others by the feature that rows belong to.

    Yields:
        {tokens: [[id, text]...], features: [...]}; a feature has the columns of the schema by name, and

        contexts: {top: [window...], strata: [[number, [window...]]...], near_miss: [window...]}, where a window is
            [score, document, row, position, peak, [token...], [place, value, place, value...]];
        cofire: [[feature, phi, count]...]; labels: rows of the table of labels.
    """
    numbers = tables["features"]["feature"].to_numpy()
    for start in range(0, len(numbers), FEATURES_A_CHUNK):
        part = numbers[start : start + FEATURES_A_CHUNK]
        rows = {name: _rows_of(tables[name], key, int(part[0]), int(part[-1])) for name, key in KEYS.items()}
        tokens: dict[tuple[int, str], int] = {}
        windows, cofire = _windows(rows["contexts"], tokens), _cofiring(rows["edges"])
        labels = _by_feature(rows["labels"])
        features = []
        for row in rows["features"].to_pylist():
            row |= {name: row[name] and row[name][:_TOKENS_SHOWN] for name in _TOKEN_LISTS}
            of_feature = {
                "contexts": windows.get(row["feature"], {}),
                "cofire": cofire.get(row["feature"], [])[:_NEIGHBOURS],
                "labels": labels.get(row["feature"], []),
            }
            features.append(plain(row) | of_feature)
        yield {"tokens": list(tokens), "features": features}


def _rows_of(table: pa.Table, key: str, first: int, last: int) -> pa.Table:
    column = table[key].to_numpy()
    begin, end = np.searchsorted(column, first, "left"), np.searchsorted(column, last, "right")
    return table.slice(begin, end - begin)


def _windows(contexts: pa.Table, tokens: dict[tuple[int, str], int]) -> dict[int, dict[str, Any]]:
    """Return the windows by feature; `tokens` takes up what they consist of."""
    offsets, ids = _lists(contexts["tokens"])
    texts = _flat(contexts["texts"]).to_pylist()
    values = _lists(contexts["values"])[1]
    places = [tokens.setdefault((i, text or ""), len(tokens)) for i, text in zip(ids.tolist(), texts, strict=True)]
    heads = contexts.drop_columns(["tokens", "texts", "values"]).to_pylist()
    # The strongest stratum first, as in the list of the strongest windows.
    order = sorted(enumerate(heads), key=lambda h: (_KINDS.index(h[1]["kind"]), -(h[1]["stratum"] or 0), h[1]["rank"]))
    windows: dict[int, dict[str, Any]] = {}
    for number, head in order:
        begin, end = offsets[number], offsets[number + 1]
        firing = np.flatnonzero(values[begin:end]).tolist()
        strengths = [entry for i in firing for entry in (i, rounded(float(values[begin + i])))]
        where = [head[name] for name in ("document", "row", "position", "peak")]
        window = [rounded(head["score"]), *where, places[begin:end], strengths]
        of_feature = windows.setdefault(head["feature"], {})
        if head["kind"] == "stratum":
            of_feature.setdefault("strata", {}).setdefault(head["stratum"], []).append(window)
        else:
            of_feature.setdefault(head["kind"], []).append(window)
    for of_feature in windows.values():
        if "strata" in of_feature:
            of_feature["strata"] = [list(stratum) for stratum in of_feature["strata"].items()]
    return windows


def _cofiring(edges: pa.Table) -> dict[int, list[list[Any]]]:
    partners: dict[int, list[list[Any]]] = defaultdict(list)
    for edge in edges.filter(pc.equal(edges["kind"], "cofire")).to_pylist():
        partners[edge["source"]].append([edge["target"], rounded(edge["weight"]), edge["count"]])
    return {source: sorted(entries, key=lambda partner: -(partner[1] or 0)) for source, entries in partners.items()}


def _by_feature(labels: pa.Table) -> dict[int, list[dict[str, Any]]]:
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in labels.to_pylist():
        rows[row.pop("feature")].append(plain(row))
    return rows


def _lists(column: pa.ChunkedArray) -> tuple[list[int], NDArray[Any]]:
    """Return where each list begins among all its values, and the values."""
    lengths = column.combine_chunks().value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return offsets.tolist(), _flat(column).to_numpy(zero_copy_only=False)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().flatten()


# Contexts whose words are looked at together, and the longest word that is kept.
_ROWS = 50_000
_LONGEST = 32


def word_index(features: pa.Table, contexts: pa.Table) -> dict[str, Any]:
    """Return which words stand in the contexts of which features.

    Args:
        features: Sorted by feature.
        contexts: The table of contexts, in any order.

    Returns:
        {words: [...], rows: [...]}: words in lower case, sorted; for each the features' places in the list, ascending,
        as the first and then differences, in base 36 with a space between.
    """
    numbers = features["feature"].to_numpy()
    firing = contexts.filter(pc.not_equal(contexts["kind"], "near_miss")).select(["feature", "texts"])
    pairs = []
    for start in range(0, len(firing), _ROWS):
        part = firing.slice(start, _ROWS)
        joined = pc.utf8_lower(pc.binary_join(part["texts"].cast(pa.list_(pa.string())), ""))
        words = pc.split_pattern_regex(joined, r"[^\p{L}\p{M}\p{N}_]+")
        rows = part["feature"].combine_chunks().take(pc.list_parent_indices(words.combine_chunks()))
        table = pa.table({"word": words.combine_chunks().flatten(), "feature": rows})
        pairs.append(table.group_by(["word", "feature"]).aggregate([]))
    if not pairs:
        return {"words": [], "rows": []}
    unique = pa.concat_tables(pairs).group_by(["word", "feature"]).aggregate([])
    lengths = pc.utf8_length(unique["word"])
    unique = unique.filter(pc.and_(pc.greater(lengths, 0), pc.less_equal(lengths, _LONGEST)))
    unique = unique.sort_by([("word", "ascending"), ("feature", "ascending")])
    coded = unique["word"].combine_chunks().dictionary_encode()
    places = np.searchsorted(numbers, unique["feature"].to_numpy())
    starts = np.flatnonzero(np.r_[True, np.diff(coded.indices.to_numpy()) != 0]) if len(unique) else np.empty(0, int)
    postings = np.split(places, starts[1:]) if len(unique) else []
    return {"words": coded.dictionary.to_pylist(), "rows": [_differences(p) for p in postings]}


def _differences(places: NDArray[np.int64]) -> str:
    return " ".join(np.base_repr(d, 36).lower() for d in np.diff(places, prepend=0).tolist())
