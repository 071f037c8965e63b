"""Labels by people: out to a CSV file that any spreadsheet opens, and back.

One row per feature. A person fills in `human_label`, `by` (who) and, if they like, `when` and `note`; the rest is for
reading. `dictionary` ties the file to the dictionary that it came from. Cells that a spreadsheet would take for a
formula get a leading apostrophe on the way out, and lose it on the way in.
"""

import csv
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lightsae.analysis.dictionary.schema import LABELS
from lightsae.analysis.labels.llm.examples import windows_of
from lightsae.analysis.labels.llm.prompts import marked, plain
from lightsae.errors import ConfigError, did_you_mean, reading
from lightsae.formats.files import write_atomically

COLUMNS = (
    "feature",
    "label",
    "tier",
    "precision",
    "recall",
    "tokens",
    "contexts",
    "evidence",
    "human_label",
    "by",
    "when",
    "note",
    "dictionary",
)
_NEEDED = ("feature", "human_label", "by", "dictionary")
_LONGEST_LABEL = 200
_KINDS = ("top", "stratum", "near_miss")
# An apostrophe that was there before is doubled, so that the way back is unambiguous.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def export_csv(
    features: pa.Table,
    contexts: pa.Table,
    path: str | Path,
    *,
    dictionary_id: str,
    only: Sequence[int] | None = None,
    per_kind: int = 5,
) -> int:
    """Write a file for people to fill in.

    Args:
        features: The dictionary's table of features.
        contexts: Its table of windows.
        path: The file; replaced where it exists.
        dictionary_id: Id of the dictionary.
        only: Features to write, in this order; None writes all that ever fire.
        per_kind: Windows shown of each kind (the strongest, a sample, near misses).

    Returns:
        How many features were written.

    Raises:
        ConfigError: `only` names a feature that there is not, or the file cannot be written.
    """
    columns = ["feature", "fires", "label", "tier", "precision", "recall", "tokens_on"]
    known = {row["feature"]: row for row in features.select(columns).to_pylist()}
    chosen = list(only) if only is not None else [f for f, row in known.items() if row["fires"]]
    if unknown := [f for f in chosen if f not in known]:
        raise ConfigError(f"There is no feature {unknown[0]} in the dictionary, which has {len(known)}.")
    if only is not None:
        contexts = contexts.filter(pc.is_in(contexts["feature"], pa.array(chosen, pa.int32())))
    windows: dict[int, list[dict[str, Any]]] = {}
    for batch in contexts.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            if row["rank"] < per_kind or row["kind"] == "stratum":
                windows.setdefault(row["feature"], []).append(row)
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for feature in chosen:
            cells = _row_of(known[feature], _shown(windows.get(feature, []), per_kind), dictionary_id)
            writer.writerow({column: _guarded(cell) for column, cell in cells.items()})
    return len(chosen)


def import_csv(
    path: str | Path, *, dictionary_id: str, features: Collection[int], when: str | None = None
) -> list[dict[str, Any]]:
    """Read a file that people filled in.

    Args:
        path: The file; comma, semicolon or tab between its cells, as spreadsheets save it.
        dictionary_id: Id of the dictionary that the labels are for.
        features: The features that it has.
        when: Time of the labels whose row gives none, ISO 8601.

    Returns:
        Rows of the table `labels`, source `human`, one for each row with a `human_label`; who, when, and the windows
        that they were shown are kept. They carry no scores: nobody has tested them.

    Raises:
        ConfigError: The file cannot be read, or a row is wrong; the message names line and column.
    """
    _check_time(when, "when is")
    text = _read(path)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    with reading(ConfigError, f"{str(path)!r} is no CSV"):
        header = next(lines, [])
    for column in _NEEDED:
        if column not in header:
            there = ", ".join(map(repr, header)) or "nothing"
            raise ConfigError(f"{str(path)!r} has no column {column!r}; it has {there:.300}.")
    rows: list[dict[str, Any]] = []
    seen: dict[int, int] = {}
    following = lines.line_num + 1
    try:
        for cells in lines:
            # A row begins after the last line of the one before it: cells may hold line breaks.
            line, following = following, lines.line_num + 1
            where = f"{str(path)!r}, line {line}"
            row = {name: _unguarded(cell).strip() for name, cell in zip(header, cells, strict=False)}
            if not any(row.values()):
                continue
            if len(cells) != len(header):
                raise ConfigError(f"{where}: {len(cells)} cells, but the header has {len(header)} columns.")
            feature = _feature(row["feature"], where, features)
            if feature in seen:
                raise ConfigError(f"{where}, column 'feature': {feature} stands in line {seen[feature]} already.")
            seen[feature] = line
            if row["dictionary"] != dictionary_id:
                raise ConfigError(
                    f"{where}, column 'dictionary': {row['dictionary'][:12]!r}, but these labels are to go to "
                    f"{dictionary_id[:12]!r}; a feature's number means something else there. Import them into theirs."
                )
            if row["human_label"]:
                rows.append(_label_of(feature, row, where, when))
    except csv.Error as error:
        raise ConfigError(f"{str(path)!r}, line {lines.line_num}: no valid CSV ({error}).") from error
    return rows


