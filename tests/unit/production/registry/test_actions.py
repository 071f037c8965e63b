import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.fake_dictionary import SITE
from helpers.fake_versions import Parts, make_parts
from lightsae.errors import ConfigError, FormatError, SiteError
from lightsae.production.registry import PolicyRefusal, promote, publish, rollback, verify
from lightsae.production.registry.store import open_registry, writing

Production = tuple[Path, str]


def test_a_version_holds_dictionary_sae_and_evidence(parts: Parts, tmp_path: Path) -> None:
    (parts.dictionary / "notes.txt").write_text("of the user")
    done = publish(tmp_path / "r", parts.dictionary, parts.sae, evidence=parts.reports(), why="new", who="ann")
    folder = tmp_path / "r" / "versions" / done.version
    told = json.loads((folder / "version.json").read_text())
    assert (told["dictionary"], told["sae"]) == (parts.id, parts.sha256)
    assert (told["model"], told["read"]) == ({"name": "builtin", "revision": None}, [SITE])
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert on_disk == {"version.json", *told["files"]}
    assert {"dictionary/pictures/map.png", "sae/sae.json", "evidence/drift.json"} < on_disk
    assert "dictionary/notes.txt" not in on_disk
    (entry,) = open_registry(tmp_path / "r")[1].entries
    assert {k: entry[k] for k in ("number", "who", "why", "action")} == {
        "number": 1,
        "who": "ann",
        "why": "new",
        "action": "publish",
    }


@pytest.mark.parametrize(
    "name", ["dictionary/card.md", "dictionary/features.parquet", "dictionary/pictures", "sae/sae.safetensors"]
)
def test_links_are_not_published(parts: Parts, tmp_path: Path, name: str) -> None:
    folder, _, rest = name.partition("/")
    path = (parts.dictionary if folder == "dictionary" else parts.sae) / rest
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError) as error:
        publish(tmp_path / "r", parts.dictionary, parts.sae)
    assert str(error.value).startswith(f"{str(path)!r} is a link")
    assert not (tmp_path / "r").exists()


def test_links_beside_what_is_published_do_no_harm(parts: Parts, tmp_path: Path) -> None:
    (parts.dictionary / "notes.txt").symlink_to("/etc/hostname")
    assert publish(tmp_path / "r", parts.dictionary, parts.sae).changed


def test_same_contents_change_nothing_and_new_evidence_makes_a_version(parts: Parts, tmp_path: Path) -> None:
    first = publish(tmp_path / "r", parts.dictionary, parts.sae)
    log = (tmp_path / "r" / "log.jsonl").read_bytes()
    again = publish(tmp_path / "r", parts.dictionary, parts.sae)
    assert (again.version, again.changed) == (first.version, False)
    assert (tmp_path / "r" / "log.jsonl").read_bytes() == log
    more = publish(tmp_path / "r", parts.dictionary, parts.sae, evidence={"panel": parts.report("panel")})
    assert more.changed
    assert more.version != first.version
    assert open_registry(tmp_path / "r")[1].published == [first.version, more.version]


def test_publishing_again_restores_what_was_damaged(parts: Parts, production: Production) -> None:
    registry, version = production
    (registry / "versions" / version / "dictionary" / "labels.parquet").unlink()
    assert verify(registry).problems
    assert publish(registry, parts.dictionary, parts.sae).restored
    assert verify(registry).problems == []
    assert open_registry(registry)[1].has("production") == version


def test_a_dictionary_of_another_sae_is_refused(parts: Parts, tmp_path: Path) -> None:
    other = make_parts(tmp_path / "other", seed=1)
    with pytest.raises(FormatError, match=f"SHA-256 {other.sha256[:12]}.*is not the SAE"):
        publish(tmp_path / "r", parts.dictionary, other.sae)
    elsewhere = make_parts(tmp_path / "elsewhere", seed=0, site={**SITE, "site": "resid_post.1"})
    with pytest.raises(SiteError, match=r"resid_post\.1.*resid_post\.2"):
        publish(tmp_path / "r", parts.dictionary, elsewhere.sae)
    tensors = bytearray((parts.sae / "sae.safetensors").read_bytes())
    tensors[-1] ^= 1
    (parts.sae / "sae.safetensors").write_bytes(tensors)
    with pytest.raises(FormatError, match="damaged"):
        publish(tmp_path / "r", parts.dictionary, parts.sae)
    assert not (tmp_path / "r").exists()


