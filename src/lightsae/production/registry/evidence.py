"""What was measured of a dictionary: reads the reports, checks that they are of this dictionary, names the figures."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightsae.errors import FormatError, SiteError
from lightsae.formats.native import describe_sae

Figures = dict[str, dict[str, float | bool]]
# What each report is called, and how to make it.
REPORTS = {
    "validation": ("validation.json of a run", "lightsae validate"),
    "labels": ("dictionary.json", "lightsae interpret"),
    "panel": ("panel report", "lightsae panel"),
    "drift": ("drift report", "lightsae drift --out drift.json"),
}
_SUMMARY = {"validation": "figures", "panel": "summary", "drift": "summary"}


def check_evidence(files: Mapping[str, Path], sae: str | Path, dictionary: str) -> None:
    """Refuse reports that are not of this dictionary, as far as they say what they are of.

    A panel report names feature dictionary and SAE. validation.json names model and site, a drift report only how many
    features it compared: those are held against what the SAE says.

    Args:
        files: The reports, by the names in `version.EVIDENCE`.
        sae: Folder of the SAE.
        dictionary: Id of the feature dictionary.

    Raises:
        FormatError: A file is missing, is something else, or is of another dictionary.
        SiteError: The figures are of another model or site.
    """
    told = describe_sae(sae)
    for kind, path in files.items():
        report = read_report(path, kind)
        shown = f"--{kind} {str(path)!r}"
        if kind == "panel":
            for key, wanted in (("dictionary", dictionary), ("sae", told["sha256"])):
                if (found := report.get(key)) != wanted:
                    raise FormatError(
                        f"{shown} is of the {key} {str(found)[:12]}, not of {wanted[:12]}; give the panel report of "
                        "this one: lightsae panel"
                    )
        elif kind == "validation":
            _check_validated(report, told, shown)
        else:
            _check_compared(report["summary"], told["sha256"], shown)


def read_report(path: Path, kind: str) -> dict[str, Any]:
    """Read a report and check that it is one of its kind.

    Raises:
        FormatError: It is not.
    """
    shown, what = f"--{kind} {str(path)!r}", REPORTS[kind]
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = "is a folder" if path.is_dir() else "cannot be read" if path.exists() else "does not exist"
        raise FormatError(f"{shown} {reason}; name the {what[0]}, made by: {what[1]}") from error
    except ValueError as error:
        raise FormatError(f"{shown} is not valid JSON ({error}); make it again: {what[1]}") from error
    if not isinstance(report, dict) or not isinstance(report.get(_SUMMARY[kind]), dict):
        raise FormatError(f"{shown} has no {_SUMMARY[kind]!r}: it is no {what[0]}. Make one: {what[1]}")
    return report


def figures_of(folder: Path) -> Figures:
    """Return the figures that a policy may ask of a version, group by group; what was not measured is not there.

    Args:
        folder: Of a version whose hashes hold.
    """
    reports = {
        kind: read_report(path, kind) for kind in _SUMMARY if (path := folder / "evidence" / f"{kind}.json").is_file()
    }
    labels = json.loads((folder / "dictionary" / "dictionary.json").read_text(encoding="utf-8")).get("summary") or {}
    told: dict[str, dict[str, Any]] = {
        "labels": {
            "share_labelled": _number(labels, "labelled_share"),
            "precision": _number(labels, "precision_median"),
            "recall": _number(labels, "recall_median"),
            "shuffled_floor": _number(labels, "floors", "shuffled labels"),
        }
    }
    if "validation" in reports:
        own = _own_figures(reports["validation"]["figures"], describe_sae(folder / "sae"))
        told["validation"] = {
            "fve_no_sinks": own.get("fve_no_sinks"),
            "ce_recovered": own.get("ce_recovered"),
            "dead": own.get("dead_fraction"),
        }
    if "panel" in reports:
        told["panel"] = _panel_figures(reports["panel"]["summary"])
    if "drift" in reports:
        told["drift"] = {"kept_share": _number(reports["drift"]["summary"], "shares", "kept")}
    return {
        group: {name: v if isinstance(v, bool) else float(v) for name, v in values.items() if _is_figure(v)}
        for group, values in told.items()
    }


def _panel_figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    features, harmful = _number(summary, "features"), _number(summary, "harmful")
    low, high = _number(summary, "causal_usefulness", "low"), _number(summary, "random_floor", "high")
    return {
        "reliable_share": summary.get("reliable_share"),
        "harmful_share": harmful / features if features and harmful is not None else None,
        # Intervals apart, not merely the shares.
        "above_random_floor": low > high if low is not None and high is not None else None,
    }


def _number(holder: Any, *keys: str) -> float | None:
    """Return a number from nested pairs, or None where there is none."""
    for key in keys:
        holder = holder.get(key) if isinstance(holder, dict) else None
    return float(holder) if _is_figure(holder) else None


def _own_figures(figures: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one SAE; those of a run of several carry its name."""
    named = f"{told['provenance'].get('dictionary')}/val/"
    prefix = named if any(key.startswith(named) for key in figures) else "val/"
    return {key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)}


def _check_validated(report: Mapping[str, Any], told: Mapping[str, Any], shown: str) -> None:
    data, own = report.get("data") or {}, told["widths"]["read"] + told["widths"]["predicted"]
    for key in ("model", "site"):
        known = sorted({str(entry[key]) for entry in own})
        if isinstance(found := data.get(key), str) and found not in known:
            raise SiteError(
                f"{shown} is of the {key} {found!r}, and the SAE of {', '.join(map(repr, known))}; give the "
                "validation.json of its own run."
            )
    hashes = report.get("sha256")
    if not isinstance(hashes, dict) or told["sha256"] not in hashes.values():
        raise FormatError(
            f"{shown} does not name this SAE's weights as measured: measure it again with lightsae validate, or "
            "give the validation.json of its own run."
        )
    if not _own_figures(report["figures"], told):
        names = sorted({key.partition("/val/")[0] for key in report["figures"] if "/val/" in key})
        raise FormatError(
            f"{shown} has no figures of the SAE {told['provenance'].get('dictionary')!r}; it has those of "
            f"{', '.join(map(repr, names)) or 'none'}."
        )


def _check_compared(summary: Mapping[str, Any], sha256: str, shown: str) -> None:
    named = summary.get("sae")
    found = {side: named.get(side) for side in ("a", "b")} if isinstance(named, dict) else {}
    if sha256 not in found.values():
        pair = " with ".join(str(found.get(side))[:12] for side in ("a", "b"))
        raise FormatError(
            f"{shown} compares the SAEs {pair}, and this one is {sha256[:12]}; give the report of this one: lightsae "
            "drift"
        )


def _is_figure(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value))
