"""What runs in production takes its dictionary from a channel, and nothing else."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

import lightsae
from helpers.fake_dictionary import SITE
from helpers.fake_versions import Parts, make_parts
from lightsae.analysis.steering import Add
from lightsae.errors import ConfigError, FormatError, ModelError
from lightsae.formats.native import load_sae
from lightsae.lm import LanguageModel

PUSH = Add(0, 3.0, unit="latent")
ROWS = torch.arange(2, 34).reshape(2, 16)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """As the other tests' parts, at the true width of the model's site."""
    return make_parts(tmp_path / "first", seed=0, site={**SITE, "width": 192})


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.from_pretrained()


def test_a_promoted_version_steers_as_its_sae_does(
    model: LanguageModel, parts: Parts, production: tuple[Path, str]
) -> None:
    with lightsae.steer(model, PUSH, sae=load_sae(parts.sae)):
        wanted = model.logits(ROWS)
    promoted = lightsae.load_channel(production[0], "production", model)
    with lightsae.steer(model, PUSH, promoted):
        assert torch.equal(model.logits(ROWS), wanted)
    assert not torch.equal(model.logits(ROWS), wanted)
    # As an earlier version had it.
    with pytest.warns(DeprecationWarning, match=r"load_channel\(registry, channel\)"):
        old = lightsae.steer(model, PUSH, channel="production", registry=production[0])
    with old:
        assert torch.equal(model.logits(ROWS), wanted)
    assert not torch.equal(model.logits(ROWS), wanted)


def test_a_promoted_version_is_watched(model: LanguageModel, production: tuple[Path, str]) -> None:
    with lightsae.monitor(model, channel="production", registry=production[0], features=[0, 1]) as watch:
        model.logits(ROWS)
    promoted = lightsae.load_channel(production[0], "production", model)
    with lightsae.monitor(model, sae=promoted, features=[0, 1]) as again:
        model.logits(ROWS)
    assert again.summary() == watch.summary()
    assert watch.features == [0, 1]
    assert watch.tokens == ROWS.numel() - len(ROWS)


@pytest.mark.filterwarnings("ignore:steer.channel=:DeprecationWarning")
def test_what_is_not_promoted_is_refused(model: LanguageModel, parts: Parts, production: tuple[Path, str]) -> None:
    registry, _ = production
    used = {"channel": "production", "registry": registry}
    with pytest.raises(ConfigError, match=r"nothing in .* was promoted"):
        _open(lightsae.steer(model, PUSH, channel="staging", registry=registry))
    with pytest.raises(ConfigError, match="channel is 'production', and sae"):
        _open(lightsae.steer(model, PUSH, sae=parts.sae, **used))
    with pytest.raises(TypeError, match="'sae'"):
        _open(lightsae.steer(model, PUSH))
    with pytest.raises(ConfigError, match="sae is missing"):
        _open(lightsae.monitor(model))
    with pytest.raises(ConfigError, match="dictionary is given, but sae brings its own"):
        _open(lightsae.monitor(model, parts.dictionary, sae=lightsae.load_channel(registry, "production")))
    with pytest.raises(ConfigError, match="dictionary is missing"):
        _open(lightsae.monitor(model, sae=parts.sae))
    other = LanguageModel.from_pretrained(sites=["resid_post.2"])
    other.name = "another"
    for use in (lightsae.steer(other, PUSH, **used), lightsae.monitor(other, **used)):
        with pytest.raises(ModelError, match="'another'"):
            _open(use)


@pytest.mark.filterwarnings("ignore:steer.channel=:DeprecationWarning")
def test_a_version_that_was_changed_is_refused(model: LanguageModel, production: tuple[Path, str]) -> None:
    registry, version = production
    tensors = registry / "versions" / version / "sae" / "sae.safetensors"
    tensors.write_bytes(tensors.read_bytes() + b"\n")
    used = {"channel": "production", "registry": registry}
    for use in (lightsae.steer(model, PUSH, **used), lightsae.monitor(model, **used)):
        with pytest.raises(FormatError, match="was changed"):
            _open(use)


def _open(use: AbstractContextManager[Any]) -> None:
    with use:
        pass
