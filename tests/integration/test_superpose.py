"""`lightsae superpose`: what it writes and prints, what wins over what, and what it says of mistakes."""

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightsae.toy.superposition import Superposition

Run = Callable[..., Any]
RECIPE = Path(__file__).parents[2] / "configs" / "toy_superposition.yaml"
SHORT = ("--steps", "20", "--batch", "16", "--restarts", "2")
FILES = ["superposition.json", "superposition.png"]


def test_writes_picture_numbers_and_events(lightsae: Run, tmp_path: Path) -> None:
    ended = lightsae("superpose", *SHORT, "--sparsities", "[0, 0.9]", "--features", "3")
    assert ended.code == 0
    assert ended.err == ""
    folder = tmp_path / "lightning_logs" / "superposition_0"
    assert [file.name for file in sorted(folder.iterdir()) if not file.name.startswith("events.")] == FILES
    assert (folder / "superposition.png").read_bytes()[:4] == b"\x89PNG"

    told = json.loads((folder / "superposition.json").read_text())
    assert told["settings"] == {
        **{"features": 3, "dimensions": 2, "importance": 0.9, "sparsities": [0.0, 0.9], "restarts": 2},
        **{"steps": 20, "batch": 16, "lr": 0.01, "seed": 0, "device": "cpu"},
    }
    assert [model["sparsity"] for model in told["models"]] == [0.0, 0.9]
    for model in told["models"]:
        W = torch.tensor(model["W"])
        assert W.shape == (2, 3)
        assert len(model["b"]) == len(model["interference"]) == 3
        assert model["norms"] == pytest.approx(W.norm(dim=0).tolist(), rel=1e-5)
        assert model["represented"] == sum(norm > 0.5 for norm in model["norms"])
        assert model["dimensions_per_feature"] == pytest.approx(2 / float(W.square().sum()), rel=1e-5)
        assert model["loss"] > 0

    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["images"] == ["superposition"]


def test_prints_a_table_and_the_paths(lightsae: Run, tmp_path: Path) -> None:
    lines = lightsae("superpose", *SHORT, "--sparsities", "[0, 0.9]").out.splitlines()
    assert lines[0].split() == ["sparsity", "loss", "features", "represented", "dimensions", "per", "feature"]
    (folder,) = (tmp_path / "lightning_logs").iterdir()
    for line, model in zip(lines[1:3], json.loads((folder / FILES[0]).read_text())["models"], strict=True):
        found = re.fullmatch(r" *(\S+) +(\S+) +(\d) of 5 +(\S+)", line)
        assert found
        assert float(found[1]) == model["sparsity"]
        assert float(found[2]) == pytest.approx(model["loss"], abs=1e-4)
        assert int(found[3]) == model["represented"]
        assert float(found[4]) == pytest.approx(model["dimensions_per_feature"], abs=0.01)
    assert [line.split()[1] for line in lines[3:]] == [
        "lightning_logs/superposition_0/superposition.png",
        "lightning_logs/superposition_0/superposition.json",
    ]


def test_every_run_has_its_own_folder(lightsae: Run) -> None:
    for number in (0, 1):
        assert f"superposition_{number}/superposition.png" in lightsae("superpose", *SHORT).out
    ended = lightsae("superpose", *SHORT, "--out", "here/toy")
    assert [name for name in ended.new if "events" not in name] == [
        *("here", "here/toy"),
        *(f"here/toy/{name}" for name in FILES),
    ]
    assert "here/toy/superposition.png" in ended.out


def test_long_paths_stay_in_one_line(lightsae: Run) -> None:
    long = "/".join(["a" * 60] * 3)
    assert f"picture  {long}/superposition.png\n" in lightsae("superpose", *SHORT, "--out", long).out


def test_the_recipe_is_what_it_does_by_default(lightsae: Run) -> None:
    printed = lightsae("superpose", "--config", str(RECIPE), "--print_config")
    assert printed.code == 0
    assert Superposition(**{k: v for k, v in yaml.safe_load(printed.out).items() if k != "out"}) == Superposition()


