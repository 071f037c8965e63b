"""One version: a feature dictionary, its SAE and what was measured of them, in one folder that its id pins down.

    versions/ID/dictionary/     the feature dictionary, with its dashboard
    versions/ID/sae/            sae.json and sae.safetensors
    versions/ID/evidence/       validation.json, panel.json, drift.json, if they were given
    versions/ID/version.json    what it is of, and the SHA-256 of each file

The id is the SHA-256 of what version.json says: the same contents have the same id, new evidence makes a new version.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.dictionary.schema import TABLES, file_of
from lightsae.analysis.dictionary.writer import CARD
from lightsae.analysis.dictionary.writer import DESCRIPTION as DICTIONARY
from lightsae.errors import FormatError
from lightsae.formats.files import find_folder, hash_file, locate
from lightsae.formats.native import DESCRIPTION, TENSORS
from lightsae.parsing import read_json

VERSIONS, MANIFEST = "versions", "version.json"
KIND, FORMAT_VERSION = "lightsae registry version", 1
EVIDENCE = ("validation", "panel", "drift")
# Digits of an id that are printed.
SHORT = 12


def sources_of(dictionary: FeatureDictionary, sae: str | Path, evidence: Mapping[str, Path]) -> dict[str, Path]:
    """Return the files that make a version: where each will be in its folder, and where it is now.

    Other files that lie in the dictionary's folder are not part of it.

    Raises:
        FormatError: A file of either folder is a link: what it points to is not what was sent.
    """
    own = [DICTIONARY, CARD, *map(file_of, TABLES), *dictionary.manifest.get("extras", [])]
    found = {path.relative_to(dictionary.folder): path for path in dictionary.folder.rglob("*")}
    found = {name: path for name, path in found.items() if name.parts[0] in own}
    folder = locate(sae, DESCRIPTION)
    parts = [folder / name for name in (DESCRIPTION, TENSORS)]
    if links := [path for path in (*found.values(), *parts) if path.is_symlink()]:
        raise FormatError(
            f"{str(links[0])!r} is a link, and only files are published; copy the folder with what its links point to "
            "(cp -rL)."
        )
    files = {f"dictionary/{name.as_posix()}": path for name, path in found.items() if path.is_file()}
    files |= {f"sae/{path.name}": path for path in parts}
    return files | {f"evidence/{name}.json": evidence[name] for name in EVIDENCE if name in evidence}


def describe(dictionary: FeatureDictionary, sources: Mapping[str, Path]) -> dict[str, Any]:
    """Return what version.json says."""
    sae = dictionary.manifest["sae"]
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "dictionary": dictionary.id,
        "sae": sae["sha256"],
        "variant": sae.get("variant"),
        "read": sae.get("read", []),
        "predicted": sae.get("predicted", []),
        "model": dictionary.manifest["model"],
        "files": {name: hash_file(path) for name, path in sorted(sources.items())},
    }


def version_id(manifest: Mapping[str, Any]) -> str:
    """Return the id that a manifest's contents give."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def copy_version(sources: Mapping[str, Path], manifest: Mapping[str, Any], staged: Path) -> None:
    """Fill an empty folder with a version.

    Raises:
        FormatError: A file was changed meanwhile.
    """
    for name, path in sources.items():
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if hash_file(target) != manifest["files"][name]:
            raise FormatError(f"{str(path)!r} was changed while it was published; publish again.")
    (staged / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def folder_of(where: Path, version: str) -> Path:
    """Return the folder of a version, wherever a replacement that was killed has left it."""
    path = where / VERSIONS / version
    return find_folder(path) or path


def problems_of(where: Path, version: str) -> list[str]:
    """Rehash all files of a version; return what differs from what it was published as."""
    folder = folder_of(where, version)
    try:
        manifest = read_manifest(folder)
    except FormatError as error:
        return [str(error)]
    if (contents := version_id(manifest)) != version:
        return [f"{MANIFEST} was changed: its contents give the id {contents[:SHORT]}, not {version[:SHORT]}"]
    present = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    problems, published = [], manifest["files"]
    for name, sha256 in published.items():
        if name not in present:
            problems.append(f"{name} is missing")
        elif (now := hash_file(present[name])) != sha256:
            problems.append(
                f"{name} was changed: its SHA-256 starts with {now[:SHORT]}, but {MANIFEST} says {sha256[:SHORT]}"
            )
    return problems + [f"{name} was added" for name in present if name not in (MANIFEST, *published)]


def check_intact(where: Path, version: str, registry: str) -> dict[str, Any]:
    """Return the manifest of a version that is as it was published.

    Raises:
        FormatError: It was changed or damaged.
    """
    if problems := problems_of(where, version):
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise FormatError(
            f"Version {version[:SHORT]} of {registry!r} is not what was published: {problems[0]}{more}. Publish it "
            "again from its sources to restore it, or choose another version."
        )
    return read_manifest(folder_of(where, version))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read version.json; its hash is not compared.

    Raises:
        FormatError: It is missing, or no manifest.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except OSError as error:
        raise FormatError(f"{MANIFEST} is missing") from error
    except ValueError as error:
        raise FormatError(f"{MANIFEST} is not valid JSON ({error})") from error
    kinds = {"files": dict, "dictionary": str, "sae": str, "model": dict, "read": list, "predicted": list}
    whole = isinstance(manifest, dict) and all(isinstance(manifest.get(key), kind) for key, kind in kinds.items())
    if not whole or manifest.get("kind") != KIND or not all(isinstance(h, str) for h in manifest["files"].values()):
        raise FormatError(f"{MANIFEST} does not describe a version")
    return dict(manifest)
