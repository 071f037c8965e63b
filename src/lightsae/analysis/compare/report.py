"""A comparison as JSON and as a page of Markdown."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightsae.analysis.compare.noise import Readings, Seeds
from lightsae.analysis.compare.run import Compared, Comparison
from lightsae.analysis.compare.verdicts import Verdict
from lightsae.analysis.evaluate.figures import DEFINITIONS
from lightsae.formats.files import write_json
from lightsae.markdown import markdown_row
from lightsae.parsing import with_none_for_nan

FORMAT_VERSION = 1
_SCOPES: dict[Seeds, str] = {
    "both": "The verdicts are on recipes: SAEs that were trained again are the sample.",
    "assumed": "The verdicts are on recipes; one with a single SAE is taken to vary between seeds as the others do.",
    "none": "The verdicts are on these SAEs, not on their recipes: how much another seed changes is not known. "
    "Name several SAEs of a recipe, A1,A2,A3, to compare recipes.",
}


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison as JSON, with the evaluation of every SAE in it.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_json(path, report(comparison))


def report(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON values; None is what has no number."""
    checked: dict[str, Any] = with_none_for_nan(
        {
            "format_version": FORMAT_VERSION,
            "settings": asdict(comparison.settings),
            "text": dict(comparison.recipes[0].evaluations[0].text),
            "recipes": [_recipe(one) for one in comparison.recipes],
            "pairs": [
                {
                    "first": pair[0],
                    "second": pair[1],
                    "l0_matched": comparison.matched[pair],
                    "better_choice": better,
                    "verdicts": [asdict(one) for one in comparison.of_pair(pair)],
                }
                for pair, better in comparison.dominant.items()
            ],
            "scope": scope(comparison),
            "notes": list(comparison.notes),
            "definitions": {name: DEFINITIONS[name].text for name in shown_figures(comparison)},
        }
    )
    return checked


def to_markdown(comparison: Comparison, picture: str | None = None) -> str:
    """Return the page: figures side by side, verdicts, what they rest on.

    Args:
        comparison: What came of it.
        picture: Name of the picture's file, beside the page.
    """
    names = [one.name for one in comparison.recipes]
    lines = [f"# {' against '.join(names)}", ""]
    for one in comparison.recipes:
        lines.append(f"- **{one.name}**: {', '.join(evaluation.name for evaluation in one.evaluations)}")
    lines += ["", text_words(comparison), scope(comparison), *comparison.notes, ""]
    lines += [markdown_row(["figure", *names, "better"]), "|---" * (len(names) + 2) + "|"]
    for name in shown_figures(comparison):
        cells = [mean_words(one, name) for one in comparison.recipes]
        lines.append(markdown_row([f"`{name}`", *cells, DEFINITIONS[name].better or ""]))
    for pair in comparison.dominant:
        lines += ["", f"## {pair[0]} against {pair[1]}", "", l0_words(comparison, pair), ""]
        lines += [markdown_row(["figure", *VERDICT_COLUMNS]), "|---" * (len(VERDICT_COLUMNS) + 1) + "|"]
        lines += [markdown_row([f"`{one.figure}`", *verdict_cells(one)]) for one in comparison.of_pair(pair)]
    if picture is not None:
        lines += ["", f"![L0 against quality]({picture})"]
    lines += ["", *(f"- `{name}`: {DEFINITIONS[name].text}" for name in shown_figures(comparison))]
    return "\n".join(lines) + "\n"


VERDICT_COLUMNS = ("difference", "smallest that would be seen", "p", "the first is")


def verdict_cells(one: Verdict) -> list[str]:
    """Return the difference with its interval, the smallest visible one, the p-value and the verdict, in words."""
    apart = f"{one.difference:+.3g}"
    if one.low is not None and one.high is not None:
        apart += f" [{one.low:+.3g}, {one.high:+.3g}]"
    return [
        apart,
        "" if one.smallest is None else f"{one.smallest:.2g}",
        "" if one.smallest is None else f"{one.p:.2g}",
        one.word + (f" ({one.why})" if one.why else ""),
    ]


def mean_words(one: Compared, name: str) -> str:
    """Return a recipe's mean, with the deviation between its seeds.

    A recipe with a single SAE has that one's value.
    """
    readings = one.readings.get(name)
    if readings is None:
        return ""
    return f"{readings.mean:.4g}" + (f" ± {_deviation(readings):.2g}" if len(readings) > 1 else "")


def shown_figures(comparison: Comparison) -> list[str]:
    """Return the figures that any of the recipes has."""
    return [name for name in DEFINITIONS if any(name in one.readings for one in comparison.recipes)]


def text_words(comparison: Comparison) -> str:
    """Say on which text the SAEs were read."""
    text = comparison.recipes[0].evaluations[0].text
    return (
        f"{text['tokens']:,} held-out tokens of {text['documents']:,} documents of {text['dataset']}, "
        f"read by {text['model']}."
    )


def scope(comparison: Comparison) -> str:
    """Say what the verdicts hold for."""
    # Of a comparison in which any recipe has several SAEs, no pair is without the noise of seeds.
    found = {one.seeds for one in comparison.verdicts}
    words = next((_SCOPES[seeds] for seeds in reversed(_SCOPES) if seeds in found), _SCOPES["none"])
    if without := list(dict.fromkeys(one.figure for one in comparison.verdicts if not one.text)):
        words += f" The noise of the text is not known of {', '.join(without)}: they hold for this text alone."
    return words


def l0_words(comparison: Comparison, pair: tuple[str, str]) -> str:
    """Say whether two recipes have as many latents per token, and whether one is the better choice."""
    first, second = (one for one in comparison.recipes if one.name in pair)
    better = comparison.dominant[pair]
    if comparison.matched[pair]:
        ahead = f" {better} is the better choice." if better else ""
        return f"L0 is the same: {first.l0:.4g} and {second.l0:.4g}.{ahead}"
    ahead = f"{better} is the better choice, with fewer latents." if better else "Neither is the better choice."
    return f"L0 is not the same: {first.l0:.4g} and {second.l0:.4g}. {ahead}"


def _recipe(one: Compared) -> dict[str, Any]:
    return {
        "name": one.name,
        "figures": {
            name: {"mean": readings.mean, "deviation": _deviation(readings) if len(readings) > 1 else None}
            for name, readings in one.readings.items()
        },
        "saes": [
            {"name": evaluation.name, "sae": dict(evaluation.sae), "figures": _figures(evaluation.figures)}
            for evaluation in one.evaluations
        ],
    }


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in figures.items()}


def _deviation(readings: Readings) -> float:
    return math.sqrt(readings.variance)
