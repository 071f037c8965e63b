"""What a monitor saw, as values and as a table."""

import io
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightsae.analysis.labels.wording import shortened


@dataclass(frozen=True)
class FeatureSummary:
    """What was seen of one feature.

    Attributes:
        feature, label: Which.
        threshold: Above which it fires, in normalised units.
        kind: Where that comes from.
        firings: Events.
        frequency: Share of all watched tokens on which it is active, above 0; None before the first token.
        dictionary_frequency: The same on the text of the feature dictionary.
        window_frequency, low, high: In the window at the last look, and the band; None before, or without drift alarms.
        drift: 1 above the band, -1 below, 0 inside; None without drift alarms.
        alarms: How often it left the band.
    """

    feature: int
    label: str | None
    threshold: float
    kind: str
    firings: int
    frequency: float | None
    dictionary_frequency: float | None
    window_frequency: float | None = None
    low: float | None = None
    high: float | None = None
    drift: int | None = None
    alarms: int = 0


# Letters of a label in the table: a longer one would leave the numbers no room. Rows: those that fired most.
_LABEL, _ROWS = 40, 25


@dataclass(frozen=True)
class Summary:
    """What a monitor saw.

    Attributes:
        tokens: Watched.
        features: One entry each.
        failures: Times that a sink failed.
        roles: Those whose tokens are watched; None: all tokens.
    """

    tokens: int
    features: list[FeatureSummary]
    failures: int
    roles: list[str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    def table(self) -> Table:
        """Return it as a table for a terminal."""
        failed = f"; sinks failed {self.failures} times" if self.failures else ""
        of = f" of {', '.join(self.roles)}" if self.roles else ""
        table = Table(title=f"{self.tokens:,} tokens{of} watched{failed}", title_justify="left")
        watched = any(one.low is not None for one in self.features)
        drift = ("window", "band", "alarms") if watched else ()
        for name in ("feature", "firings", "active", "dictionary", *drift, "threshold"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("of", no_wrap=True)
        table.add_column("label", no_wrap=True, overflow="ellipsis")
        ordered = sorted(self.features, key=lambda one: (-(one.drift is not None and one.drift != 0), -one.firings))
        for one in ordered[:_ROWS]:
            band = "" if one.low is None else f"{_share(one.low)} to {_share(one.high)}"
            mark = {1: " above", -1: " below"}.get(one.drift or 0, "")
            cells = [str(one.feature), f"{one.firings:,}", _share(one.frequency), _share(one.dictionary_frequency)]
            if watched:
                cells += [_share(one.window_frequency) + mark, band, "" if one.drift is None else str(one.alarms)]
            cells += [f"{one.threshold:.3g}", one.kind]
            table.add_row(*cells, escape(shortened(one.label or "", _LABEL)))
        if left := ordered[_ROWS:]:
            table.caption = f"and {len(left):,} more features, of which {sum(one.firings > 0 for one in left):,} fired"
        return table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=160, color_system=None).print(self.table())
        return text.getvalue().rstrip()

    def __rich__(self) -> Table:
        return self.table()


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3%}" if value >= 1e-5 or value == 0 else f"{value:.1e}"
