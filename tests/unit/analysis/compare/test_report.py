"""A comparison as JSON, page and picture: from figures that are made up."""

import json
import math
from pathlib import Path

import numpy as np

from lightsae.analysis.compare.noise import Readings
from lightsae.analysis.compare.picture import draw_pareto
from lightsae.analysis.compare.report import report, scope, to_markdown, write_comparison
from lightsae.analysis.compare.run import Compared, CompareSettings, Comparison, judge
from lightsae.analysis.evaluate.report import Evaluation, Figure

TEXT = {"model": "builtin", "dataset": "my|texts", "tokens": 1000, "documents": 12}


def compared(name: str, **figures: list[float]) -> Compared:
    number = len(next(iter(figures.values())))
    evaluations = [
        Evaluation(
            name=f"{name}_{i}/sae",
            sae={"variant": "TopK", "d_sae": 64, "sha256": "a" * 64},
            text=TEXT,
            figures={key: Figure(values[i], None, None, 1000) for key, values in figures.items()},
            positions=[],
            frequencies=[],
            firing_histogram={},
        )
        for i in range(number)
    ]
    rng = np.random.default_rng(ord(name))
    readings = {
        key: Readings(np.array(values), rng.normal(0, 1e-4, (1, 12)).repeat(number, 0), 12.0)
        for key, values in figures.items()
    }
    return Compared(name, evaluations, readings)


def comparison(*recipes: Compared) -> Comparison:
    return judge(recipes, CompareSettings(judged=("fve_no_sinks", "dead_fraction")), ["A note."])


SEEDS = comparison(
    compared("a", fve_no_sinks=[0.9, 0.901, 0.899], l0=[15.9, 16.1, 16.0], dead_fraction=[0.1, 0.2, 0.3]),
    compared("b", fve_no_sinks=[0.8, 0.801, 0.802], l0=[16.0, 16.0, 16.0], dead_fraction=[0.2, 0.2, 0.2]),
)
SINGLE = comparison(
    compared("a", fve_no_sinks=[0.9], l0=[32.0], mse=[math.nan]), compared("b", fve_no_sinks=[0.8], l0=[16.0])
)


def test_everything_is_json(tmp_path: Path) -> None:
    write_comparison(SEEDS, tmp_path / "deep" / "c.json")
    told = json.loads((tmp_path / "deep" / "c.json").read_text())
    assert told == json.loads(json.dumps(report(SEEDS)))
    (pair,) = told["pairs"]
    assert (pair["first"], pair["second"], pair["l0_matched"], pair["better_choice"]) == ("a", "b", True, "a")
    assert {one["figure"]: one["word"] for one in pair["verdicts"]} == {
        "fve_no_sinks": "better",
        "dead_fraction": "cannot tell",
    }
    assert told["recipes"][0]["figures"]["fve_no_sinks"]["mean"] == 0.9
    assert told["recipes"][0]["saes"][2]["figures"]["fve_no_sinks"]["value"] == 0.899
    assert told["definitions"].keys() == {"fve_no_sinks", "l0", "dead_fraction"}
    nothing = report(SINGLE)
    assert nothing["recipes"][0]["figures"]["mse"] == {"mean": None, "deviation": None}
    json.dumps(nothing, allow_nan=False)


def test_the_page_says_what_is_better_and_what_for(tmp_path: Path) -> None:
    page = to_markdown(SEEDS, "c.png")
    assert page.startswith("# a against b\n\n- **a**: a_0/sae, a_1/sae, a_2/sae\n")
    assert "1,000 held-out tokens of 12 documents of my|texts" in page
    assert "| `fve_no_sinks` | 0.9 ± 0.001 | 0.801 ± 0.001 | higher |" in page
    assert "L0 is the same: 16 and 16. a is the better choice." in page
    assert "| `fve_no_sinks` | +0.099 [+0.0967, +0.101] |" in page
    assert "| better |" in page
    assert "![L0 against quality](c.png)" in page
    assert "A note." in page


def test_it_says_what_the_verdicts_hold_for() -> None:
    assert scope(SEEDS).startswith("The verdicts are on recipes: SAEs that were trained again")
    assert scope(SINGLE).startswith("The verdicts are on these SAEs, not on their recipes")
    page = to_markdown(SINGLE)
    assert "cannot tell (L0 differs, which alone may be why)" in page
    assert "L0 is not the same: 32 and 16. Neither is the better choice." in page
    mixed = comparison(
        compared("a", fve_no_sinks=[0.9, 0.91], l0=[16.0, 16.0]), compared("b", fve_no_sinks=[0.8], l0=[16.0])
    )
    assert "one with a single SAE is taken to vary" in scope(mixed)


def test_the_picture_has_a_point_for_every_sae() -> None:
    (axes,) = draw_pareto(SEEDS).axes
    points = [line for line in axes.lines if line.get_alpha() == 0.5]
    assert [len(line.get_xdata()) for line in points] == [3, 3]
    assert axes.get_legend_handles_labels()[1] == ["a, 3 SAEs", "b, 3 SAEs"]
    edges = [line.get_markeredgecolor() for line in axes.lines if line.get_markersize() == 8]
    assert edges == ["black", "white"]
