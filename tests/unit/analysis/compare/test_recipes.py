"""Words to recipes; which SAEs are of one recipe, by what their exports tell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightsae.analysis.compare.recipes import Recipe, check_recipes, first_other, read_words, recipe_of, with_seeds
from lightsae.errors import ConfigError
from lightsae.formats.native import save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import SiteRef, TopK, Widths

Make = Callable[..., SavedSAE]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write an SAE with the configuration of its run."""

    def write(name: str, seed: int, *, k: int = 4, site: str = "a", lr: float | None = None, **told: Any) -> SavedSAE:
        sae = TopK(Widths.autoencoder(SiteRef("m", site), 8), 16, k=k)
        sae.reset_parameters(torch.Generator().manual_seed(seed))
        config = {
            "seed_everything": seed,
            "data": {"dataset": "x", "seed": None, "num_workers": seed},
            "model": {"sae": {"class_path": "TopK", "init_args": {"k": k}}, "lr": lr},
            "trainer": {"max_steps": 10, "default_root_dir": name},
        }
        save_sae(sae, tmp_path / name, {"config": yaml.safe_dump(config), "tokens_seen": 100, **told})
        return SavedSAE.open(tmp_path / name)

    return write


def test_words_are_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("s_1", "s_2", "lr=1"):
        Path(name).mkdir()
    told = [(one.name, list(one.saes)) for one in read_words(["a/b", "lr=1", "mine=s_*", "x, y", "hf://o/n@main/p=q"])]
    assert told == [
        ("A", ["a/b"]),
        ("B", ["lr=1"]),
        ("mine", ["s_1", "s_2"]),
        ("D", ["x", "y"]),
        ("E", ["hf://o/n@main/p=q"]),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "name two recipes or more"),
        (["x=a", "x=b"], "two recipes with the name 'x'"),
        (["a,,b", "c"], "nothing between two commas"),
        (["none_*", "c"], "nothing is there that 'none_*' matches"),
        (["a"] * 27, "26 are the most"),
    ],
)
def test_words_that_are_none(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("*", r"\*")):
        read_words(words)


def test_a_recipe_is_everything_but_the_seed(make: Make) -> None:
    one, reseed, other, tuned = make("1", 1), make("2", 2), make("3", 3, k=5), make("4", 4, lr=0.1)
    assert recipe_of(one) == recipe_of(reseed)
    assert first_other(one, reseed) == ""
    assert first_other(one, other) == "settings.k (4 and 5)"
    assert first_other(one, tuned) == "model.lr (None and 0.1)"


def test_of_several_saes_in_a_run_it_is_the_own_entry(make: Make) -> None:
    def run(seed: int, k: int) -> str:
        saes = {"small": {"lr": 0.1, "k": 4}, "large": {"lr": 0.2, "k": k}}
        return yaml.safe_dump({"seed_everything": seed, "model": {"saes": saes}})

    one, reseed = make("1", 1, config=run(1, 5), dictionary="small"), make("2", 2, config=run(2, 6), dictionary="small")
    assert first_other(one, reseed) == ""
    assert "entry" in first_other(one, make("3", 3, config=run(1, 5), dictionary="large"))


def test_seeds_go_where_their_recipe_is(make: Make) -> None:
    names = {"a": (1, 4), "a2": (2, 4), "b": (3, 5), "b2": (4, 5), "b3": (5, 5)}
    saved = {name: make(name, seed, k=k) for name, (seed, k) in names.items()}
    recipes = with_seeds([Recipe("A", ["a"]), Recipe("B", ["b"])], ["b2", "a2", "b3", "a"], saved)
    assert [list(one.saes) for one in recipes] == [["a", "a2"], ["b", "b2", "b3"]]
    assert check_recipes(recipes, saved) == []
    saved["c"] = make("c", 6, k=6)
    with pytest.raises(ConfigError, match=r"seeds is 'c'; it differs in more than the seed: from A in settings.k"):
        with_seeds(recipes, ["c"], saved)
    with pytest.raises(ConfigError, match="A and B are of one recipe"):
        with_seeds([Recipe("A", ["a"]), Recipe("B", ["a2"])], ["b", "b2"], saved | {"b": make("d", 9)})


def test_what_is_no_reseed_is_refused_and_what_may_be_none_is_said(make: Make) -> None:
    saved = {"a": make("a", 1), "copy": make("copy", 1), "k": make("k", 2, k=5), "lr": make("lr", 3, lr=0.1)}
    saved["elsewhere"] = make("elsewhere", 4, site="b")
    for group, said in ((["a", "copy"], "the same as 'a'"), (["a", "k"], "differs from 'a' in settings.k")):
        with pytest.raises(ConfigError, match=said):
            check_recipes([Recipe("A", group), Recipe("B", ["lr"])], saved)
    with pytest.raises(ConfigError, match="it predicts m:b, but 'a' m:a"):
        check_recipes([Recipe("A", ["a"]), Recipe("B", ["elsewhere"])], saved)
    notes = check_recipes([Recipe("A", ["a", "lr"]), Recipe("B", ["k"])], saved)
    assert notes == ["A: lr differs from a in more than the seed: model.lr (None and 0.1)"]
    assert "are of one recipe" in check_recipes([Recipe("A", ["a"]), Recipe("B", ["copy"])], saved)[0]
