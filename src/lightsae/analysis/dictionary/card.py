"""The card of a feature dictionary: what it is, how it was made, its figures, and what its labels are good for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from lightsae.analysis.dictionary.figures import curves, figures, floor_share, headline
from lightsae.analysis.dictionary.schema import PATTERNS_BEFORE_2, TIERS

# What the card calls each figure. A share stands with its interval, a median with the number of its values.
_NAMES = {
    "features": "features",
    "alive": "alive (fire on the text read)",
    "tested": "tested: alive and not rare",
    "labelled": "labelled",
    "labelled_share": "labelled, share of the tested",
    "f1_mean": "F1 of the labels, mean of the tested",
    "lower_median": "lower of precision and recall, median of the tested",
    "window_coherence_median": "coherence of windows, median",
    "document_coherence_median": "coherence of documents, median",
    "ablation_kl_median": "KL when ablated, nats a token, median",
    **{f"tier_{tier}": f"tier {tier}" for tier in TIERS},
}
_MAKING = ("tokenizer", "corpus", "tokens", "seeds", "code_version", "labels")
# What Markdown or HTML would read as a mark.
_HARMLESS = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;", "*": "\\*", "[": "\\[", "_": "\\_"}
)


def write_card(path: Path, tables: Mapping[str, pa.Table], manifest: Mapping[str, Any]) -> None:
    """Write `card.md`. It says nothing that the tables and the manifest do not hold."""
    sections = [
        f"# Feature dictionary {manifest['id'][:12]}",
        _about(manifest),
        "## Figures\n\n" + _figures(tables, manifest),
        "## How it was made\n\n" + _markdown(["", ""], [[_cell(part), _cell(manifest[part])] for part in _MAKING]),
        _rules(manifest) + _USE,
        _open(manifest),
    ]
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


_USE = """## What the labels may be used for

A label is a short description of the tokens on which a feature fires. Precision is the share of the tokens picked by
the label on which the feature fires above a tenth of its maximum; recall is the share of those tokens that the label
picks. Both were measured on documents from which no label was made, at the natural frequency.

- Tiers `high` and `medium` passed that test. A label may guide reading, search and the choice of what to test next.
- `withheld`: passed, but in this dictionary no more labels pass than those of features that nothing was learned for:
  a right description of when it fires, and no sign that the feature is more than chance would give.
- `unlabelled`: no label passed. Whatever was tried is in the table `labels`, as a record, not as a description.
- `rare`: fires too seldom in the text read to be tested. `dead`: never fires there.

What they are not: proof of what the model computes. A label says when a feature fires, on text like the corpus named
above; it does not say what the feature causes (see the ablation columns, and test interventions), nor what it does on
other text. Features that share a meaning may be split, and a label that is right nine times in ten is wrong the tenth.
Do not use labels to judge persons, nor as the only ground of a decision.

