"""What became of the features of an SAE A in another one, B: a reseed, a later checkpoint, a fine-tuned model.

Axes:    F features of A, G of B, T tokens of one text that both were run on.
Verdicts, for each feature of A that fires on at least `min_fires` of the tokens, against its partner in B (one to one,
`drift/matching.py`):
    kept    cosine of the decoder rows and correlation of the activations are both at least `same`.
    split   not kept; but at least two features of B, each of which fires mostly (PART_INSIDE) where this one fires and
            adds PART_ADDS or more of its firings, together cover `coverage` of them, and the largest alone does not.
    moved   neither; but the mean of cosine and correlation is above the floor: something of it is still there.
    lost    nothing above the floor.
Fewer firings: untested. Labels are carried (kept), flagged (moved, split, untested: test them again before use) or
revoked (lost).

The floor is a quantile of the same mean over the pairs of a null comparison:
    chance  A against a stand-in for B: random directions with B's own second moments, and each feature's activations
            on shuffled tokens; the 99% quantile. Trainings on the same data are always more alike than that, so against
            chance alone «lost» is said seldom: give reseeds where there are any.
    reseed  two reseeds, matched in the same way; the median of the pairs that do not come out as kept (some features do
            come back). To be more than lost, a feature has to be more alike than what a mere change of the seed
            typically leaves of a feature that does not come back. Not a higher quantile: those pairs fade into the
            kept ones without a gap.
Whatever the null, it is judged with the same thresholds, and its shares of kept, moved, split and lost are the base
rates to read the comparison by. MMCS and the other means are over features that fire, for a dead one points anywhere.
Source:  MMCS: Sharkey et al. 2022; about 30% of latents are shared between seeds: Paulo & Belrose 2025.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import sparse

from lightsae.analysis.drift.matching import (
    CANDIDATES,
    DENSE,
    MEASURES,
    FeatureMatching,
    match,
    unit_rows,
)
from lightsae.analysis.drift.read import SAEOnText
from lightsae.errors import ConfigError
from lightsae.formats.files import write_json
from lightsae.metrics.conventions import NO_PARTNER
from lightsae.randomness import keyed_generator

VERDICTS = ("kept", "moved", "split", "lost")
UNTESTED = "untested"
STATUS = {"kept": "carried", "moved": "flagged", "split": "flagged", "lost": "revoked", UNTESTED: "flagged"}
PART_INSIDE, PART_ADDS = 0.5, 0.1
FLOOR_QUANTILE = {"chance": 0.99, "reseed": 0.5}
_QUANTILES = (0.05, 0.5, 0.95, 0.99)
_SCHEMA = pa.schema(
    [
        ("feature", pa.int32()),
        ("fires", pa.int64()),
        ("match", pa.int32()),
        ("cosine", pa.float32()),
        ("correlation", pa.float32()),
        ("verdict", pa.string()),
        ("parts", pa.list_(pa.int32())),  # split: the features of B that it is now, the largest first
        ("label", pa.string()),
        ("label_status", pa.string()),  # carried, flagged, revoked; null without a label
    ]
)


@dataclass(frozen=True)
class DriftThresholds:
    """What counts as the same feature; see the head of the file.

    Attributes:
        same: Least cosine, and least correlation, of a kept feature.
        coverage: Least share of a feature's firings that the parts of a split one cover.
        min_fires: Tokens on which a feature has to fire to be tested.

    Raises:
        ConfigError: One is out of its range.
    """

    same: float = 0.7
    coverage: float = 0.7
    min_fires: int = 10

    def __post_init__(self) -> None:
        for name in ("same", "coverage"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{name} is {value}; write a number above 0, up to 1.")
        if self.min_fires < 1:
            raise ConfigError(f"min_fires is {self.min_fires}; write 1 or more.")


@dataclass(frozen=True)
class DriftReport:
    """What `compare` found.

    Attributes:
        features: One row per feature of A: feature, fires, match, cosine, correlation, verdict, parts, label and
            label_status.
        summary: Counts and shares of verdicts and of label states, means (MMCS among them), thresholds, the null.
    """

    features: pa.Table
    summary: dict[str, Any]

    def to_json(self, path: str | Path) -> None:
        """Write summary and features to a JSON file."""
        report = {"summary": self.summary, "features": self.features.to_pylist()}
        write_json(path, report, indent=1)

    def to_text(self, rows: int = 20) -> str:
        """Return the summary and the labelled features that changed the most, as lines for a terminal."""
        summary, null = self.summary, self.summary["null"]
        lines = [f"{summary['tested']} of {summary['features']['a']} features fire often enough to be compared."]
        lines.append(f"{'':12}{'features':>10}{'share':>9}{null['kind']:>11}")
        for verdict in VERDICTS:
            share, base = summary["shares"][verdict], null["shares"][verdict]
            lines.append(f"{verdict:12}{summary['verdicts'][verdict]:>10}{_number(share):>9}{_number(base):>11}")
        lines.append(f"{'':12}{'A to B':>10}{'B to A':>9}{'one to one':>12}")
        for measure in ("cosine", "correlation"):
            means = summary["means"][measure]
            values = f"{_number(means['a_to_b']):>10}{_number(means['b_to_a']):>9}{_number(means['one_to_one']):>12}"
            lines.append(f"{measure:12}{values}")
        if any(summary["labels"].values()):
            lines.append("labels: " + ", ".join(f"{count} {status}" for status, count in summary["labels"].items()))
        order = {"lost": 0, "split": 1, "moved": 2}
        changed = [row for row in self.features.to_pylist() if row["label"] is not None and row["verdict"] in order]
        changed.sort(key=lambda row: (order[row["verdict"]], -row["fires"]))
        for row in changed[:rows]:
            values = f"{_number(row['cosine']):>6}{_number(row['correlation']):>7}"
            label = " ".join("".join(c if c.isprintable() else " " for c in row["label"]).split())
            lines.append(f"{row['feature']:>7} {row['verdict']:6}{values}  {label[:80]}")
        if len(changed) > rows:
            lines.append(f"... and {len(changed) - rows} more")
        return "\n".join(lines)


def compare(
    a: SAEOnText,
    b: SAEOnText,
    *,
    labels: Mapping[int, str] | None = None,
    reseeds: tuple[SAEOnText, SAEOnText] | None = None,
    thresholds: DriftThresholds = DriftThresholds(),
    seed: int = 0,
) -> DriftReport:
    """Say for every feature of `a` what became of it in `b`.

    Args:
        a: The SAE whose features and labels are followed.
        b: The other one, over the same tokens, at a site of the same width.
        labels: Labels of features of `a`.
        reseeds: Two trainings that differ in nothing but their seed, as the null; chance, if none are given.
        thresholds: What counts as the same.
        seed: Seed for the draws of the null.

    Raises:
        ConfigError: Widths or tokens do not fit.
    """
    matching = match(a, b)
    null, null_pair = ("reseed", reseeds) if reseeds else ("chance", (a, _stand_in(b, seed)))
    null_matching = match(*null_pair)
    floor = _floor(null_matching, null_pair[0], thresholds, FLOOR_QUANTILE[null])
    verdicts, parts = _verdicts(a, b, matching, floor, thresholds)
    null_verdicts, _ = _verdicts(*null_pair, null_matching, floor, thresholds)
    labels = labels or {}
    status = {i: STATUS[verdicts[i]] for i in labels if 0 <= i < len(a)}
    fires = _fires(a)
    rows = {
        "feature": range(len(a)),
        "fires": fires.tolist(),
        "match": [None if p == NO_PARTNER else int(p) for p in matching.partners["both"]],
        "cosine": _or_none(matching.matched["cosine"]),
        "correlation": _or_none(matching.matched["correlation"]),
        "verdict": verdicts,
        "parts": parts,
        "label": [labels.get(i) for i in range(len(a))],
        "label_status": [status.get(i) for i in range(len(a))],
    }
    summary = {
        "features": {"a": len(a), "b": len(b)},
        "tokens": int(a.activations.shape[0]),
        "matching": "exact" if max(len(a), len(b)) <= DENSE else f"exact over {CANDIDATES} candidates a feature",
        **_shares(verdicts),
        "labels": {s: list(status.values()).count(s) for s in ("carried", "flagged", "revoked")},
        "means": _means(a, b, matching, thresholds),
        "thresholds": {"same": thresholds.same, "floor": floor, **asdict(thresholds)},
        "null": {
            "kind": null,
            **_shares(null_verdicts),
            "means": _means(*null_pair, null_matching, thresholds),
            "quantiles": _quantiles(null_matching),
        },
    }
    return DriftReport(
        pa.table({name: pa.array(rows[name], _SCHEMA.field(name).type) for name in _SCHEMA.names}), summary
    )


def _verdicts(
    a: SAEOnText, b: SAEOnText, matching: FeatureMatching, floor: float, thresholds: DriftThresholds
) -> tuple[list[str], list[list[int] | None]]:
    same, both = _same(matching, thresholds), matching.matched["both"]
    tested = _fires(a) >= thresholds.min_fires
    parts = _parts(a, b, np.flatnonzero(tested & ~same), thresholds)
    verdicts: list[str] = []
    for i in range(len(a)):
        if not tested[i]:
            verdicts.append(UNTESTED)
        elif same[i]:
            verdicts.append("kept")
        elif i in parts:
            verdicts.append("split")
        else:
            # NaN, without a partner, is above nothing.
            verdicts.append("moved" if both[i] > floor else "lost")
    return verdicts, [parts.get(i) for i in range(len(a))]


def _parts(
    a: SAEOnText, b: SAEOnText, features: NDArray[np.int64], thresholds: DriftThresholds
) -> dict[int, list[int]]:
    """Return, for those features of `a` that were split, the features of `b` that share its firings out."""
    fires_a, fires_b = _indicators(a)[:, features], _indicators(b)
    counts_a, counts_b = (np.diff(fires.indptr) for fires in (fires_a, fires_b))
    overlaps = (fires_a.T @ fires_b).tocsr()
    split = {}
    for row, feature in enumerate(features.tolist()):
        span = slice(overlaps.indptr[row], overlaps.indptr[row + 1])
        others, shared = overlaps.indices[span], overlaps.data[span]
        inside = (shared >= PART_INSIDE * counts_b[others]) & (shared >= PART_ADDS * counts_a[row])
        others, shared = others[inside], shared[inside]
        if len(others) < 2 or shared.max() >= thresholds.coverage * counts_a[row]:
            continue
        mine = fires_a.indices[fires_a.indptr[row] : fires_a.indptr[row + 1]]
        covered, parts = np.zeros(len(mine), dtype=bool), []
        for other in others[np.argsort(-shared, kind="stable")].tolist():
            new = np.isin(mine, fires_b.indices[fires_b.indptr[other] : fires_b.indptr[other + 1]]) & ~covered
            if new.sum() >= PART_ADDS * len(mine):
                covered |= new
                parts.append(other)
        if covered.mean() >= thresholds.coverage:
            split[feature] = parts
    return split


def _stand_in(b: SAEOnText, seed: int) -> SAEOnText:
    """Return an SAE that shares nothing with any other, but has the geometry and the frequencies of `b`."""
    rows = torch.from_numpy(unit_rows(b.decoder)).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    drawn = torch.randn(rows.shape, generator=keyed_generator(seed, "drift directions"), dtype=torch.float64)
    directions = (drawn * values.clamp(min=0).sqrt()) @ vectors.T
    matrix = sparse.csc_array(b.activations)
    draw = np.random.default_rng([seed, 1])
    tokens = matrix.shape[0]
    places = [draw.choice(tokens, size=count, replace=False) for count in np.diff(matrix.indptr)]
    shuffled = sparse.csc_array((matrix.data, np.concatenate(places), matrix.indptr), shape=matrix.shape)
    return SAEOnText(directions.float(), shuffled)


def _same(matching: FeatureMatching, thresholds: DriftThresholds) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = matching.matched["cosine"] >= thresholds.same
    return same & (matching.matched["correlation"] >= thresholds.same)


def _floor(null: FeatureMatching, a: SAEOnText, thresholds: DriftThresholds, quantile: float) -> float:
    """Return what a pair has to exceed to share something; never more than what a kept feature has at the least."""
    apart = (_fires(a) >= thresholds.min_fires) & ~_same(null, thresholds) & np.isfinite(null.matched["both"])
    both = null.matched["both"][apart]
    return min(float(np.quantile(both, quantile)), thresholds.same) if len(both) else thresholds.same


def _indicators(one: SAEOnText) -> Any:
    fires = sparse.csc_array(one.activations > 0, dtype=np.float32)
    fires.sort_indices()
    return fires


def _fires(one: SAEOnText) -> NDArray[np.int64]:
    fires: NDArray[np.int64] = np.diff(_indicators(one).indptr).astype(np.int64)
    return fires


def _shares(verdicts: list[str]) -> dict[str, Any]:
    counts = {verdict: verdicts.count(verdict) for verdict in (*VERDICTS, UNTESTED)}
    tested = len(verdicts) - counts[UNTESTED]
    shares = {verdict: counts[verdict] / tested if tested else None for verdict in VERDICTS}
    return {"tested": tested, "verdicts": counts, "shares": shares}


def _means(a: SAEOnText, b: SAEOnText, matching: FeatureMatching, thresholds: DriftThresholds) -> dict[str, Any]:
    """Return the mean of the largest value, both ways (of cosine: MMCS), and of the one-to-one pairs."""
    alive_a, alive_b = (_fires(one) >= thresholds.min_fires for one in (a, b))
    return {
        measure: {
            "a_to_b": _mean(matching.nearest[measure][alive_a]),
            "b_to_a": _mean(matching.nearest_back[measure][alive_b]),
            "one_to_one": _mean(matching.own[measure][alive_a]),
        }
        for measure in MEASURES
    }


def _quantiles(matching: FeatureMatching) -> dict[str, dict[str, float | None]]:
    quantiles = {}
    for measure in MEASURES:
        values = matching.matched[measure][np.isfinite(matching.matched[measure])]
        quantiles[measure] = {str(q): float(np.quantile(values, q)) if len(values) else None for q in _QUANTILES}
    return quantiles


def _mean(values: NDArray[Any]) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _or_none(values: NDArray[np.float64]) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
