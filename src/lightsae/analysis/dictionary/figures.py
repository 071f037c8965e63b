"""The figures of a feature dictionary: counts, shares, medians, and how far they lie above the floors.

All are over every tested feature (alive, and not too rare to be tested), those whose label failed included: over labels
that passed, a median cannot fall below the gate. No median is taken over fewer than `LEAST` values.

Axes: n features.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from lightsae.analysis.dictionary.schema import TIERS, UNTESTED_TIERS, tested_and_shown
from lightsae.metrics.intervals import Interval

LEAST = 10
# What stands in place of a headline.
NOT_ABOVE = "not above chance here"
_MEDIANS = ("window_coherence", "document_coherence", "ablation_kl")
Figures = dict[str, float | int | None]


def figures(tables: Mapping[str, pa.Table]) -> Figures:
    """Return counts, shares with their interval, and medians with the number of their values.

    Works on the tables of raw neurons too: put what it returns under `summary.neurons` of the manifest, and the card
    shows both populations side by side. A median over fewer than `LEAST` is None.
    """
    features = tables["features"]
    tiers = Counter(features["tier"].to_pylist())
    alive = len(features) - tiers["dead"]
    lower = lower_scores(tables)
    return {
        "features": len(features),
        "alive": alive,
        "tested": len(lower),
        **labelled(features["tier"].to_pylist()),
        **{f"tier_{tier}": tiers[tier] for tier in TIERS},
        **f1_of(tables),
        **median_of("lower", lower),
        **{key: value for name in _MEDIANS for key, value in median_of(name, features[name]).items()},
    }


def labelled(tiers: Collection[str]) -> Figures:
    """Return how many features are labelled, and their share of the tested ones with its 95% interval."""
    tested, shown = tested_and_shown(tiers)
    if not tested:
        return {"labelled": 0, "labelled_share": None, "labelled_share_low": None, "labelled_share_high": None}
    share = Interval.share(shown, tested)
    ends = {"": share.mean, "_low": share.low, "_high": share.high}
    return {"labelled": shown, **{f"labelled_share{end}": round(float(value or 0), 4) for end, value in ends.items()}}


def tested_scores(tables: Mapping[str, pa.Table]) -> pd.DataFrame:
    """Return tier, precision and recall of each tested feature, by feature: of its label, or of the rule that failed.

    NaN where there is neither, or where precision or recall does not exist.
    """
    features = tables["features"].select(["feature", "tier", "precision", "recall"]).to_pandas()
    tested = features[~features["tier"].isin(UNTESTED_TIERS)].set_index("feature")
    labels = tables["labels"].select(["feature", "source", "precision", "recall"]).to_pandas()
    rules = labels[labels["source"] == "rule"].drop_duplicates("feature").set_index("feature")
    # A label that is shown was tested, or is a person's: then there is none but the rule's test.
    shown = tested[["precision", "recall"]].astype(float)
    untested = shown.isna().any(axis=1)
    shown[untested] = rules[["precision", "recall"]].astype(float).reindex(shown.index)[untested]
    return tested[["tier"]].join(shown)


def lower_scores(tables: Mapping[str, pa.Table]) -> NDArray[np.float64]:
    """Return the lower of precision and recall of each tested feature, (n,); 0 where there is none."""
    scores: NDArray[np.float64] = tested_scores(tables)[["precision", "recall"]].fillna(0).min(axis=1).to_numpy()
    return scores


def f1_of(tables: Mapping[str, pa.Table]) -> Figures:
    """Return the mean F1 of the tested features' labels with its 95% interval; 0 where there is none.

    Features are held against floors by it too: the best rule of a few patterns, whether it passed or not, among
    features that fire as often.
    """
    scores = tested_scores(tables)
    f1 = (2 * scores.precision * scores.recall / (scores.precision + scores.recall)).fillna(0).to_numpy(float)
    if not len(f1):
        return {"f1_mean": None, "f1_mean_low": None, "f1_mean_high": None}
    mean = Interval.over(f1)
    ends = {"": mean.mean, "_low": mean.low, "_high": mean.high}
    return {f"f1_mean{end}": None if value is None else round(value, 4) for end, value in ends.items()}


def f1_against(ours: NDArray[np.float64], floor: NDArray[np.float64]) -> Figures:
    """Compare the F1 of labels, one per tested feature: f1_difference, f1_low and f1_high; None with fewer than two."""
    if min(len(ours), len(floor)) < 2:
        return dict.fromkeys(("f1", "f1_difference", "f1_low", "f1_high"))
    apart = Interval.apart(ours, floor)
    values = {"f1": float(floor.mean()), "f1_difference": apart.mean, "f1_low": apart.low, "f1_high": apart.high}
    return {name: round(float(value or 0), 4) for name, value in values.items()}


def median_of(name: str, values: pa.ChunkedArray | NDArray[Any]) -> Figures:
    """Return NAME_median, to four digits, and NAME_n: over what is known; None below `LEAST` values."""
    known = values if isinstance(values, np.ndarray) else values.drop_null().to_numpy()
    known = known[np.isfinite(known)]
    value = round(float(np.median(known)), 4) if len(known) >= LEAST else None
    return {f"{name}_median": value, f"{name}_n": len(known)}


def against(ours: Collection[str], floor: Collection[str]) -> dict[str, float | int | None]:
    """Compare the shares of labelled features among the tested ones, by their tiers.

    Returns:
        share, n: of the floor; difference, low, high: ours minus the floor's with its 95% interval. None where one side
        has no tested feature.
    """
    (tested, shown), (tested_there, shown_there) = tested_and_shown(ours), tested_and_shown(floor)
    return against_counts(shown, tested, shown_there, tested_there)


def against_counts(shown: int, tested: int, shown_there: int, tested_there: int) -> dict[str, float | int | None]:
    """Compare shares by their counts; see `against`."""
    if not tested or not tested_there:
        return {"share": None, "n": tested_there, "difference": None, "low": None, "high": None}
    apart = Interval.difference(shown, tested, shown_there, tested_there)
    values = {"share": shown_there / tested_there, "difference": apart.mean, "low": apart.low, "high": apart.high}
    return {"n": tested_there, **{name: round(float(value or 0), 4) for name, value in values.items()}}


def above_chance(floors: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """Return whether share labelled and F1 lie above every floor, intervals included; None if nothing was compared."""
    ends = [floor.get(end) for floor in floors.values() for end in ("low", "f1_low")]
    lows = [low for low in ends if low is not None]
    return all(low > 0 for low in lows) if lows else None


def headline(summary: Mapping[str, Any]) -> str:
    """Return what is said first of a dictionary: the share labelled, or that it is not above chance.

    Args:
        summary: Of dictionary.json; one of an older version has no comparison with floors.
    """
    share, low, high = (summary.get(f"labelled_share{end}") for end in ("", "_low", "_high"))
    if share is None:
        return "no feature was tested"
    if summary.get("above_chance") is not False:
        interval = "" if low is None or high is None else f" [{low:.1%}, {high:.1%}]"
        return f"{share:.1%}{interval} of the tested features labelled"
    floors = {name: floor for name, floor in summary["floors"].items() if floor["low"] is not None}
    name = min(floors, key=lambda name: min(floors[name]["low"], floors[name].get("f1_low") or 1.0))
    floor = floors[name]
    f1 = f", in F1 {floor['f1_difference']:+.3f}" if floor.get("f1_difference") is not None else ""
    return (
        f"{NOT_ABOVE}: {share:.1%} of the features are labelled, {floor['share']:.1%} of {name} "
        f"(difference {100 * floor['difference']:+.1f} points, "
        f"95% {100 * floor['low']:+.1f} to {100 * floor['high']:+.1f}{f1}); tiers are withheld"
    )


def curves(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the share labelled by the most patterns that a rule may have: of the features, neurons and floors.

    Args:
        summary: Of dictionary.json; one of an older version has no curve.
    """
    sides = {"features": summary, str((summary.get("neurons") or {}).get("kind")): summary.get("neurons") or {}}
    known = {name: side.get("labelled_by_patterns") for name, side in sides.items()}
    floors = {
        name: floor.get("by_patterns")
        for name, floor in (summary.get("floors") or {}).items()
        if isinstance(floor, Mapping)
    }
    # JSON has its keys in the order of letters.
    return {
        name: {limit: curve[limit] for limit in sorted(curve, key=int)}
        for name, curve in (known | floors).items()
        if curve
    }


def floor_share(floor: Any) -> float | None:
    """Return the share of a floor as it stands in a summary; older ones hold the number alone."""
    share: float | None = floor.get("share") if isinstance(floor, Mapping) else floor
    return share
