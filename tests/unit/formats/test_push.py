"""Pushing an SAE: a folder, a repository, and nothing where it is refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.fake_hub import COMMIT, FakeHub, hub
from lightsae.analysis.evaluate.model_card import evaluation_of, model_card
from lightsae.analysis.evaluate.report import Evaluation, Figure, write_report
from lightsae.cli import main
from lightsae.errors import ConfigError, FormatError
from lightsae.formats.native import save_sae
from lightsae.formats.push import push, repository_of
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import TopK, Widths

__all__ = ["hub"]
X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
TOLD = {"model": "openai-community/gpt2", "dataset": "roneneldan/TinyStories", "tokens_seen": 4096}


@pytest.fixture
def saved(tmp_path: Path) -> SavedSAE:
    torch.manual_seed(0)
    save_sae(TopK(Widths.of(8), d_sae=16, k=4), tmp_path / "mine", TOLD)
    return SavedSAE.open(tmp_path / "mine")


def evaluation(saved: SavedSAE) -> Evaluation:
    figures = {
        "fve": Figure(0.75, 0.7, 0.8, 100),
        "l0": Figure(4.0, None, None, 100),
        "kl": Figure(math.nan, None, None, 0),
    }
    text = {"tokens": 100, "documents": 12, "dataset": "roneneldan/TinyStories", "model": "openai-community/gpt2"}
    return Evaluation("mine", saved.entry, text, figures, [], [], {"never": 2})


def metadata(card: str) -> dict[str, Any]:
    loaded = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize(
    ("to", "is_"),
    [
        ("me/sae", "me/sae"),
        ("hf://me/sae-1.b", "me/sae-1.b"),
        ("./me/sae", None),
        ("/me/sae", None),
        ("sae", None),
        ("a/b/c", None),
        ("there/sae", None),
    ],
)
def test_what_is_a_repository(to: str, is_: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert repository_of(to) == is_


@pytest.mark.parametrize("to", ["hf://sae", "hf://a/b/c", "hf:me/sae", "hf://me/../x"])
def test_no_such_repository(to: str) -> None:
    with pytest.raises(ConfigError, match="write hf://OWNER/NAME"):
        repository_of(to)


def test_a_folder_opens_and_says_what_it_is(saved: SavedSAE, tmp_path: Path) -> None:
    card = model_card(saved, "out", "native", evaluation(saved), "mit")
    for _ in range(2):  # an earlier push is replaced
        assert push(saved, str(tmp_path / "out"), card).address == str(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "sae.json", "sae.safetensors"}
    again = SavedSAE.open(tmp_path / "out")
    assert again.sha256 == saved.sha256
    assert torch.equal(again.sae(X).x_hat, saved.sae(X).x_hat)
    text = (tmp_path / "out" / "README.md").read_text()
    said = metadata(text)
    assert (said["license"], said["base_model"]) == ("mit", TOLD["model"])
    assert said["datasets"] == [TOLD["dataset"]]
    (result,) = said["model-index"][0]["results"]
    assert {one["type"]: one["value"] for one in result["metrics"]} == {"fve": 0.75, "l0": 4.0}, "nan is no figure"
    assert "`fve` | 0.75 [0.7, 0.8]" in text
    assert "## Evaluation" in text
    assert saved.sha256 in text


@pytest.mark.parametrize("layout", ["sae_lens", "dictionary_learning"])
def test_another_layout(layout: str, saved: SavedSAE, tmp_path: Path) -> None:
    pushed = push(saved, str(tmp_path / "out"), model_card(saved, "out", layout), layout)
    assert pushed.conversion.difference.predictions < 1e-5
    opened = SavedSAE.open(tmp_path / "out")
    assert torch.allclose(opened.sae(X).x_hat, saved.sae(X).x_hat, atol=1e-5)


def test_a_repository_gets_one_commit_and_opens(saved: SavedSAE, hub: FakeHub) -> None:
    pushed = push(saved, "me/sae", model_card(saved, "hf://me/sae", "native"), private=True)
    assert pushed.address == f"hf://me/sae@{COMMIT}"
    assert (hub.commits, hub.private) == (1, {"me/sae": True})
    assert SavedSAE.open(pushed.address).sha256 == saved.sha256


@pytest.mark.parametrize(
    ("owner", "offline", "said"), [("others", False, "may not write"), ("me", True, "HF_HUB_OFFLINE")]
)
def test_a_hub_that_refuses(owner: str, offline: bool, said: str, saved: SavedSAE, hub: FakeHub) -> None:
    hub.offline = offline
    with pytest.raises(ConfigError, match=said):
        push(saved, f"{owner}/sae", "card")
    assert hub.commits == 0


def test_a_folder_of_other_things_stays_as_it_was(saved: SavedSAE, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(FormatError, match="holds other files"):
        push(saved, str(tmp_path / "out"), "card")
    with pytest.raises(ConfigError, match="to is 'gemma'"):
        push(saved, str(tmp_path / "new"), "card", "gemma")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    assert not (tmp_path / "new").exists()


def test_a_card_of_what_is_nobodys(saved: SavedSAE, tmp_path: Path) -> None:
    save_sae(saved.sae, tmp_path / "local", {"model": "builtin", "dataset": str(tmp_path)})
    said = metadata(model_card(SavedSAE.open(tmp_path / "local"), "out", "native"))
    assert set(said) == {"library_name", "tags"}


def test_the_command(saved: SavedSAE, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = evaluation(saved)
    write_report([mine], {}, tmp_path / "e.json")
    words = ["push", "--sae", str(tmp_path / "mine"), "--to", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--evaluation", str(tmp_path / "e.json")])
    assert f"lightsae open {tmp_path / 'out'}" in capsys.readouterr().out
    assert "0.75 [0.7, 0.8]" in (tmp_path / "out" / "README.md").read_text()
    write_report([replace(mine, sae={**mine.sae, "sha256": "other"})], {}, tmp_path / "e.json")
    with pytest.raises(ConfigError, match="no figures of this SAE"):
        evaluation_of(saved, str(tmp_path / "e.json"))
