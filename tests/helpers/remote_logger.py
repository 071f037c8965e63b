"""A logger that sends what it is told somewhere else, as W&B and MLflow do: it has no folder for a run."""

from typing import Any

from lightning.pytorch.loggers import Logger


class RemoteLogger(Logger):
    """Keeps the last settings it was told; `save_dir` is where such a logger would put files of its own."""

    told: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, save_dir: str | None = None) -> None:
        super().__init__()
        self._save_dir = save_dir

    @property
    def name(self) -> str:
        return "project"

    @property
    def version(self) -> str:
        return "x7f3"

    @property
    def save_dir(self) -> str | None:
        return self._save_dir

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        RemoteLogger.told = dict(params)


class RefusingLogger(RemoteLogger):
    """One whose server can't be reached."""

    def __init__(self) -> None:
        raise RuntimeError("the server is closed")
