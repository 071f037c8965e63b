"""New tables in a dashboard that exists: its maps and its raw neurons stay what they are."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from lightsae.analysis.dashboard.pages import write_population
from lightsae.analysis.dashboard.scripts import plain, write_script


def rewrite_features(folder: Path, tables: Mapping[str, pa.Table], manifest: Mapping[str, Any]) -> None:
    """Put new tables of the features into a staged copy of a dashboard.

    Args:
        folder: Holds `index.html` and `assets/` of `write_dashboard`.
        tables: Of the dictionary.
        manifest: What dictionary.json now says.
    """
    data = folder / "assets" / "data"
    # What `write_script` wrote: receive("manifest", {...}).
    script = (data / "manifest.js").read_text(encoding="ascii")
    told = json.loads(script[script.index(",") + 1 : script.rindex(")")])
    shutil.rmtree(data / "features")
    write_population(data, "features", tables)
    write_script(data / "manifest.js", "manifest", {**told, "manifest": plain(dict(manifest))})
