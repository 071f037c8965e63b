"""`lightsae compare`: reseeds of two recipes on one text, from the command line to report, page and picture."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = ("--model_batch_tokens", "256", "--tokens", "1600", "--ce_tokens", "800")
# Two recipes that learn something in a few steps, and one that hardly does.
LONG = "--trainer.max_steps 40 --data.dtype float32 --model.sae.d_sae 64"


@pytest.fixture
def runs(fit: Callable[..., Any], tmp_path: Path) -> Path:
    """Exports of three seeds of each recipe."""
    for name, options in (("long", LONG), ("short", LONG.replace("40", "2"))):
        for seed in (1, 2, 3):
            assert fit(f"{options} --seed_everything {seed}").code == 0
            run = max((tmp_path / "lightning_logs").glob("version_*"), key=lambda path: int(path.name[8:]))
            shutil.copytree(run / "sae", tmp_path / f"{name}_{seed}")
    return tmp_path


def test_recipes_with_reseeds(runs: Path, lightsae: Any) -> None:
    ended = lightsae("compare", "long=long_1,long_2,long_3", "short=short_*", *TEXT, "--out", "deep/c.json")
    assert ended.code == 0, ended.err
    told = json.loads((runs / "deep/c.json").read_text())
    (pair,) = told["pairs"]
    assert pair["l0_matched"]
    assert [one["name"] for one in told["recipes"][1]["saes"]] == ["short_1", "short_2", "short_3"]
    found = {one["figure"]: one for one in pair["verdicts"]}
    assert set(found) == {
        "fve_no_sinks", "ce_recovered_no_sinks", "kl_no_sinks", "dead_fraction", "dense_fraction"
    }  # fmt: skip
    fve = found["fve_no_sinks"]
    assert (fve["word"], fve["seeds"], fve["text"]) == ("better", "both", True)
    assert fve["low"] > 0
    assert 0 < fve["smallest"] < fve["difference"]
    assert pair["better_at_any_l0"] == "long"
    assert "long is the better choice at either L0." in ended.out
    assert "The verdicts are on recipes" in ended.out
    assert "![L0 against quality](c.png)" in (runs / "deep/c.md").read_text()
    assert (runs / "deep/c.png").stat().st_size > 5000

    # The same by way of --seeds; two SAEs alone; and an SAE against itself.
    by_seeds = lightsae("compare", "long_1", "short_1", "--seeds", "[long_2,long_3,short_2,short_3]", *TEXT)
    assert by_seeds.code == 0, by_seeds.err
    assert "A: long_1, long_2, long_3\nB: short_1, short_2, short_3\n" in by_seeds.out
    alone = lightsae("compare", "long_1", "short_1", "--judged", "[fve]", *TEXT, "--ce_tokens", "0")
    assert alone.code == 0, alone.err
    assert "The verdicts are on these SAEs, not on their recipes" in alone.out
    assert "better" in alone.out
    shutil.copytree(runs / "long_1", runs / "copy")
    same = lightsae("compare", "long_1", "copy", "--judged", "[fve]", *TEXT, "--ce_tokens", "0")
    assert same.code == 0, same.err
    assert "cannot tell (equal)" in same.out
    assert "A and B are of one recipe" in same.out

    mistaken = lightsae("compare", "long_1,short_1", "short_2", *TEXT)
    assert mistaken.code == 0, mistaken.err
    assert "short_1 differs from long_1 in more than the seed: trainer.max_steps (40 and 2)" in mistaken.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "sae is missing. Write: lightsae compare SAE SAE"),
        (("missing",), "sae names 1; name two recipes or more"),
        (("missing", "other"), "sae is 'missing', which does not exist."),
        (("missing", "other", "--out", "c.txt"), "out is 'c.txt'; name a file that ends in .json."),
        (("missing", "other", "--judged", "[fv]"), "judged has 'fv', which is no figure. Did you mean 'fve'?"),
        (("missing", "other", "--judged", "[l0]"), "judged has 'l0', of which no value is the better one"),
        (("missing", "other", "--level", "1"), "level is 1.0; write a probability"),
        (("missing", "other", "--l0_tolerance", "-1"), "l0_tolerance is -1.0; write a share"),
        (("missing", "other", "--tokens", "0"), "tokens is 0; write 1 or more."),
    ],
)
def test_a_mistake_is_one_line(lightsae: Any, args: tuple[str, ...], said: str) -> None:
    ended = lightsae("compare", *args)
    assert ended.code == 2
    assert said in ended.err
    assert ended.new == []


def test_another_text_is_refused(fit: Callable[..., Any], lightsae: Any, inputs: Path, tmp_path: Path) -> None:
    lines = (inputs / "text.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "less.jsonl").write_text("".join(lines[: len(lines) // 2]))
    assert fit("--data.dtype float32").code == 0
    assert fit("--data.dtype float32 --data.dataset less.jsonl").code == 0
    saes = ("lightning_logs/version_0/sae", "lightning_logs/version_1/sae")
    ended = lightsae("compare", *saes, *TEXT, "--out", "c.json")
    assert ended.code == 2
    assert "would be read on another text than 'lightning_logs/version_0/sae', by dataset (" in ended.err
    assert "name one text for all: --data.dataset" in ended.err
    assert not (tmp_path / "c.json").exists()
