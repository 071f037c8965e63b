"""What was measured of an SAE and its labels: reads the reports, checks whose they are, names the figures."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightsae.analysis.dictionary.writer import DESCRIPTION
from lightsae.analysis.panels.settings import SCHEMA
from lightsae.errors import FormatError, SiteError
from lightsae.formats import files
from lightsae.formats.saved_sae import SavedSAE
from lightsae.parsing import MOST_BYTES_OF_TABLES, read_json

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
    "labels": {"share_labelled": ("labelled_share",), "lower": ("lower_median",)},
    "drift": {"kept_share": ("shares", "kept")},
}
# Least and most of figures that are no shares. What is predicted can be worse than the mean by any factor. CE recovered
# exceeds 1 a little where the reconstruction serves the model better than the activations do.
_RANGES = {"fve_no_sinks": (-math.inf, 1.0), "ce_recovered": (-math.inf, 1.5), "harmful": (0.0, math.inf)}
_ROUNDING = 1e-6
_AGAIN = "publish the version again"


def check_evidence(reports: Mapping[str, Path], sae: SavedSAE | str | Path, dictionary: str) -> None:
    """Refuse reports that are not of this SAE and feature dictionary, as far as they say what they are of.

    Args:
        reports: The reports, by the names in `version.EVIDENCE`.
        sae: The SAE.
        dictionary: Id of the feature dictionary.

    Raises:
        FormatError: A file is missing, is something else, is of another SAE or feature dictionary, or holds a figure
            that none can be.
        SiteError: The figures are of another model or site.
    """
    saved = SavedSAE.of(sae)
    for kind, path in reports.items():
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
        values = report[REPORTS[kind][2]]
        figures_in(kind, _figures_of_one(values, saved) if kind == "validation" else values, option)


def read_report(path: Path, kind: str) -> dict[str, Any]:
    """Read a report and check that it is one of its kind.

    Raises:
        FormatError: It is not.
    """
    option, (name, command, key) = f"--{kind} {str(path)!r}", REPORTS[kind]
    try:
        # A figure that was not measured is NaN there.
        report = read_json(path, finite=False, most=MOST_BYTES_OF_TABLES)
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

    Raises:
        FormatError: A report is none, or a figure is one that none can be.
    """
    summary = files.read_json(folder / "dictionary", DESCRIPTION, _AGAIN, _AGAIN).get("summary")
    measured: dict[str, dict[str, Any]] = {"labels": summary if isinstance(summary, dict) else {}}
    for kind, (_, _, key) in REPORTS.items():
        if (path := folder / "evidence" / f"{kind}.json").is_file():
            report = read_report(path, kind)
            # Published before the format changed: its figures say something else under the same names.
            if kind != "panel" or report.get("schema") == SCHEMA:
                measured[kind] = report[key]
    if "validation" in measured:
        measured["validation"] = _figures_of_one(measured["validation"], SavedSAE.open(folder / "sae"))
    return {kind: figures_in(kind, values, kind) for kind, values in measured.items()}


def figures_in(kind: str, values: Mapping[str, Any], shown: str) -> dict[str, float | bool]:
    """Return the figures of a report, each within its range; what is null, NaN or no number was not measured.

    Args:
        kind: `validation`, `labels`, `panel` or `drift`.
        values: What the report holds of one SAE under its key in `REPORTS`.
        shown: The report, for the message.

    Raises:
        FormatError: One is out of its range.
    """

    def number(*keys: str) -> float | None:
        value = _number(values, *keys)
        low, high = _RANGES.get(keys[-1], (0.0, 1.0))
        if value is not None and not low - _ROUNDING <= value <= high + _ROUNDING:
            raise FormatError(
                f"{shown}: {'.'.join(keys)} is {value:g}, which is no such figure: it lies in {low:g} to {high:g}. "
                f"Measure it again: {REPORTS[kind][1]}"
            )
        return value

    known: dict[str, float | bool | None] = {name: number(*keys) for name, keys in _FIGURES.get(kind, {}).items()}
    if kind == "labels":
        known |= _floor_figures(values, number)
    if kind == "panel":
        known |= _panel_figures(values, number)
    return {name: value for name, value in known.items() if value is not None}


def _floor_figures(summary: Mapping[str, Any], number: Callable[..., float | None]) -> dict[str, float | bool | None]:
    above, shuffled = summary.get("above_chance"), ("floors", "shuffled labels")
    return {
        # Of older dictionaries, the number alone.
        "shuffled_floor": number(*shuffled) if _number(summary, *shuffled) is not None else number(*shuffled, "share"),
        "above_floors": above if isinstance(above, bool) else None,
    }


def _panel_figures(summary: Mapping[str, Any], number: Callable[..., float | None]) -> dict[str, float | bool | None]:
    # A count, of which the harmful ones are a share.
    features, harmful = _number(summary, "features"), number("harmful")
    low, high = number("causal_usefulness", "low"), number("random_floor", "high")
    p = number("paired", "label", "p")
    if harmful is not None and features is not None and harmful > features:
        raise FormatError(f"The panel report has {harmful:g} harmful of {features:g} features; make it again.")
    return {
        "reliable_share": number("reliable_share"),
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
        data = report.get("data")
        if isinstance(data, dict) and isinstance(theirs := data.get(key), str) and theirs not in known:
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
