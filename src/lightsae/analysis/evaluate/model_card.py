"""A model card of an SAE, as the Hub shows it: metadata, what the SAE is, how to load it, and its evaluation."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lightsae.analysis.evaluate.markdown import to_markdown
from lightsae.analysis.evaluate.report import Evaluation, read_report
from lightsae.errors import ConfigError
from lightsae.formats.saved_sae import SavedSAE
from lightsae.markdown import markdown_row

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
# Figures of the metadata, which the Hub lists beside the card.
_LISTED = ("fve", "l0", "dead_fraction", "ce_recovered", "kl")


def evaluation_of(saved: SavedSAE, path: str) -> Evaluation:
    """Return the evaluation of an SAE from a report of `lightsae evaluate`.

    Raises:
        FormatError: The report is missing or damaged.
        ConfigError: It is of other SAEs.
    """
    found = [one for one in read_report(Path(path)) if one.sae.get("sha256") == saved.sha256]
    if not found:
        raise ConfigError("evaluation", path, "it has no figures of this SAE (by its hash); evaluate it again")
    return found[-1]


def model_card(
    saved: SavedSAE, address: str, layout: str, evaluation: Evaluation | None = None, licence: str | None = None
) -> str:
    """Return README.md.

    Args:
        saved: The SAE.
        address: Under which others open it.
        layout: Of its files.
        evaluation: Its figures.
        licence: As the Hub abbreviates it: mit, apache-2.0.
    """
    title = address.removeprefix("hf://").rstrip("/").rpartition("/")[2]
    lines = ["---", _metadata(saved, title, evaluation, licence).rstrip(), "---", "", f"# {title}", ""]
    lines += [f"A sparse autoencoder of lightsae, in the layout `{layout}`.", "", "| | |", "|---|---|"]
    lines += [markdown_row(fact) for fact in _facts(saved)]
    lines += ["", "```python", "import lightsae", "", f"sae = lightsae.load_sae({address!r})", "```", ""]
    if evaluation is not None:
        # The page's headings go below the card's.
        page = to_markdown([replace(evaluation, name="Evaluation")])
        lines += [f"#{line}" if line.startswith("#") else line for line in page.splitlines()]
    return "\n".join(lines).rstrip() + "\n"


def _facts(saved: SavedSAE) -> list[tuple[str, str]]:
    sides = {side: saved.widths[side] for side in ("read", "predicted")}
    told = saved.provenance
    facts = [("variant", saved.variant), ("latents", f"{saved.settings.get('d_sae'):,}")]
    for side, sites in sides.items():
        if side == "read" or sites != sides["read"]:
            places = ", ".join(f"{one['model']} {one['site']} ({one['width']})" for one in sites)
            facts.append((side, places))
    facts += [("text", ", ".join(told.datasets))] if told.datasets else []
    facts += [("training tokens", f"{told.values['tokens_seen']:,}")] if told.values.get("tokens_seen") else []
    return [*facts, ("SHA-256 of the tensors", saved.sha256)]


def _metadata(saved: SavedSAE, title: str, evaluation: Evaluation | None, licence: str | None) -> str:
    told = saved.provenance
    entry: dict[str, Any] = {"library_name": "lightsae", "tags": ["sparse-autoencoder", "interpretability", "lightsae"]}
    if licence is not None:
        entry["license"] = licence
    if told.model is not None and _is_public(told.model):
        entry["base_model"] = told.model
    if public := [dataset for dataset in told.datasets if _is_public(dataset)]:
        entry["datasets"] = public
    if evaluation is not None:
        entry["model-index"] = [{"name": title, "results": [_results(evaluation)]}]
    text: str = yaml.safe_dump(entry, sort_keys=False, allow_unicode=True)
    return text


def _results(evaluation: Evaluation) -> dict[str, Any]:
    text = str(evaluation.text["dataset"])
    metrics = [
        {"type": name, "name": name, "value": figure.value}
        for name in _LISTED
        if (figure := evaluation.figures.get(name)) is not None and math.isfinite(figure.value)
    ]
    return {
        "task": {"type": "feature-extraction", "name": "Sparse autoencoder"},
        "dataset": {"type": text, "name": text},
        "metrics": metrics,
    }


def _is_public(name: str) -> bool:
    """Return whether a name is one of the Hub, and not a folder or what comes with lightsae."""
    return bool(_HUB_NAME.fullmatch(name)) and name != "builtin" and not Path(name).exists()
