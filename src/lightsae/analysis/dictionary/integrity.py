"""Checks that the files of a feature dictionary are whole, unchanged, and of a version that can be read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightsae.analysis.dictionary.schema import SCHEMA_VERSION, TABLES
from lightsae.analysis.dictionary.writer import DESCRIPTION, KIND, file_of, manifest_id
from lightsae.errors import FormatError
from lightsae.formats.files import hash_file


def read_manifest(where: Path, folder: str | Path) -> dict[str, Any]:
    """Read dictionary.json and check that it says what it was written with.

    Args:
        where: The folder, as `locate` found it.
        folder: The folder as the user wrote it.
    """
    path = where / DESCRIPTION
    file = str(Path(folder, DESCRIPTION))
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        below = sorted(p.parent for p in where.glob(f"*/{DESCRIPTION}"))
        hint = f"Did you mean {str(below[0])!r}?" if below else "Build one: lightsae interpret --sae DIR --out FOLDER"
        raise FormatError(f"{str(folder)!r} has no {DESCRIPTION!r}: it is no feature dictionary. {hint}") from error
    except ValueError as error:
        raise FormatError(f"{file!r} is not valid JSON ({error}); copy or build the dictionary again.") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise FormatError(f"{file!r} does not describe a feature dictionary; name a folder that interpret wrote.")
    version = manifest.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise FormatError(
            f"{file!r} has schema version {version}, and this lightsae reads up to {SCHEMA_VERSION}: "
            "pip install --upgrade lightsae"
        )
    for name, kind in {"schema_version": int, "id": str, "sae": dict, "files": dict}.items():
        if not isinstance(manifest.get(name), kind):
            raise FormatError(f"{file!r} has no valid {name!r}; copy or build the dictionary again.")
    if (made := manifest_id(manifest)) != manifest["id"]:
        raise FormatError(
            f"{file!r} was changed: its contents give the id {made[:12]}, but it says {manifest['id'][:12]}. "
            "Copy or build the dictionary again."
        )
    return manifest


def check_tables(where: Path, folder: str | Path, manifest: dict[str, Any], verify: bool) -> None:
    """Check that the tables are there, with their columns and, where asked for, with the manifest's hashes."""
    for name in TABLES:
        file, written = where / file_of(name), str(Path(folder, file_of(name)))
        recorded = str(manifest["files"].get(file_of(name)))
        if not file.is_file():
            raise FormatError(f"{written!r} is missing; copy the whole folder again, or build the dictionary again.")
        if verify and (sha256 := hash_file(file)) != recorded:
            raise FormatError(
                f"{written!r} is damaged or was changed: its SHA-256 starts with {sha256[:12]}, but {DESCRIPTION} says "
                f"{recorded[:12]}. Copy or build the dictionary again."
            )
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise FormatError(f"{written!r} is not a Parquet file; copy or build the dictionary again.") from error
        if lacking := sorted(set(TABLES[name].names) - set(schema.names)):
            raise FormatError(f"{written!r} lacks the column {lacking[0]!r}; build the dictionary again.")
