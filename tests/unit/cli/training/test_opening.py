"""What a run says before it begins: five lines, whatever it trains."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lightsae.cli.training.opening import announce
from lightsae.sae import VARIANTS, ReLU, SiteRef, SparseAutoencoder, TopK, Widths
from lightsae.sae.variants import trained

SITE, NEXT = SiteRef("builtin", "resid_post.1"), SiteRef("builtin", "mlp_out.1")
ROWS = "text    builtin, rows of 128 tokens"
WIDTHS = Widths.autoencoder(SITE, 16)


def config(ckpt_path: str | None = None, **data: Any) -> Any:
    defaults = {
        "activations": None,
        "cache": None,
        "dataset": "builtin",
        "context_size": 128,
        "batch_tokens": 64,
        "training_tokens": None,
        "val_tokens": 512,
        "dtype": "auto",
    }
    return SimpleNamespace(data=SimpleNamespace(**(defaults | data)), ckpt_path=ckpt_path)


@pytest.fixture
def opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def said(
        saes: dict[str, SparseAutoencoder],
        settings: Any = None,
        command: str = "fit",
        dtype: torch.dtype = torch.float32,
        **trainer: Any,
    ) -> list[str]:
        options = {"max_steps": 500, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
        made = Trainer(**(options | trainer), logger=TensorBoardLogger("."), enable_checkpointing=False)
        announce(command, settings or config(), made, saes, dtype)
        return capsys.readouterr().out.splitlines()

    return said


def test_of_one_sae(opening: Any, tmp_path: Path) -> None:
    assert opening({"sae": TopK(WIDTHS, d_sae=2048, k=16)}) == [
        "SAE     TopK, 2,048 latents at width 16, k 16",
        "site    resid_post.1 of builtin",
        f"{ROWS}: 32,000 tokens in 500 steps of 64",
        "device  cpu, 32-true; language model in float32 (bfloat16 is 1.0 times faster than float32 here)",
        "run     lightning_logs/version_0/",
    ]
    assert list(tmp_path.iterdir()) == []


def test_of_a_mixture(opening: Any) -> None:
    parts = [SimpleNamespace(name="talks"), SimpleNamespace(name="texts")]
    said = opening({"sae": TopK(WIDTHS, d_sae=8, k=2)}, config(dataset=None, datasets=parts))
    assert said[2].startswith("text    talks, texts, rows of 128 tokens: ")


def test_the_dtype_and_why(opening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def device(times: float, dtype: torch.dtype, settings: Any, command: str = "fit") -> str:
        monkeypatch.setattr("lightsae.lm.dtypes.bfloat16_speedup", lambda: times)
        line = opening({"sae": ReLU(WIDTHS, d_sae=8)}, settings, command, dtype)[3]
        return line.partition("; language model in ")[2]

    slower = "(bfloat16 is 8.0 times slower than float32 here)"
    faster = "(bfloat16 is 3.2 times faster than float32 here)"
    assert device(0.125, torch.float32, config()) == f"float32 {slower}"
    assert device(3.2, torch.bfloat16, config()) == f"bfloat16 {faster}"
    # What was asked for by name needs no reason, nor does what a checkpoint settles.
    assert device(0.125, torch.bfloat16, config(dtype="bfloat16")) == "bfloat16"
    assert device(0.125, torch.bfloat16, config("runs/last.ckpt")) == "bfloat16, as before"
    assert device(3.2, torch.bfloat16, config("runs/last.ckpt"), "validate") == f"bfloat16 {faster}"


def test_of_several_in_as_many_lines(opening: Any) -> None:
    later = Widths.autoencoder(NEXT, 32)
    lines = opening({"a": TopK(WIDTHS, d_sae=64, k=2), "b": TopK(WIDTHS, d_sae=32, k=2), "c": ReLU(later, d_sae=1024)})
    assert lines[:2] == [
        "SAEs    2 TopK, 1 ReLU; 32 to 1,024 latents at width 16 to 32",
        "site    resid_post.1, mlp_out.1 of builtin",
    ]
    assert len(lines) == 5


def test_of_many_sites(opening: Any) -> None:
    saes = {str(i): ReLU(Widths.autoencoder(SiteRef("m", f"resid_post.{i}"), 4), d_sae=8) for i in range(9)}
    assert opening(saes)[1] == "site    resid_post.0, resid_post.1, resid_post.2, resid_post.3 and 5 more of m"


def test_of_a_transcoder(opening: Any) -> None:
    mechanism = TopK(WIDTHS, d_sae=8, k=2).mechanism
    sae = VARIANTS["Transcoder"](Widths({SITE: 16}, {NEXT: 16}), d_sae=8, mechanism=mechanism)
    assert opening({"sae": sae})[:2] == [
        "SAE     Transcoder of TopK, 8 latents at width 16, k 2",
        "site    resid_post.1, mlp_out.1 (predicted) of builtin",
    ]


@pytest.mark.parametrize("name", sorted(trained(VARIANTS).keys() - {"Transcoder", "Crosscoder", "Matryoshka"}))
def test_a_plain_variant_is_named_once(name: str, opening: Any) -> None:
    options = {"k": 2} if "TopK" in name or name == "GroupMax" else {}
    assert opening({"sae": VARIANTS[name](WIDTHS, d_sae=8, **options)})[0].startswith(f"SAE     {name}, 8 latents")


@pytest.mark.parametrize(
    ("data", "trainer", "line"),
    [
        ({"training_tokens": 6400}, {"max_steps": -1}, f"{ROWS}: 6,400 tokens in 100 steps of 64"),
        ({}, {"accumulate_grad_batches": 4}, f"{ROWS}: 128,000 tokens in 500 steps of 256"),
        ({}, {"max_steps": -1, "max_epochs": 2}, f"{ROWS}: 2 epochs, 64 tokens per step"),
        ({"cache": "stored"}, {}, "data    cache stored: 32,000 tokens in 500 steps of 64"),
        ({"activations": "rows.npy"}, {}, "data    rows.npy: 32,000 tokens in 500 steps of 64"),
        ({"dataset": "synthetic"}, {}, "data    synthetic features: 32,000 tokens in 500 steps of 64"),
    ],
)  # fmt: skip
def test_where_activations_come_from(data: Any, trainer: Any, line: str, opening: Any) -> None:
    lines = opening({"sae": ReLU(WIDTHS, d_sae=8)}, config(**data), **trainer)
    assert lines[2] == line
    assert ("language model" in lines[3]) == line.startswith("text")


def test_of_a_run_that_goes_on_and_of_a_validation(opening: Any) -> None:
    sae = {"sae": ReLU(WIDTHS, d_sae=8)}
    assert (
        opening(sae, config("runs/last.ckpt"))[-1] == "run     lightning_logs/version_0/, goes on from runs/last.ckpt"
    )
    lines = opening(sae, config("runs/last.ckpt"), "validate")
    assert lines[2] == f"{ROWS}: 512 held-out tokens"
    assert lines[-1] == "run     lightning_logs/version_0/, measures runs/last.ckpt"


def test_the_first_process_alone_says_it(opening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert opening({"sae": ReLU(WIDTHS, d_sae=8)}) == []
