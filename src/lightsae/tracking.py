"""ClearML: the scalars and settings of a training, the figures of an evaluation, reports and dictionaries as artefacts.

Only what lightsae tells is sent: no source code, console, machine load or arguments, which ClearML takes by default.
"""

import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightsae.errors import ConfigError

# What ClearML patches in other packages unless it is told not to; with an empty dict it would look for a repository.
_PATCHES: tuple[str, ...] = (
    *("hydra", "scikit", "joblib", "matplotlib", "tensorflow", "tensorboard", "tfdefines", "pytorch", "megengine"),
    *("xgboost", "catboost", "fastai", "lightgbm", "gradio", "detect_repository"),
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_OF_A_RUN = ("config.yaml", "sae", "training_curves.png", "validation.json", "sweep.json", "throughput.json")


def is_installed(package: str) -> bool:
    """Return whether a package can be imported; it is not imported."""
    return sys.modules[package] is not None if package in sys.modules else find_spec(package) is not None


def check_installed(argument: str) -> None:
    """Raise before any work is done where the package is missing.

    Raises:
        ConfigError: ClearML is not installed.
    """
    if not is_installed("clearml"):
        raise ConfigError(f"{argument} needs the package clearml; install it: pip install 'lightsae[clearml]'.")


def open_task(project: str, name: str, kind: str = "training", tags: Iterable[str] = ()) -> Any:
    """Begin a ClearML task; without credentials an offline one, a folder and a .zip to import later.

    Args:
        project: Of ClearML; made where there is none of the name.
        name: Of the task.
        kind: `training`, `testing` or another of ClearML's types.
        tags: Of the task.

    Raises:
        ConfigError: ClearML is not installed.
    """
    check_installed("A ClearML task")
    task_class: Any = import_module("clearml").Task
    # It would seed Python, NumPy and torch anew.
    task_class.set_random_seed(None)
    settings: dict[str, Any] = {
        "project_name": project,
        "task_name": name,
        "task_type": kind,
        "tags": list(tags),
        "reuse_last_task_id": False,
        "auto_connect_arg_parser": False,
        "auto_connect_frameworks": dict.fromkeys(_PATCHES, False),
        "auto_resource_monitoring": False,
        "auto_connect_streams": False,
    }
    with _own_handlers():
        try:
            return task_class.init(**settings)
        except ValueError as error:
            if type(error).__name__ != "MissingConfigError":
                raise
        task_class.set_offline(True)
        return task_class.init(**settings)


@contextmanager
def _own_handlers() -> Any:
    """Keep the signal handlers and the exception hook of this process: ClearML puts its own in their place."""
    hook = sys.excepthook
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        sys.excepthook = hook
        # Only the main thread can; in another ClearML could not, either.
        with suppress(ValueError):
            for number, handler in handlers.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def log_result(
    project: str,
    name: str,
    *,
    settings: Mapping[str, Any],
    figures: Mapping[str, float | None],
    artefacts: Mapping[str, Path],
) -> str:
    """Log a finished result as a task of its own; return where it is.

    Args:
        project: Of ClearML.
        name: Of the task.
        settings: What was set, as flat pairs.
        figures: By name; None are left out.
        artefacts: Files and folders (which are zipped) by name.

    Raises:
        ConfigError: ClearML is not installed.
    """
    task = open_task(project, name, "testing")
    task.connect(dict(settings), name="settings")
    logger = task.get_logger()
    for key, value in figures.items():
        if value is not None:
            logger.report_single_value(key, float(value))
    _upload(task, artefacts)
    return _close(task)


def _upload(task: Any, artefacts: Mapping[str, Path]) -> None:
    for name, path in artefacts.items():
        # A pickle is never made: a path is sent as the file, or as a .zip of the folder, that it names.
        task.upload_artifact(name, artifact_object=str(path), auto_pickle=False, wait_on_upload=True)


def _close(task: Any) -> str:
    """End a task; return where it is: a page, or the .zip of an offline session."""
    if task.is_offline():
        place = f"{task.get_offline_mode_folder()}.zip"
    else:
        place = str(task.get_output_log_web_page())
    task.close()
    return place


class ClearMLLogger(Logger):
    """Logs a run to ClearML: scalars, settings, config.yaml, and at its end what the run left, as artefacts.

    Without credentials (`clearml-init`) the task is an offline session, which `Task.import_offline_session` uploads
    later. `train/loss` and `val/loss` share a plot. A run that is resumed has a task of its own.

    Args:
        project: Of ClearML.
        task: Name of the task.
        tags: Of the task.

    Raises:
        ConfigError: ClearML is not installed.

    Example:
        trainer: {logger: [TensorBoardLogger, {class_path: ClearMLLogger, init_args: {project: lightsae}}]}
    """

    def __init__(self, project: str = "lightsae", task: str = "run", tags: list[str] | None = None) -> None:
        super().__init__()
        check_installed("ClearMLLogger")
        self._project, self._task_name, self._tags = project, task, list(tags or [])
        self._task: Any = None
        self.place: str | None = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str | None:
        return None if self._task is None else str(self._task.id)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ClearML task, begun at its first use."""
        if self._task is None:
            self._task = open_task(self._project, self._task_name, tags=self._tags)
        return self._task

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.experiment.connect(dict(params), name="settings")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        logger = self.experiment.get_logger()
        for key, value in metrics.items():
            series, _, title = key.rpartition("/")
            logger.report_scalar(title, series or title, float(value), iteration=step or 0)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        # After success the run's files are still to come: `log_run` ends the task.
        if status != "success" and self._task is not None:
            self.place = _close(self._task)
            self._task = None

    @rank_zero_only
    def log_run(self, folder: Path) -> None:
        """Upload what a run left in its folder, and end the task; `place` says where it is."""
        task = self.experiment
        config = folder / "config.yaml"
        if config.is_file():
            task.connect_configuration(str(config), name="config.yaml")
        _upload(task, {name: folder / name for name in _OF_A_RUN if (folder / name).exists()})
        self.place = _close(task)
        self._task = None
