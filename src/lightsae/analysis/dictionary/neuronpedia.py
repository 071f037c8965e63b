"""A feature dictionary as a folder that Neuronpedia imports.

    {model}/{source}/release.jsonl model.jsonl sourceset.jsonl source.jsonl
    {model}/{source}/features/batch-N.jsonl.gz         one row per feature
    {model}/{source}/activations/batch-N.jsonl.gz      one row per window
    {model}/{source}/explanations/batch-N.jsonl.gz     one row per shown label

Source: the import layout of Neuronpedia's own tools (hijohnnylin/neuronpedia, utils). Windows of near misses have no
place there. Correlated neurons and the histogram of logits are left empty: the dictionary does not hold them.
"""

import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lightsae.analysis.dictionary.feature_dictionary import FeatureDictionary
from lightsae.errors import ConfigError, FormatError
from lightsae.formats.files import entries, replace_folder_atomically

BATCH = 1024
_PARTS = ("features", "activations", "explanations")
_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "attn_z": "attn.hook_z",
    "mlp_in": "hook_mlp_in",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
}


@dataclass(frozen=True)
class Release:
    """How the dictionary is to be called on Neuronpedia.

    Attributes:
        model: The model's id there, e.g. `gpt2-small`; letters, digits, dots, dashes and underscores.
        source_set: Short name of this family of dictionaries, e.g. `res-topk-1k`; the layer is put before it.
        name: Id of the release.
        title: What the release is, for people.
        creator: Who made it.
        creator_id: The creator's user id there.
        url: Where to read more.
        created: Time of the rows; now, if none is given.
    """

    model: str
    source_set: str
    name: str
    title: str
    creator: str
    creator_id: str = ""
    url: str | None = None
    created: datetime | None = None


def export_neuronpedia(
    dictionary: FeatureDictionary,
    folder: str | Path,
    release: Release,
    *,
    decoder: Float[Tensor, "F D"] | None = None,
) -> Path:
    """Write an import folder; the folder is made, or replaced where an earlier export to it is.

    Args:
        dictionary: An open feature dictionary of an SAE that reads one portable site (`resid_post.6` ...).
        folder: A folder of the export's own.
        release: How it is to be called.
        decoder: Directions in raw units, W_dec / output_scale, one row per feature; with them features can be steered.

    Returns:
        The folder of the source inside, `{model}/{source}`.

    Raises:
        ConfigError: A name cannot be used, or `decoder` does not fit.
        FormatError: The site has no layer, or the folder holds something else.
    """
    for key in ("model", "source_set", "name"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value := getattr(release, key)):
            raise ConfigError(f"{key} of the release is {value!r}; write letters, digits, dots, dashes, underscores.")
    if decoder is not None and len(decoder) != len(dictionary):
        raise ConfigError(f"decoder has {len(decoder)} rows, and the dictionary {len(dictionary)} features.")
    layer, hook = _hook(dictionary)
    source = f"{layer}-{release.source_set}"
    when = (release.created or datetime.now(UTC)).isoformat()
    for entry in entries(folder, "for the Neuronpedia export"):
        # Nothing is deleted but an earlier export of the same model.
        sources = list(entry.iterdir()) if entry.is_dir() else []
        if entry.name != release.model or not sources or not all((s / "source.jsonl").is_file() for s in sources):
            raise FormatError(f"{str(folder)!r} already holds {entry.name!r}; name a folder for the export alone.")
    edges = dictionary.manifest["histogram_edges"]
    with replace_folder_atomically(folder) as staged:
        inside = staged / release.model / source
        for part in _PARTS:
            (inside / part).mkdir(parents=True)
        for name, head in _heads(dictionary, release, source).items():
            _write_lines(inside / f"{name}.jsonl", [{**head, "creatorId": release.creator_id, "createdAt": when}])
        edges = dictionary.manifest["histogram_edges"]
        for number, first in enumerate(range(0, len(dictionary), BATCH)):
            lines: dict[str, list[dict[str, Any]]] = {part: [] for part in _PARTS}
            for place, (row, windows) in enumerate(_batch(dictionary, first), start=first):
                bins = _bins(edges, row["histogram"] or [])
                vector = [] if decoder is None else [round(v, 6) for v in decoder[place].tolist()]
                common = {"modelId": release.model, "layer": source, "index": str(row["feature"]), "createdAt": when}
                own = {**common, "creatorId": release.creator_id}
                lines["features"].append({**own, **_feature(row, bins, vector, hook)})
                lines["activations"] += [{**own, **_activation(w, row, windows, bins, dictionary.id)} for w in windows]
                if row["label"] is not None:
                    lines["explanations"].append({**common, **_explanation(row, dictionary.id, release)})
            for part, rows in lines.items():
                _write_lines(inside / part / f"batch-{number}.jsonl.gz", rows)
    return Path(folder) / release.model / source


