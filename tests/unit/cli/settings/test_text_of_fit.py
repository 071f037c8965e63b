"""What a command takes from a file of `fit`: the text and every site that is read; nothing unknown is dropped."""

from typing import Any

import pytest

from helpers.errors import refused
from lightsae.cli.settings.text_of_fit import OTHERS, READ, text_of_fit
from lightsae.errors import ConfigError

TOPK = {"class_path": "TopK", "init_args": {"d_sae": [8, 16], "k": 2}}


@pytest.mark.parametrize(
    ("data", "model", "sites"),
    [
        ({"site": "a"}, {"sae": TOPK}, ["a"]),
        ({"site": ["a", "b"], "target_site": "c"}, {}, ["a", "b", "c"]),
        ({"site": "a"}, {"saes": {"x": {"sae": TOPK}, "y": {"site": "b", "target_site": "c"}}}, ["a", "b", "c"]),
        # Nobody reads the site of the data.
        ({"site": "a"}, {"saes": {"x": {"site": "b"}, "y": {"site": ["b", "c"]}}}, ["b", "c"]),
        ({"site": "a"}, {"grid": {"x": {"sae": TOPK}}}, ["a"]),
    ],
)
def test_every_site_that_an_sae_reads(data: dict[str, Any], model: dict[str, Any], sites: list[str]) -> None:
    assert text_of_fit({"data": data, "model": model}) == {"data": {"site": sites}}


def test_training_is_left_out_and_what_nobody_knows_is_not() -> None:
    file = {
        "seed_everything": 3,
        "trainer": {"max_steps": 3},
        "throughput": {"every_n_steps": 4},
        "out": "cache",
        "traner": {},
        "data": {"model": "m", "batch_tokens": 4, "cache": None, "prefetch": True, "device": "cuda:1", "modle": "x"},
    }
    assert text_of_fit(file) == {"out": "cache", "traner": {}, "data": {"model": "m", "modle": "x"}}
    assert text_of_fit("a.yaml") == "a.yaml"


@pytest.mark.parametrize("name", ["roles", "datasets"])
def test_what_a_cache_cannot_keep_is_refused(name: str) -> None:
    with refused(ConfigError, f"data.{name}: a cache keeps neither datasets nor roles apart; leave it out."):
        text_of_fit({"data": {"model": "m", name: ["assistant"]}})
    assert text_of_fit({"data": {"model": "m", name: None}}) == {"data": {"model": "m"}}


def test_how_the_model_is_loaded_is_kept() -> None:
    data = {"model": "m", "quantization": "4bit", "device_map": "auto"}
    assert text_of_fit({"data": data}) == {"data": data}


def test_settings_are_on_one_side() -> None:
    assert not set(READ) & set(OTHERS)
