"""What a path is, of everything that opens as an SAE: our own files, and each layout of others."""

from pathlib import Path

from lightsae.errors import FormatError, listed
from lightsae.formats.checkpoint import SUFFIX, checkpoint_and_name
from lightsae.formats.files import find_folder
from lightsae.formats.layouts import LAYOUTS, verdicts
from lightsae.formats.native import DESCRIPTION

EXPORT, RUN, CHECKPOINT = "lightsae export", "lightsae run", "lightsae checkpoint"
# SAEs that a message names.
_NAMED = 12


def recognise(path: str | Path) -> dict[str, str | None]:
    """Return, by the names that people have for them, why a path that exists is not of a kind; None where it is.

    Our own kinds come first, and win: a run's folder stands for the SAE in it.
    """
    there = find_folder(path)
    is_export = there is not None and (there / DESCRIPTION).is_file()
    own = {
        EXPORT: None if is_export else f"it has no {DESCRIPTION}",
        RUN: None if _is_run(path) else "it is no run's folder with an SAE in it",
        CHECKPOINT: None if checkpoint_and_name(path) else f"it is no {SUFFIX} file",
    }
    return own | {LAYOUTS[name].label: problem for name, problem in verdicts(Path(path)).items()}


def _is_run(path: str | Path) -> bool:
    try:
        return sae_in_run(path) is not None
    except FormatError:
        # With several SAEs.
        return True


def sae_in_run(path: str | Path) -> Path | None:
    """Return where the SAE of a run lies: its export, or its last checkpoint where there is none.

    Args:
        path: A folder as the user wrote it: with `checkpoints/` or config.yaml, as `lightsae fit` makes it.

    Returns:
        A path that begins with `path`; None if that is no run's folder.

    Raises:
        FormatError: The run trained several.
    """
    there = find_folder(path)
    if there is None or (there / DESCRIPTION).is_file():
        return None
    if not (there / "checkpoints").is_dir() and not (there / "config.yaml").is_file():
        return None
    exports = find_folder(there / "sae")
    if exports is None:
        last = Path("checkpoints", "last.ckpt")
        return Path(path) / last if (there / last).is_file() else None
    if (exports / DESCRIPTION).is_file():
        return Path(path, "sae")
    names = sorted(one.parent.name for one in exports.glob(f"*/{DESCRIPTION}"))
    if len(names) > 1:
        exports_named = listed([repr(str(Path(path, "sae", name))) for name in names], _NAMED)
        raise FormatError(f"{str(path)!r} is a run with {len(names)} SAEs; name one of them: {exports_named}.")
    return Path(path, "sae", names[0]) if names else None
