"""What is checked before a run: hardware, and the folder that it writes into."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightsae.cli.training import preflight
from lightsae.errors import ConfigError


def space(free: int) -> Any:
    return lambda path: SimpleNamespace(free=free)


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", space(free=1_500_000))
    with pytest.raises(ConfigError, match=r"1\.5 MB free.*need 2\.0 MB"):
        preflight._check_folder(tmp_path / "runs" / "version_0", 2_000_000)
    preflight._check_folder(tmp_path / "runs" / "version_0", 1_000_000)
    assert list(tmp_path.iterdir()) == []


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere, so that the system cannot be asked to refuse.
    asked = []
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: asked.append(path) or False)
    with pytest.raises(ConfigError, match=f"no permission to write in {tmp_path}"):
        preflight._check_folder(tmp_path / "runs", 1)
    assert asked == [tmp_path]


def test_a_file_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        preflight._check_folder(tmp_path / "file" / "runs", 1)


@pytest.mark.parametrize(
    ("built_with", "why"), [(None, "built without CUDA"), ("13.0", "no CUDA device here that PyTorch can use")]
)
def test_cuda_that_is_not_there(built_with: str | None, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_with)
    with pytest.raises(ConfigError, match=why):
        preflight._check_accelerator("cuda")


def test_accelerators_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(preflight.CUDAAccelerator, "is_available", staticmethod(lambda: True))
    for name in ("cpu", "auto", "cuda", "gpu"):
        preflight._check_accelerator(name)
