"""The variants of a sweep compared fairly: a rate tuned for each by the same budget, L0 matched, several seeds.

    python benchmarks/variants.py configs/sweeps/synthetic.yaml --l0 5
    python benchmarks/variants.py configs/sweeps/synthetic_2k.yaml --l0 5 --only topk topk_refined
    python benchmarks/variants.py configs/sweeps/variants.yaml --l0 16 --steps 500 --seeds 3

First each SAE of the sweep is trained at every rate, with a seed that is not reported; the rate with the best score at
the L0 asked for is its own (`edge`: it is the lowest or the highest that was tried). Then it is trained at that rate
with each seed. On synthetic data a seed is another world, other tokens and other weights; otherwise other weights and
another order of the text.

An SAE whose L0 is not a setting (those with a loss coefficient in the sweep, and those that prune) is trained at three
values of its coefficient, or of k, and its figures are interpolated, linearly in log L0. Prints a markdown table: means
and standard deviations over the seeds. Everything goes through `lightsae fit`.
"""

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

FIGURES = {
    "l0": ("L0", "{:.2f}"),
    "truth/f1": ("F1", "{:.3f}"),
    "truth/recovered": ("found", "{:.3f}"),
    "fve_no_sinks": ("`fve_no_sinks`", "{:.4f}"),
    "ce_recovered": ("`ce_recovered`", "{:.4f}"),
    "dead_fraction": ("dead", "{:.3f}"),
}
WIDE, NARROW = (0.5, 1.0, 2.0), (0.8, 1.0, 1.25)
TUNING_SEED = 1000
SMALLEST = 1e-3
# No knob is turned further than this, in logarithms.
FAR = math.log(8)
Figures = dict[str, float]
Point = tuple[float, Figures]


def knob(entry: Mapping[str, Any]) -> str | None:
    """Return what moves the L0 of an SAE where the sweep does not set it: a loss term, `k`, or nothing."""
    settings = entry["sae"]["init_args"]
    if settings.get("target_l0") is not None:
        return None
    if coefficients := entry.get("coefficients"):
        return str(next(iter(coefficients)))
    return "k" if settings.get("refinements", {}).get("prune") is not None else None


def turned(entry: Mapping[str, Any], scale: float, rate: float) -> dict[str, Any]:
    """Return an entry of a sweep at another value of its knob, and at a rate."""
    changed: dict[str, Any] = {**copy.deepcopy(dict(entry)), "lr": rate}
    name = knob(entry)
    if name == "k":
        changed["sae"]["init_args"]["k"] = max(1, round(scale * changed["sae"]["init_args"]["k"]))
    elif name is not None:
        changed["coefficients"][name] *= scale
    return changed


def train(sweep: Mapping[str, Any], saes: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Figures]:
    """Train SAEs side by side on one stream, unless the folder holds the run already; return each one's figures."""
    config = copy.deepcopy(dict(sweep))
    config["seed_everything"], config["model"]["saes"] = seed, dict(saes)
    if config["data"]["dataset"] == "synthetic":
        config["data"]["synthetic"] = {**config["data"].get("synthetic", {}), "seed": seed}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if not (reports := list(folder.glob("lightning_logs/*/sweep.json"))):
        with (folder / "log").open("w") as log:
            command = [sys.executable, "-m", "lightsae", "fit", "--config", "config.yaml"]
            subprocess.run(command, cwd=folder, check=True, stdout=log, stderr=subprocess.STDOUT)
        reports = list(folder.glob("lightning_logs/*/sweep.json"))
    return {sae["name"]: sae["figures"] for sae in json.loads(reports[0].read_text())["dictionaries"]}


def at_l0(points: Iterable[Point], l0: float) -> Figures:
    """Return the figures at an L0, of points around it; beyond them, those of the nearest."""
    figures = sorted((figures for _, figures in points), key=lambda figures: figures["l0"])
    logs = [math.log(max(f["l0"], SMALLEST)) for f in figures]
    return {
        key: float(np.interp(math.log(l0), logs, [f[key] for f in figures]))
        for key in figures[0]
        if all(f.get(key) is not None for f in figures)
    }


def scale_for(points: Sequence[Point], l0: float) -> float:
    """Return the value of the knob at which L0 is about as asked for: log L0 is nearly a line in its logarithm."""
    logs = [math.log(max(figures["l0"], SMALLEST)) for _, figures in points]
    slope, start = np.polyfit([math.log(scale) for scale, _ in points], logs, 1)
    return float(np.exp(np.clip((math.log(l0) - start) / slope, -FAR, FAR)))


