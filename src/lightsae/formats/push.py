"""An SAE with its model card, given to others: as a repository of the Hub, or as a folder.

Files are made in full, read again, and only then published: a folder is replaced as a whole, the Hub gets one commit.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lightsae.errors import ConfigError, arg
from lightsae.formats.convert import NATIVE, Conversion, check_replaces, convert
from lightsae.formats.files import entries, replace_folder_atomically
from lightsae.formats.hub import failure_of
from lightsae.formats.saved_sae import SavedSAE

CARD = "README.md"
# As the Hub takes names; a path that begins with a dot or a slash is none.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Pushed:
    """What was published.

    Attributes:
        address: Under which the SAE is opened: a folder, or hf://OWNER/NAME@COMMIT.
        conversion: What was written; see `lightsae.formats.convert`.
    """

    address: str
    conversion: Conversion


def repository_of(to: str) -> str | None:
    """Return the repository of the Hub that a target names; None: it is a folder.

    Args:
        to: hf://OWNER/NAME; OWNER/NAME, if there is no such folder and no folder OWNER; or a folder.

    Raises:
        ConfigError: It begins with hf:// and is no repository.

    >>> repository_of("hf://me/sae"), repository_of("./me/sae"), repository_of("sae")
    ('me/sae', None, None)
    """
    if to.startswith("hf:"):
        name = to.removeprefix("hf://")
        if not _REPOSITORY.fullmatch(name):
            raise ConfigError(f"{arg('to')} is {to!r}, which is no repository; write hf://OWNER/NAME.")
        return name
    local = Path(to).exists() or Path(to).parent.is_dir()
    return to if _REPOSITORY.fullmatch(to) and not local else None


def push(saved: SavedSAE, to: str, card: str, layout: str = NATIVE, private: bool = False) -> Pushed:
    """Publish an SAE.

    Args:
        saved: It.
        to: hf://OWNER/NAME, OWNER/NAME or a folder; see `repository_of`.
        card: README.md, with its metadata.
        layout: `native`, or another that is written; see `lightsae.formats.convert`.
        private: Make a new repository a private one.

    Raises:
        ConfigError: There is no such layout, the folder cannot be written, or the Hub refuses.
        FormatError: The layout has no form for the SAE, or the folder holds other files; nothing is written.
    """
    repository = repository_of(to)
    before = [] if repository else entries(to, "to push the SAE to")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sae"
        made = convert(saved, layout, folder)
        (folder / CARD).write_text(card, encoding="utf-8")
        if repository is not None:
            return Pushed(_upload(folder, repository, private), made)
        check_replaces(before, folder, to, "to")
        with replace_folder_atomically(to) as staged:
            shutil.copytree(folder, staged, dirs_exist_ok=True)
    return Pushed(to, made)


def _upload(folder: Path, repository: str, private: bool) -> str:
    """Add the files to a repository, which is made where it is missing, in one commit; return its address."""
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Add an SAE")
    except Exception as error:
        raise ConfigError(f"{arg('to')}: {_reason(error, repository)}") from error
    return f"hf://{repository}@{commit.oid}"


def _reason(error: Exception, repository: str) -> str:
    """Say in one line why the Hub took nothing."""
    names, status, line = failure_of(error)
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE is set, and the Hub cannot be reached; unset it, or name a folder."
    if "LocalTokenNotFoundError" in names or status in (401, 403, 404):
        return f"you may not write {repository!r}; log in with: hf auth login, with a token that can write."
    return f"the Hub cannot be reached, or refused: {line}"
