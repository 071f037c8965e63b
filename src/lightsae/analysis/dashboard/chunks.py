"""Everything about each feature, a hundred features to a script, which its page loads when it is opened.

Windows are kept short: tokens are numbers into the chunk's own table of (id, text), and zeros are left out.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightsae.analysis.dashboard.scripts import plain, rounded

FEATURES_A_CHUNK = 100
_TOKENS_SHOWN = 12
_TOKEN_LISTS = ("tokens_on", "tokens_before", "tokens_after", "promoted", "suppressed")
_NEIGHBOURS = 12


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
    keys = {"contexts": "feature", "edges": "source", "labels": "feature"}
    for start in range(0, len(numbers), FEATURES_A_CHUNK):
        part = numbers[start : start + FEATURES_A_CHUNK]
        rows = {name: _rows_of(tables[name], key, int(part[0]), int(part[-1])) for name, key in keys.items()}
        tokens: dict[tuple[int, str], int] = {}
        windows = _windows(rows["contexts"], tokens)
        cofire = _cofiring(rows["edges"])
        labels = _by_feature(rows["labels"])
        features = []
        for row in tables["features"].slice(start, len(part)).to_pylist():
            for name in _TOKEN_LISTS:
                row[name] = row[name] and row[name][:_TOKENS_SHOWN]
            index = row["feature"]
            features.append(
                plain(row)
                | {
                    "contexts": windows.get(index, {}),
                    "cofire": cofire.get(index, [])[:_NEIGHBOURS],
                    "labels": labels.get(index, []),
                }
            )
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
    found: dict[int, dict[str, Any]] = {}
    for number, head in enumerate(heads):
        begin, end = offsets[number], offsets[number + 1]
        here = values[begin:end]
        firing = np.flatnonzero(here)
        strengths = [entry for i in firing.tolist() for entry in (i, rounded(float(here[i])))]
        window = [
            rounded(head["score"]),
            head["document"],
            head["row"],
            head["position"],
            head["peak"],
            places[begin:end],
            strengths,
        ]
        kinds = found.setdefault(head["feature"], {})
        if head["kind"] == "stratum":
            kinds.setdefault("strata", {}).setdefault(head["stratum"], []).append((head["rank"], window))
        else:
            kinds.setdefault(head["kind"], []).append((head["rank"], window))
    for kinds in found.values():
        for kind, entries in kinds.items():
            # The strongest stratum first, as in the list of the strongest windows.
            strata = sorted(entries.items(), reverse=True) if kind == "strata" else []
            kinds[kind] = [[s, _ranked(ws)] for s, ws in strata] if kind == "strata" else _ranked(entries)
    return found


def _ranked(windows: list[tuple[int, list[Any]]]) -> list[list[Any]]:
    return [window for _, window in sorted(windows, key=lambda entry: entry[0])]


def _cofiring(edges: pa.Table) -> dict[int, list[list[Any]]]:
    found: dict[int, list[list[Any]]] = {}
    for edge in edges.to_pylist():
        if edge["kind"] == "cofire":
            found.setdefault(edge["source"], []).append([edge["target"], rounded(edge["weight"]), edge["count"]])
    for partners in found.values():
        partners.sort(key=lambda partner: -(partner[1] or 0))
    return found


def _by_feature(labels: pa.Table) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in labels.to_pylist():
        found.setdefault(row.pop("feature"), []).append(plain(row))
    return found


def _lists(column: pa.ChunkedArray) -> tuple[list[int], NDArray[Any]]:
    """Return where each list begins among all its values, and the values."""
    lengths = column.combine_chunks().value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return offsets.tolist(), _flat(column).to_numpy(zero_copy_only=False)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().flatten()
