"""SAEs on the Hugging Face Hub: hf://OWNER/NAME@REVISION/PATH, or RELEASE/ID of the list of releases.

The files of one SAE are fetched into the Hub's cache, and opened there like any others. Which files they are follows
from the repository's listing: one file of weights, and the small descriptions beside it and in the folder above.
"""

import fnmatch
import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lightsae.errors import FormatError, did_you_mean, listed
from lightsae.formats.files import find_folder
from lightsae.formats.layouts import LAYOUTS, Source
from lightsae.formats.releases import Release, find

_ADDRESS = re.compile(r"([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
_DESCRIPTIONS = (".json", ".yaml")
_BY_L0 = re.compile(r"average_l0_(\d+)")
# Gemma Scope's own canonical SAEs are those with an L0 nearest to it.
_USUAL_L0 = 100
# SAEs or files that a message names.
_NAMED = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """Files of an SAE in the Hub's cache.

    Attributes:
        path: The folder or file.
        address: hf:// with the commit.
        release: Where it was asked for by the list of releases.
    """

    path: Path
    address: str
    release: Release | None = None

    def complete(self, source: Source) -> Source:
        """Return a source with the address, and with what the list knows where the files say nothing."""
        told = source if self.release is None else self.release.complete(source, self.address.partition("@")[2])
        return replace(told, address=self.address)


def fetch(address: str | Path) -> Fetched | None:
    """Fetch what an address of the Hub stands for.

    Args:
        address: As the user wrote it.

    Returns:
        None where it is no such address, or a file or folder of that name exists.

    Raises:
        FormatError: The Hub cannot be reached, or has no such SAE.
    """
    written = str(address)
    if find_folder(written) is not None or Path(written).exists():
        return None
    # A Path has one slash left of two.
    if found := re.match("hf:/{1,2}", written):
        parts = _ADDRESS.fullmatch(written[found.end() :])
        if parts is None or ".." in PurePosixPath(parts[3] or "").parts:
            raise FormatError(f"{written!r} is no address of the Hub; write hf://OWNER/NAME@REVISION/PATH.")
        return _fetched(written, parts[1], parts[2], (parts[3] or "").strip("/"), None)
    if (of_list := find(written)) is not None:
        release, path = of_list
        return _fetched(written, release.repository, None, path, release)
    return None


def choose(names: Sequence[str], path: str, written: str) -> tuple[str, list[str]]:
    """Return which files of a repository make an SAE.

    Args:
        names: All files.
        path: A file or folder of it; "" is the repository.
        written: The address as the user wrote it, for messages.

    Returns:
        The path, or the one below it that was chosen; and the files.

    Raises:
        FormatError: There is none, or there are several.
    """
    if path in names:
        return path, [path, *_beside(names, path)]
    inside = {name.removeprefix(f"{path}/") if path else name: name for name in names if _is_in(name, path)}
    if not inside:
        known = {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."}
        raise FormatError(f"{written!r}: the repository has no {path!r}.{did_you_mean(path, known)}")
    weights = _weights(list(inside))
    if len(weights) == 1:
        file = inside[weights[0]]
        settings = f"{path}/-" if path else "-"
        return path, [file, *_beside(names, settings)]
    if weights:
        raise FormatError(f"{written!r} holds {len(weights)} SAEs: {listed(weights, _NAMED)}; name one.")
    folders = sorted({name.partition("/")[0] for name in inside if "/" in name})
    by_l0 = {int(found[1]): name for name in folders if (found := _BY_L0.fullmatch(name))}
    if by_l0:
        nearest = by_l0[min(by_l0, key=lambda l0: (abs(l0 - _USUAL_L0), l0))]
        if len(by_l0) > 1:
            logger.warning(
                "%s has %s; %s is taken, the nearest to %d, as in Gemma Scope's own choice.",
                written,
                ", ".join(by_l0[l0] for l0 in sorted(by_l0)),
                nearest,
                _USUAL_L0,
            )
        return choose(names, f"{path}/{nearest}" if path else nearest, written)
    with_weights = {name.partition("/")[0] for name in inside if "/" in name and name.endswith(_SUFFIXES)}
    if len(with_weights) == 1:
        (only,) = with_weights
        return choose(names, f"{path}/{only}" if path else only, written)
    raise FormatError(f"{written!r} holds no file of an SAE; it has {listed(folders or sorted(inside), _NAMED)}.")


def _is_in(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _weights(names: Sequence[str]) -> list[str]:
    """Return the files of weights: those that layouts name, or else any."""
    patterns = {pattern for layout in LAYOUTS.values() for pattern in layout.weights}
    known = [
        name
        for name in names
        if any(name.count("/") == one.count("/") and fnmatch.fnmatchcase(name, one) for one in patterns)
    ]
    return sorted(known or [name for name in names if "/" not in name and name.endswith(_SUFFIXES)])


def _beside(names: Sequence[str], file: str) -> list[str]:
    """Return the descriptions in a file's folder and in the one above."""
    parent = PurePosixPath(file).parent
    folders = {parent, parent.parent}
    return [name for name in names if PurePosixPath(name).parent in folders and name.endswith(_DESCRIPTIONS)]


def _fetched(written: str, repository: str, revision: str | None, path: str, release: Release | None) -> Fetched:
    # Here: a network library, which takes a while to import.
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision)
    except Exception as error:
        snapshot = _cached(repository, revision)
        if snapshot is None:
            raise FormatError(f"{written!r} cannot be fetched: {_reason(error, repository, revision)}") from error
        names = [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()]
        chosen, _ = choose(names, path, written)
    else:
        chosen, needed = choose([one.rfilename for one in info.siblings or ()], path, written)
        try:
            patterns = [glob.escape(name) for name in needed]
            snapshot = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
        except Exception as error:
            raise FormatError(f"{written!r} cannot be fetched: {_reason(error, repository, revision)}") from error
    # A snapshot's folder is named by its commit.
    address = f"hf://{repository}@{snapshot.name}" + (f"/{chosen}" if chosen else "")
    return Fetched(snapshot / chosen, address, release)


def _cached(repository: str, revision: str | None) -> Path | None:
    """Return the snapshot of earlier downloads, which may hold a part of the files; None: there is none."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[])
        )
    except Exception:  # whatever a version of the library raises where the cache has nothing
        return None


def failure_of(error: Exception) -> tuple[set[str], int | None, str]:
    """Return what is known of an error of the Hub: names of its classes, the answer's status, and its first line."""
    # Names and not classes: versions of the library have them in different modules.
    names = {kind.__name__ for kind in type(error).__mro__}
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return names, getattr(getattr(error, "response", None), "status_code", None), lines[0]


def _reason(error: Exception, repository: str, revision: str | None) -> str:
    """Say in one line why the Hub gave nothing."""
    names, status, line = failure_of(error)
    if "OfflineModeIsEnabled" in names:
        return f"HF_HUB_OFFLINE is set, and the Hub's cache has no files of {repository!r}."
    if "RevisionNotFoundError" in names:
        return f"{repository!r} has no revision {revision!r}."
    if "GatedRepoError" in names or status == 403:
        return f"{repository!r} is gated; accept its licence on its page, and log in with: hf auth login"
    if "RepositoryNotFoundError" in names or status in (401, 404):
        return f"the Hub has no repository {repository!r} that you may read; a private one needs: hf auth login"
    return f"the Hub cannot be reached, or refused: {line}"
