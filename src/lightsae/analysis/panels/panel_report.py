"""What a panel leaves behind: panel.json, panel.md, a figure, the same in TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.labels.wording import shortened
from lightsae.analysis.panels.arms import FEATURE, NONE, PROMPT, RANDOM, SHUFFLED, Arm
from lightsae.analysis.panels.panel import FLOORS, HARMFUL, RELIABLE, SCHEMA, WEAK, Tested, summary
from lightsae.formats.files import replace_folder_atomically
from lightsae.plotting import STYLE, write_scalars
from lightsae.version import version

_MARKS = {RELIABLE: "o", WEAK: "s", HARMFUL: "X"}
_QUOTED = 120


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
        "summary": summary(tested),
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
    """Return the figure: what each feature moves, beside a random direction, and what it costs."""
    ordered = sorted(tested, key=_target_gain)
    names = [
        f"{one.sweep.concept.feature}  {shortened(one.sweep.concept.label or 'unlabelled', 34)}" for one in ordered
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.4 + 0.26 * len(ordered)), layout="constrained")
        panes = figure.subplots(1, 3, sharey=True, width_ratios=(2, 2, 1.4))
        titles = (("target", "what it promotes"), (None, "what its label says"))
        for axes, (measure, title) in zip(panes, titles, strict=False):
            for arm in (*FLOORS, FEATURE):
                for row, one in enumerate(ordered):
                    gain = one.sweep.shift(arm, measure or _label_measure(one))
                    if gain is None:
                        continue
                    low = gain.mean if gain.low is None else gain.low
                    high = gain.mean if gain.high is None else gain.high
                    # The random directions lie below the feature's line, so that all three can be told apart.
                    height = row - 0.22 * (FLOORS.index(arm) + 1 if arm in FLOORS else 0)
                    axes.plot((low, high), (height, height), color=arm.colour, lw=1.5, alpha=0.7)
                    mark = _MARKS[one.verdict] if arm == FEATURE else "|"
                    axes.plot(gain.mean, height, mark, color=arm.colour, ms=5)
            axes.axvline(0, color="#999999", lw=0.6)
            axes.set_title(f"{title}, more than without steering")
        panes[0].set_yticks(range(len(ordered)), names, fontsize=7)
        panes[2].barh(range(len(ordered)), [one.side_effects.ce_rise.mean for one in ordered], color="#b9b9b9")
        panes[2].set_title("cost on unrelated text (nats)")
        panes[0].plot([], [], color=FEATURE.colour, label=FEATURE.words)
        panes[0].plot([], [], color=RANDOM.colour, label="two random directions")
        panes[0].set_ylim(-0.8, len(ordered) - 0.2)
        for verdict, mark in _MARKS.items():
            panes[0].plot([], [], mark, color=FEATURE.colour, label=verdict)
        panes[0].legend(fontsize=7, loc="lower right")
    return figure


def _label_measure(one: Tested) -> str:
    """Return the measure of what the label says that the feature moves most clearly."""
    gains = {measure: one.sweep.shift(FEATURE, measure) for measure in one.sweep.label_measures}
    lows = {measure: gain.low for measure, gain in gains.items() if gain is not None and gain.low is not None}
    return max(lows, key=lambda measure: lows[measure], default=one.sweep.label_measures[0])


def _target_gain(one: Tested) -> float:
    gain = one.sweep.shift(FEATURE, "target")
    return 0.0 if gain is None else gain.mean


def _scalars(figures: Mapping[str, Any]) -> dict[str, float]:
    shares = {name: value["share"] for name, value in figures.items() if isinstance(value, dict) and "share" in value}
    plain = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    return {f"panel/{name}": float(value) for name, value in {**plain, **shares}.items() if value is not None}


def _markdown(tested: Sequence[Tested], report: Mapping[str, Any]) -> str:
    figures = report["summary"]
    lines = [
        f"# Panel: {report['model']['name']}, {report['site']}",
        "",
        f"Feature dictionary {report['dictionary'][:12]}, SAE {report['sae'][:12]}.",
        "",
        f"- {figures['features']} features: " + ", ".join(f"{figures[name]} {name}" for name in _MARKS),
        *(
            f"- steering raises {words}: {_percent(figures[f'causal_usefulness{of}'])}; a random direction instead: "
            f"{_percent(figures[f'random_floor{of}'])}; another feature: {_percent(figures[f'another_feature{of}'])}"
            for words, of in (("what the label says", ""), ("what it promotes", "_target"))
        ),
        "",
        "![what each feature moves](panel.png)",
        "",
        "A feature has to pass two random directions; the one instead is a third, put to the same test.",
        "",
        "Columns: gain over no steering on the reporting prompts, with 95% intervals; in brackets, a random direction.",
        "",
        "| feature | label | verdict | dose | target | concept | follows | perplexity x | CE unrelated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in tested:
        sweep = one.sweep
        cells = [
            str(sweep.concept.feature),
            _label(one, 60),
            one.verdict + (f": {'; '.join(one.reasons)}" if one.reasons else ""),
            f"{sweep.taken:g} {sweep.settings.unit}",
            *(f"{_gain(one, FEATURE, name)} ({_gain(one, RANDOM, name)})" for name in ("target", "concept", "follows")),
            _gain(one, FEATURE, "ppl_untouched"),
            str(one.side_effects.ce_rise),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## One text each", ""]
    for one in tested:
        lines.append(f"**{one.sweep.concept.feature}** {_label(one, 100)}")
        lines.append("")
        lines += [_example(one, arm) for arm in (NONE, FEATURE, SHUFFLED, PROMPT) if one.sweep.at(arm)]
        lines.append("")
    return "\n".join(lines) + "\n"


def _example(one: Tested, arm: Arm) -> str:
    measured = one.sweep.at(arm)
    assert measured is not None
    text = json.dumps(one.sweep.prompts[0] + measured.samples.texts[0][0], ensure_ascii=False)
    return f"- {arm.words}: `{shortened(text, _QUOTED).replace('`', chr(39))}`"


def _gain(one: Tested, arm: Arm, measure: str) -> str:
    gain = one.sweep.shift(arm, measure)
    return "" if gain is None else str(gain)


def _percent(share: Mapping[str, Any]) -> str:
    if share["share"] is None:
        return "not measured"
    return f"{share['share']:.0%} [{share['low']:.0%}, {share['high']:.0%}] of {share['of']}"


def _label(one: Tested, most: int) -> str:
    """Return a feature's label as a cell of a table."""
    return shortened(one.sweep.concept.label or "unlabelled", most).replace("|", "\\|").replace("\n", " ")
