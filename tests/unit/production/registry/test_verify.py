import shutil
from pathlib import Path

import pytest

from helpers.fake_versions import Parts
from lightsae.production.registry import actions, publish, verify

Production = tuple[Path, str]


def test_all_that_is_wrong_is_listed(parts: Parts, production: Production) -> None:
    registry, first = production
    second = publish(registry, parts.dictionary, parts.sae, evidence={"panel": parts.report("panel")}).version
    found = verify(registry)
    assert (found.versions, found.entries, found.problems, found.notes) == (2, 3, [], [])
    (registry / "versions" / first / "sae" / "sae.json").unlink()
    (registry / "versions" / first / "dictionary" / "card.md").write_text("x")
    shutil.rmtree(registry / "versions" / second)
    log = (registry / "log.jsonl").read_text()
    nowhere = log.replace(second, "cd" * 32).replace('"number": 3', '"number": 4')
    (registry / "log.jsonl").write_text(nowhere)
    problems = verify(registry).problems
    assert len(problems) == 3
    assert problems[0].startswith("line 3 of log.jsonl is entry 4")
    assert f"version {first[:12]} (production): sae/sae.json is missing" in problems
    (registry / "log.jsonl").write_text(nowhere.replace('"number": 4', '"number": 3'))
    assert f"version {'cd' * 6}: version.json is missing" in verify(registry).problems
    (registry / "log.jsonl").write_text(log)
    problems = verify(registry).problems
    assert len(problems) == 3
    assert f"version {first[:12]} (production): sae/sae.json is missing" in problems
    assert f"version {second[:12]}: version.json is missing" in problems


def test_what_an_interrupted_action_left_is_noted(production: Production) -> None:
    registry, version = production
    shutil.copytree(registry / "versions" / version, registry / "versions" / ("ab" * 32))
    with (registry / "log.jsonl").open("a") as log:
        log.write('{"number": 3, ')
    found = verify(registry)
    assert found.problems == []
    assert found.notes == [
        "version abababababab: its publishing was cut short",
        "the last line of the log: its action was cut short, and did not happen",
    ]


@pytest.mark.parametrize("versions", [1, 2])
def test_versions_without_a_log_are_a_problem(parts: Parts, production: Production, versions: int) -> None:
    registry, _ = production
    if versions == 2:
        publish(registry, parts.dictionary, parts.sae, evidence={"panel": parts.report("panel")})
    for name in ("log.jsonl", "channels.json"):
        (registry / name).unlink()
    found = verify(registry)
    assert found.problems == [f"there is no log.jsonl, so nothing says which of {versions} versions were published"]
    assert found.notes == []


def test_a_first_publishing_that_was_cut_short_is_a_note(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(actions, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path / "r", parts.dictionary, parts.sae)
    found = verify(tmp_path / "r")
    assert found.problems == []
    assert len(found.notes) == 1
    assert publish(tmp_path / "r", parts.dictionary, parts.sae).changed
    assert verify(tmp_path / "r").notes == []
