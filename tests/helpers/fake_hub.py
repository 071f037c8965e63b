"""A repository of the Hub on disk, behind the two functions of huggingface_hub that reading uses."""

import fnmatch
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class OfflineModeIsEnabled(ConnectionError):
    """Named as the library's, by which it is known."""


class RepositoryNotFoundError(Exception):
    """Likewise."""


@dataclass
class FakeHub:
    """Repositories below `root`, by their names; fetched into `cache` as the library does.

    Attributes:
        offline: Whether nothing is reached, as with HF_HUB_OFFLINE.
        fetched: Files that were downloaded, in order.
        asked: Revisions that were asked for.
    """

    root: Path
    cache: Path
    offline: bool = False
    fetched: list[str] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)

    def repository(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def repo_info(self, repository: str, *, revision: str | None = None) -> Any:
        if self.offline:
            raise OfflineModeIsEnabled("Cannot reach the Hub: offline mode is enabled.\nTo disable it, unset it.")
        self.asked.append(revision)
        folder = self.root / repository
        if not folder.is_dir():
            raise RepositoryNotFoundError("404 Client Error")
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(
        self,
        repository: str,
        *,
        revision: str | None = None,
        allow_patterns: list[str],
        local_files_only: bool = False,
    ) -> str:
        snapshot = self.cache / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
        if local_files_only:
            if not snapshot.is_dir():
                raise FileNotFoundError("no snapshot")
            return str(snapshot)
        for one in self.repo_info(repository, revision=revision).siblings:
            if any(fnmatch.fnmatch(one.rfilename, pattern) for pattern in allow_patterns):
                target = snapshot / one.rfilename
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.root / repository / one.rfilename, target)
                self.fetched.append(one.rfilename)
        return str(snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake.snapshot_download)
    return fake