def test_a_folder_of_something_else_is_left_alone(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "log.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"'log\.jsonl'"):
        publish(tmp_path / "r", parts.dictionary, parts.sae)
    with pytest.raises(ConfigError, match="is a file"):
        publish(tmp_path / "r" / "log.jsonl", parts.dictionary, parts.sae)
    with pytest.raises(FormatError, match="is no registry"):
        promote(tmp_path / "first", "abcd", "staging", _policy(tmp_path), why="x")


def test_a_refusal_names_every_figure_and_changes_nothing(production: Production, tmp_path: Path) -> None:
    registry, version = production
    log = (registry / "log.jsonl").read_bytes()
    policy = _policy(
        tmp_path,
        "requires_staging: true\nlabels: {min_share_labelled: 0.95, min_lower: 0.99, max_shuffled_floor: 0.02}\n"
        "panel: {above_random_floor: true}\ndrift: {min_kept_share: 0.5}\n",
    )
    with pytest.raises(PolicyRefusal, match="was not promoted to production") as refusal:
        promote(registry, version, "production", policy, why="x")
    assert [line.partition(":")[0] for line in refusal.value.lines] == [
        "staging",
        "labels.share_labelled",
        "labels.lower",
        "panel.above_random_floor",
        "drift.kept_share",
    ]
    assert refusal.value.lines[1] == "labels.share_labelled: found 0.5; needed at least 0.95"
    assert "not measured: panel report" in refusal.value.lines[3]
    assert (registry / "log.jsonl").read_bytes() == log


def test_production_takes_what_is_or_was_in_staging(parts: Parts, tmp_path: Path) -> None:
    registry, policy = tmp_path / "r", _policy(tmp_path, "requires_staging: true\n")
    a = publish(registry, parts.dictionary, parts.sae).version
    b = publish(registry, parts.dictionary, parts.sae, evidence=parts.reports()).version
    promote(registry, a, "staging", policy, why="x")
    promote(registry, b, "staging", policy, why="x")
    assert promote(registry, a, "production", policy, why="x").changed
    rollback(registry, "staging", why="x")
    assert promote(registry, b, "production", policy, why="x").before == a


def test_the_log_says_what_a_version_was_held_against(parts: Parts, tmp_path: Path) -> None:
    policy = _policy(tmp_path, "validation: {max_dead: 0.05}\n")
    version = publish(tmp_path / "r", parts.dictionary, parts.sae, evidence=parts.reports()).version
    promote(tmp_path / "r", version[:8], "staging", policy, why="good enough", who="ann")
    entry = open_registry(tmp_path / "r")[1].entries[-1]
    assert entry["figures"]["validation"] == {"fve_no_sinks": 0.9, "ce_recovered": 0.97, "dead": 0.01}
    assert entry["figures"]["panel"] == {
        "reliable_share": 0.5,
        "harmful_share": 0.25,
        "above_random_floor": True,
        "above_other_features": True,
    }
    assert entry["figures"]["drift"] == {"kept_share": 0.8}
    assert entry["policy"]["validation"]["max_dead"] == 0.05
    assert (entry["channel"], entry["replaces"], entry["version"]) == ("staging", None, version)


def test_rollback_goes_further_back_each_time(parts: Parts, production: Production, easy: Path) -> None:
    registry, a = production
    b = publish(registry, parts.dictionary, parts.sae, evidence={"panel": parts.report("panel")}).version
    c = publish(registry, parts.dictionary, parts.sae, evidence={"drift": parts.report("drift")}).version
    for version in (b, c):
        promote(registry, version, "production", easy, why="x")
    assert not promote(registry, c, "production", easy, why="again").changed
    assert [rollback(registry, "production", why="x").version for _ in range(2)] == [b, a]
    with pytest.raises(ConfigError, match=f"no version before {a[:12]}"):
        rollback(registry, "production", why="x")
    with pytest.raises(ConfigError, match="staging is empty"):
        rollback(registry, "staging", why="x")
    promote(registry, c, "production", easy, why="x")
    assert rollback(registry, "production", why="x").version == a


def test_rollback_to_a_damaged_version_is_refused(parts: Parts, production: Production, easy: Path) -> None:
    registry, a = production
    b = publish(registry, parts.dictionary, parts.sae, evidence={"panel": parts.report("panel")}).version
    promote(registry, b, "production", easy, why="x")
    (registry / "versions" / a / "sae" / "sae.json").write_text("{}")
    with pytest.raises(FormatError, match=r"sae/sae\.json was changed"):
        rollback(registry, "production", why="x")
    assert open_registry(registry)[1].has("production") == b


def test_unknown_names_are_refused(parts: Parts, production: Production, easy: Path) -> None:
    registry, version = production
    wrong = version[:10] + ("0" if version[10] != "0" else "1")
    with pytest.raises(ConfigError, match=f"not published. Did you mean '{version[:12]}'"):
        promote(registry, wrong, "staging", easy, why="x")
    with pytest.raises(ConfigError, match="not published"):
        promote(registry, version[:3], "staging", easy, why="x")
    with pytest.raises(ConfigError, match="Did you mean 'staging'"):
        promote(registry, version, "stagin", easy, why="x")
    with pytest.raises(ConfigError, match="why is empty"):
        promote(registry, version, "staging", easy, why=" ")
    with pytest.raises(ConfigError, match="why is empty"):
        rollback(registry, "production", why="")
    with pytest.raises(FormatError, match="Did you mean 'registry'"):
        promote(registry.with_name("registri"), version, "staging", easy, why="x")


def test_a_version_whose_publishing_was_cut_short_is_not_promoted(
    parts: Parts, production: Production, easy: Path
) -> None:
    registry, version = production
    half = "ab" * 32
    shutil.copytree(registry / "versions" / version, registry / "versions" / half)
    with pytest.raises(ConfigError, match=r"cut short.*publish it again"):
        promote(registry, half[:8], "staging", easy, why="x")


def test_changed_files_are_not_promoted(production: Production, easy: Path) -> None:
    registry, version = production
    manifest = registry / "versions" / version / "version.json"
    manifest.write_text(manifest.read_text().replace('"builtin"', '"another"'))
    with pytest.raises(FormatError, match=r"version\.json was changed"):
        promote(registry, version, "staging", easy, why="x")


def test_what_a_killed_publish_staged_is_cleared_away(production: Production, easy: Path) -> None:
    registry, version = production
    staged = registry / "versions" / f".partial-{'ab' * 32}"
    staged.mkdir()
    promote(registry, version, "staging", easy, why="x")
    assert not staged.exists()


def test_two_writers_are_kept_apart(production: Production, easy: Path) -> None:
    registry, version = production
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True);"
        " sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, str(registry / ".lock")], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="Another process is writing"):
            promote(registry, version, "staging", easy, why="x")
        assert open_registry(registry)[1].has("production") == version
        other.kill()
    with writing(registry):
        pass


def _policy(folder: Path, text: str = "labels: {min_lower: 0.1}\n") -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path