The labels belong to one SAE, the one named here by its hash. For another (a reseed, a later checkpoint, a fine-tuned
model) compare the two first: labels are carried, flagged or revoked feature by feature."""


def _rules(manifest: Mapping[str, Any]) -> str:
    offline = manifest["labels"].get("offline") or {}
    if "most_patterns" not in offline:
        return (
            f"The labels by rules are of up to {PATTERNS_BEFORE_2} patterns each, of which the words name the most "
            "telling ones; precision and recall are those of the whole rule.\n\n"
        )
    most, listed = offline["most_patterns"], offline.get("listed_tokens", 1)
    return (
        f"A label by a rule says all of the rule that was tested: at most {most} patterns, of which one may be a list "
        f"of up to {listed} tokens. Longer rules are in the table `labels` as `detector`, with their own figures.\n\n"
    )


def _about(manifest: Mapping[str, Any]) -> str:
    sae, model = manifest["sae"], manifest["model"]
    sites = ", ".join(_cell(entry.get("site")) for entry in sae.get("read", []))
    predicted = ", ".join(_cell(entry.get("site")) for entry in sae.get("predicted", []))
    where = f"at {sites}" if sites == predicted else f"reading {sites}, predicting {predicted}"
    revision = f", revision {_cell(model['revision'])}" if model.get("revision") else ""
    return (
        f"What the latents of a sparse autoencoder stand for: {_cell(sae.get('variant'))} with "
        f"{_cell(sae.get('d_sae'))} latents, {where} of {_cell(model.get('name'))}{revision}.\n\n"
        f"- id: `{manifest['id']}`\n- SAE (SHA-256 of its tensors): `{sae['sha256']}`"
    )


def _figures(tables: Mapping[str, pa.Table], manifest: Mapping[str, Any]) -> str:
    summary = manifest.get("summary") or {}
    ours, neurons = figures(tables), summary.get("neurons")
    head = ["", "features"] + ([str(neurons.get("kind", "raw neurons"))] if neurons else [])
    sides = [ours] + ([neurons] if neurons else [])
    rows = [[name, *(_figure(side, key) for side in sides)] for key, name in _NAMES.items()]
    parts = [f"**{headline({**summary, **ours})}**", _markdown(head, rows)]
    if floors := summary.get("floors"):
        compared = {name: (floor_share(floor), floor) for name, floor in floors.items()}
        if neurons and "difference" in neurons:
            compared[head[2]] = (neurons["difference"]["share"], neurons["difference"])
        parts += [
            "Floors, the share labelled where nothing was learned as a feature, and of the raw neurons; features minus "
            "each, with the 95% interval:",
            _markdown(
                ["", "labelled", "of", "features minus it", "F1, features minus it"],
                [[_cell(name), _cell(share), *_apart(floor)] for name, (share, floor) in compared.items()],
            ),
        ]
    if of := curves(summary):
        limits = list(next(iter(of.values())))
        parts += [
            "The same by the most patterns that a rule may have; those longer than a label's are detectors:",
            _markdown(
                ["", *limits], [[_cell(name), *(_cell(curve[limit]) for limit in limits)] for name, curve in of.items()]
            ),
        ]
    return "\n\n".join(parts)


def _figure(side: Mapping[str, Any], key: str) -> str:
    """Return a figure with what belongs to it: an interval, or the number of values of a median."""
    value = _cell(side.get(key))
    if side.get(f"{key}_low") is not None:
        return f"{value} ({_cell(side[f'{key}_low'])} to {_cell(side[f'{key}_high'])})"
    number = side.get(f"{key.removesuffix('_median')}_n") if key.endswith("_median") else None
    return value if number is None else f"{value} (n = {number})"


def _apart(floor: Any) -> tuple[str, ...]:
    if not isinstance(floor, Mapping) or floor.get("difference") is None:
        return "-", "-", "-"
    apart = [
        "{:+.3f} ({:+.3f} to {:+.3f})".format(*(floor[f"{prefix}{end}"] for end in ("difference", "low", "high")))
        if floor.get(f"{prefix}difference") is not None
        else "-"
        for prefix in ("", "f1_")
    ]
    return str(floor["n"]), *apart


def _open(manifest: Mapping[str, Any]) -> str:
    return (
        "## How to open it\n\n```python\n"
        "from lightsae.analysis.dictionary.feature_dictionary import FeatureDictionary\n\n"
        "dictionary = FeatureDictionary.open(FOLDER)  # checks every hash\n"
        f'assert dictionary.id == "{manifest["id"]}"\n'
        'dictionary.search("return")\n'
        'dictionary.filter(tier="high", min_frequency=1e-4, order_by="frequency", limit=20)\n'
        "dictionary.feature(0).contexts\n```\n\n"
        "The tables are plain Parquet: any tool that reads it will do."
    )


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """Return a value as text in which neither Markdown nor HTML is left active."""
    if isinstance(value, Mapping):
        return "; ".join(f"{_cell(k)}: {_cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    text = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.translate(_HARMLESS).split())
