"""What `lightsae steer` prints of measures and grades: a row each, an arm a column."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from lightsae.analysis.panels.arms import FEATURE, NONE, PROMPT, RANDOM, SHUFFLED, Arm
from lightsae.analysis.panels.judged import BEST, HARMONIC, Judged
from lightsae.analysis.panels.measures import Measure, Values, interval
from lightsae.metrics.intervals import Interval

_WIDTH = 120
# Prompts from which on intervals are shown.
FEWEST = 5
_GRADED = (
    ("concept", "the label is expressed"),
    ("instruct", "the prompt is taken up"),
    ("fluency", "it reads well"),
    (HARMONIC, "harmonic mean"),
)
COLUMNS = (NONE, FEATURE, RANDOM, SHUFFLED, PROMPT)


def print_measures(arms: dict[Arm, Values]) -> None:
    """Print the measures by arm; those that are not known of the feature are left out."""
    rows = [
        (measure.words, [_known(interval(measure, values[measure]), len(values[measure])) for values in arms.values()])
        for measure in Measure
        if measure.words and measure in arms[NONE]
    ]
    _print_table(arms, rows)


def print_judged(judged: Judged) -> None:
    """Print the grades by arm, and what became of the questions."""
    rows = [(words, [rated.interval(name) for rated in judged.arms.values()]) for name, words in _GRADED]
    print(f"\ngrades by {judged.judge}, 0 to {BEST}")
    _print_table(judged.arms, rows)
    tally = judged.tally
    unrated = sum(rated.unrated[HARMONIC] for rated in judged.arms.values())
    texts = sum(rated.grades[HARMONIC].size for rated in judged.arms.values())
    print(f"{texts - unrated} of {texts} texts have all three grades; the others count where they have one")
    print(
        f"{tally.asked} questions asked, {tally.cached} answered before; "
        f"{tally.prompt_tokens:,} + {tally.completion_tokens:,} tokens"
    )
    for failure, times in tally.failures.most_common():
        print(f"{times} x {failure}")
    if judged.stopped is not None:
        print(f"stopped early: {judged.stopped} Start it again to go on: answered questions cost nothing.")


def _print_table(arms: Iterable[Arm], rows: Sequence[tuple[str, Sequence[Interval | None]]]) -> None:
    table = Table("", *(arm.column for arm in arms), box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for words, found in rows:
        table.add_row(words, *(_cell(one) for one in found))
    # Five columns of numbers need so much; a narrower terminal wraps them.
    Console(width=max(Console().width, _WIDTH)).print(table, highlight=False)


def _known(found: Interval, prompts: int) -> Interval:
    """Return a mean without its interval where too few prompts make that wider than the measure's range."""
    return found if prompts >= FEWEST else Interval(found.mean, None, None)


def _cell(found: Interval | None) -> str:
    """Return a mean, and how far its interval reaches to either side where that is the same."""
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.mean:.3g}"
    if abs(found.high + found.low - 2 * found.mean) > 1e-6 * abs(found.high):
        return f"{found.mean:.3g} [{found.low:.2g}, {found.high:.2g}]"
    half = found.high - found.mean
    told = f"{half:.1g}" if half < 10 else f"{half:.0f}"
    return f"{found.mean:.2g} ±{told}" if half else f"{found.mean:.2g}"
