"""What was measured of an SAE and its labels: reads the reports, checks whose they are, names the figures."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightsae.analysis.dictionary.figures import floor_share
from lightsae.analysis.panels.settings import SCHEMA
from lightsae.errors import FormatError, SiteError
from lightsae.formats.saved_sae import SavedSAE

# Of the exact paired test of a panel.
LEVEL = 0.05
Figures = dict[str, dict[str, float | bool]]
# What each report is called, how to make it, and under which key it holds its figures.
REPORTS = {
    "validation": ("validation.json of a run", "lightsae validate", "figures"),
    "labels": ("dictionary.json", "lightsae interpret", "summary"),
    "panel": (f"panel report of format {SCHEMA}", "lightsae panel", "summary"),
    "drift": ("drift report", "lightsae drift --out drift.json", "summary"),
}
# Where each figure that a policy may ask for stands there; those of a panel, and of floors, are worked out.
_FIGURES: dict[str, dict[str, tuple[str, ...]]] = {
    "validation": {"fve_no_sinks": ("fve_no_sinks",), "ce_recovered": ("ce_recovered",), "dead": ("dead_fraction",)},
    "labels": {
        "share_labelled": ("labelled_share",),
        "lower": ("lower_median",),
    },
    "drift": {"kept_share": ("shares", "kept")},
}


def check_evidence(files: Mapping[str, Path], sae: SavedSAE | str | Path, dictionary: str) -> None:
    """Refuse reports that are not of this SAE and feature dictionary, as far as they say what they are of.

    Args:
        files: The reports, by the names in `version.EVIDENCE`.
        sae: The SAE.
        dictionary: Id of the feature dictionary.

    Raises:
        FormatError: A file is missing, is something else, or is of another SAE or feature dictionary.
        SiteError: The figures are of another model or site.
    """
    saved = SavedSAE.of(sae)
    for kind, path in files.items():
        report, option = read_report(path, kind), f"--{kind} {str(path)!r}"
        if kind == "panel":
            if (schema := report.get("schema")) != SCHEMA:
                raise FormatError(
                    f"{option} is a panel report of format {schema}, whose verdicts ask for less than those of format "
                    f"{SCHEMA}; make it again: lightsae panel"
                )
            for key, ours in (("dictionary", dictionary), ("sae", saved.sha256)):
                if (theirs := report.get(key)) != ours:
                    raise FormatError(
                        f"{option} is of the {key} {str(theirs)[:12]}, not of {ours[:12]}; give the panel report of "
                        "this one: lightsae panel"
                    )
        elif kind == "validation":
            _check_validation(report, saved, option)
        else:
            named = report["summary"].get("sae")
            sides = [named.get(side) if isinstance(named, dict) else None for side in ("a", "b")]
            if saved.sha256 not in sides:
                raise FormatError(
                    f"{option} compares the SAEs {' with '.join(str(side)[:12] for side in sides)}, and this one is "
                    f"{saved.sha256[:12]}; give the report of this one: lightsae drift"
                )


def read_report(path: Path, kind: str) -> dict[str, Any]:
    """Read a report and check that it is one of its kind.

    Raises:
        FormatError: It is not.
    """
    option, (name, command, key) = f"--{kind} {str(path)!r}", REPORTS[kind]
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = "is a folder" if path.is_dir() else "cannot be read" if path.exists() else "does not exist"
        raise FormatError(f"{option} {reason}; name the {name}, made by: {command}") from error
    except ValueError as error:
        raise FormatError(f"{option} is not valid JSON ({error}); make it again: {command}") from error
    if not isinstance(report, dict) or not isinstance(report.get(key), dict):
        raise FormatError(f"{option} has no {key!r}: it is no {name}. Make one: {command}")
    return report


def figures_of(folder: Path) -> Figures:
    """Return the figures that a policy may ask for, group by group; what was not measured is not there.

    Args:
        folder: Of a version whose hashes hold.
    """
    manifest = json.loads((folder / "dictionary" / "dictionary.json").read_text(encoding="utf-8"))
    measured = {"labels": manifest.get("summary") or {}}
    for kind, (_, _, key) in REPORTS.items():
        if (path := folder / "evidence" / f"{kind}.json").is_file():
            report = read_report(path, kind)
            # Published before the format changed: its figures say something else under the same names.
            if kind != "panel" or report.get("schema") == SCHEMA:
                measured[kind] = report[key]
    if "validation" in measured:
        measured["validation"] = _figures_of_one(measured["validation"], SavedSAE.open(folder / "sae"))
    figures: Figures = {}
    for kind, values in measured.items():
        known: dict[str, float | bool | None] = (
            _panel_figures(values) if kind == "panel" else {n: _number(values, *k) for n, k in _FIGURES[kind].items()}
        )
        if kind == "labels":
            known |= _floor_figures(values)
        figures[kind] = {name: value for name, value in known.items() if value is not None}
    return figures


def _floor_figures(summary: Mapping[str, Any]) -> dict[str, float | bool | None]:
    shuffled = {"share": floor_share((summary.get("floors") or {}).get("shuffled labels"))}
    above = summary.get("above_chance")
    return {"shuffled_floor": _number(shuffled, "share"), "above_floors": above if isinstance(above, bool) else None}


def _panel_figures(summary: Mapping[str, Any]) -> dict[str, float | bool | None]:
    features, harmful = _number(summary, "features"), _number(summary, "harmful")
    low, high = _number(summary, "causal_usefulness", "low"), _number(summary, "random_floor", "high")
    p = _number(summary, "paired", "label", "p")
    return {
        "reliable_share": _number(summary, "reliable_share"),
        "harmful_share": harmful / features if features and harmful is not None else None,
        # Intervals apart, not merely the shares.
        "above_random_floor": low > high if low is not None and high is not None else None,
        "above_other_features": p <= LEVEL if p is not None else None,
    }


def _number(holder: Any, *keys: str) -> float | None:
    """Return a finite number from nested pairs, or None if there is none."""
    for key in keys:
        holder = holder.get(key) if isinstance(holder, dict) else None
    is_number = isinstance(holder, int | float) and not isinstance(holder, bool) and math.isfinite(holder)
    return float(holder) if is_number else None


def _figures_of_one(figures: Mapping[str, Any], sae: SavedSAE) -> dict[str, Any]:
    """Return the figures of one SAE; those of a run of several carry its name."""
    named = f"{sae.provenance.values.get('dictionary')}/val/"
    prefix = named if any(key.startswith(named) for key in figures) else "val/"
    return {key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)}


def _check_validation(report: Mapping[str, Any], sae: SavedSAE, option: str) -> None:
    for key in ("model", "site"):
        known = sorted({str(entry[key]) for entry in sae.widths["read"] + sae.widths["predicted"]})
        if isinstance(theirs := (report.get("data") or {}).get(key), str) and theirs not in known:
            raise SiteError(
                f"{option} is of the {key} {theirs!r}, and the SAE of {', '.join(map(repr, known))}; give the "
                "validation.json of its own run."
            )
    hashes = report.get("sha256")
    if not isinstance(hashes, dict) or sae.sha256 not in hashes.values():
        raise FormatError(
            f"{option} does not name this SAE's weights as measured: measure it again with lightsae validate, or "
            "give the validation.json of its own run."
        )
    if not _figures_of_one(report["figures"], sae):
        names = sorted({key.partition("/val/")[0] for key in report["figures"] if "/val/" in key})
        raise FormatError(
            f"{option} has no figures of the SAE {sae.provenance.values.get('dictionary')!r}; it has those of "
            f"{', '.join(map(repr, names)) or 'none'}."
        )
