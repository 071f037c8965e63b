"""The benchmark for a card runs on the CPU at a tiny size, from the first check to the last row."""

import importlib.util
import sys
from pathlib import Path

import pytest

from lightsae.sae import kernels

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)  # dataclasses look for themselves
    monkeypatch.setenv(kernels.VARIABLE, "0")  # which the script sets, and this puts back
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as ended:
        module.main()
    return int(ended.value.code)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:transformers.*")
def test_it_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Takes some seconds: six variants in training, three language models."""
    assert run(monkeypatch, "--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.md")) == 0
    written = (tmp_path / "gpu.md").read_text()
    assert written.count("| same bits |") >= 6
    assert "WRONG" not in written
    assert "failed" not in written
    for shape in ("GPT-2 small", "Qwen2.5-0.5B", "Qwen3-8B"):
        for mechanism in ("TopK", "JumpReLU"):
            assert f"| {shape} | 96 | {mechanism} | lightsae, float32 |" in written


def test_a_resume_that_goes_wrong_ends_in_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.equal", lambda a, b: False)
    assert run(monkeypatch, "--device", "cpu", "--tiny", "--minutes", "0") == 1


def test_without_a_card_it_says_what_to_write(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, "--tiny") == 2
    assert "write --device cpu --tiny" in capsys.readouterr().err
