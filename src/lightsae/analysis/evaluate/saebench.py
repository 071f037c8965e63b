"""An evaluation as SAEBench's result file of its `core` evaluation, as far as the definitions agree.

What SAEBench defines otherwise, or was not measured, is null; all figures stand under `eval_result_unstructured`.

Source: the fields of SAEBench 0.6's result files, arXiv:2503.09532.
"""

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightsae.analysis.evaluate.figures import DEFINITIONS
from lightsae.analysis.evaluate.report import Evaluation
from lightsae.errors import ConfigError
from lightsae.formats.files import write_atomically
from lightsae.formats.layouts.hook_names import hook_of_site, short_name
from lightsae.parsing import with_none_for_nan
from lightsae.version import version

# By category and field, the figure of ours that has the same definition; None: there is none.
# Not `explained_variance` and `mse`: theirs divide by the spread of single tokens, and by the number of tokens.
CORE: Mapping[str, Mapping[str, str | None]] = {
    "model_behavior_preservation": {
        "kl_div_score": None,
        "kl_div_with_ablation": None,
        "kl_div_with_sae": "kl",
    },
    "model_performance_preservation": {
        "ce_loss_score": "ce_recovered",
        "ce_loss_with_ablation": "ce_zero",
        "ce_loss_with_sae": "ce_spliced",
        "ce_loss_without_sae": "ce_clean",
    },
    # Of tokens that are no BOS, EOS or padding; attention sinks come nearest to these.
    "reconstruction_quality": {
        "explained_variance": None,
        "explained_variance_legacy": None,
        "mse": None,
        "cossim": "cosine_no_sinks",
    },
    "shrinkage": {
        "l2_norm_in": None,
        "l2_norm_out": None,
        "l2_ratio": "l2_ratio_no_sinks",
        "relative_reconstruction_bias": "relative_reconstruction_bias_no_sinks",
    },
    "sparsity": {"l0": "l0", "l1": None},
    "misc_metrics": {
        "freq_over_1_percent": "dense_fraction_1pct",
        "freq_over_10_percent": "dense_fraction",
        "normalized_freq_over_1_percent": None,
        "normalized_freq_over_10_percent": None,
        "average_max_encoder_cosine_sim": None,
        "average_max_decoder_cosine_sim": None,
    },
}


def write_core_results(evaluations: Sequence[Evaluation], folder: Path) -> list[Path]:
    """Write a result file for each SAE, and return them.

    Raises:
        ConfigError: Two SAEs would have one file, or it cannot be written.
    """
    paths = [folder / f"lightsae_{re.sub(r'[^A-Za-z0-9.-]+', '_', one.name)}_eval_results.json" for one in evaluations]
    for path, one in zip(paths, evaluations, strict=True):
        if paths.count(path) > 1:
            raise ConfigError("sae", one.name, "its result file would have the name of another SAE's")
    for path, one in zip(paths, evaluations, strict=True):
        with write_atomically(path) as temporary:
            text = json.dumps(core_result(one), indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    return paths


def core_result(one: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON values in SAEBench's fields."""
    figures = {name: figure.value for name, figure in one.figures.items()}
    metrics: dict[str, dict[str, Any]] = {
        category: {field: figures.get(name) if name else None for field, name in fields.items()}
        for category, fields in CORE.items()
    }
    metrics["misc_metrics"]["frac_alive"] = 1 - figures["dead_fraction"]
    metrics["token_stats"] = {
        "total_tokens_eval_reconstruction": one.figures["ce_spliced"].tokens if "ce_spliced" in one.figures else 0,
        "total_tokens_eval_sparsity_variance": one.text["tokens"],
    }
    spliced = "ce_spliced" in one.figures
    result = {
        "eval_type_id": "core",
        "eval_config": {
            "model_name": short_name(one.text["model"]),
            "dataset": one.text["dataset"],
            "context_size": one.text["context_size"],
            "exclude_special_tokens_from_reconstruction": False,
            "compute_kl": spliced,
            "compute_ce_loss": spliced,
            "compute_l2_norms": False,
            "compute_sparsity_metrics": True,
            "compute_variance_metrics": True,
        },
        # The same for the same SAE on the same text.
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{one.sae['sha256']} {sorted(one.text.items())}")),
        "datetime_epoch_millis": time.time_ns() // 10**6,
        "eval_result_metrics": metrics,
        "eval_result_details": [],
        "sae_bench_commit_hash": f"none: measured by lightsae {version()}",
        "sae_lens_id": one.name,
        "sae_lens_release_id": "lightsae",
        "sae_lens_version": None,
        "sae_cfg_dict": _config(one),
        "eval_result_unstructured": {
            "lightsae": {
                "figures": {name: asdict(figure) for name, figure in one.figures.items()},
                "definitions": {name: DEFINITIONS[name].text for name in figures if name in DEFINITIONS},
                "sae": dict(one.sae),
                "text": dict(one.text),
            }
        },
    }
    checked: dict[str, Any] = with_none_for_nan(result)
    return checked


def _config(one: Evaluation) -> dict[str, Any]:
    """Return what SAEBench says of an SAE: that of the first site which it reads."""
    site = one.sae["read"][0]
    layer = re.search(r"\.(\d+)", site["site"])
    return {
        "architecture": str(one.sae["variant"]).lower(),
        "d_in": sum(read["width"] for read in one.sae["read"]),
        "d_sae": one.sae["d_sae"],
        "model_name": short_name(one.text["model"]),
        "hook_name": hook_of_site(site["site"]) or site["site"],
        "hook_layer": int(layer[1]) if layer else None,
        "context_size": one.text["context_size"],
        "prepend_bos": one.text["prepend_bos"],
    }
