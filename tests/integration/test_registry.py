"""`lightsae registry` from the first publish to the way back, as it is typed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_versions import Parts, make_parts
from lightsae.production.registry import load_channel
from lightsae.production.registry.log import State, read_state

POLICY = str(Path(__file__).parents[2] / "configs" / "policies" / "default.yaml")
Command = Callable[..., Any]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    made = make_parts(tmp_path / "parts", seed=0)
    panel = made.report("panel")
    panel.write_text(panel.read_text().replace('"harmful": 1', '"harmful": 0'))
    made.report("validation")
    return made


def _state(folder: Path) -> State:
    return read_state(folder / "registry", "registry")


def test_publish_promote_and_back(lightsae: Command, parts: Parts, tmp_path: Path) -> None:
    bare = ("registry", "publish", "parts/dictionary", "--sae", "parts/sae", "--who", "ann")
    done = lightsae(*bare, "--why", "bare [labels]")
    assert done.code == 0, done.err
    assert "(published)" in done.out
    assert lightsae(*bare).out.endswith("(already published, nothing changed)\n")
    whole = (*bare, "--validation", "parts/validation.json", "--panel", "parts/panel.json")
    assert lightsae(*whole).code == 0
    first, second = (version[:12] for version in _state(tmp_path).published)

    def promote(version: str, channel: str) -> Any:
        return lightsae(
            "registry", "promote", version, "--channel", channel, "--policy", POLICY, "--why", "good", "--who", "bob"
        )

    refused = promote(first, "production")
    assert refused.code == 2
    head, *lines = refused.err.splitlines()
    assert head.startswith(f"lightsae: error: Version {first} falls short of")
    assert lines[0] == "  staging: the version was never there; promote it to staging first"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "validation.fve_no_sinks",
        "validation.ce_recovered",
        "validation.dead",
        "panel.reliable_share",
        "panel.harmful_share",
        "panel.above_random_floor",
        "panel.above_other_features",
    ]
    assert _state(tmp_path).has("production") is None

    assert promote(second, "production").err.count("\n") == 2
    for channel in ("staging", "production"):
        assert promote(second, channel).code == 0
    listed = lightsae("registry", "list").out
    assert f"{first} " in listed
    assert "staging, production" in listed
    assert "validation, panel" in listed
    assert load_channel(tmp_path / "registry", "production").version.startswith(second)

    back = ("registry", "rollback", "--channel", "production", "--why", "the tone", "--who", "cat")
    nothing = lightsae(*back)
    assert (nothing.code, "Nothing to roll back to" in nothing.err) == (2, True)
    easy = tmp_path / "easy.yaml"
    easy.write_text("labels: {min_lower: 0.1}\n")
    assert lightsae(
        "registry", "promote", first, "--channel", "production", "--policy", "easy.yaml", "--why", "x"
    ).out.startswith(f"production  {first}  (before: {second})")
    assert lightsae(*back).out == f"production  {second}  (rolled back from {first})\n"
    assert load_channel(tmp_path / "registry", "production").version.startswith(second)

    log = lightsae("registry", "log").out
    assert [line.split()[3] for line in log.splitlines()[1:]] == ["publish"] * 2 + ["promote"] * 3 + ["rollback"]
    assert "bare [labels]" in log
    assert "the tone" in log


def test_verify_lists_what_is_wrong(lightsae: Command, parts: Parts, tmp_path: Path) -> None:
    assert lightsae("registry", "publish", "parts/dictionary", "--sae", "parts/sae", "--registry", "r").code == 0
    good = lightsae("registry", "verify", "--registry", "r")
    assert (good.code, good.out) == (0, "r: 1 version, 1 entries of the log, all as they were written\n")
    (version,) = read_state(tmp_path / "r", "r").published
    (tmp_path / "r" / "versions" / version / "sae" / "sae.json").write_text("{}")
    (tmp_path / "r" / "versions" / version / "dictionary" / "card.md").unlink()
    bad = lightsae("registry", "verify", "--registry", "r")
    assert bad.code == 2
    assert bad.err.splitlines()[0] == "lightsae: error: r is not as it was:"
    assert len(bad.err.splitlines()) == 3
    manifest = tmp_path / "r" / "versions" / version / "version.json"
    renamed = manifest.read_text().replace('"model"', '"modle"')
    for damage in (lambda: manifest.write_text(renamed), manifest.unlink):
        damage()
        assert "damaged: see lightsae registry verify" in lightsae("registry", "list", "--registry", "r").out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("publsh",),
            "'publsh' is no action of registry; there are publish, promote, rollback, list, log, verify. Did",
        ),
        (("publish", "parts/dictionary"), "sae is missing. Write: lightsae registry publish DICTIONARY --sae SAE"),
        (("publish", "parts/dictionary", "--sae", "nowhere"), "sae is 'nowhere', which does not exist."),
        (("list",), "registry is 'registry', which does not exist."),
        (("list", "--registry", "parts"), "'parts' is no registry; begin one: lightsae registry publish"),
        (("promote", "abcd", "--channel", "staging", "--policy", POLICY), "why is missing"),
        (("rollback", "--channel", "staging", "--wy", "x"), "why"),
    ],
)
def test_mistakes_are_one_line(lightsae: Command, parts: Parts, args: tuple[str, ...], message: str) -> None:
    ended = lightsae("registry", *args)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert message in ended.err
    assert ended.new == []


def test_help_needs_no_registry(lightsae: Command) -> None:
    assert "Examples:" in lightsae("registry", "--help").out
    assert "lightsae registry rollback --channel production" in lightsae("registry", "rollback", "--help").out
