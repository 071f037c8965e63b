"""What an evaluation leaves beside its report: SAEBench's result file, and events for TensorBoard."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightsae.analysis.evaluate.figures import DEFINITIONS
from lightsae.analysis.evaluate.report import Band, Evaluation, Figure
from lightsae.analysis.evaluate.saebench import CORE, core_result, write_core_results
from lightsae.analysis.evaluate.tensorboard import write_tensorboard
from lightsae.errors import ConfigError

# Every figure has a value of its own.
FIGURES = {name: Figure(i / 64, None, None, 1000 + i) for i, name in enumerate(DEFINITIONS)}


def evaluation(name: str = "RUN/a/sae") -> Evaluation:
    site = {"model": "openai-community/gpt2", "site": "resid_post.6", "width": 768}
    fve = Figure(0.5, 0.4, 0.6, 1000)
    return Evaluation(
        name=name,
        sae={"variant": "TopK", "d_sae": 64, "sha256": "a" * 64, "settings": {}, "read": [site], "predicted": [site]},
        text={
            "model": "openai-community/gpt2", "dataset": "texts", "tokens": 1000, "documents": 12, "context_size": 128,
            "prepend_bos": None,
        },
        figures=FIGURES,
        positions=[Band("0", fve, fve), Band("1 on", replace(fve, low=None), fve)],
        frequencies=[Band("below 0.01%", fve, fve)],
        firing_histogram={"never": 3, "1e-2": 61},
    )  # fmt: skip


def test_saebench_gets_what_has_the_same_definition_and_null_for_the_rest(tmp_path: Path) -> None:
    (path,) = write_core_results([evaluation()], tmp_path / "results")
    assert path.name == "lightsae_RUN_a_sae_eval_results.json"
    told = json.loads(path.read_text())
    metrics = told["eval_result_metrics"]
    assert metrics["model_performance_preservation"]["ce_loss_score"] == FIGURES["ce_recovered"].value
    assert metrics["model_performance_preservation"]["ce_loss_with_ablation"] == FIGURES["ce_zero"].value
    assert metrics["shrinkage"]["l2_ratio"] == FIGURES["l2_ratio_no_sinks"].value
    assert metrics["misc_metrics"]["frac_alive"] == 1 - FIGURES["dead_fraction"].value
    assert metrics["reconstruction_quality"]["explained_variance"] is None
    assert metrics["token_stats"]["total_tokens_eval_reconstruction"] == FIGURES["ce_spliced"].tokens
    assert {name for fields in CORE.values() for name in fields.values() if name} <= set(DEFINITIONS)
    assert (told["sae_cfg_dict"]["hook_name"], told["sae_cfg_dict"]["hook_layer"]) == ("blocks.6.hook_resid_post", 6)
    assert told["eval_config"]["model_name"] == "gpt2-small"
    assert told["eval_result_unstructured"]["lightsae"]["figures"]["fve"]["value"] == FIGURES["fve"].value
    assert told["eval_id"] == core_result(evaluation())["eval_id"]


def test_what_was_not_measured_is_null() -> None:
    without = {name: figure for name, figure in FIGURES.items() if not name.startswith(("ce_", "kl", "top1"))}
    told = core_result(replace(evaluation(), figures=without | {"l0": Figure(float("nan"), None, None, 0)}))
    metrics = told["eval_result_metrics"]
    assert set(metrics["model_performance_preservation"].values()) == {None}
    assert metrics["sparsity"]["l0"] is None
    assert metrics["token_stats"]["total_tokens_eval_reconstruction"] == 0
    assert not told["eval_config"]["compute_ce_loss"]


def test_two_saes_do_not_share_a_result_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the name of another SAE's"):
        write_core_results([evaluation("a/b"), evaluation("a_b")], tmp_path)
    assert list(tmp_path.iterdir()) == []


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_shows_the_figures_the_tables_and_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.training.0").touch()
    write_tensorboard(tmp_path, [evaluation()])
    shown = events(tmp_path)
    assert set(shown.Tags()["scalars"]) == {f"evaluation/{name}" for name in DEFINITIONS}
    assert shown.Scalars("evaluation/fve")[0].value == pytest.approx(FIGURES["fve"].value)
    assert shown.Tags()["images"] == ["evaluation"]
    assert "| `fve` |" in shown.Tensors("evaluation/text_summary")[0].tensor_proto.string_val[0].decode()
    # Another evaluation takes the first one's place; the training's events stay.
    write_tensorboard(tmp_path, [evaluation("RUN/a/sae"), evaluation("RUN/b/sae")])
    assert len(list(tmp_path.iterdir())) == 2
    assert "b/evaluation/fve" in events(tmp_path).Tags()["scalars"]
    assert "evaluation/fve" not in events(tmp_path).Tags()["scalars"]


def test_tensorboard_shows_the_figures_of_roles(tmp_path: Path) -> None:
    write_tensorboard(tmp_path, [replace(evaluation(), roles={"user": {"fve": FIGURES["l0"], "l0": FIGURES["fve"]}})])
    assert events(tmp_path).Scalars("evaluation/fve/user")[0].value == pytest.approx(FIGURES["l0"].value)
