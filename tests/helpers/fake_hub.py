"""A repository of the Hub on disk, behind the functions of huggingface_hub that reading and pushing use."""

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


class HfHubHTTPError(Exception):
    """Likewise; of a server that says no."""

    response = SimpleNamespace(status_code=403)


@dataclass
class FakeHub:
    """Repositories below `root`, by their names; fetched into `cache` as the library does.

    Attributes:
        offline: Whether nothing is reached, as with HF_HUB_OFFLINE.
        fetched: Files that were downloaded, in order.
        asked: Revisions that were asked for.
        of_others: Owners whose repositories can't be written.
        private: Whether each repository that was made is private.
        commits: How often files were added.
    """

    root: Path
    cache: Path
    offline: bool = False
    fetched: list[str] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    of_others: tuple[str, ...] = ("others",)
    private: dict[str, bool] = field(default_factory=dict)
    commits: int = 0

    def repository(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def model_info(self, repository: str, *, revision: str | None = None) -> Any:
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
        for one in self.model_info(repository, revision=revision).siblings:
            if any(fnmatch.fnmatch(one.rfilename, pattern) for pattern in allow_patterns):
                target = snapshot / one.rfilename
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.root / repository / one.rfilename, target)
                self.fetched.append(one.rfilename)
        return str(snapshot)

    def create_repo(self, repository: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        if self.offline:
            raise OfflineModeIsEnabled("Cannot reach the Hub: offline mode is enabled.\nTo disable it, unset it.")
        if repository.partition("/")[0] in self.of_others:
            raise HfHubHTTPError("403 Forbidden")
        assert (repo_type, exist_ok) == ("model", True)
        self.private[repository] = private
        self.repository(repository)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        assert commit_message
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        self.commits += 1
        return SimpleNamespace(oid=COMMIT)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake.snapshot_download)
    return fake
