"""What a panel leaves behind: panel.json, panel.md, a figure, the same in TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.labels.wording import shortened
from lightsae.analysis.panels.arms import FEATURE, NONE, PROMPT, RANDOM, SHUFFLED, Arm
from lightsae.analysis.panels.measures import Measure
from lightsae.analysis.panels.paired_tests import PairedTest
from lightsae.analysis.panels.panel import FLOORS, HARMFUL, RELIABLE, WEAK, Tested
from lightsae.analysis.panels.settings import SCHEMA
from lightsae.analysis.panels.summary import ROWS, summary
from lightsae.formats.files import replace_folder_atomically
from lightsae.markdown import markdown_row
from lightsae.plotting import STYLE, write_scalars
from lightsae.version import version

_MARKS = {RELIABLE: "o", WEAK: "s", HARMFUL: "X"}
_QUOTED = 120
_COLUMNS = ("causal_usefulness", "another_feature", "random_floor", "prompt_instead")
WORDS = {"label": "what the label says rises", "follows": "what follows the feature in text rises"}


def panel_report(
    tested: Sequence[Tested], dictionary: FeatureDictionary, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the whole report, as JSON values.

    Args:
        tested: The panel's features.
        dictionary: The feature dictionary that named them.
        settings: Of the panel, as JSON values.
    """
    manifest = dictionary.manifest
    return {
        "kind": "lightsae panel report",
        "schema": SCHEMA,
        "code_version": version(),
        "dictionary": dictionary.id,
        "sae": manifest["sae"]["sha256"],
        "model": manifest["model"],
        "site": manifest["sae"]["predicted"][-1]["site"],
        "panel": settings,
        "summary": summary(tested, settings["level"]),
        "features": [one.report() for one in tested],
    }


def write_panel(folder: Path, tested: Sequence[Tested], report: Mapping[str, Any]) -> None:
    """Write a report's folder in one step; an earlier one is replaced when the new one is complete."""
    with replace_folder_atomically(folder) as staged:
        (staged / "panel.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (staged / "panel.md").write_text(_markdown(tested, report), encoding="utf-8")
        figure = draw_panel(tested)
        figure.savefig(staged / "panel.png", dpi=160)
        write_scalars(staged / "tensorboard", _scalars(report["summary"]), {"panel": figure})


def draw_panel(tested: Sequence[Tested]) -> Figure:
    """Return the figure: what each feature moves, beside random directions and other features, and what it costs."""
    ordered = sorted(tested, key=_label_gain)
    names = [
        f"{one.sweep.concept.feature}  {shortened(one.sweep.concept.label or 'unlabelled', 34)}" for one in ordered
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.4 + 0.26 * len(ordered)), layout="constrained")
        panes = figure.subplots(1, 3, sharey=True, width_ratios=(2, 2, 1.4))
        for axes, row in zip(panes, ROWS, strict=False):
            for height, one in enumerate(ordered):
                _draw_gains(axes, one, one.sweep.label_measure if row == "label" else Measure.FOLLOWS, height)
            axes.axvline(0, color="#999999", lw=0.6)
            axes.set_title(f"{WORDS[row].removesuffix(' rises')}, more than without")
        panes[0].set_yticks(range(len(ordered)), names, fontsize=7)
        panes[2].barh(range(len(ordered)), [one.side_effects.ce_rise.mean for one in ordered], color="#b9b9b9")
        panes[2].set_title("cost on unrelated text (nats)")
        panes[0].plot([], [], color=FEATURE.colour, label=FEATURE.words)
        panes[0].plot([], [], color=SHUFFLED.colour, lw=4, alpha=0.3, label="90% of other features")
        panes[0].plot([], [], color=RANDOM.colour, label="two random directions")
        panes[0].set_ylim(-0.8, len(ordered) - 0.2)
        for verdict, mark in _MARKS.items():
            panes[0].plot([], [], mark, color=FEATURE.colour, label=verdict)
        panes[0].legend(fontsize=7, loc="lower right")
    return figure


def _draw_gains(axes: Axes, one: Tested, measure: Measure, row: int) -> None:
    """Draw what one feature gains, below it the random directions, behind it the other features."""
    others = [gain.mean for other in one.sweep.others if (gain := one.sweep.shift_of(other, measure)) is not None]
    if others:
        axes.plot(np.quantile(others, (0.05, 0.95)), (row, row), color=SHUFFLED.colour, lw=4, alpha=0.3)
    for arm in (*FLOORS, FEATURE):
        gain = one.sweep.shift(arm, measure)
        if gain is None:
            continue
        low = gain.mean if gain.low is None else gain.low
        high = gain.mean if gain.high is None else gain.high
        # The random directions lie below the feature's line, so that all three can be told apart.
        height = row - 0.22 * (FLOORS.index(arm) + 1 if arm in FLOORS else 0)
        axes.plot((low, high), (height, height), color=arm.colour, lw=1.5, alpha=0.7)
        axes.plot(gain.mean, height, _MARKS[one.verdict] if arm == FEATURE else "|", color=arm.colour, ms=5)


def _label_gain(one: Tested) -> float:
    gain = one.sweep.shift(FEATURE, one.sweep.label_measure)
    return 0.0 if gain is None else gain.mean


def _scalars(figures: Mapping[str, Any]) -> dict[str, float]:
    shares = {name: value["share"] for name, value in figures.items() if isinstance(value, dict) and "share" in value}
    shares |= {f"wiring_{name}": value["share"] for name, value in figures["wiring"].items()}
    tests = {f"p_{row}": test["p"] for row, test in figures["paired"].items()}
    plain = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    return {f"panel/{name}": float(value) for name, value in {**plain, **shares, **tests}.items() if value is not None}


