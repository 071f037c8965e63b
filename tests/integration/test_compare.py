"""`lightsae compare`: reseeds of two recipes on one text, from the command line to report, page and picture."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightsae.formats.native import save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm import LanguageModel

TEXT = ("--model_batch_tokens", "512", "--tokens", "1600")


@pytest.fixture
def runs(fit: Callable[..., Any], tmp_path: Path) -> Path:
    """Exports of what stands for three seeds of two recipes: a trained SAE, and one with random directions."""
    assert fit("--data.dtype float32 --trainer.max_steps 20 --model.sae.d_sae 64").code == 0
    trained = SavedSAE.open("lightning_logs/version_0/sae")
    told = dict(trained.provenance.values)
    for seed in (1, 2, 3):
        generator = torch.Generator().manual_seed(seed)
        sae = copy.deepcopy(trained.sae)
        with torch.no_grad():
            sae.W_dec += 0.01 * torch.randn(sae.W_dec.shape, generator=generator)
            save_sae(sae, f"good_{seed}", told)
            random = torch.nn.functional.normalize(torch.randn(sae.W_dec.shape, generator=generator), dim=1)
            sae.W_dec.copy_(random)
            sae.W_enc.copy_(random.T)
        save_sae(sae, f"slow_{seed}", told | {"tokens_seen": 64})
    return tmp_path


def test_concepts_are_judged_and_the_model_is_loaded_once(
    runs: Path, inputs: Path, lightsae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = LanguageModel.from_pretrained

    def noting(name: str, **settings: Any) -> LanguageModel:
        loaded.append(name)
        return load(name, **settings)

    monkeypatch.setattr(LanguageModel, "from_pretrained", noting)
    judged = ("--judged", "[fve_no_sinks, concept_f1]", "--ce_tokens", "0", "--model_batch_tokens", "512")
    saes = ("good=good_1,good_2", "slow=slow_1,slow_2")
    # All documents, so that there are enough to test on.
    text = ("--dataset", str(inputs / "text.jsonl"), "--validation_split", str(inputs / "text.jsonl"))
    sizes = ("--tokens", "4000", "--concepts", "auto")
    ended = lightsae("compare", *saes, *judged, *text, *sizes, "--out", "c.json")
    assert ended.code == 0, ended.err
    assert len(loaded) == 1
    (pair,) = json.loads((runs / "c.json").read_text())["pairs"]
    found = {one["figure"]: one for one in pair["verdicts"]}
    assert found["concept_f1"]["text"]
    assert found["concept_f1"]["low"] < found["concept_f1"]["difference"] < found["concept_f1"]["high"]
    ended = lightsae("compare", *saes, *judged)
    assert ended.code == 2
    assert "judged has 'concept_f1', but concepts is 'none'; write auto or a file." in ended.err


def test_recipes_with_reseeds(runs: Path, inputs: Path, lightsae: Any) -> None:
    saes = ("good=good_1,good_2,good_3", "slow=slow_*")
    ended = lightsae("compare", *saes, *TEXT, "--ce_tokens", "480", "--out", "deep/c.json")
    assert ended.code == 0, ended.err
    told = json.loads((runs / "deep/c.json").read_text())
    (pair,) = told["pairs"]
    assert pair["l0_matched"]
    assert [one["name"] for one in told["recipes"][1]["saes"]] == ["slow_1", "slow_2", "slow_3"]
    found = {one["figure"]: one for one in pair["verdicts"]}
    assert list(found) == told["settings"]["judged"]
    fve = found["fve_no_sinks"]
    assert (fve["word"], fve["seeds"], fve["text"]) == ("better", "both", True)
    assert fve["low"] > 0
    assert 0 < fve["smallest"] < fve["difference"]
    assert found["kl_no_sinks"]["text"]
    assert pair["better_choice"] == "good"
    assert "good is the better choice." in ended.out
    assert "The verdicts are on recipes" in ended.out
    assert told["notes"] == []
    assert "![L0 against quality](c.png)" in (runs / "deep/c.md").read_text()
    assert (runs / "deep/c.png").stat().st_size > 5000

    # The same by way of --seeds.
    seeds = ("--seeds", "[good_2,good_3,slow_2,slow_3]")
    ended = lightsae("compare", "good_1", "slow_1", *seeds, *TEXT, "--ce_tokens", "0", "--judged", "[fve]")
    assert ended.code == 0, ended.err
    assert "A: good_1, good_2, good_3\nB: slow_1, slow_2, slow_3\n" in ended.out
    assert "The verdicts are on recipes" in ended.out

    # SAEs alone, one of them twice.
    shutil.copytree(runs / "good_1", runs / "copy")
    ended = lightsae("compare", "good_1", "slow_1", "copy", *TEXT, "--judged", "[fve]", "--ce_tokens", "0")
    assert ended.code == 0, ended.err
    assert "The verdicts are on these SAEs, not on their recipes" in ended.out
    assert "cannot tell (equal)" in ended.out
    assert "A and C are of one recipe" in ended.out
    assert {line.split()[-1] for line in ended.out.splitlines() if line.startswith("fve  ") and "]" in line} == {
        "better", "worse"
    }  # fmt: skip

    # Not on one text.
    lines = (inputs / "text.jsonl").read_text().splitlines(keepends=True)
    (runs / "less.jsonl").write_text("".join(lines[: len(lines) // 2]))
    description = runs / "slow_1" / "sae.json"
    told = json.loads(description.read_text())
    told["provenance"]["dataset"] = "less.jsonl"
    description.write_text(json.dumps(told))
    ended = lightsae("compare", "good_1", "slow_1", *TEXT, "--ce_tokens", "0", "--out", "c.json")
    assert ended.code == 2
    assert "'slow_1' would be read on another text than 'good_1', by dataset ('less.jsonl' and" in ended.err
    assert "name one text for all: --data.dataset" in ended.err
    assert not (runs / "c.json").exists()


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
