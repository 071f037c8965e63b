"""Labels from Neuronpedia: the explanations of an export, read in so that they can be tested like any others.

One object for each explanation, with at least `modelId`, `layer` (the source, "6-res-jb"), `index` and `description`; a
JSON list, or JSON a line, also with gzip. Where a feature has several, the first one counts.
"""

import gzip
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lightsae.analysis.dictionary.schema import LABELS
from lightsae.errors import ConfigError, reading
from lightsae.parsing import MOST_BYTES, parse_json_entries, read_bytes

SOURCE = "neuronpedia"
_LONGEST_LABEL = 1000


def import_neuronpedia(
    path: str | Path, *, features: Collection[int], layer: int | None = None, source: str | None = None
) -> list[dict[str, Any]]:
    """Read an export of explanations.

    Args:
        path: The file: .json, .jsonl, or either with .gz behind it.
        features: The features that the dictionary has.
        layer: The layer of its site, with which a source's name begins; None: it has none.
        source: Which source's explanations, of a file with several: "6-res-jb".

    Returns:
        Rows of the table `labels`, source `neuronpedia`, at most one a feature, untested. Who explained is kept as
        the model.

    Raises:
        ConfigError: The file cannot be read, is of another layer or of several, or an entry is wrong; the message says
            which.
    """
    where = repr(str(path))
    entries = _entries(Path(path), where)
    kept: dict[int, dict[str, Any]] = {}
    origins: dict[str, None] = {}
    for number, entry in enumerate(entries, 1):
        at = f"{where}, explanation {number}"
        told = _told(entry, at)
        if source is not None and told["layer"] != source:
            continue
        origins[f"{told['modelId']} {told['layer']}"] = None
        feature = _index(entry["index"], at, features)
        label = " ".join(told["description"].split())
        if len(label) > _LONGEST_LABEL:
            raise ConfigError(f"{at}: a description of {len(label)} characters; at most {_LONGEST_LABEL} are read.")
        if label and feature not in kept:
            kept[feature] = _row(feature, label, entry, next(reversed(origins)))
    if len(origins) > 1:
        raise ConfigError(f"{where} is of several: {', '.join(list(origins)[:4])}; name one as the source.")
    if not kept:
        raise ConfigError(f"{where} holds no explanation" + (f" of {source!r}." if source else "."))
    name = next(iter(origins)).split(" ")[1]
    begins = re.match(r"\d+", name)
    if layer is not None and begins and int(begins[0]) != layer:
        raise ConfigError(f"{where} is of {name!r}, but the dictionary is of layer {layer}; its features are others.")
    return list(kept.values())


def _entries(path: Path, where: str) -> list[Any]:
    """Return the objects of a file, in bounds."""
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise ConfigError(f"{where} does not exist.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read: {error}.") from error
    if data[:2] == b"\x1f\x8b":
        with reading(ConfigError, f"{where} is no gzip file"), gzip.open(path) as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"{where} unpacks to more than {MOST_BYTES:,} bytes, which are not read.")
    try:
        return parse_json_entries(data)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from error


def _told(entry: Any, at: str) -> Mapping[str, str]:
    needed = ("modelId", "layer", "description")
    if not isinstance(entry, dict) or "index" not in entry:
        raise ConfigError(f"{at}: no object with modelId, layer, index and description.")
    for key in needed:
        if not isinstance(entry.get(key), str):
            raise ConfigError(f"{at}: {key} is {entry.get(key)!r:.60}, where a text should be.")
    if not all(re.fullmatch(r"[\w.\-/]{1,200}", entry[key]) for key in ("modelId", "layer")):
        raise ConfigError(f"{at}: {entry['modelId']!r:.60}, {entry['layer']!r:.60} are no names of Neuronpedia.")
    return entry


def _index(value: Any, at: str, features: Collection[int]) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise ConfigError(f"{at}: index is {value!r:.60}, which is no feature number.")
    if int(value) not in features:
        raise ConfigError(f"{at}: the dictionary has no feature {value}.")
    return int(value)


def _row(feature: int, label: str, entry: Mapping[str, Any], origin: str) -> dict[str, Any]:
    by, method = entry.get("explanationModelName"), entry.get("typeName")
    evidence = {"from": f"neuronpedia: {origin}"} | ({"method": method} if isinstance(method, str) else {})
    return {
        **dict.fromkeys(LABELS.names),
        "feature": feature,
        "label": label,
        "source": SOURCE,
        "model": by[:200] if isinstance(by, str) and by else SOURCE,
        "evidence": json.dumps(evidence, ensure_ascii=False),
    }
