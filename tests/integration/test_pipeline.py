"""`lightsae pipeline`: what it runs, what it skips and why, how it goes on, and what it says of mistakes."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.cli import main
from lightsae.cli.pipeline.runs import run_command

Run = Callable[..., Any]
RECIPE = Path(__file__).parents[2] / "configs" / "pipelines" / "builtin.yaml"
FIT = "trainer: {max_steps: 3}\nmodel: {lr: 0.01}\n"
PIPELINE = "out: out\nfit: {config: fit.yaml}\nvalidate: {}\ninterpret: {tokens: 500}\n"
PIPELINE += "panel: {seed: 1, panel: panel.yaml}\n"
ALL = ["fit", "validate", "interpret", "panel"]


class Commands:
    """Stands for the commands: writes outputs that are new each time, or fails where it is told to."""

    def __init__(self) -> None:
        self.typed: list[list[str]] = []
        self.fail: dict[str, int] = {}
        self.count = 0

    def __call__(self, command: Sequence[str]) -> int:
        name, options = command[0], dict(zip(command[1::2], command[2::2], strict=True))
        self.typed.append(list(command))
        self.count += 1
        if name in ("fit", "validate"):
            root = Path(options["--trainer.default_root_dir"]) if "--trainer.default_root_dir" in options else None
            folder = Path(options["--config"]).parent
            if root is not None:
                folder = root / "lightning_logs" / f"version_{len(list(root.glob('lightning_logs/*')))}"
                (folder / "sae").mkdir(parents=True)
            (folder / "validation.json").touch()
            (folder / "config.yaml").touch()
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "last.ckpt").touch()
        else:
            folder = Path(options["--out"])
            folder.mkdir(exist_ok=True)
        if name in self.fail:
            return self.fail[name]
        told = {"format_version": 1, "variant": "TopK", "settings": {}, "widths": {}, "provenance": {}}
        digest = str(self.count)
        if name == "fit":
            (folder / "sae" / "sae.json").write_text(json.dumps({**told, "sha256": digest}))
        for file in ("dictionary.json", "features.parquet", "panel.json", "panel.md"):
            (folder / file).write_text(json.dumps({"id": digest}))
        return 0

    def names(self) -> list[str]:
        """Return what ran since the last time."""
        found, self.typed = [command[0] for command in self.typed], []
        return found


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    """A pipeline's files in `tmp_path`, and what stands for its commands."""
    stand_in = Commands()
    monkeypatch.setattr("lightsae.cli.pipeline.runs.run_command", stand_in)
    monkeypatch.setattr("lightsae.cli.commands.pipeline._check_settings", lambda step: None)  # the panel is another's
    (tmp_path / "fit.yaml").write_text(FIT)
    (tmp_path / "panel.yaml").write_text("choose: {count: 24}\n")
    (tmp_path / "p.yaml").write_text(PIPELINE)
    return stand_in


@pytest.fixture
def pipeline(lightsae: Run, commands: Commands) -> Run:
    def run(*more: str) -> Any:
        return lightsae("pipeline", "--config", "p.yaml", *more)

    return run


def reasons(said: str) -> dict[str, str]:
    """Return by step what was said of it."""
    lines = [line.split(maxsplit=1) for line in said.splitlines() if line.startswith(tuple(ALL))]
    return {name: why for name, why in lines if not why.endswith("/")}


def state(folder: Path) -> Any:
    return json.loads((folder / "out" / "pipeline.json").read_text())


def test_runs_the_commands_that_one_would_type(pipeline: Run, commands: Commands) -> None:
    ended = pipeline("--fit.trainer.max_steps", "5", "--interpret.seed=7")
    assert (ended.code, ended.err) == (0, "")
    run = "out/lightning_logs/version_0"
    expected = [
        "fit --config fit.yaml --trainer.max_steps 5 --trainer.default_root_dir out",
        f"validate --config {run}/config.yaml --ckpt_path last --trainer.default_root_dir out",
        f"interpret --sae {run}/sae --out out/dictionary --tokens 500 --seed 7",
        f"panel --sae {run}/sae --dictionary out/dictionary --out out/panel --panel panel.yaml --seed 1",
    ]
    assert [" ".join(words) for words in commands.typed] == expected
    assert [line.strip() for line in ended.out.splitlines() if line.startswith("  ")] == [
        f"lightsae {words}" for words in expected
    ]


