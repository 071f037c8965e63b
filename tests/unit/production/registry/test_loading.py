import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.fake_dictionary import SITE
from helpers.fake_versions import Parts, make_parts
from lightsae.errors import ConfigError, FormatError, LightsaeError, ModelError, SiteError
from lightsae.formats.native import load_sae
from lightsae.lm import LanguageModel
from lightsae.production.registry import load_channel, promote, publish, rollback, verify

Production = tuple[Path, str]


def test_what_was_promoted_is_loaded(parts: Parts, production: Production) -> None:
    registry, version = production
    found = load_channel(registry, "production", LanguageModel.from_pretrained("builtin", sites=["resid_post.2"]))
    assert (found.version, found.channel, found.model, found.revision) == (version, "production", "builtin", None)
    assert (found.site.model, found.site.site) == (SITE["model"], SITE["site"])
    assert found.dictionary.id == parts.id
    assert torch.equal(found.sae.W_dec, load_sae(parts.sae).W_dec)
    assert found.folder == registry / "versions" / version


def test_only_what_was_promoted_is_loaded(parts: Parts, production: Production, easy: Path) -> None:
    registry, first = production
    second = publish(registry, parts.dictionary, parts.sae, evidence={"panel": parts.report("panel")}).version
    assert load_channel(registry, "production").version == first
    with pytest.raises(ConfigError, match=r"nothing in .* was promoted to it"):
        load_channel(registry, "staging")
    with pytest.raises(ConfigError, match="Did you mean 'production'"):
        load_channel(registry, "prodction")
    promote(registry, second, "production", easy, why="x")
    assert load_channel(registry, "production").version == second
    rollback(registry, "production", why="x")
    assert load_channel(registry, "production").version == first


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def _promote_by_hand(registry: Path, version: str) -> None:
    pointer = json.loads((registry / "channels.json").read_text())
    pointer["channels"]["production"] = "ff" * 32
    (registry / "channels.json").write_text(json.dumps(pointer))


def _rewrite_manifest(registry: Path, version: str) -> None:
    """Change a table, and version.json with it."""
    folder = registry / "versions" / version
    (folder / "dictionary" / "card.md").write_text("better")
    told = json.loads((folder / "version.json").read_text())
    told["files"]["dictionary/card.md"] = hashlib.sha256(b"better").hexdigest()
    (folder / "version.json").write_text(json.dumps(told))


def _rename_in_log(registry: Path, version: str) -> None:
    for path in (registry / "log.jsonl", registry / "channels.json"):
        path.write_text(path.read_text().replace(version, "ff" * 32))


TAMPERED: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "table": (
        lambda r, v: _append(r / "versions" / v / "dictionary/labels.parquet"),
        r"dictionary/labels\.parquet was",
    ),
    "dictionary.json": (
        lambda r, v: _append(r / "versions" / v / "dictionary/dictionary.json"),
        r"dictionary\.json was",
    ),
    "tensors": (lambda r, v: _append(r / "versions" / v / "sae/sae.safetensors"), r"sae\.safetensors was changed"),
    "sae.json": (lambda r, v: _append(r / "versions" / v / "sae/sae.json"), r"sae/sae\.json was changed"),
    "missing": (lambda r, v: (r / "versions" / v / "sae/sae.json").unlink(), r"sae/sae\.json is missing"),
    "added": (lambda r, v: (r / "versions" / v / "sae/more").touch(), "sae/more was added"),
    "no manifest": (lambda r, v: (r / "versions" / v / "version.json").unlink(), r"version\.json is missing"),
    "manifest": (_rewrite_manifest, r"version\.json was changed: its contents give the id"),
    "channel": (_promote_by_hand, r"channels\.json was changed: production is ffffffffffff"),
    "log": (
        lambda r, v: (r / "log.jsonl").write_text((r / "log.jsonl").read_text().replace('"promote"', '"rollback"')),
        "does not follow from the lines before it",
    ),
    "version in the log": (
        lambda r, v: [
            (r / name).write_text((r / name).read_text().replace(v, "ff" * 32))
            for name in ("log.jsonl", "channels.json")
        ],
        r"version\.json is missing",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_not_loaded(production: Production, what: str) -> None:
    registry, version = production
    tamper, message = TAMPERED[what]
    tamper(registry, version)
    with pytest.raises(FormatError, match=message):
        load_channel(registry, "production")
    assert any(message.replace("\\", "").split(":")[0] in problem for problem in verify(registry).problems)


def _model(name: str, revision: str | None = None) -> SimpleNamespace:
    """A stand-in with what a transformers model says of itself."""
    config = SimpleNamespace(_commit_hash=revision, get_text_config=lambda: SimpleNamespace(num_hidden_layers=4))
    return SimpleNamespace(name_or_path=name, config=config)


def test_another_model_or_site_is_refused(production: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, _ = production
    from lightsae.production.registry import loading

    monkeypatch.setattr(loading, "site_in", lambda model, site: None)
    with pytest.raises(ModelError, match="made for 'builtin', and the model in use is 'gpt2'"):
        load_channel(registry, "production", _model("gpt2"))
    with pytest.raises(SiteError, match=r"site is 'resid_post\.1', but the SAE belongs to 'resid_post\.2'"):
        load_channel(registry, "production", site="resid_post.1")


def test_another_revision_is_refused(tmp_path: Path, easy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers import fake_versions
    from lightsae.production.registry import loading

    monkeypatch.setattr(loading, "site_in", lambda model, site: None)
    whole = fake_versions.fake_manifest
    told = {"name": "org/model", "revision": "aaaa"}
    monkeypatch.setattr(fake_versions, "fake_manifest", lambda n: whole(n) | {"model": told})
    parts = make_parts(tmp_path / "p", seed=0, site={**SITE, "model": "org/model"})
    version = publish(tmp_path / "r", parts.dictionary, parts.sae).version
    promote(tmp_path / "r", version, "production", easy, why="x")
    assert load_channel(tmp_path / "r", "production", _model("org/model", "aaaa")).revision == "aaaa"
    with pytest.raises(ModelError, match="at revision 'aaaa', and the model in use is at 'bbbb'"):
        load_channel(tmp_path / "r", "production", _model("org/model", "bbbb"))


def test_a_folder_without_a_registry_is_refused(tmp_path: Path) -> None:
    for call in (lambda: load_channel(tmp_path, "production"), lambda: verify(tmp_path)):
        with pytest.raises(LightsaeError, match="is no registry"):
            call()


def test_a_registry_can_be_read_where_nothing_can_be_written(production: Production) -> None:
    registry, _ = production
    before = {p: p.stat().st_mtime_ns for p in registry.rglob("*")}
    load_channel(registry, "production")
    verify(registry)
    assert {p: p.stat().st_mtime_ns for p in registry.rglob("*")} == before
