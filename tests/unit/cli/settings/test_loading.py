"""jsonargparse takes the bounded loader, wherever it reads YAML: files, typed values, and text within values."""

import pytest
from jsonargparse import ArgumentParser, get_loader

from lightsae.cli.settings.command import command
from lightsae.cli.settings.parser import Parser
from lightsae.cli.settings.trusted import load_yaml
from lightsae.errors import ConfigError

BOMB = "{" + ", ".join(["a0: &a0 [1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]) + "}"


@pytest.mark.parametrize("mode", ["yaml", "lightsae", "lightsae-command"])
def test_every_loader_is_bounded(mode: str) -> None:
    read = get_loader(mode)
    with pytest.raises(Exception, match="stands for more than 100,000 values"):
        read(BOMB)
    with pytest.raises(Exception, match="levels deep"):
        read("[" * 5000)
    assert read("a: 1e-4") == {"a": 1e-4}
    assert load_yaml("a: b") == {"a": "b"}


@pytest.mark.parametrize("kind", [int, float, bool, dict, list[int], dict[str, int] | None, int | str])
@pytest.mark.parametrize("text", [BOMB, "&a [*a]", "1" * 5000, "[" * 5000])
def test_no_typed_value_is_taken_apart_without_bounds(kind: type, text: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    if kind == int | str:
        assert parser.parse_args(["--value", text]).value == text
        return
    with pytest.raises(Exception, match="value"):
        parser.parse_args(["--value", text])


@pytest.mark.parametrize("text", [BOMB, "number: &a [*a]", "[" * 5000, "number: 1\nnumber: 2"])
def test_a_file_of_a_command_is_refused_in_one_line(text: str, tmp_path: pytest.TempPathFactory) -> None:
    @command("--number N", [], config=("--settings",))
    def run_count(number: int = 0) -> None:
        """Count."""

    file = tmp_path / "s.yaml"  # type: ignore[operator]
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        run_count(["--settings", str(file)])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_parser_of_fit_is_bounded(tmp_path: pytest.TempPathFactory) -> None:
    parser = Parser(command="fit")
    parser.add_argument("--value", type=dict)
    with pytest.raises(ConfigError):
        parser.parse_args(["--value", BOMB])