def test_dry_run_prints_the_same_and_leaves_nothing(pipeline: Run, commands: Commands) -> None:
    planned = pipeline("--dry_run")
    assert (planned.code, planned.new, commands.typed) == (0, [], [])
    assert planned.out in pipeline().out


def test_what_is_done_is_skipped(pipeline: Run, commands: Commands, tmp_path: Path) -> None:
    pipeline()
    assert commands.names() == ALL
    before = state(tmp_path)
    ended = pipeline()
    assert (ended.code, ended.new, commands.names()) == (0, [], [])
    assert all(why.startswith("done (out/") for why in reasons(ended.out).values())
    assert state(tmp_path) == before
    (tmp_path / "fit.yaml").write_text("# A comment.\n" + FIT)
    assert pipeline().code == 0
    assert commands.names() == []


@pytest.mark.parametrize(
    ("change", "runs", "says"),
    [
        (
            ["--fit.trainer.max_steps", "4"],
            ALL,
            {"fit": "changed: trainer.max_steps", "validate": "changed: fit", "panel": "changed: interpret"},
        ),
        (["--validate.data.val_tokens", "9"], ["validate"], {"validate": "changed: data.val_tokens"}),
        (
            ["--interpret.tokens", "600"],
            ["interpret", "panel"],
            {"interpret": "changed: tokens", "panel": "changed: interpret"},
        ),
        (["--panel", "{panel: panel.yaml}"], ["panel"], {"panel": "changed: seed"}),
        (["--force", "interpret"], ["interpret", "panel"], {"interpret": "forced"}),
        (["--force", "fit"], ALL, {"fit": "forced"}),
        (["--panel", "null", "--force", "interpret"], ["interpret"], {}),
    ],
)
def test_a_change_runs_its_step_and_those_that_read_it(
    change: list[str], runs: list[str], says: dict[str, str], pipeline: Run, commands: Commands
) -> None:
    pipeline()
    commands.names()
    ended = pipeline(*change)
    assert commands.names() == runs
    told = reasons(ended.out)
    assert says.items() <= told.items()
    assert all(told[name].startswith("done (") for name in told if name not in runs)


