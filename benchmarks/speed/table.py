"""What was measured, as a table, beside the table that was kept last."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from speed.cases import Case

OURS, LIMIT = "lightsae", "limit"
CLOCK, CPU = "tokens_per_second", "tokens_per_cpu_second"
# Case -> library, or the limit -> what its rounds measured.
Measured = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
HEAD = (
    *("", "library", "tokens/s", "per CPU second", "ours / theirs", "target", "peak MiB"),
    *("LM tokens per token", "of the limit", "new / last"),
)


def machine(threads: int) -> str:
    """Return the name under which a table is kept."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, threads: {threads}"


def _medians(rounds: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return tokens per second by the clock and of CPU time."""
    return statistics.median(speeds(rounds)), statistics.median(speeds(rounds, CPU))


def speeds(rounds: Sequence[Mapping[str, Any]], key: str = CLOCK) -> list[float]:
    """Return what the rounds of a row measured."""
    return [measured[key] for measured in rounds]


def compared(new: Sequence[float], last: Sequence[float]) -> tuple[float, bool]:
    """Return new / last of the medians, and whether it fell by more than either's spread from round to round.

    >>> compared([100.0, 90.0, 95.0], [99.0, 101.0, 100.0])
    (0.95, False)
    >>> compared([90.0, 91.0, 89.0], [99.0, 101.0, 100.0])
    (0.9, True)
    """
    before, now = statistics.median(last), statistics.median(new)
    spread = max(max(values) - min(values) for values in (new, last))
    return now / before, before - now > spread


def table(cases: Sequence[Case], measured: Measured, last: Measured) -> str:
    """Return the table in Markdown. What failed, or was not there, has no row; `new / last` is of CPU time.

    Args:
        cases: In the order of their rows.
        measured: Now.
        last: Of this machine; empty if there is none.
    """
    rows: list[Sequence[str]] = [HEAD, ["---"] * len(HEAD)]
    for case in cases:
        by_library = measured.get(case.name, {})
        limit = by_library.get(LIMIT, [])
        ours = by_library.get(OURS, [])
        for library, rounds in by_library.items():
            if library != LIMIT and rounds:
                before = last.get(case.name, {}).get(library, [])
                rows.append([case.name, *_row(case, library, rounds, ours, limit, before)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(
    case: Case,
    library: str,
    rounds: Sequence[Mapping[str, Any]],
    ours: Sequence[Mapping[str, Any]],
    limit: Sequence[Mapping[str, Any]],
    last: Sequence[Mapping[str, Any]],
) -> list[str]:
    clock, cpu = _medians(rounds)
    against = target = share = change = ""
    if library != OURS and ours:
        our_clock, our_cpu = _medians(ours)
        against = f"{our_clock / clock:.2f} ({our_cpu / cpu:.2f})"
    if library in case.targets:
        target = f"{case.targets[library]:g}"
    if limit:
        limit_clock, limit_cpu = _medians(limit)
        share = f"{clock / limit_clock:.0%} ({cpu / limit_cpu:.0%})"
    if last:
        quotient, fell = compared(speeds(rounds, CPU), speeds(last, CPU))
        change = f"{quotient:.2f}" + (" FELL" if fell else "")
    return [
        f"{library} {rounds[0]['version']}",
        f"{clock:,.0f}",
        f"{cpu:,.0f}",
        against,
        target,
        f"{max(measured['peak_mib'] for measured in rounds):,.0f}",
        f"{rounds[0]['lm_tokens_per_token']:.2f}",
        share,
        change,
    ]


def load(path: Path, name: str) -> Measured:
    """Return the last table of a machine; empty, if none was kept."""
    tables: dict[str, Measured] = json.loads(path.read_text()) if path.exists() else {}
    return tables.get(name, {})


def keep(path: Path, name: str, measured: Measured) -> None:
    """Keep a table as the last one of a machine; of cases that were not measured the rows stay."""
    tables = json.loads(path.read_text()) if path.exists() else {}
    tables[name] = {**tables.get(name, {}), **measured}
    path.write_text(json.dumps(tables, indent=1) + "\n")