def _batch(dictionary: FeatureDictionary, first: int) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return the next features, each with the windows on which it fires."""
    query = "SELECT * FROM features ORDER BY feature LIMIT $n OFFSET $first"
    rows = dictionary.sql(query, {"n": BATCH, "first": first}).to_pylist()
    windows: dict[int, list[dict[str, Any]]] = {row["feature"]: [] for row in rows}
    query = (
        "SELECT * FROM contexts WHERE feature BETWEEN $low AND $high AND kind <> 'near_miss'"
        " ORDER BY feature, kind = 'top' DESC, stratum DESC, rank"
    )
    for window in dictionary.sql(query, {"low": rows[0]["feature"], "high": rows[-1]["feature"]}).to_pylist():
        windows[window["feature"]].append(window)
    return [(row, windows[row["feature"]]) for row in rows]


def _heads(dictionary: FeatureDictionary, release: Release, source: str) -> dict[str, dict[str, Any]]:
    """Return the rows of the four small files."""
    corpus = dictionary.manifest["corpus"]
    return {
        "release": {
            "name": release.name,
            "description": release.title,
            "descriptionShort": release.title,
            "urls": [release.url] if release.url else [],
            "creatorName": release.creator,
            "creatorNameShort": release.creator,
            "visibility": "PUBLIC",
        },
        "model": {
            "id": release.model,
            "instruct": False,
            "displayName": release.model,
            "displayNameShort": release.model,
            "visibility": "PUBLIC",
        },
        "sourceset": {
            "modelId": release.model,
            "name": release.source_set,
            "description": release.title,
            "releaseName": release.name,
            "creatorName": release.creator,
            "visibility": "PUBLIC",
        },
        "source": {
            "id": source,
            "modelId": release.model,
            "setName": release.source_set,
            "hasDashboards": True,
            "visibility": "PUBLIC",
            "dataset": str(corpus.get("name", "")) if isinstance(corpus, dict) else str(corpus),
            "notes": f"lightsae feature dictionary {dictionary.id}",
        },
    }


def _feature(row: dict[str, Any], bins: list[float], vector: list[float], hook: str | None) -> dict[str, Any]:
    promoted, suppressed = row["promoted"] or [], row["suppressed"] or []
    neurons, nearest = row["neurons"] or [], row["nearest"] or []
    return {
        "frac_nonzero": row["frequency"],
        "maxActApprox": row["max"] or 0.0,
        "pos_str": [token["text"] for token in promoted],
        "pos_values": [token["logit"] for token in promoted],
        "neg_str": [token["text"] for token in suppressed],
        "neg_values": [token["logit"] for token in suppressed],
        "freq_hist_data_bar_heights": row["histogram"] or [],
        # A bar is placed by the middle of its bin.
        "freq_hist_data_bar_values": [(a + b) / 2 for a, b in itertools.pairwise(bins)],
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "neuron_alignment_indices": [near["feature"] for near in neurons],
        "neuron_alignment_values": [near["cosine"] for near in neurons],
        "neuron_alignment_l1": [],
        **{f"correlated_{what}_{of}": [] for what in ("neurons", "features") for of in ("indices", "pearson", "l1")},
        "topkCosSimIndices": [near["feature"] for near in nearest],
        "topkCosSimValues": [near["cosine"] for near in nearest],
        "decoder_weights_dist": [],
        "hasVector": bool(vector),
        "vector": vector,
        "vectorLabel": None,
        "vectorDefaultSteerStrength": (row["max"] or 0.0) if vector else None,
        "hookName": hook if vector else None,
    }


def _activation(
    window: dict[str, Any], row: dict[str, Any], windows: list[dict[str, Any]], bins: list[float], dictionary: str
) -> dict[str, Any]:
    values = window["values"]
    largest = int(np.argmax(values))
    if window["kind"] == "top":
        # That is how the best windows are marked there.
        low, high, share = -1.0, row["max"], -1.0
    else:
        scores = [w["score"] for w in windows if w["stratum"] == window["stratum"]]
        low, high = min(scores), max(scores)
        share = _share_between(low, high, row["histogram"] or [], bins)
    return {
        "id": _id(dictionary, window["feature"], window["kind"], window["stratum"], window["rank"]),
        "tokens": window["texts"],
        "values": values,
        "maxValue": values[largest],
        "maxValueTokenIndex": largest,
        "minValue": min(values),
        "binMin": low,
        "binMax": high,
        "binContains": share,
        "qualifyingTokenIndex": window["peak"],
        "dataIndex": str(window["document"]),
        "dataSource": None,
        "dfaValues": [],
        "lossValues": [],
    }


def _explanation(row: dict[str, Any], dictionary: str, release: Release) -> dict[str, Any]:
    precision, recall = (None if row[k] is None else round(row[k], 3) for k in ("precision", "recall"))
    return {
        "id": _id(dictionary, row["feature"], "explanation"),
        "description": row["label"],
        "authorId": release.creator_id,
        "notes": f"{row['label_source']}; precision {precision}, recall {recall} on held-out documents",
    }


def _id(*parts: Any) -> str:
    """Return the id of a row. The same row keeps it: importing twice adds nothing."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:25]