def test_options_win_over_the_file(lightsae: Run, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("features: 4\nsteps: 7\nout: from_file\n")
    assert lightsae("superpose", *SHORT, "--config", "c.yaml", "--features", "3", "--steps", "9").code == 0
    told = json.loads((tmp_path / "from_file" / FILES[0]).read_text())["settings"]
    assert (told["features"], told["steps"], told["batch"]) == (3, 9, 16)


@pytest.mark.parametrize("width", [80, 120])
def test_help(width: int, lightsae: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = lightsae("superpose", "--help")
    assert (shown.code, shown.err) == (0, "")
    assert [line for line in shown.out.splitlines() if len(line) > width] == []
    assert shown.out.startswith("usage: lightsae superpose [--config FILE.yaml] [OPTIONS]\n")
    options = re.findall(r"^  (?:-\w, )?--(\w+)", shown.out, re.MULTILINE)
    assert options == ["help", "config", "print_config", "out", *Superposition.__dataclass_fields__]
    for foreign in ("``", "Namespace", "Union[", "<class", "CONFIG", "==SUPPRESS==", "null: null"):
        assert foreign not in shown.out


@pytest.mark.parametrize(
    ("args", "file", "says"),
    [
        (["--feature", "3"], None, ["--feature is not an option.", "features"]),
        (["--model.sae", "TopK"], None, ["--model.sae is not an option."]),
        (["features"], None, ["unrecognized arguments: features"]),
        (["--features", "few"], None, ["features is 'few'; write a whole number."]),
        (["--features", "0"], None, ["features is 0; write 1 or more."]),
        (["--sparsities", "0.5"], None, ["sparsities is 0.5; write a list."]),
        (["--sparsities", "[0, 1]"], None, ["sparsities is [0.0, 1.0]"]),
        (["--lr", ".nan"], None, ["lr is nan"]),
        (["--lr", "1e30", *SHORT], None, ["lr is 1e+30", "a smaller one"]),
        (["--device", "gpu"], None, ["device is 'gpu'", "cpu"]),
        (["--out", "c.yaml"], "features: 5", ["out is 'c.yaml', which exists"]),
        (["--out", "."], None, ["out is '.', which exists"]),
        (["--out", ""], None, ["out is ''"]),
        (["--config", "none.yaml"], None, ["--config is 'none.yaml', which does not exist."]),
        (["--config", "c.yaml"], "featurs: 5", ["featurs is not a setting.", "features"]),
        (["--config", "c.yaml"], "data: {model: gpt2}", ["data"]),
        (["--config", "c.yaml"], "steps: 5\nsteps: 6", ["steps stands there twice"]),
        (["--config", "c.yaml"], "steps: many", ["steps is 'many'; write a whole number."]),
        (["--config", "c.yaml"], "steps: [", ["c.yaml", "is not YAML"]),
    ],
    ids=str,
)
def test_message(args: list[str], file: str | None, says: list[str], lightsae: Run, tmp_path: Path) -> None:
    if file is not None:
        (tmp_path / "c.yaml").write_text(file)
    ended = lightsae("superpose", *args)
    assert (ended.code, ended.out, ended.new) == (2, "", []), ended
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("lightsae: error: ")
    assert len(ended.err) < 300, ended.err
    for fragment in says:
        assert fragment in ended.err, f"{fragment!r} is not in {ended.err!r}"


def test_nothing_is_left_where_the_disk_is_full(lightsae: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk:
        def __init__(self, folder: str) -> None:
            assert Path(folder, FILES[1]).is_file(), "the picture is there by now"
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("lightsae.cli.commands.superpose.SummaryWriter", FullDisk)
    ended = lightsae("superpose", *SHORT, "--out", "toy")
    assert (ended.code, ended.out, ended.new) == (2, "", [])
    assert "Cannot write 'toy': no space is left" in ended.err


def test_ctrl_c(lightsae: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightsae.cli.commands.superpose.train", interrupted)
    ended = lightsae("superpose", *SHORT)
    assert (ended.code, ended.out, ended.new) == (130, "", [])
    assert ended.err.strip() == "lightsae: stopped."
