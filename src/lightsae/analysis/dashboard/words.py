"""The words of the contexts, with the features in whose contexts they stand: what makes contexts searchable offline.

Near misses are left out: the feature does not fire there. Loaded by the page only when contexts are searched.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

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
    shown = contexts.filter(pc.not_equal(contexts["kind"], "near_miss")).select(["feature", "texts"])
    pairs = []
    for start in range(0, len(shown), _ROWS):
        part = shown.slice(start, _ROWS)
        joined = pc.utf8_lower(pc.binary_join(part["texts"].cast(pa.list_(pa.string())), ""))
        found = pc.split_pattern_regex(joined, r"[^\p{L}\p{M}\p{N}_]+")
        rows = part["feature"].combine_chunks().take(pc.list_parent_indices(found.combine_chunks()))
        table = pa.table({"word": found.combine_chunks().flatten(), "feature": rows})
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