def test_changes_of_files_and_inputs_are_seen(
    pipeline: Run, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gate.yaml").write_text("gate: {precision: 0.8}\n")
    more = ("--interpret.config", "gate.yaml")
    pipeline(*more)
    commands.names()

    (tmp_path / "gate.yaml").write_text("gate: {precision: 0.9}\n")
    assert reasons(pipeline(*more).out)["interpret"] == "changed: gate.precision"
    assert commands.names() == ["interpret", "panel"]

    # Labels were added: the panel reads them.
    (tmp_path / "out/dictionary/dictionary.json").write_text('{"id": "labelled"}')
    assert reasons(pipeline(*more).out)["panel"] == "changed: the dictionary"
    assert commands.names() == ["panel"]

    (tmp_path / "out/panel/panel.md").unlink()
    assert reasons(pipeline(*more).out)["panel"] == "changed: out/panel/panel.md"
    assert commands.names() == ["panel"]

    (tmp_path / "panel.yaml").write_text("choose: {count: 12}\n")
    assert reasons(pipeline(*more).out)["panel"] == "changed: choose.count in panel.yaml"
    assert commands.names() == ["panel"]

    (tmp_path / "fit.yaml").write_text(FIT.replace("0.01", "0.02"))
    assert reasons(pipeline(*more).out)["fit"] == "changed: model.lr"
    assert commands.names() == ALL

    monkeypatch.setattr("lightsae.cli.pipeline.runs.version", lambda: "9.9")
    assert reasons(pipeline(*more).out)["fit"] == "changed: lightsae"
    assert commands.names() == ALL


def test_an_earlier_run_stays_and_counts_until_the_new_one_is_complete(
    pipeline: Run, commands: Commands, tmp_path: Path
) -> None:
    pipeline()
    commands.names()
    commands.fail["fit"] = 2
    ended = pipeline("--fit.trainer.max_steps", "4", "--force", "fit")
    assert ended.code == 2
    assert ended.err == (
        "lightsae: fit failed; what was done before it is kept. Go on with the pipeline: "
        "lightsae pipeline --config p.yaml --fit.trainer.max_steps 4\n"
    )
    assert commands.names() == ["fit"]
    assert (tmp_path / "out/lightning_logs/version_0/sae/sae.json").is_file()
    # With the settings as they were there is nothing to do.
    assert pipeline().code == 0
    assert commands.names() == []

    commands.fail = {"validate": 130}
    ended = pipeline("--fit.trainer.max_steps", "4")
    assert (ended.code, ended.err.partition(".")[0]) == (130, "lightsae: stopped at validate")
    run = "out/lightning_logs/version_2"
    assert commands.typed[0] == ["fit", "--config", f"{run}/config.yaml", "--ckpt_path", "last"]
    assert commands.names() == ["fit", "validate"]
    commands.fail = {}
    told = reasons(pipeline("--fit.trainer.max_steps", "4").out)
    assert told["validate"] == "not done"
    assert commands.names() == ALL[1:]


def test_a_forced_step_that_was_stopped_runs_again(pipeline: Run, commands: Commands) -> None:
    pipeline()
    commands.fail["interpret"] = 1
    pipeline("--force", "interpret")
    commands.names()
    commands.fail = {}
    assert pipeline().code == 0
    assert commands.names() == ["interpret", "panel"]


@pytest.mark.parametrize("step", ["interpret", "panel"])
def test_a_folder_that_a_killed_run_replaced_does_not_pass_for_the_earlier_one(
    step: str, pipeline: Run, commands: Commands, tmp_path: Path
) -> None:
    pipeline()
    commands.names()
    new, earlier = (f"--{step}.seed", "5"), (tmp_path / "out" / "pipeline.json").read_text()
    commands.fail[step] = 1
    pipeline(*new)
    commands.names()
    # It was stopped before it wrote: the earlier one counts, and labels that are added to it are no replacement.
    assert pipeline().code == 0
    assert commands.names() == []
    assert state(tmp_path) == json.loads(earlier)

    def killed(command: Sequence[str]) -> int:
        return commands(command) or 137

    commands.fail = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightsae.cli.pipeline.runs.run_command", killed)
        assert pipeline(*new).code == 137
    # Nor after a second try that was stopped before it wrote.
    commands.fail[step] = 1
    pipeline(*new)
    commands.fail = {}
    commands.names()
    assert reasons(pipeline().out)[step] == "not done"
    assert commands.names() == ALL[ALL.index(step) :]


def test_begins_with_a_run_that_is_there(pipeline: Run, commands: Commands) -> None:
    pipeline("--validate", "null", "--interpret", "null", "--panel", "null")
    commands.names()
    run = "out/lightning_logs/version_0"
    assert pipeline("--fit", "null", "--run", run, "--out", "other").code == 0
    assert commands.typed[1][:5] == ["interpret", "--sae", f"{run}/sae", "--out", "other/dictionary"]
    assert commands.names() == ALL[1:]


@pytest.mark.parametrize(
    ("args", "file", "says"),
    [
        ([], "out: x", ["There is no step to do.", "--config configs/pipelines/builtin.yaml"]),
        ([], "interpet: {}", ["interpet is no step or setting", "'interpret'"]),
        ([], "fit: 5", ["fit is 5"]),
        ([], "fit: {}", ["fit.config is missing"]),
        ([], "fit: {config: ft.yaml}", ["fit: --config is 'ft.yaml', which does not exist.", "'fit.yaml'"]),
        ([], "fit: {config: fit.yaml, ckpt_path: last}", ["fit.ckpt_path is set, but the pipeline chooses it"]),
        ([], "fit: {config: several.yaml}\ninterpret: {}", ["model.saes asks for several SAEs"]),
        ([], "fit: {config: logged.yaml}", ["trainer.logger is set"]),
        ([], "interpret: {sae: x}", ["interpret.sae is set"]),
        ([], "interpret: {}", ["fit is left out; name a run"]),
        ([], "interpret: {}\nrun: none", ["none/sae", "does not exist"]),
        ([], "fit: {config: fit.yaml}\npanel: {}", ["panel.panel is missing"]),
        (
            [],
            "fit: {config: fit.yaml}\npanel: {panel: fit.yaml}",
            ["interpret is left out, but panel needs a dictionary"],
        ),
        (
            [],
            "fit: {config: fit.yaml, data: {trust_remote_code: true}}",
            ["fit.data.trust_remote_code is set in a file, but it has to be typed: --fit.data.trust_remote_code true"],
        ),
        ([], "fit: {config: fit.yaml, allow_classes: os}", ["fit.allow_classes is set in a file"]),
        ([], "fit: {config: fit.yaml}\nrun: x", ["run is 'x', but fit makes one itself"]),
        ([], "fit: {config: fit.yaml}\nout: fit.yaml", ["out is 'fit.yaml', which is a file"]),
        ([], "fit: {config: fit.yaml}\nfit: {}", ["fit stands there twice"]),
        ([], "fit: {config: fit.yaml}\ninterpret: {tokns: 5}", ["interpret: --tokns is not an option.", "'--tokens'"]),
        ([], "fit: {config: fit.yaml}\ninterpret: {tokens: few}", ["interpret: tokens is 'few'"]),
        ([], "panel: {panel: none.yaml}", ["panel.panel is 'none.yaml', which does not exist."]),
        (["--interpt.tokens", "5"], "fit: {config: fit.yaml}", ["'interpt' is no step", "'interpret'"]),
        (["--fit.trainer.max_steps"], "fit: {config: fit.yaml}", ["--fit.trainer.max_steps stands without a value"]),
        (["--force", "ft"], "fit: {config: fit.yaml}", ["force is 'ft', which is no step here", "'fit'"]),
        (["--frce", "fit"], "fit: {config: fit.yaml}", ["--frce is not an option.", "'--force'"]),
        (["--config", "none.yaml"], "", ["--config is 'none.yaml', which does not exist."]),
    ],
    ids=str,
)
def test_message(args: list[str], file: str, says: list[str], lightsae: Run, tmp_path: Path) -> None:
    (tmp_path / "fit.yaml").write_text(FIT)
    (tmp_path / "several.yaml").write_text("model: {saes: {a: {sae: TopK}}}")
    (tmp_path / "logged.yaml").write_text("trainer: {logger: {class_path: CSVLogger}}")
    (tmp_path / "p.yaml").write_text(file)
    ended = lightsae("pipeline", *(args if "--config" in args else ["--config", "p.yaml", *args]))
    assert (ended.code, ended.out, ended.new) == (2, "", []), ended
    assert ended.err.count("\n") == 1, ended.err
    assert len(ended.err) < 300, ended.err
    for fragment in says:
        assert fragment in ended.err, f"{fragment!r} is not in {ended.err!r}"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "{",
            "[]",
            '{"format": 99, "done": {}, "begun": {}}',
            '{"format": 1}',
            "[" * 5000,
            '{"format": 1, "format": 1}',
        ),
        '{"format": 1, "done": {"fit": {"folder": 7, "inputs": {}}}, "begun": {}}',
        '{"format": 1, "done": {"fit": {"folder": "x", "inputs": []}}, "begun": {}}',
        '{"format": 1, "done": {"fit": {"folder": "x", "inputs": {"a": 1}}}, "begun": {}}',
        '{"format": 1, "done": {}, "begun": {"fit": {"folder": "x", "inputs": {}, "before": []}}}',
    ],
)
def test_a_damaged_state_is_said(text: str, pipeline: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pipeline.json").write_text(text)
    ended = pipeline()
    assert (ended.code, ended.new) == (2, [])
    assert "pipeline.json" in ended.err


@pytest.mark.parametrize("width", [80, 120])
def test_help(width: int, lightsae: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = lightsae("pipeline", "--help")
    assert (shown.code, shown.err) == (0, "")
    assert [line for line in shown.out.splitlines() if len(line) > width] == []
    assert shown.out.startswith("usage: lightsae pipeline --config FILE.yaml [OPTIONS]\n")
    for foreign in ("``", "Namespace", "Union[", "<class", "CONFIG", "==SUPPRESS==", "null: null"):
        assert foreign not in shown.out


def test_the_recipe_names_files_that_exist() -> None:
    told = yaml.safe_load(RECIPE.read_text())
    assert list(told) == ["out", *ALL]
    root = RECIPE.parents[2]
    assert (root / told["fit"]["config"]).is_file()
    assert (root / told["panel"]["panel"]).is_file()


def test_signals_reach_the_command_and_its_end_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!/bin/sh\ntrap 'sleep 0.2; echo saved > {tmp_path}/saved; exit 143' TERM\n"
        f"touch {tmp_path}/ready\nwhile :; do sleep 0.05; done\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    over = threading.Event()

    def stop() -> None:
        while not (tmp_path / "ready").exists() and not over.wait(0.02):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    try:
        assert run_command(["fit"]) == 143
    finally:
        over.set()
        thread.join()
    assert (tmp_path / "saved").is_file()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_real_commands(lightsae: Run, complete: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit, validate and interpret a tiny model; then a training that was killed at its very end goes on."""

    def run(command: Sequence[str]) -> int:
        with pytest.raises(SystemExit) as end:
            main(list(command))
        return int(end.value.code or 0)

    monkeypatch.setattr("lightsae.cli.pipeline.runs.run_command", run)
    options = complete()
    fit = {
        key.removeprefix("--"): yaml.safe_load(value) for key, value in zip(options[::2], options[1::2], strict=True)
    }
    fit |= {"data.validation_fraction": 0.5}
    (tmp_path / "fit.yaml").write_text("seed_everything: 0\n")
    sizes = {"tokens": 500, "score_tokens": 500, "mining_tokens": 500, "num_workers": 0, "dashboard": False}
    given = {
        "out": "out",
        "fit": {"config": "fit.yaml", **fit},
        "validate": {},
        "interpret": {**sizes, "neurons": False},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(given))

    ended = lightsae("pipeline", "--config", "p.yaml")
    assert ended.code == 0, ended.err
    run_folder = tmp_path / "out/lightning_logs/version_0"
    FeatureDictionary.open(tmp_path / "out/dictionary").check_belongs_to(str(run_folder / "sae"))
    measured = json.loads((tmp_path / "out/lightning_logs/version_1/validation.json").read_text())
    assert measured["figures"]
    # The figures are of the very weights that were exported.
    assert list(measured["sha256"].values()) == [json.loads((run_folder / "sae/sae.json").read_text())["sha256"]]
    again = lightsae("pipeline", "--config", "p.yaml")
    assert (again.code, again.new) == (0, [])
    assert again.out.count("done (") == 3

    told = state(tmp_path)
    told["begun"]["fit"] = told["done"].pop("fit")
    (tmp_path / "out/pipeline.json").write_text(json.dumps(told))
    ended = lightsae("pipeline", "--config", "p.yaml", "--interpret", "null")
    assert ended.code == 0, ended.err
    assert reasons(ended.out)["fit"] == "goes on where it was stopped"
    assert state(tmp_path)["done"]["fit"]["folder"] == "lightning_logs/version_0"
