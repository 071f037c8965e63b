"""`lightsae steer` and `lightsae panel` on planted features, and the way of their report through the registry.

The dictionary's latents fire on tokens, and write along the embeddings of the same tokens, which the head reads: what
a label says is what steering brings about.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.planted_concepts import (
    D_SAE,
    ON_ANIMALS,
    ON_POSITIONS,
    ON_RED,
    TOKENS_OF,
    _token,
    _wanted,
    dictionary,
    plant,
)
from lightsae import load_sae
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.panels import panel_report
from lightsae.cli import main
from lightsae.formats.native import describe_sae, save_sae
from lightsae.production.registry import load_channel

TEXT = ("--num_workers", "0", "--model_batch_tokens", "1024")
SIZES = ("--tokens", "4000", "--score_tokens", "4000", "--mining_tokens", "6000", "--dashboard", "false")
DRAWN = ("--max_new_tokens", "4", "--min_new_tokens", "4", "--temperature", "1", "--top_p", "1")
_FIRST, _SECOND = "the a of and to in it on".split(), "by at as or an be we he".split()
PROMPTS = [f" {a} {_SECOND[(place + by) % 8]}" for by in (0, 3) for place, a in enumerate(_FIRST)]
PANEL: dict[str, Any] = {
    "choose": {"features": [ON_RED, ON_ANIMALS, ON_POSITIONS]},
    "sweep": {
        "doses": [1.0, 2.0],
        "samples": 2,
        "max_perplexity_ratio": 1000,
        # A context and a newline would not fit the model's 32 positions.
        "prompt_template": "{context}{prompt}",
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4, "min_new_tokens": 4},
    },
    "limits": {"max_ce_rise": 100.0, "max_others_changed": 1.0},
    "held_out_rows": 4,
    "level": 0.5,  # of few features with labels
    "prompts": PROMPTS,
}


def good(*args: str | Path) -> str:
    """Run a command in this process, for fixtures of the module too."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), torch.random.fork_rng():
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
    assert end.value.code == 0, err.getvalue()
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: sae/, and its feature dictionary beside it; stranger/: another SAE of the same site."""
    folder = tmp_path_factory.mktemp("run")
    planted = plant(folder)
    told = load_sae(planted.sae)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(planted.model)
    inner = model.transformer
    with torch.no_grad():
        inner.ln_f.weight.mul_(0.1)  # else the model is sure to say each token again
    model.save_pretrained(planted.model)
    embedding = torch.cat([inner.wte.weight, inner.wpe.weight]).detach()
    directions = torch.nn.functional.normalize(told.W_dec.detach().clone(), dim=1)
    for latent, words in TOKENS_OF.items():
        rows = inner.wte.weight.detach()[[_token(word) for word in words]]
        directions[latent] = torch.nn.functional.normalize(rows.sum(0), dim=0)
    provenance = describe_sae(planted.sae)["provenance"]
    shutil.rmtree(planted.sae)
    assert len(directions) == D_SAE
    save_sae(dictionary(planted.site, embedding, _wanted(), directions), planted.sae, provenance)
    good("interpret", "--sae", planted.sae, "--out", folder / "dictionary", *SIZES, *TEXT)
    return folder


@pytest.fixture(scope="module")
def sae(folder: Path) -> Path:
    return folder / "sae"


@pytest.fixture(scope="module")
def prompts(folder: Path) -> Path:
    path = folder / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n\n")
    return path


@pytest.fixture(scope="module")
def panel_file(folder: Path) -> Path:
    path = folder / "panel.yaml"
    path.write_text(yaml.safe_dump(PANEL))
    return path


# -- steer -------------------------------------------------------------------------------------------------------------


def test_texts_side_by_side(sae: Path) -> None:
    command = ("steer", "--sae", sae, "--feature", str(ON_RED), "--strength", "2", *DRAWN, *TEXT)
    said = good(*command, "--prompt", f"['{PROMPTS[0]}', '{PROMPTS[1]}']", "--samples", "2")
    lines = said.splitlines()
    assert f"add feature {ON_RED}: +2 x mean norm" in lines[0]
    assert "resid_pre.0 (mean norm " in lines[0]
    assert "red" in lines[1]
    assert [line for line in lines if line.startswith("prompt ")] == [f"prompt  {p!r}" for p in PROMPTS[:2]]
    for side in ("baseline", "steered"):
        assert sum(line.strip().startswith(f"{side}, sample") for line in lines) == 4
    after = {side: lines[lines.index(f"  {side}, sample 1") + 1] for side in ("baseline", "steered")}
    assert all(text.strip().startswith(PROMPTS[0].strip()) for text in after.values())
    assert after["steered"].count("red") >= 3 > after["baseline"].count("red")
    for words in (
        "label holds on the text",
        "wiring: P(what each promotes), rise",
        "KL to untouched model",
        "perplexity, as steered",
    ):
        assert words in said
    assert good(*command, "--prompt", f"['{PROMPTS[0]}', '{PROMPTS[1]}']", "--samples", "2") == said
    told = good(*command, "--prompt", PROMPTS[0], "--kind", "clamp", "--unit", "max")
    assert "+2 x own maximum" in told.splitlines()[0]
    assert "intervals over prompts need 5 prompts or more" in told


def test_an_sae_alone_knows_the_mean_norm_that_it_was_trained_with(sae: Path, tmp_path: Path) -> None:
    told = describe_sae(sae)["provenance"]
    save_sae(load_sae(sae), tmp_path / "sae", told | {"normalisation": "sqrt_d"})
    said = good(
        "steer", "--sae", tmp_path / "sae", "--feature", "0", "--strength", "2", "--prompt", " the", *DRAWN, *TEXT
    )
    assert "resid_pre.0 (mean norm 8.485)" in said  # the root of 72: the SAE's scale is 1
    assert "unlabelled" in said


def test_a_sweep(sae: Path, folder: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "swept"
    command = ("steer", "--sae", sae, "--feature", str(ON_ANIMALS), "--prompts", prompts, "--doses", "[1, 2]",
               "--out", out, "--max_perplexity_ratio", "1000", "--prompt_template", "{context}{prompt}")  # fmt: skip
    said = good(*command, *DRAWN, *TEXT)
    assert sorted(path.name for path in out.iterdir()) == ["steer.json", "steer.png", "tensorboard", "texts.md"]
    assert (out / "steer.png").read_bytes().startswith(b"\x89PNG")
    assert any("tfevents" in path.name for path in (out / "tensorboard").iterdir())
    told = json.loads((out / "steer.json").read_text())
    assert (told["feature"], told["unit"], told["kind"], told["chosen_by"]) == (ON_ANIMALS, "norm", "add", "target")
    assert told["chosen_dose"] in (1, 2)
    assert [one["dose"] for one in told["choosing"]] == [1, 2]
    steering = told["steering"]
    assert steering["mean_norm"] > 0
    wanted = told["reported_dose"] * steering["mean_norm"]
    assert steering["interventions"][0]["raw_norm"] == pytest.approx(wanted, rel=1e-4)
    arms = {(one["arm"], one["dose"]): one for one in told["arms"]}
    assert {arm for arm, _ in arms} == {"none", "feature", "random", "shuffled", "prompt"}
    assert {dose for arm, dose in arms if arm == "feature"} == {1, 2}
    own, chance = (arms[arm, told["reported_dose"]]["shifts"]["concept"] for arm in ("feature", "random"))
    assert own["low"] > chance["high"], "animals are in the text"
    # The texts of the prompts that report, and none of those that chose.
    texts = (out / "texts.md").read_text()
    assert all(f"## `{json.dumps(prompt)}`" in texts for prompt in PROMPTS[1::2])
    assert not any(f"## `{json.dumps(prompt)}`" in texts for prompt in PROMPTS[0::2])
    assert (folder / "dictionary" / "steering" / f"{ON_ANIMALS}.png").read_bytes().startswith(b"\x89PNG")
    assert "chosen dose" in said
    FeatureDictionary.open(folder / "dictionary")  # still as its manifest says

    # The same prompts from a panel, the same report.
    before = (out / "steer.json").read_bytes()
    as_panel = tmp_path / "panel.yaml"
    as_panel.write_text(yaml.safe_dump({"prompts": PROMPTS}))
    at = command.index("--prompts") + 1
    good(*command[:at], as_panel, *command[at + 1 :], *DRAWN, *TEXT)
    assert (out / "steer.json").read_bytes() == before


# -- panel, and the registry -------------------------------------------------------------------------------------------


def run_panel(sae: Path, panel_file: Path, out: Path, *more: str) -> str:
    return good("panel", "--sae", sae, "--panel", panel_file, "--out", out, *more, *TEXT)


@pytest.fixture(scope="module")
def tried(sae: Path, panel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tried") / "panel"
    said = run_panel(sae, panel_file, out)
    assert "3 features: 2 reliable, 1 weak, 0 harmful" in said
    return out


def test_a_panel(tried: Path, folder: Path, sae: Path) -> None:
    assert sorted(path.name for path in tried.iterdir()) == ["panel.json", "panel.md", "panel.png", "tensorboard"]
    told = json.loads((tried / "panel.json").read_text())
    assert told["dictionary"] == FeatureDictionary.open(folder / "dictionary").id
    assert told["sae"] == describe_sae(sae)["sha256"]
    assert told["site"] == "resid_pre.0"
    assert told["panel"]["prompts"] == PROMPTS
    features = {one["feature"]: one for one in told["features"]}
    assert {number: one["verdict"] for number, one in features.items()} == {
        ON_RED: "reliable", ON_ANIMALS: "reliable", ON_POSITIONS: "weak",
    }  # fmt: skip
    assert features[ON_RED]["rises"]["label"] is True
    assert features[ON_RED]["wiring"] is True
    assert features[ON_RED]["paired"]["others"] >= 1
    assert features[ON_POSITIONS]["paired"] is None
    assert features[ON_POSITIONS]["label"] is None
    assert features[ON_RED]["side_effects"]["ce_rise"]["mean"] > 0
    summary = told["summary"]
    assert (summary["causal_usefulness"]["share"], summary["causal_usefulness"]["of"]) == (1.0, 2)
    assert summary["random_floor"]["share"] == 0.0
    assert summary["another_feature"]["share"] == 0.0
    assert summary["wiring"]["random"]["share"] > 0, "a random direction raises its own tokens too"
    assert "2 reliable, 1 weak, 0 harmful" in (tried / "panel.md").read_text()
    assert (tried / "panel.png").read_bytes().startswith(b"\x89PNG")


def test_a_rerun_gives_the_same_report_and_a_failed_one_none(
    tried: Path, sae: Path, panel_file: Path, tmp_path: Path, lightsae: Callable[..., Any], monkeypatch: Any
) -> None:
    out = tmp_path / "again"
    shutil.copytree(tried, out)
    (out / "panel.md").write_text("an earlier report")
    command = ("panel", "--sae", str(sae), "--panel", str(panel_file), "--out", "again", *TEXT)
    with monkeypatch.context() as patch:

        def fails(*args: Any) -> Any:
            raise OSError(28, os.strerror(28))

        patch.setattr(panel_report, "write_scalars", fails)
        failed = lightsae(*command)
    assert failed.code == 2
    assert "no space is left on the disk" in failed.err
    assert failed.new == []
    assert (out / "panel.md").read_text() == "an earlier report"
    missing = lightsae(*command, "--choose.features", "[0, 99]")
    assert (missing.code, missing.new) == (2, [])
    assert (out / "panel.md").read_text() == "an earlier report"
    assert lightsae(*command).code == 0
    assert (out / "panel.json").read_bytes() == (tried / "panel.json").read_bytes()
    assert (out / "panel.md").read_bytes() == (tried / "panel.md").read_bytes()


def test_the_report_through_the_registry(
    tried: Path, folder: Path, sae: Path, tmp_path: Path, lightsae: Callable[..., Any]
) -> None:
    publish = ("registry", "publish", str(folder / "dictionary"), "--sae", str(sae), "--who", "ann")
    assert lightsae(*publish).code == 0
    assert lightsae(*publish, "--panel", str(tried / "panel.json")).code == 0
    log = (tmp_path / "registry").rglob("versions/*")
    names = {path.name: (path / "evidence" / "panel.json").is_file() for path in log if path.is_dir()}
    (bare,) = (name for name, has in names.items() if not has)
    (whole,) = (name for name, has in names.items() if has)
    strict, easy = tmp_path / "strict.yaml", tmp_path / "easy.yaml"
    strict.write_text(yaml.safe_dump({
        "labels": {"min_share_labelled": 0.99},
        "panel": {"min_reliable_share": 0.9, "max_harmful_share": 0.0, "above_other_features": True},
        "drift": {"min_kept_share": 0.5},
    }))  # fmt: skip
    easy.write_text("labels: {min_share_labelled: 0.2}\npanel: {min_reliable_share: 0.5, max_harmful_share: 0.0}\n")

    def promote(version: str, policy: Path) -> Any:
        who = ("--why", "it holds", "--who", "bob")
        return lightsae("registry", "promote", version[:12], "--channel", "staging", "--policy", str(policy), *who)

    refused = promote(whole, strict)
    assert refused.code == 2
    lines = [line.strip() for line in refused.err.splitlines()[1:]]
    assert [line.partition(":")[0] for line in lines] == [
        "labels.share_labelled", "panel.reliable_share", "drift.kept_share",
    ]  # fmt: skip
    assert "found 0.6667; needed at least 0.9" in lines[1]
    assert promote(bare, easy).code == 2, "a panel that was not run holds nothing"
    bare_policy = tmp_path / "labels.yaml"
    bare_policy.write_text("labels: {min_share_labelled: 0.2}\n")
    assert promote(bare, bare_policy).code == 0
    assert promote(whole, easy).code == 0
    assert load_channel(tmp_path / "registry", "staging").version.startswith(whole)
    back = lightsae("registry", "rollback", "--channel", "staging", "--why", "the tone", "--who", "cat")
    assert (back.code, back.err) == (0, "")
    assert load_channel(tmp_path / "registry", "staging").version.startswith(bare)


# -- mistakes ----------------------------------------------------------------------------------------------------------

ONE = ("--prompt", " the a", "--strength", "1")
SWEEP = ("--feature", "0", "--prompts", "{folder}/prompts.txt", "--doses", "[0.2]", "--out", "out")
STEERED = ("steer", "--sae", "{folder}/sae")
PANELLED = ("panel", "--sae", "{folder}/sae", "--panel", "{folder}/panel.yaml")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((*STEERED, "--feature", "99", *ONE), "feature 99 does not exist"),
        ((*STEERED, "--feature", "0", *ONE, "--kind", "clmp"), "kind is 'clmp'; write one of"),
        ((*STEERED, "--feature", "0", *ONE, "--unit", "norms"), "unit is 'norms'"),
        ((*STEERED, "--feature", "6", *ONE, "--unit", "max"), "feature 6 never fires"),
        ((*STEERED, "--feature", "0", *ONE, "--doses", "[1]"), "Give --strength (one dose) or --doses (a sweep)"),
        ((*STEERED, "--feature", "0", "--prompt", " a"), "found neither"),
        ((*STEERED, "--feature", "0", "--strength", "1"), "Give --prompt or --prompts; found neither"),
        ((*STEERED, "--feature", "0", *ONE, "--prompts", "p"), "Give --prompt or --prompts; found both"),
        ((*STEERED, *ONE), "feature is missing. Write: lightsae steer --sae DIR"),
        ((*STEERED, "--feature", "0", *ONE, "--kind", "ablate"), "which has no strength"),
        ((*STEERED, "--feature", "0", *ONE, "--out", "o"), "--out holds the report of a sweep"),
        ((*STEERED, "--feature", "0", *ONE, "--max_new_tokens", "40"), "takes 32 in all"),
        ((*STEERED, "--feature", "0", *ONE, "--strenght", "2"), "strength"),
        ((*STEERED, "--feature", "0", "--strength", "1", "--prompts", "nowhere.txt"), "prompts is 'nowhere.txt'"),
        ((*STEERED, "--feature", "0", "--strength", "1", "--prompts", "{folder}/none.txt"), "a prompt is empty"),
        ((*STEERED, "--feature", "0", "--strength", "1", "--prompts", "{folder}/no.yaml"), "without a list `prompts`"),
        (("steer", "--sae", "{folder}/stranger", "--feature", "0", *ONE), "is not the SAE that the"),
        ((*STEERED, *SWEEP, "--out", "{folder}/prompts.txt"), "which is a file; name a folder"),
        ((*STEERED, *SWEEP, "--out", "{folder}/model"), "holds other files; name a new folder"),
        ((*STEERED, "--feature", "0", "--prompts", "{folder}/prompts.txt", "--doses", "[0.2]"), "--out is missing"),
        ((*STEERED, *SWEEP, "--doses", "[0.0]"), "strengths other than 0"),
        ((*STEERED, "--feature", "0", "--prompt", " a", "--doses", "[0.2]", "--out", "out"), "there is 1 prompt"),
        ((*STEERED, *SWEEP, "--feature", "[0, 1]"), "sweeps one feature; found 2"),
        ((*PANELLED, "--out", "{folder}/panel.yaml"), "which is a file; name a folder"),
        ((*PANELLED, "--out", "{folder}/model"), "holds other files; name a new folder"),
        ((*PANELLED,), "out is missing"),
        ((*PANELLED, "--out", "out", "--choose.features", "null", "--choose.tiers", "[hihg]"), "no feature has a tier"),
        ((*PANELLED, "--out", "out", "--choose.features", "[]"), "features is empty"),
        (("panel", "--sae", "{folder}/sae", "--panel", "{folder}/misspelt.yaml", "--out", "out"), "Did you mean"),
        (("panel", "--sae", "{folder}/alone/sae", "--panel", "{folder}/panel.yaml", "--out", "out"),
         "make one: lightsae interpret"),
        (("panel", "--sae", "{folder}/stranger", "--panel", "{folder}/panel.yaml", "--out", "out"),
         "is not the SAE that the"),
        (("panel", "--sae", "{folder}/sae", "--panel", "nowhere.yaml", "--out", "out"), "nowhere.yaml"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(
    args: tuple[str, ...], message: str, folder: Path, prompts: Path, panel_file: Path, lightsae: Callable[..., Any]
) -> None:
    (folder / "none.txt").write_text("\n\n")
    (folder / "no.yaml").write_text("doses: [1]\n")
    misspelt = yaml.safe_dump(PANEL | {"limits": {"max_ce_rize": 1.0}})
    (folder / "misspelt.yaml").write_text(misspelt)
    if not (folder / "alone").exists():
        shutil.copytree(folder / "sae", folder / "alone" / "sae")
    before = listed(folder)
    ended = lightsae(*(arg.replace("{folder}", str(folder)) for arg in args))
    assert ended.code == 2, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("lightsae: error:")
    assert message in last
    assert len(last) < 400
    assert ended.out == ""
    assert ended.new == []
    assert listed(folder) == before


def listed(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())