def _bins(edges: list[float], histogram: list[int]) -> list[float]:
    """Return the ends of all bins; what the first and the last take in beyond the edges is put next to them.

    >>> _bins([1.0, 2.0, 4.0], [0, 3, 5, 1])
    [0.0, 1.0, 2.0, 4.0, 6.0]
    """
    if len(edges) != len(histogram) - 1:
        return edges
    return [0.0, *edges, 2 * edges[-1] - edges[-2]]


def _share_between(low: float, high: float, histogram: list[int], edges: list[float]) -> float:
    """Return the share of the firings between two activations, as if they were evenly spread in each bin."""
    if not sum(histogram):
        return 0.0
    below = np.concatenate([[0], np.cumsum(histogram)]) / sum(histogram)
    return float(np.interp(high, edges, below) - np.interp(low, edges, below))


def _hook(dictionary: FeatureDictionary) -> tuple[int, str | None]:
    """Return the layer that is shown, and the hook at which a direction is added."""
    sae = dictionary.manifest["sae"]
    read, predicted = (sae.get(part, []) for part in ("read", "predicted"))
    sites = [re.fullmatch(r"(\w+)\.(\d+)", entry["site"]) for entry in (*read, *predicted)]
    if len(read) != 1 or len(predicted) != 1 or sites[0] is None or sites[1] is None:
        names = ", ".join(entry["site"] for entry in (*read, *predicted))
        raise FormatError(
            f"Neuronpedia shows dictionaries of one layer, named like 'resid_post.6'; this one belongs to {names}."
        )
    part = _HOOKS.get(sites[1][1])
    return int(sites[0][2]), None if part is None else f"blocks.{sites[1][2]}.{part}"


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
    # No time in the gzip header: the same rows give the same bytes.
    path.write_bytes(gzip.compress(data, compresslevel=5, mtime=0) if path.suffix == ".gz" else data)
