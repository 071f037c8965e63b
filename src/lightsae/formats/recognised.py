"""What a path is, of everything that opens as an SAE: our own files, and each layout of others."""

from pathlib import Path

from lightsae.errors import FormatError
from lightsae.formats.checkpoint import SUFFIX, checkpoint_and_name
from lightsae.formats.files import find_folder
from lightsae.formats.layouts import LAYOUTS, verdicts
from lightsae.formats.native import DESCRIPTION
from lightsae.formats.runs import sae_in_run

EXPORT, RUN, CHECKPOINT = "lightsae export", "lightsae run", "lightsae checkpoint"


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
