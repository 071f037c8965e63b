"""How a run ends that cannot go on: nothing half-made is left behind, and the user learns what is kept."""

import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightsae.callbacks import Interrupted, RunCheckpoint
from lightsae.callbacks.base import run_folder
from lightsae.cli.training.processes import LOST, is_lost, speaks
from lightsae.compat import unknown_monitor
from lightsae.errors import ConfigError, LightsaeError, did_you_mean
from lightsae.formats.files import explain_os_errors, shown

# What jsonargparse says of the types that a value is none of.
_OTHER_KINDS = ("Not a valid subclass", "Expected a")


@contextmanager
def explain_trainer() -> Iterator[None]:
    """Turn what Lightning says of a setting of the Trainer that it cannot use into a ConfigError of one line."""
    try:
        yield
    except LightsaeError:
        raise
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"trainer: {_line(error)}") from error


@contextmanager
def explain_classes(sections: Mapping[str, type]) -> Iterator[None]:
    """Raise what a class had against its settings, where jsonargparse raises a list of all that it tried.

    Args:
        sections: The callbacks whose settings have a section of their own, by the section's name. Others are written
            by their class's name.

    Raises:
        LightsaeError: A class refused a setting.
    """
    names = {kind.__name__: name for name, kind in sections.items()}
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, LightsaeError | MisconfigurationException):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            # Of a list (of loggers), jsonargparse keeps the text of what a class raised, and not the error.
            said = str(error).partition("\nErrors:\n")[2].partition("\nGiven value")[0].removeprefix("  - ")
            refused = [one for one in said.split("\n  - ") if one and not one.startswith(_OTHER_KINDS)]
            if not refused:
                raise
            raise ConfigError(f"trainer: {_line(ValueError(refused[0]))}") from error
        if not isinstance(cause, LightsaeError):
            raise ConfigError(_line(cause)) from error
        cause.rename(lambda section, argument: (names.get(section, section), argument))
        raise cause from None


@contextmanager
def tidy_end(trainer: Trainer, parent: int = 0, options: str = "") -> Iterator[None]:
    """Run a command; if a mistake of the user ends it, add what is kept, and remove a folder with nothing in it.

    Args:
        trainer: Of the run.
        parent: The process that started this one.
        options: What has to be typed again to go on; see `to_type_again`.

    Raises:
        LightsaeError: What ended the run, with the step and the checkpoint that is kept.
        Interrupted: Ctrl-C or SIGTERM ended it.
    """
    folder = run_folder(trainer)
    is_new = not folder.exists()
    try:
        try:
            yield
        except RuntimeError as error:
            if (metric := unknown_monitor(error)) is not None:
                near = did_you_mean(metric, trainer.callback_metrics)
                raise ConfigError(
                    f"trainer.callbacks: EarlyStopping has the monitor {metric!r}, which this run does not log.{near}"
                ) from error
            if not is_lost(trainer, error):
                raise
            if not speaks(trainer, parent):
                raise SystemExit(2) from None
            raise LightsaeError(LOST) from error
        except OSError:
            # A failure to write that nobody nearer has explained.
            with explain_os_errors(folder):
                raise
    except (SystemExit, KeyboardInterrupt) as end:
        # Lightning ends the process with 1 after a signal, whatever it was.
        interruption = end.__context__ if isinstance(end, SystemExit) else end
        if not isinstance(interruption, KeyboardInterrupt):
            raise
        if not trainer.is_global_zero:
            raise SystemExit(0) from None
        stop = Interrupted(getattr(interruption, "signal_number", signal.SIGINT))
        if _last(trainer, folder).is_file():
            stop.add_note(f"lightsae fit --config {shown(folder / 'config.yaml')} --ckpt_path last{options}")
        raise stop from None
    except (LightsaeError, MisconfigurationException) as error:
        mistake = error if isinstance(error, LightsaeError) else ConfigError(_line(error))
        if trainer.global_step > 0:
            last = _last(trainer, folder)
            what = f"; {shown(last)} is kept." if last.is_file() else "; no checkpoint is kept."
            mistake.args = (f"{mistake.args[0]} Stopped after step {trainer.global_step}{what}",)
        elif is_new and trainer.is_global_zero:
            _remove_run(trainer, folder)
        raise mistake from error.__cause__


def _last(trainer: Trainer, folder: Path) -> Path:
    """Return where the run's checkpoint is, or would be. Only rank 0 knows its folder before the processes have met."""
    of_run = (callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, RunCheckpoint))
    return Path(next(of_run, None) or folder / "checkpoints") / "last.ckpt"


def _remove_run(trainer: Trainer, folder: Path) -> None:
    """Remove the folder of a run that has trained nothing, and those above it that are empty now."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.close()
    shutil.rmtree(folder, ignore_errors=True)
    root = Path(trainer.default_root_dir).absolute()
    if root == folder.absolute():
        root = root.parent.parent
    for above in folder.absolute().parents:
        if above == root or not above.is_relative_to(root) or not above.is_dir() or any(above.iterdir()):
            break
        above.rmdir()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
