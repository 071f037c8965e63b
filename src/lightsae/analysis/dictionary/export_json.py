"""The strongest features as one JSON file: {feature: [{score, target, context, start}, ...]}, the best windows first.

Source: the layout of the first case study (seed 000), with one key more: `start`, the index in `context` of the
target's first character. The target's string may well occur twice in a window; the position tells which one fires.
"""

from pathlib import Path
from typing import Any

from lightsae.analysis.dictionary.feature_dictionary import FeatureDictionary
from lightsae.errors import ConfigError
from lightsae.formats.files import write_json


def export_case_study(
    dictionary: FeatureDictionary,
    path: str | Path,
    *,
    features: int = 200,
    contexts: int = 10,
    before: int = 5,
    after: int = 5,
) -> None:
    """Write the features with the largest activations, and their top windows, as JSON.

    Args:
        dictionary: An open feature dictionary.
        path: The file to write.
        features: How many features, the strongest first.
        contexts: Most windows of each.
        before: Tokens of a window before the target.
        after: Tokens after it.

    Raises:
        ConfigError: A number is negative, or the file cannot be written.
    """
    for name, value in {"features": features, "contexts": contexts, "before": before, "after": after}.items():
        if value < 0:
            raise ConfigError(name, value, "write 0 or more")
    rows = dictionary.sql(
        "WITH strongest AS (SELECT feature, max FROM features WHERE max IS NOT NULL"
        "  ORDER BY max DESC, feature LIMIT $features)"
        " SELECT feature, score, texts, peak FROM contexts JOIN strongest USING (feature)"
        " WHERE kind = 'top' AND rank < $contexts ORDER BY max DESC, feature, rank",
        {"features": features, "contexts": contexts},
    ).to_pylist()
    windows: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        texts, peak = row["texts"], row["peak"]
        first = max(0, peak - before)
        windows.setdefault(str(row["feature"]), []).append(
            {
                "score": row["score"],
                "target": texts[peak],
                "context": "".join(texts[first : peak + 1 + after]),
                "start": len("".join(texts[first:peak])),
            }
        )
    write_json(path, windows, finite=False)
