"""A grid in a file becomes entries by name."""

from typing import Any

import pytest

from lightsae.cli.settings.grid import expand_grid
from lightsae.errors import ConfigError


def expanded(grid: dict[str, Any], **model: Any) -> dict[str, Any]:
    saes: dict[str, Any] = expand_grid({"model": {"grid": grid, **model}, "data": {}})["model"]["saes"]
    return saes


def test_every_combination_has_a_name() -> None:
    saes = expanded({"t": {"sae": {"class_path": "TopK", "init_args": {"d_sae": [8, 16], "k": [1, 2, 4]}}}})
    assert list(saes) == [f"t_d_sae{d}_k{k}" for d in (8, 16) for k in (1, 2, 4)]
    assert saes["t_d_sae16_k2"] == {"sae": {"class_path": "TopK", "init_args": {"d_sae": 16, "k": 2}}}


def test_what_does_not_vary_is_not_in_the_name() -> None:
    assert list(expanded({"t": {"sae": {"init_args": {"d_sae": [8]}}, "lr": [0.1, 0.2]}})) == ["t_lr0_1", "t_lr0_2"]
    assert list(expanded({"t": {"lr": 0.1}})) == ["t"]


def test_text_stands_for_itself() -> None:
    assert list(expanded({"t": {"site": ["resid_post.1", "mlp_out.1"]}})) == ["t_resid_post_1", "t_mlp_out_1"]


def test_a_list_in_a_list_is_a_value() -> None:
    saes = expanded({"c": {"site": [["a", "b"], ["a", "c"]], "sae": {"init_args": {"groups": [[4, 4]]}}}})
    assert [entry["site"] for entry in saes.values()] == [["a", "b"], ["a", "c"]]
    assert all(entry["sae"]["init_args"]["groups"] == [4, 4] for entry in saes.values())


def test_entries_share_nothing() -> None:
    saes = expanded({"t": {"sae": {"init_args": {"k": [1, 2], "refinements": {"tilt": 0}}}}})
    saes["t_k1"]["sae"]["init_args"]["refinements"]["tilt"] = 1
    assert saes["t_k2"]["sae"]["init_args"]["refinements"]["tilt"] == 0


def test_entries_that_are_written_out_stay() -> None:
    assert list(expanded({"t": {"lr": [1, 2]}}, saes={"a": {}})) == ["a", "t_lr1", "t_lr2"]


@pytest.mark.parametrize("settings", [3, None, "x", {"model": "x"}, {"model": {"saes": {}}}, {"data": {"grid": 1}}])
def test_anything_else_is_left_alone(settings: Any) -> None:
    assert expand_grid(settings) is settings


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ([1], "entries by name"),
        ({"a": 3}, "entries by name"),
        ({"a": {"lr": []}}, r"model\.grid\.a\.lr is an empty list"),
        ({"a": {"x": ["u v", "u_v"]}}, "two SAEs would be called 'a_u_v'"),
    ],
)
def test_what_is_no_grid(grid: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        expand_grid({"model": {"grid": grid}})