def _row_of(known: Mapping[str, Any], windows: Sequence[Mapping[str, Any]], dictionary_id: str) -> dict[str, str]:
    shares = [f"{_visible(t['text'])} {t['share']:.0%}" for t in (known["tokens_on"] or [])[:8]]
    texts = []
    for row, example in zip(windows, windows_of(windows), strict=True):
        texts.append(f"[{_name(row)}] {marked(example) if row['kind'] != 'near_miss' else plain(example)}")
    return {
        "feature": str(known["feature"]),
        "label": known["label"] or "unlabelled",
        "tier": known["tier"] or "",
        "precision": "" if known["precision"] is None else f"{known['precision']:.3f}",
        "recall": "" if known["recall"] is None else f"{known['recall']:.3f}",
        "tokens": ", ".join(shares),
        "contexts": "\n".join(texts),
        "evidence": "; ".join(_name(row) for row in windows),
        "dictionary": dictionary_id,
    }


def _shown(rows: Sequence[dict[str, Any]], per_kind: int) -> list[dict[str, Any]]:
    """Return the windows to show: of the sampled ones, some from all strata, the strongest first."""
    chosen: list[dict[str, Any]] = []
    for kind in _KINDS:
        of_kind = sorted((r for r in rows if r["kind"] == kind), key=lambda r: (r["rank"], -(r["stratum"] or 0)))
        chosen += sorted(of_kind[:per_kind], key=lambda r: (-(r["stratum"] or 0), r["rank"]))
    return chosen


def _name(row: Mapping[str, Any]) -> str:
    return (
        f"{row['kind']} {row['stratum']}.{row['rank']}" if row["kind"] == "stratum" else f"{row['kind']} {row['rank']}"
    )


def _label_of(feature: int, row: Mapping[str, str], where: str, when: str | None) -> dict[str, Any]:
    label = " ".join(row["human_label"].split())
    if len(label) > _LONGEST_LABEL:
        raise ConfigError(f"{where}, column 'human_label': {len(label)} characters; write at most {_LONGEST_LABEL}.")
    if not row["by"]:
        raise ConfigError(f"{where}, column 'by': empty, but there is a human_label; write who says so.")
    made = row.get("when") or when
    _check_time(row.get("when"), f"{where}, column 'when':")
    evidence = {"windows": row.get("evidence", ""), "note": row.get("note", ""), "dictionary": row["dictionary"]}
    empty: dict[str, Any] = dict.fromkeys(LABELS.names)
    return empty | {
        "feature": feature,
        "label": label,
        "source": "human",
        "model": row["by"],
        "made": made,
        "evidence": json.dumps({key: value for key, value in evidence.items() if value}, ensure_ascii=False),
    }


def _feature(cell: str, where: str, features: Collection[int]) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", cell):
        raise ConfigError(f"{where}, column 'feature': {cell!r} is no feature number.")
    if int(cell) not in features:
        raise ConfigError(f"{where}, column 'feature': the dictionary has no feature {cell}.")
    return int(cell)


def _check_time(time: str | None, what: str) -> None:
    try:
        if time:
            datetime.fromisoformat(time)
    except ValueError:
        raise ConfigError(
            f"{what} {time!r} is no ISO 8601 time; write it like 2030-01-31 or 2030-01-31T12:00Z."
        ) from None


def _read(path: str | Path) -> str:
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except FileNotFoundError as error:
        folder = Path(path).parent
        near = [p.name for p in folder.glob("*.csv")] if folder.is_dir() else []
        raise ConfigError(f"{str(path)!r} does not exist.{did_you_mean(Path(path).name, near)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is not in UTF-8; save it as «CSV UTF-8».") from error
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}.") from error


def _delimiter(text: str) -> str:
    """Return what stands between the cells: spreadsheets of some countries save semicolons."""
    header = text.split("\n", 1)[0]
    return max(",;\t", key=header.count)


def _guarded(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _visible(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
