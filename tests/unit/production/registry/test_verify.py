import shutil
from pathlib import Path

from helpers.fake_versions import Parts
from lightsae.production.registry import publish, verify

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
    (registry / "log.jsonl").write_text(log.replace("ann", "bob", 1))
    problems = verify(registry).problems
    assert len(problems) == 4
    assert problems[0].startswith("line 1 of log.jsonl was changed")
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