def tune(
    sweep: Mapping[str, Any], entries: Mapping[str, Any], rates: Sequence[float], l0: float, folder: Path
) -> dict[str, tuple[float, float]]:
    """Return for each SAE the best rate, and the value of its knob that goes with the L0."""
    saes, places = {}, {}
    for name, entry in entries.items():
        for i, rate in enumerate(rates):
            for j, scale in enumerate(WIDE if knob(entry) else (1.0,)):
                places[f"{name}-{i}-{j}"] = name, rate, scale
                saes[f"{name}-{i}-{j}"] = turned(entry, scale, rate)
    points: dict[str, dict[float, list[Point]]] = {name: {rate: [] for rate in rates} for name in entries}
    for key, figures in train(sweep, saes, TUNING_SEED, folder).items():
        name, rate, scale = places[key]
        points[name][rate].append((scale, figures))
    chosen = {}
    for name, of_rates in points.items():
        at = {rate: at_l0(of_rate, l0) for rate, of_rate in of_rates.items()}
        best = max(rates, key=lambda rate: at[rate].get("truth/f1", at[rate]["fve_no_sinks"]))
        chosen[name] = best, scale_for(of_rates[best], l0) if knob(entries[name]) else 1.0
    return chosen


def measure(
    sweep: Mapping[str, Any], entries: Mapping[str, Any], chosen: Mapping[str, tuple[float, float]], l0: float,
    seed: int, folder: Path,
) -> dict[str, Figures]:  # fmt: skip
    """Return the figures of each SAE at the L0, with one seed."""
    saes, names = {}, {}
    for name, entry in entries.items():
        rate, middle = chosen[name]
        for j, scale in enumerate(NARROW if knob(entry) else (1.0,)):
            names[f"{name}-{j}"] = name
            saes[f"{name}-{j}"] = turned(entry, scale * middle, rate)
    points: dict[str, list[Point]] = {name: [] for name in entries}
    for key, figures in train(sweep, saes, seed, folder).items():
        points[names[key]].append((0.0, figures))
    return {name: at_l0(of_name, l0) for name, of_name in points.items()}


def table(
    of_seeds: Sequence[Mapping[str, Figures]], chosen: Mapping[str, tuple[float, float]], rates: Sequence[float]
) -> str:
    """Return the means and deviations over the seeds as markdown."""
    keys = [key for key in FIGURES if all(key in figures for of_seed in of_seeds for figures in of_seed.values())]
    lines = [" | ".join(["| ", "lr", *(FIGURES[key][0] for key in keys)]) + " |", "|---" * (len(keys) + 2) + "|"]
    for name, (rate, _) in chosen.items():
        edge = " (edge)" if len(rates) > 1 and rate in (min(rates), max(rates)) else ""
        cells = [f"| `{name}`", f"{rate:g}{edge}"]
        for key in keys:
            values, form = [of_seed[name][key] for of_seed in of_seeds], FIGURES[key][1]
            spread = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
            cells.append(form.format(statistics.mean(values)) + spread)
        lines.append(" | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a file of configs/sweeps")
    parser.add_argument("--l0", type=float, required=True, help="latents per token at which all are compared")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="in place of the sweep's")
    parser.add_argument("--only", nargs="+", help="names of the sweep's SAEs")
    parser.add_argument("--folder", type=Path, help="keep the runs here; those that are here already are not repeated")
    given = parser.parse_args()
    sweep = yaml.safe_load(given.sweep.read_text())
    if given.steps is not None:
        sweep["trainer"] |= {"max_steps": given.steps, "val_check_interval": given.steps}
    entries = {
        name: entry for name, entry in sweep["model"]["saes"].items() if given.only is None or name in given.only
    }
    if len(entries) < 2:
        parser.error(
            f"--only names {len(entries)} of the sweep's SAEs; give two or more of {', '.join(sweep['model']['saes'])}"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        chosen = tune(sweep, entries, given.rates, given.l0, folder / "tuning")
        seeds = range(given.seeds)
        figures = [measure(sweep, entries, chosen, given.l0, seed, folder / str(seed)) for seed in seeds]
    print(table(figures, chosen, given.rates))


if __name__ == "__main__":
    main()
