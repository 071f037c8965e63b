"""What says which version this is says the same everywhere, and the site holds every public name."""

import re
import tomllib
from importlib import import_module

import pytest
import yaml

from helpers.pages import ROOT

ROOMS = [
    "lightsae",
    "lightsae.analysis.dictionary",
    "lightsae.analysis.steering",
    "lightsae.callbacks",
    "lightsae.lm",
    "lightsae.metrics",
    "lightsae.production.monitor",
    "lightsae.production.registry",
    "lightsae.sae",
]
# Tables and names that a page of the reference does not describe one by one.
WITHOUT_PAGE = {
    "lightsae.BatchTopK",  # the plain SAEs: see their mechanisms
    "lightsae.Gated",
    "lightsae.GroupMax",
    "lightsae.JumpReLU",
    "lightsae.ReLU",
    "lightsae.TopK",
    "lightsae.sae.BatchTopK",
    "lightsae.sae.Gated",
    "lightsae.sae.GroupMax",
    "lightsae.sae.JumpReLU",
    "lightsae.sae.Mechanism",
    "lightsae.sae.ReLU",
    "lightsae.sae.TopK",
    "lightsae.analysis.steering.steer",
    "lightsae.lm.FAMILIES",
    "lightsae.lm.LanguageModel",
    "lightsae.lm.PORTABLE",
    "lightsae.production.monitor.monitor",
    "lightsae.production.registry.load_channel",
    "lightsae.production.registry.promoted_or_given",
    "lightsae.sae.MECHANISMS",
    "lightsae.sae.NORMALISATIONS",
    "lightsae.sae.VARIANTS",
}


def test_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert latest is not None
    assert (version, version) == (citation["version"], latest[1])
    assert str(citation["date-released"]) == latest[2]


def test_versions_of_the_changelog_fall() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    headings = headings[1:] if headings[0] == "Unreleased" else headings
    dated = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) \((\d{4}-\d\d-\d\d)\)", heading) for heading in headings]
    assert all(dated), headings
    versions = [(tuple(map(int, match.groups()[:3])), match[4]) for match in dated if match]
    assert versions == sorted(versions, reverse=True)


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_every_public_name(room: str) -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    described = set(re.findall(r"^::: (\S+)$", text, re.M))
    names = {f"{room}.{name}" for name in import_module(room).__all__}
    top = {f"{room}.{name}" for name in import_module("lightsae").__all__ if f"lightsae.{name}" in described}
    assert sorted(names - described - top - WITHOUT_PAGE) == []
