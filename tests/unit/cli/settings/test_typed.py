"""What was typed: config files, and options that would have no effect."""

from pathlib import Path

import pytest
from jsonargparse import Namespace

from lightsae.cli.settings.typed import check_config_files, check_typed_options, config_files, files_first
from lightsae.errors import ConfigError


def settings(class_path: str = "lightsae.sae.TopK", max_steps: int = 5, **init_args: object) -> Namespace:
    sae = Namespace(class_path=class_path, init_args=Namespace(**(init_args or {"d_sae": 8, "k": 2})))
    return Namespace(model=Namespace(sae=sae), trainer=Namespace(max_steps=max_steps))


def test_config_files() -> None:
    typed = ["--config", "a.yaml", "--data.seed", "-3", "-c", "b.yaml", "--config=c.yaml", "--data.config", "d.yaml"]
    assert config_files(typed) == [Path("a.yaml"), Path("b.yaml"), Path("c.yaml")]


def test_files_come_first_in_their_order() -> None:
    typed = ["--data.seed", "-3", "-c", "b.yaml", "--config=a.yaml", "--data.config", "d.yaml", "--config", "c.yaml"]
    files = ["-c", "b.yaml", "--config=a.yaml", "--config", "c.yaml"]
    assert files_first(typed) == [*files, "--data.seed", "-3", "--data.config", "d.yaml"]
    assert files_first(["--a", "1", "-c=b.yaml"]) == ["-c=b.yaml", "--a", "1"]
    assert files_first(["--a", "1", "--config"]) == ["--config", "--a", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1, column 6 is not YAML"),
        ("a: 1\n\tb: 2", "line 2, column 1 is not YAML"),
        ("", "is empty"),
        ("just words", "holds a str"),
        ("model: 3", "model is 3"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_config_file(text: str | bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        check_config_files(["--config", str(file)])


@pytest.mark.parametrize("text", ["data:\nmodel: {lr: 1}", "data: other.yaml", "seed_everything: 3"])
def test_good_config_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    check_config_files([f"--config={file}"])


def test_config_file_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        check_config_files(["-c", str(tmp_path)])


@pytest.mark.parametrize("option", ["--model.sae.k", "--model.sae.init_args.k"])
def test_option_that_the_variant_does_not_have(option: str) -> None:
    relu = settings("lightsae.sae.ReLU", d_sae=8, decoder_norm="free")
    # The value that was typed last is the one to name.
    with pytest.raises(ConfigError, match="k is 5, but ReLU has no setting 'k'; it has d_sae, decoder_norm"):
        check_typed_options([option, "4", option, "5", "--model.sae", "ReLU"], relu)
    check_typed_options([option, "4"], settings())


def test_length_that_has_no_effect() -> None:
    with pytest.raises(ConfigError, match="max_steps is 5"):
        check_typed_options(["--data.training_tokens", "100"], settings())
    check_typed_options(["--data.training_tokens", "100"], settings(max_steps=-1))
    check_typed_options(["--data.training_tokens", "null"], settings())
