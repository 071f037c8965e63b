"""Checks that the files of a feature dictionary are whole, unchanged, and of a version that can be read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lightsae.analysis.dictionary.schema import ROLE_SHARES, SCHEMA_VERSION, SINCE_2, TABLES, file_of
from lightsae.analysis.dictionary.writer import DESCRIPTION, KIND, manifest_id
from lightsae.errors import FormatError, reading
from lightsae.formats.files import check_fields, check_version, hash_file, locate, read_json

AGAIN = "copy or build the dictionary again"


def read_manifest(folder: str | Path, verify: bool) -> tuple[Path, dict[str, Any]]:
    """Check a feature dictionary; return where it lies and what its dictionary.json says.

    Args:
        folder: As the user wrote it.
        verify: Whether to compare the tables with the hashes in dictionary.json.
    """
    written = str(Path(folder, DESCRIPTION))
    otherwise = "It is no feature dictionary. Build one: lightsae interpret --sae DIR --out FOLDER"
    manifest = read_json(folder, DESCRIPTION, otherwise, AGAIN)
    if manifest.get("kind") != KIND:
        raise FormatError(f"{written!r} does not describe a feature dictionary; name a folder that interpret wrote.")
    check_version(manifest, written, "schema_version", SCHEMA_VERSION, AGAIN)
    check_fields(manifest, written, {"id": str, "sae": dict, "files": dict}, AGAIN)
    check_fields(manifest, written, {"model": dict, "labels": dict, "extras": list}, AGAIN)
    _check_sae(manifest["sae"], written)
    # They are copied along with the dictionary; the id does not cover their names.
    if any(not isinstance(name, str) or Path(name).name != name or name == ".." for name in manifest["extras"]):
        raise FormatError(f"{written!r}: 'extras' holds what is no name of a file beside it; {AGAIN}.")
    if (made := manifest_id(manifest)) != manifest["id"]:
        raise FormatError(
            f"{written!r} was changed: its contents give the id {made[:12]}, but it says {manifest['id'][:12]}; "
            f"{AGAIN}."
        )
    path = locate(folder, DESCRIPTION)
    for name, schema in TABLES.items():
        file, written = path / file_of(name), str(Path(folder, file_of(name)))
        if not file.is_file():
            raise FormatError(f"{written!r} is missing; {AGAIN}.")
        sha256 = str(manifest["files"].get(file.name))
        if verify and (now := hash_file(file)) != sha256:
            raise FormatError(
                f"{written!r} is damaged or was changed: its SHA-256 starts with {now[:12]}, but {DESCRIPTION} says "
                f"{sha256[:12]}; {AGAIN}."
            )
        with reading(FormatError, f"{written!r} is not a Parquet file", AGAIN):
            columns = pq.read_schema(file).names
        later = (*ROLE_SHARES, *(SINCE_2.get(name, ()) if manifest["schema_version"] < 2 else ()))
        if lacking := sorted(set(schema.names) - set(columns) - set(later)):
            raise FormatError(f"{written!r} lacks the column {lacking[0]!r}; build the dictionary again.")
    return path, manifest


def _check_sae(entry: Mapping[str, Any], written: str) -> None:
    """Refuse an entry that does not say which SAE a dictionary was made for."""
    sides = [entry.get(side, []) for side in ("read", "predicted")]
    sites = [site for side in sides for site in (side if isinstance(side, list) else [side])]
    kinds = {"model": str, "site": str, "width": int}
    known = all(
        isinstance(site, dict) and all(type(site.get(k)) is kind for k, kind in kinds.items()) for site in sites
    )
    if not known or not isinstance(entry.get("sha256"), str):
        raise FormatError(f"{written!r}: 'sae' does not describe an SAE; {AGAIN}.")
