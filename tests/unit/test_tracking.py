"""ClearML: what is told, offline without credentials, and what of this process stays as it was."""

import signal
import sys
from pathlib import Path

import pytest

from helpers.fake_clearml import FakeClearML
from lightsae.errors import ConfigError
from lightsae.tracking import ClearMLLogger, log_result


@pytest.fixture
def clearml(monkeypatch: pytest.MonkeyPatch) -> FakeClearML:
    fake = FakeClearML()
    monkeypatch.setitem(sys.modules, "clearml", fake)
    return fake


def test_a_run(clearml: FakeClearML, tmp_path: Path) -> None:
    logger = ClearMLLogger("demo", "first", ["small"])
    assert logger.version is None
    assert clearml.tasks == []
    logger.log_hyperparams({"model.lr": 0.1})
    logger.log_metrics({"train/loss": 0.5, "wide/val/fve": 0.25, "lr-Adam": 1.0}, 3)
    (task,) = clearml.tasks
    assert task.settings["project_name"] == "demo"
    assert task.settings["task_name"] == "first"
    assert task.settings["tags"] == ["small"]
    assert not any(
        value
        for key, value in task.settings.items()
        if key.startswith("auto") and value != {} and not isinstance(value, dict)
    )
    assert set(task.settings["auto_connect_frameworks"].values()) == {False}
    assert task.connected == {"settings": {"model.lr": 0.1}}
    # A plot a figure: its lines are those of training, of validation and of the SAEs.
    assert task.scalars == [("loss", "train", 0.5, 3), ("fve", "wide/val", 0.25, 3), ("lr-Adam", "lr-Adam", 1.0, 3)]
    logger.finalize("success")
    assert not task.closed, "the run's files are still to come"
    (tmp_path / "sae").mkdir()
    (tmp_path / "config.yaml").write_text("a: 1\n")
    logger.log_run(tmp_path)
    assert task.closed
    assert task.connected["config.yaml"] == "a: 1\n"
    assert task.artefacts == {name: str(tmp_path / name) for name in ("config.yaml", "sae")}
    assert logger.place == "cache/offline-t1.zip"


def test_a_run_that_fails_ends_its_task(clearml: FakeClearML) -> None:
    logger = ClearMLLogger("demo")
    logger.log_metrics({"train/loss": 0.5}, None)
    logger.finalize("failed")
    assert clearml.tasks[0].closed
    assert clearml.tasks[0].scalars[0][3] == 0


@pytest.mark.parametrize(
    ("credentials", "place"), [(False, "cache/offline-t1.zip"), (True, "https://clearml.example/t1")]
)
def test_a_result(clearml: FakeClearML, tmp_path: Path, credentials: bool, place: str) -> None:
    clearml.credentials = credentials
    (tmp_path / "e.json").touch()
    figures = {"fve": 0.5, "missing": None}
    said = log_result("demo", "x", settings={"tokens": 5}, figures=figures, artefacts={"report": tmp_path / "e.json"})
    assert said == place
    (task,) = clearml.tasks
    assert task.settings["task_type"] == "testing"
    assert (task.values, task.connected) == ({"fve": 0.5}, {"settings": {"tokens": 5}})
    assert task.artefacts == {"report": str(tmp_path / "e.json")}
    assert task.closed


def test_another_mistake_of_clearml_is_not_hidden(clearml: FakeClearML, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ValueError("no such type")

    monkeypatch.setattr(clearml, "init", refuse)
    with pytest.raises(ValueError, match="no such type"):
        log_result("demo", "x", settings={}, figures={}, artefacts={})


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clearml", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightsae\[clearml\]'"):
        ClearMLLogger()


@pytest.mark.filterwarnings("ignore")  # of ClearML's own parser
def test_the_real_package_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(tmp_path / "none.conf"))
    pytest.importorskip("clearml")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hook = sys.excepthook
    report = tmp_path / "report.md"
    report.write_text("a report\n")
    place = Path(log_result("demo", "x", settings={"a": 1}, figures={"fve": 0.5}, artefacts={"report": report}))
    assert place.is_file()
    stored = list(place.with_suffix("").rglob("report.md"))
    assert [path.read_text() for path in stored] == ["a report\n"]
    assert '"variant": "fve"' in (place.with_suffix("") / "metrics.jsonl").read_text()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert sys.excepthook is hook
