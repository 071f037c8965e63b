"""How a run ends that cannot go on."""

import errno
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightsae.callbacks import ExportSAE
from lightsae.cli.training.failures import explain_classes, explain_trainer, tidy_end
from lightsae.errors import ActivationError, ConfigError


def trainer(root: Path, step: int = 0) -> Any:
    run = root / "lightning_logs" / "version_0"
    made = MagicMock(spec=Trainer)
    made.configure_mock(log_dir=str(run), default_root_dir=str(root), global_step=step, is_global_zero=True)
    made.configure_mock(loggers=[TensorBoardLogger(root, version=0)], checkpoint_callbacks=[], world_size=1)
    made.configure_mock(**{"strategy.broadcast": lambda value: value})
    return made


def fail(a: Any, error: Exception, checkpoint: bool = False) -> None:
    """Fail in a run that has begun its folder."""
    with tidy_end(a):
        start(Path(a.log_dir), checkpoint)
        raise error


def start(run: Path, checkpoint: bool = False) -> None:
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").touch()
    if checkpoint:
        (run / "checkpoints" / "last.ckpt").touch()


def test_a_run_that_trained_nothing_leaves_nothing(tmp_path: Path) -> None:
    a = trainer(tmp_path)
    with pytest.raises(ActivationError, match=r"^bad$"):
        fail(a, ActivationError("bad"))
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    a = trainer(tmp_path)
    start(Path(a.log_dir), checkpoint=True)
    with pytest.raises(ActivationError), tidy_end(a):
        raise ActivationError("bad")
    assert (Path(a.log_dir) / "checkpoints" / "last.ckpt").is_file()


def test_other_runs_stay(tmp_path: Path) -> None:
    other = tmp_path / "lightning_logs" / "version_7"
    start(other)
    a = trainer(tmp_path)
    with pytest.raises(ConfigError):
        fail(a, ConfigError("bad"))
    assert list((tmp_path / "lightning_logs").iterdir()) == [other]


@pytest.mark.parametrize(("checkpoint", "says"), [(True, "last.ckpt is kept"), (False, "; no checkpoint is kept")])
def test_a_run_that_trained_says_what_is_kept(checkpoint: bool, says: str, tmp_path: Path) -> None:
    a = trainer(tmp_path, step=7)
    with pytest.raises(ActivationError, match=f"bad. Stopped after step 7.*{says}"):
        fail(a, ActivationError("bad."), checkpoint)
    assert (Path(a.log_dir) / "config.yaml").is_file()


def test_a_full_disk_is_explained_and_a_bug_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no space is left"), tidy_end(trainer(tmp_path)):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), tidy_end(trainer(tmp_path)):
        raise FileNotFoundError(errno.ENOENT, "a bug")
    with pytest.raises(ZeroDivisionError), tidy_end(trainer(tmp_path)):
        _ = 1 / 0


def test_lightning_is_quoted_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^trainer: two lines$"), explain_trainer():
        raise MisconfigurationException("two\n   lines")
    with pytest.raises(ConfigError, match=r"^two lines$"), tidy_end(trainer(tmp_path)):
        raise MisconfigurationException("two\n   lines")


def test_classes_are_named_as_they_are_typed() -> None:
    with pytest.raises(ConfigError) as refused, explain_classes({"export": ExportSAE}):
        ExportSAE(checkpoints=-1)
    assert refused.value.as_typed().startswith("export.checkpoints is -1")
    with pytest.raises(ConfigError) as refused, explain_classes({}):
        ExportSAE(checkpoints=-1)
    assert refused.value.as_typed().startswith("ExportSAE.checkpoints is -1")
    wrapped = ValueError("Does not validate against any of the Union subtypes ...")
    wrapped.__context__ = MisconfigurationException("inner")
    with pytest.raises(ConfigError, match=r"^inner$"), explain_classes({}):
        raise wrapped
    with pytest.raises(ValueError, match=r"^a bug$"), explain_classes({}):
        raise ValueError("a bug")