def _markdown(tested: Sequence[Tested], report: Mapping[str, Any]) -> str:
    figures = report["summary"]
    lines = [
        f"# Panel: {report['model']['name']}, {report['site']}",
        "",
        f"Feature dictionary {report['dictionary'][:12]}, SAE {report['sae'][:12]}.",
        "",
        f"{figures['features']} features: "
        + ", ".join(f"{figures[name]} {name}" for name in _MARKS)
        + _by_chance(figures),
        "",
        "| share of the features | steered | another feature instead | a random direction instead | a prompt instead |",
        "|---|---|---|---|---|",
        *(
            f"| {words} | " + " | ".join(percent(figures[f"{name}{ROWS[row]}"]) for name in _COLUMNS) + " |"
            for row, words in WORDS.items()
        ),
        "",
        *(f"- {words}: {line}" for row, words in WORDS.items() if (line := paired_words(figures["paired"][row]))),
        f"- check of the wiring: what a direction itself promotes becomes likelier: {wiring_words(figures['wiring'])}; "
        "any direction raises its own tokens, so that it counts for no verdict",
        *_without_rule(figures),
        "",
        "![what each feature moves](panel.png)",
        "",
        "A feature has to pass two random directions; the one instead is a third, put to the same test. Another "
        "feature: the mean over other labelled features in its place, at its dose, on the same prompts with the same "
        "seeds.",
        "",
        "Columns: gain over no steering on the reporting prompts, with 95% intervals; in brackets, the mean of the "
        "other features. Paired: the label's gain less theirs; p over prompts, for all features at once; p of its "
        "place among the others.",
        "",
        "| feature | label | verdict | dose | rises | paired | p prompts | p place | follows | perplexity x | CE |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in tested:
        sweep, paired = one.sweep, one.paired
        cells = [
            str(sweep.concept.feature),
            _label(one, 60),
            one.verdict + (f": {'; '.join(one.reasons)}" if one.reasons else ""),
            f"{sweep.taken:g} {sweep.settings.unit}",
            _beside_others(one, sweep.label_measure),
            *(("", "", "") if paired is None else (str(paired.difference), *map(_p, _both(paired)))),
            _beside_others(one, Measure.FOLLOWS),
            _gain(one, FEATURE, "ppl_untouched"),
            str(one.side_effects.ce_rise),
        ]
        lines.append(markdown_row(cells))
    lines += ["", "## One text each", ""]
    for one in tested:
        lines.append(f"**{one.sweep.concept.feature}** {_label(one, 100)}")
        lines.append("")
        lines += [_example(one, arm) for arm in (NONE, FEATURE, SHUFFLED, PROMPT) if one.sweep.at(arm)]
        lines.append("")
    return "\n".join(lines) + "\n"


def percent(share: Mapping[str, Any]) -> str:
    """Return a share with its interval, as words."""
    if share["share"] is None:
        return "not measured"
    return f"{share['share']:.0%} [{share['low']:.0%}, {share['high']:.0%}] of {share['of']}"


def paired_words(test: Mapping[str, Any]) -> str:
    """Return a paired test over features as words; nothing if there was none."""
    if test["p"] is None:
        return ""
    difference = test["difference"]
    span = "" if difference["low"] is None else f" [{difference['low']:+.0%}, {difference['high']:+.0%}]"
    return (
        f"{difference['mean']:+.0%}{span} against {test['others']} other features in the place of each of "
        f"{test['features']}; exact paired test, one-sided: {_p(test['p'])}"
    )


def wiring_words(wiring: Mapping[str, Any]) -> str:
    """Return the check of the wiring as words."""
    names = {"feature": "features", "random": "random directions", "another": "other features"}
    known = [
        f"{words} {wiring[name]['share']:.0%}" for name, words in names.items() if wiring[name]["share"] is not None
    ]
    return ", ".join(known) or "not measured"


def _by_chance(figures: Mapping[str, Any]) -> str:
    chance = figures["reliable_by_chance"]
    return "." if chance is None else f"; of other features put to the same tests in their place, {chance:.1%} pass."


def _without_rule(figures: Mapping[str, Any]) -> list[str]:
    without = figures["causal_usefulness"]["of"] - figures["labels_with_a_rule"]
    words = "labels have no rule: what they say is read off whether the feature fires on the text, untouched model"
    return [f"- {without} {words}"] if without else []


def _both(paired: PairedTest) -> tuple[float, float]:
    return paired.p_prompts, paired.p_directions


def _p(value: float) -> str:
    return f"p = {value:.2g}" if value >= 0.0001 else "p < 0.0001"


def _beside_others(one: Tested, measure: Measure) -> str:
    own = _gain(one, FEATURE, measure)
    others = [gain.mean for other in one.sweep.others if (gain := one.sweep.shift_of(other, measure)) is not None]
    return f"{own} ({np.mean(others):.3g})" if own and others else own


def _example(one: Tested, arm: Arm) -> str:
    measured = one.sweep.at(arm)
    assert measured is not None
    text = json.dumps(one.sweep.prompts[0] + measured.samples.texts[0][0], ensure_ascii=False)
    return f"- {arm.words}: `{shortened(text, _QUOTED).replace('`', chr(39))}`"


def _gain(one: Tested, arm: Arm, measure: str) -> str:
    gain = one.sweep.shift(arm, measure)
    return "" if gain is None else str(gain)


def _label(one: Tested, most: int) -> str:
    """Return a feature's label in one line."""
    return shortened(one.sweep.concept.label or "unlabelled", most).replace("\n", " ")
