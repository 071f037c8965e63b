"""Writes a feature dictionary: a folder of Parquet tables that is named by what it holds.

    features.parquet contexts.parquet edges.parquet labels.parquet     the tables of `dictionary/schema.py`
    dictionary.json                                                    where it all comes from, and the files' hashes
    card.md                                                            the same for people

The id is the SHA-256 of the manifest, which holds the hashes of the tables and of the SAE. So a label cannot move to
another SAE, and the same inputs give the same id. `id` itself, the list of extra files, the card and the extra files
(raw neurons, dashboard, pictures) are outside it: all of them follow from what is inside.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lightsae.analysis.dictionary.card import write_card
from lightsae.analysis.dictionary.schema import KEYS, SCHEMA_VERSION, TABLES, file_of
from lightsae.errors import FormatError
from lightsae.formats.files import entries, find_folder, hash_file, replace_folder_atomically, write_json
from lightsae.parsing import read_json

DESCRIPTION, CARD = "dictionary.json", "card.md"
KIND = "lightsae feature dictionary"
# Keys of dictionary.json that the id does not cover.
UNHASHED = ("id", "extras")
# Rows that are read at the least when one feature is asked for: its own, and those of its neighbours in the file.
ROW_GROUP = 2048
_REQUIRED = ("sae", "model", "tokenizer", "corpus", "tokens", "seeds", "code_version", "histogram_edges", "labels")


def write_dictionary(
    folder: str | Path,
    tables: Mapping[str, pa.Table],
    manifest: Mapping[str, Any],
    extra: Callable[[Path], None] | None = None,
) -> str:
    """Write a feature dictionary to a folder; the folder is made, or replaced where it holds an earlier one.

    A kill at any moment leaves the earlier dictionary or the new one.

    Args:
        folder: A folder of the dictionary's own.
        tables: `features`, `contexts`, `edges` and `labels`, with the columns of `dictionary.schema`; rows in any order
            (rows of one feature keep theirs).
        manifest: What `dictionary.json` is to say, JSON values: sae (`SavedSAE.entry`), model, tokenizer, corpus,
            tokens, seeds, code_version, histogram_edges, labels; summary and others as you like. No times, no paths:
            they would change the id of equal contents.
        extra: Called with the staged folder, in which the tables, dictionary.json and card.md are already complete;
            writes more into it. What it writes is not part of the id.

    Returns:
        The id, 64 hexadecimal digits.

    Raises:
        FormatError: A table or the manifest lacks something, or the folder holds something else.
        ConfigError: The disk is full, or there is no permission to write.
    """
    description = _checked_manifest(manifest)
    ready = {name: _checked_table(name, tables) for name in TABLES}
    _check_references(ready)
    _check_replaceable(folder)
    with replace_folder_atomically(folder) as staged:
        for name, table in ready.items():
            pq.write_table(table, staged / file_of(name), compression="zstd", row_group_size=ROW_GROUP)
        description["files"] = {file_of(name): hash_file(staged / file_of(name)) for name in TABLES}
        description |= {"id": manifest_id(description), "extras": []}
        _write_json(staged / DESCRIPTION, description)
        write_card(staged / CARD, ready, description)
        if extra is not None:
            own = {path.name for path in staged.iterdir()}
            extra(staged)
            description["extras"] = sorted({path.name for path in staged.iterdir()} - own)
            _write_json(staged / DESCRIPTION, description)
    return str(description["id"])


def add_extra(folder: Path, name: str) -> None:
    """Note that something was added beside the tables, so that it counts as part of the folder; the id stays."""
    description = read_json(folder / DESCRIPTION)
    if name not in description["extras"]:
        description["extras"] = sorted([*description["extras"], name])
        write_json(folder / DESCRIPTION, description)


def manifest_id(manifest: Mapping[str, Any]) -> str:
    """Return the id that a manifest's contents give."""
    hashed = {key: value for key, value in manifest.items() if key not in UNHASHED}
    return hashlib.sha256(_canonical(hashed).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _checked_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    if lacking := [key for key in _REQUIRED if key not in manifest]:
        raise FormatError(f"The manifest of a feature dictionary lacks {lacking[0]!r}; give all of {list(_REQUIRED)}.")
    sha256 = manifest["sae"].get("sha256")
    if not (isinstance(sha256, str) and len(sha256) == 64):
        raise FormatError(f"The manifest's sae.sha256 is {sha256!r}; give the 64 digits that sae.json says.")
    try:
        # Through JSON and back: tuples become lists before they are hashed, as they will be when they are read.
        plain: dict[str, Any] = json.loads(_canonical(dict(manifest)))
    except (TypeError, ValueError) as error:
        raise FormatError(f"The manifest of a feature dictionary is not plain JSON: {error}.") from error
    return {"kind": KIND, **plain, "schema_version": SCHEMA_VERSION}


def _checked_table(name: str, tables: Mapping[str, pa.Table]) -> pa.Table:
    """Return a table as the schema has it, sorted, in one chunk: then equal rows give equal bytes."""
    if name not in tables:
        raise FormatError(f"The table {name!r} is missing; a feature dictionary has {list(TABLES)}.")
    table, schema = tables[name], TABLES[name]
    if wrong := sorted(set(table.column_names) ^ set(schema.names)):
        what = "lacks" if wrong[0] in schema.names else "has an unknown column"
        raise FormatError(
            f"The table {name!r} {what} {wrong[0]!r}; its columns are those of lightsae.analysis.dictionary.schema."
        )
    try:
        table = table.select(schema.names).cast(schema).replace_schema_metadata(None)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FormatError(f"The table {name!r} does not fit its schema: {error}") from error
    key = table[KEYS[name]]
    if key.null_count:
        raise FormatError(f"The table {name!r} has rows without {KEYS[name]!r}.")
    order = pa.array(key.to_numpy().argsort(kind="stable"))
    return table.take(order).combine_chunks()


def _check_references(tables: Mapping[str, pa.Table]) -> None:
    """Refuse rows that belong to no feature, and windows whose lists disagree."""
    known = tables["features"]["feature"].combine_chunks()
    if len(known) != len(known.unique()):
        raise FormatError("The table 'features' has two rows of the same feature.")
    for name, column in (*KEYS.items(), ("edges", "target")):
        unknown = pc.filter(tables[name][column], pc.invert(pc.is_in(tables[name][column], known)))
        if len(unknown):
            raise FormatError(f"The table {name!r} has {column} {unknown[0].as_py()}, which 'features' does not have.")
    contexts = tables["contexts"]
    lengths = [pc.list_value_length(contexts[column]) for column in ("tokens", "texts", "values")]
    fits = pc.and_(pc.equal(lengths[0], lengths[1]), pc.equal(lengths[0], lengths[2]))
    fits = pc.and_(fits, pc.and_(pc.greater_equal(contexts["peak"], 0), pc.less(contexts["peak"], lengths[0])))
    if pc.sum(pc.fill_null(fits, False)).as_py() not in (None, len(contexts)):
        raise FormatError("The table 'contexts' has windows whose tokens, texts, values and peak disagree.")


def _check_replaceable(folder: str | Path) -> None:
    """Refuse to replace anything but an earlier dictionary with what was written along with it."""
    names = {path.name for path in entries(folder, "to write the feature dictionary to")}
    own: set[str] = set()
    with suppress(OSError, ValueError, TypeError, KeyError):
        manifest = read_json((find_folder(folder) or Path(folder)) / DESCRIPTION)
        if manifest["kind"] == KIND:
            own = {DESCRIPTION, CARD, *map(file_of, TABLES), *manifest["extras"]}
    if not (foreign := sorted(names - own)):
        return
    if not own:
        raise FormatError(
            f"{str(folder)!r} already holds something else ({foreign[0]!r}); name a folder for the feature dictionary "
            "alone."
        )
    raise FormatError(
        f"{str(folder)!r} holds {foreign[0]!r}, which is not part of the feature dictionary there and would be "
        "deleted; move it away, or name another folder."
    )
