from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from helpers.fake_versions import Parts
from lightsae.errors import ConfigError
from lightsae.production.registry import load_channel, promote, publish, rollback, verify
from lightsae.production.registry.hub_repository import changing, local_copy

HUB = "hub:org/features"


def _refused(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("refused", response=response)


@dataclass
class FakeHub:
    """One repository: its commits, each with all its files; and what was asked of it."""

    folder: Path
    commits: list[dict[str, bytes]] = field(default_factory=list)
    patterns: list[Any] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        assert (repository, private, exist_ok) == ("org/features", True, True)
        if not self.commits:
            self.commits.append({".gitattributes": b""})

    def repo_info(self, repository: str) -> SimpleNamespace:
        if not self.commits:
            raise _refused(404, RepositoryNotFoundError)
        return SimpleNamespace(sha=f"commit{len(self.commits)}")

    def create_commit(self, repository: str, operations: Any, *, commit_message: str, parent_commit: str) -> None:
        if parent_commit != self.repo_info(repository).sha:
            raise _refused(412)
        new = {operation.path_in_repo: Path(operation.path_or_fileobj).read_bytes() for operation in operations}
        self.commits.append(self.commits[-1] | new)
        self.messages.append(commit_message)

    def snapshot_download(
        self, repository: str, *, revision: str | None = None, local_dir: Path | None = None, allow_patterns: Any = None
    ) -> str:
        sha = revision or self.repo_info(repository).sha
        target = local_dir or self.folder / sha
        files = self.commits[int(sha.removeprefix("commit")) - 1]
        self.patterns.append(allow_patterns)
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(files[name])
        return str(target)


def _unreachable(*_: Any, **__: Any) -> None:
    raise ConnectionError("no way\nto it")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    return fake


def _promoted(parts: Parts, easy: Path) -> str:
    version = publish(HUB, parts.dictionary, parts.sae).version
    promote(HUB, version, "production", easy, why="x")
    return version


def test_each_action_is_one_commit(parts: Parts, easy: Path, hub: FakeHub) -> None:
    version = _promoted(parts, easy)
    assert hub.messages == [f"publish {version[:12]}", f"promote {version} to production"]
    empty, published, promoted = hub.commits
    assert {"log.jsonl", "channels.json", f"versions/{version}/version.json"} < published.keys() - empty.keys()
    assert published.keys() == promoted.keys()
    changed = {name for name in promoted if promoted[name] != published[name]}
    assert changed == {"log.jsonl", "channels.json"}
    assert verify(HUB).problems == []
    other = publish(HUB, parts.dictionary, parts.sae, evidence={"panel": parts.report("panel")}).version
    promote(HUB, other, "production", easy, why="x")
    assert rollback(HUB, "production", why="x").version == version
    assert hub.messages[-1] == "roll production back"
    assert load_channel(HUB, "production").version == version


def test_a_channel_is_loaded_with_its_own_version_alone(parts: Parts, easy: Path, hub: FakeHub) -> None:
    version = _promoted(parts, easy)
    publish(HUB, parts.dictionary, parts.sae, evidence={"panel": parts.report("panel")})
    hub.patterns.clear()
    found = load_channel(HUB, "production")
    assert (found.version, found.dictionary.id) == (version, parts.id)
    assert hub.patterns == [
        ["log.jsonl", "channels.json"],
        ["log.jsonl", "channels.json", f"versions/{version}/*"],
    ]


def test_nothing_is_uploaded_where_nothing_changed_or_something_failed(parts: Parts, easy: Path, hub: FakeHub) -> None:
    version = _promoted(parts, easy)
    assert not publish(HUB, parts.dictionary, parts.sae).changed
    with pytest.raises(ConfigError, match="not published"):
        promote(HUB, "abcdef" if version[:6] != "abcdef" else "fedcba", "staging", easy, why="x")
    assert len(hub.messages) == 2


def test_two_writers_on_the_hub_are_kept_apart(parts: Parts, easy: Path, hub: FakeHub) -> None:
    version = _promoted(parts, easy)
    slow = changing(HUB, "slow")
    promote(slow.__enter__(), version, "staging", easy, why="x")
    publish(HUB, parts.dictionary, parts.sae, evidence={"panel": parts.report("panel")})
    with pytest.raises(ConfigError, match="somebody else wrote to it meanwhile"):
        slow.__exit__(None, None, None)
    assert len(hub.messages) == 3
    assert hub.messages[-1].startswith("publish")


def test_what_the_hub_refuses_is_explained(hub: FakeHub) -> None:
    with pytest.raises(ConfigError, match="no such repository that you may read"), changing(HUB, "promote"):
        pass
    with pytest.raises(ConfigError, match="no such repository that you may read"):
        load_channel(HUB, "production")
    hub.commits.append({})
    hub.create_commit = _unreachable
    with pytest.raises(ConfigError, match="the Hub cannot be reached, or refused: no way"), changing(HUB, "x") as where:
        (where / "log.jsonl").touch()
    with pytest.raises(ConfigError, match="write hub:ORGANISATION/NAME"):
        load_channel("hub:features", "production")


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    with changing(str(tmp_path), "x") as folder:
        assert folder == local_copy(tmp_path) == tmp_path
