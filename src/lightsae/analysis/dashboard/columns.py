"""What the list of features needs, all features at once, by column: numbers, labels, codes, the tokens they fire on.

30,000 features make some megabytes, which a browser reads in a fraction of a second.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from lightsae.analysis.dashboard.scripts import rounded

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
)
_TOKENS_SHOWN = 4


def list_columns(features: pa.Table) -> dict[str, Any]:
    """Return the columns of the list.

    Args:
        features: The table `features`, sorted by feature.

    Returns:
        n; feature (null where they are 0..n-1); label; tier and label_source as {names, codes}, code -1 for none;
        numbers by name, only those of which any is known; tokens: {texts, of}, of = indices into texts, a list for each
        feature; neuron: the coordinate it aligns with most, as [number, cosine].
    """
    numbers = features["feature"].to_numpy()
    columns: dict[str, Any] = {
        "n": len(features),
        "feature": None if np.array_equal(numbers, np.arange(len(numbers))) else numbers.tolist(),
        "label": features["label"].to_pylist(),
        "tier": _codes(features["tier"]),
        "label_source": _codes(features["label_source"]),
        "tokens": _tokens(features["tokens_on"]),
    }
    for name in NUMBERS:
        if features[name].null_count < len(features):
            columns[name] = [rounded(value) for value in features[name].to_pylist()]
    if features["neurons"].null_count < len(features):
        nearest = features["neurons"].to_pylist()
        columns["neuron"] = [[n[0]["feature"], rounded(n[0]["cosine"])] if n else None for n in nearest]
    return columns


def _codes(column: pa.ChunkedArray) -> dict[str, Any]:
    coded = column.combine_chunks().dictionary_encode()
    codes = coded.indices.fill_null(-1).to_pylist()
    return {"names": coded.dictionary.to_pylist(), "codes": codes}


def _tokens(column: pa.ChunkedArray) -> dict[str, Any]:
    """Tokens come by count, the most frequent first."""
    places: dict[str, int] = {}
    of = [
        [places.setdefault(entry["text"] or "", len(places)) for entry in entries[:_TOKENS_SHOWN]] if entries else []
        for entries in column.to_pylist()
    ]
    return {"texts": list(places), "of": of}
