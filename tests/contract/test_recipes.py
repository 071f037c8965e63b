"""Every recipe in configs/: parsed as it stands, and a few steps of it run on a tiny random model of its class."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lightsae.cli import main
from lightsae.production.registry import read_policy
from lightsae.sae import VARIANTS

CONFIGS = Path(__file__).parents[2] / "configs"
OTHER_COMMANDS = {"toy_superposition"}
# Folders of files that other commands read, and what has to take each of them as it stands.
OTHER_FOLDERS = {
    "panels": "panel --sae s --out o --print_config --panel",
    "pipelines": "pipeline --dry_run --config",
}
# Folders of files that are given after a recipe.
ADDED = ("overrides", "loggers")
# The package that each file of configs/loggers needs.
LOGGERS = {"clearml": "clearml", "wandb": "wandb", "mlflow": "mlflow"}
# The transformers class of each recipe's model, and enough layers for its site.
MODELS = {
    "quickstart": ("llama", 4),
    "gpt2-small_mlp-act-6_tinystories": ("gpt2", 7),
    "qwen2.5-0.5b_resid-post-12_fineweb-edu": ("qwen2", 13),
    "qwen3-8b_mlp-out-28_fineweb": ("qwen3", 29),
    "pythia-160m_resid-post-8_pile": ("gpt_neox", 9),
    "gpt2-small_transcoder-mlp-6_tinystories": ("gpt2", 7),
    "qwen2.5-0.5b_crosscoder-base-instruct-12": ("qwen2", 13),
}
SHORT = (
    "--trainer.max_steps=4 --trainer.accelerator=cpu --trainer.val_check_interval=4 --trainer.precision=32-true "
    "--trainer.enable_progress_bar=false --data.context_size=16 --data.batch_tokens=64 --data.buffer_tokens=256 "
    "--data.shuffle_tokens=512 --data.val_tokens=128 --data.num_workers=0 --data.dataset_config=null "
    "--data.validation_split=null --data.training_tokens=null"
).split()


def run(*args: str, command: str = "fit") -> int:
    with pytest.raises(SystemExit) as ended:
        main([command, *args])
    return int(ended.value.code or 0)


def test_every_recipe_is_under_contract() -> None:
    assert set(MODELS) == {path.stem for path in CONFIGS.glob("*.yaml")} - OTHER_COMMANDS


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(CONFIGS.glob("**/*.yaml"))
        if path.stem not in OTHER_COMMANDS and path.parent.name not in (*OTHER_FOLDERS, "policies")
    ],
    ids=lambda path: path.stem,
)
def test_parses_and_says_what_it_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert path.read_text().startswith("# "), "a recipe begins with what it is"
    before = [str(CONFIGS / "quickstart.yaml")] if path.parent.name in ADDED else []
    assert run(*(word for file in [*before, str(path)] for word in ("--config", file)), "--print_config") == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    chosen = [entry["sae"] for entry in model["saes"].values()] if model["saes"] else [model["sae"]]
    assert all(sae["class_path"].rpartition(".")[2] in VARIANTS for sae in chosen)


@pytest.mark.parametrize(
    "path",
    [path for folder in OTHER_FOLDERS for path in sorted((CONFIGS / folder).iterdir())],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_other_commands_take_their_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert path.read_text().startswith("# "), "a file begins with what it is"
    monkeypatch.chdir(CONFIGS.parent)
    command, *args = OTHER_FOLDERS[path.parent.name].split()
    assert run(*args, str(path), command=command) == 0


@pytest.mark.parametrize("path", sorted((CONFIGS / "policies").iterdir()), ids=lambda path: path.stem)
def test_policies_are_read(path: Path) -> None:
    assert path.read_text().startswith("# "), "a file begins with what it is"
    # Nothing was measured: every figure that the policy asks for is named.
    assert read_policy(path).shortfalls({})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_no_file_says_which_dtype_a_processor_is_fast_with(path: Path) -> None:
    def dtypes(value: Any) -> list[str]:
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        named = [value["dtype"]] if isinstance(value, dict) and "dtype" in value else []
        return named + [dtype for inner in values for dtype in dtypes(inner)]

    assert set(dtypes(yaml.safe_load(path.read_text()))) <= {"auto"}


@pytest.mark.parametrize("name", MODELS)
def test_runs_shortened(
    name: str, make_model: Callable[..., Path], tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = CONFIGS / f"{name}.yaml"
    args = ["--config", str(config), *SHORT, "--data.model", str(make_model(*MODELS[name]))]
    args += ["--data.dataset", str(tiny_corpus), "--model.sae.d_sae=80"]
    text = config.read_text()
    if "TopK" in text:
        args += ["--model.sae.mechanism.k=4" if "mechanism" in text else "--model.sae.k=4"]
    if "more_models" in text:
        other = shutil.copytree(make_model(*MODELS[name]), tmp_path / "other")
        args += ["--data.more_models", f"{{instruct: {other}}}"]
    if "target_l0" in text:
        args += ["--model.sae.target_l0=8"]
    assert run(*args) == 0
    description = json.loads((tmp_path / "lightning_logs/version_0/sae/sae.json").read_text())
    assert description["provenance"]["step"] == 4


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "sweeps").glob("*.yaml")))
def test_sweeps_run_shortened(
    name: str, make_model: Callable[..., Path], tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--config", str(CONFIGS / "sweeps" / f"{name}.yaml"), *SHORT]
    if not name.startswith("synthetic"):
        args += ["--data.model", str(make_model("llama", 4)), "--data.dataset", str(tiny_corpus)]
    assert run(*args) == 0
    folder = tmp_path / "lightning_logs/version_0"
    names = {entry["name"] for entry in json.loads((folder / "sweep.json").read_text())["dictionaries"]}
    assert names == {path.parent.name for path in folder.glob("sae/*/sae.json")}
    assert (folder / "sweep.png").is_file()


@pytest.mark.filterwarnings("ignore")  # of packages that are not lightsae's to choose, and of what they are built on
@pytest.mark.parametrize("name", LOGGERS)
def test_loggers_run_shortened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(LOGGERS[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(tmp_path / "none.conf"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((2000, 12)).astype(np.float32))
    sizes = "--data.batch_tokens 64 --data.buffer_tokens 256 --data.val_tokens 128 --model.sae.d_sae 24 --model.sae.k 4"
    args = ["--config", str(CONFIGS / "loggers" / f"{name}.yaml"), "--data.activations", "rows.npy"]
    args += ["--model.sae", "TopK", *sizes.split(), "--trainer.enable_progress_bar", "false"]
    assert run(*args, "--trainer.max_steps", "3") == 0
    config = "lightning_logs/version_0/config.yaml"
    assert run("--config", config, "--ckpt_path", "last", "--trainer.max_steps", "5") == 0
    assert run("--config", config, "--ckpt_path", "last", command="validate") == 0
    # W&B keeps one run to a process.
    left = {"clearml": "cache/offline/*.zip", "wandb": "lightning_logs/wandb/offline-run-*", "mlflow": "mlflow.db"}
    assert len(list(tmp_path.glob(left[name]))) == (3 if name == "clearml" else 1)


def test_every_logger_file_is_run() -> None:
    assert set(LOGGERS) == {path.stem for path in (CONFIGS / "loggers").iterdir()}
