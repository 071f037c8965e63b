"""Writes the dashboard: index.html and what it loads. Opens from the disk, without a server and without a network.

    index.html
    assets/*.js, style.css, plotly.min.js                      the program
    assets/data/features.js, features-words.js, features/N.js  the features: list, words of their contexts, chunks
    assets/data/neurons.js, neurons-words.js, neurons/N.js     the same of raw neurons, where there are any
    assets/data/map-N.js                                       maps

Only the list is read at the start. The rest, and Plotly, are loaded by the pages that need them.
"""

import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import plotly.offline
import pyarrow as pa

from lightsae.analysis.dashboard.data import (
    FEATURES_A_CHUNK,
    feature_chunks,
    list_columns,
    plain,
    rounded,
    word_index,
    write_script,
)
from lightsae.analysis.dashboard.maps import Map
from lightsae.analysis.dictionary.figures import headline, tested_scores
from lightsae.analysis.dictionary.schema import KEYS
from lightsae.errors import FormatError
from lightsae.parsing import parse_json, read_bytes

Tables = Mapping[str, pa.Table]


def write_dashboard(
    folder: Path,
    tables: Tables,
    manifest: Mapping[str, Any],
    *,
    neurons: Tables | None = None,
    maps: Sequence[Map] = (),
) -> None:
    """Write the dashboard of a feature dictionary into a folder.

    Args:
        folder: An existing folder that the caller stages; gets `index.html` and `assets/`.
        tables: Tables of the feature dictionary, as in `dictionary.schema`.
        manifest: What dictionary.json says; histogram_edges (and neuron_histogram_edges, if those of the neurons
            differ) belong to the histograms of the tables.
        neurons: The same tables of the raw neurons.
        maps: The maps, in the order of their tabs.
    """
    _write_program(folder)
    data = folder / "assets" / "data"
    write_population(data, "features", tables)
    if neurons is not None:
        write_population(data, "neurons", neurons)
    for number, one in enumerate(maps):
        write_script(data / f"map-{number}.js", f"map-{number}", _map_entry(one))
    write_script(
        data / "manifest.js",
        "manifest",
        {
            "manifest": plain(dict(manifest)),
            "headline": headline(manifest.get("summary") or {}),
            "neurons": neurons is not None,
            "chunk": FEATURES_A_CHUNK,
            "maps": [{"name": m.name, "group": m.group or m.name, "points": len(m.coordinates)} for m in maps],
        },
    )


def rewrite_features(folder: Path, tables: Mapping[str, pa.Table], manifest: Mapping[str, Any]) -> None:
    """Put new tables of the features into a staged copy of a dashboard.

    Args:
        folder: Holds `index.html` and `assets/` of `write_dashboard`.
        tables: Tables of the feature dictionary.
        manifest: What dictionary.json now says.
    """
    data = folder / "assets" / "data"
    # What `write_script` wrote: receive("manifest", {...}).
    try:
        script = read_bytes(data / "manifest.js")
        entry = dict(parse_json(script[script.index(b",") + 1 : script.rindex(b")")]))
    except (OSError, ValueError, TypeError) as error:
        raise FormatError(f"{str(folder / 'index.html')!r} is no dashboard of ours ({error}); delete it.") from error
    shutil.rmtree(data / "features")
    write_population(data, "features", tables)
    write_script(
        data / "manifest.js",
        "manifest",
        {**entry, "manifest": plain(dict(manifest)), "headline": headline(manifest["summary"])},
    )


def _write_program(folder: Path) -> None:
    """Copy the pages' own files, and Plotly from its Python package."""
    assets = folder / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    for file in resources.files("lightsae.analysis.dashboard").joinpath("assets").iterdir():
        with resources.as_file(file) as path:
            shutil.copyfile(path, folder / file.name if file.name == "index.html" else assets / file.name)
    (assets / "plotly.min.js").write_text(plotly.offline.get_plotlyjs(), encoding="utf-8")


def write_population(data: Path, name: str, unsorted: Tables) -> None:
    """Write the scripts of one population's tables."""
    tables = {}
    for table, key in KEYS.items():
        order = np.argsort(unsorted[table][key].to_numpy(), kind="stable")
        tables[table] = unsorted[table].take(pa.array(order)).combine_chunks()
    columns = list_columns(tables["features"])
    lower = tested_scores(tables)[["precision", "recall"]].fillna(0).min(axis=1)
    columns["lower"] = [rounded(lower.get(feature)) for feature in tables["features"]["feature"].to_pylist()]
    write_script(data / f"{name}.js", name, columns)
    words = word_index(tables["features"], tables["contexts"])
    write_script(data / f"{name}-words.js", f"{name}-words", words)
    for number, chunk in enumerate(feature_chunks(tables)):
        write_script(data / name / f"{number}.js", f"{name}/{number}", chunk)


def _map_entry(one: Map) -> dict[str, Any]:
    x, y = one.coordinates.astype(np.float64).T.tolist() if len(one.coordinates) else ([], [])
    return {
        "name": one.name,
        "method": one.method,
        "x": [rounded(v) for v in x],
        "y": [rounded(v) for v in y],
        "texts": list(one.texts) if one.texts is not None else None,
        "links": one.links.tolist() if one.links is not None else None,
        "colours": [
            {"name": c.name, "log": c.log, "values": plain(np.asarray(c.values).tolist())} for c in one.colours
        ],
    }
