"""Parts to publish, and a registry with a version in production."""

from pathlib import Path

import pytest

from helpers.fake_versions import EASY, Parts, make_parts
from lightsae.production.registry import promote, publish


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """A feature dictionary and its SAE."""
    return make_parts(tmp_path / "first", seed=0)


@pytest.fixture
def easy(tmp_path: Path) -> Path:
    """A policy that the parts reach."""
    path = tmp_path / "easy.yaml"
    path.write_text(EASY)
    return path


@pytest.fixture
def production(tmp_path: Path, parts: Parts, easy: Path) -> tuple[Path, str]:
    """A registry with one version, which is in production; and its id."""
    registry = tmp_path / "registry"
    version = publish(registry, parts.dictionary, parts.sae, who="ann").version
    promote(registry, version, "production", easy, why="first", who="ann")
    return registry, version
