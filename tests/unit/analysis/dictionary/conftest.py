from pathlib import Path

import pytest

from helpers.fake_dictionary import fake_manifest, fake_tables
from lightsae.analysis.dictionary.feature_dictionary import FeatureDictionary
from lightsae.analysis.dictionary.writer import write_dictionary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A written dictionary of 64 features, in a folder whose name would break careless queries."""
    path = tmp_path / "o'dd [1] *na?me"
    write_dictionary(path, fake_tables(64), fake_manifest(64))
    return path


@pytest.fixture
def dictionary(folder: Path) -> FeatureDictionary:
    return FeatureDictionary.open(folder)
