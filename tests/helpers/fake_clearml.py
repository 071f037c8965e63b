"""What `lightsae.tracking` uses of ClearML, remembered in place of being sent."""

from pathlib import Path
from types import ModuleType
from typing import Any


class MissingConfigError(ValueError):
    """As ClearML raises it without credentials."""


class FakeClearML(ModuleType):
    """The package. `tasks` are those that were begun.

    Args:
        credentials: Whether there are any; without, only offline tasks can begin.
    """

    def __init__(self, credentials: bool = False) -> None:
        super().__init__("clearml")
        self.credentials, self.offline, self.seed = credentials, False, 1337
        self.tasks: list[FakeTask] = []
        self.Task = self

    def set_random_seed(self, seed: int | None) -> None:
        self.seed = seed  # type: ignore[assignment]

    def set_offline(self, offline_mode: bool) -> None:
        self.offline = offline_mode

    def init(self, **settings: Any) -> "FakeTask":
        if not self.credentials and not self.offline:
            raise MissingConfigError("not configured")
        assert self.seed is None, "ClearML would seed everything anew"
        self.tasks.append(FakeTask(settings, self.offline))
        return self.tasks[-1]


class FakeTask:
    """A task, and its logger."""

    def __init__(self, settings: dict[str, Any], offline: bool) -> None:
        self.settings, self.offline, self.closed, self.id = settings, offline, False, "t1"
        self.scalars: list[tuple[str, str, float, int]] = []
        self.values: dict[str, float] = {}
        self.connected: dict[str, Any] = {}
        self.artefacts: dict[str, str] = {}

    def is_offline(self) -> bool:
        return self.offline

    def get_offline_mode_folder(self) -> Path:
        return Path("cache/offline-t1")

    def get_output_log_web_page(self) -> str:
        return "https://clearml.example/t1"

    def get_logger(self) -> "FakeTask":
        assert not self.closed
        return self

    def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
        self.scalars.append((title, series, value, iteration))

    def report_single_value(self, name: str, value: float) -> None:
        self.values[name] = value

    def connect(self, mutable: dict[str, Any], name: str) -> None:
        self.connected[name] = mutable

    def connect_configuration(self, path: str, name: str) -> None:
        self.connected[name] = Path(path).read_text()

    def upload_artifact(self, name: str, artifact_object: str, auto_pickle: bool, wait_on_upload: bool) -> None:
        assert not auto_pickle
        assert wait_on_upload
        assert Path(artifact_object).exists()
        self.artefacts[name] = artifact_object

    def close(self) -> None:
        self.closed = True
