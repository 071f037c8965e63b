"""Files of thresholds that somebody sent: figures that none can be, and counts of texts that there are not."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lightsae.errors import FormatError
from lightsae.production.monitor import thresholds
from lightsae.production.monitor.thresholds import Calibrated, Thresholds

TESTED = thresholds.Tested(0.5, 1000, 800.0, 900, 9, 0.01, 0.005, 0.02)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Thresholds of two features, one with a concept."""
    one = Calibrated("concept", 0.1, {0.01: 0.8}, {0.01: TESTED}, 0.2, {0: 3, 1: 4})
    other = Calibrated("rate", None, {}, {0.01: TESTED}, 0.2, {1: 7})
    model: dict[str, str | None] = {"name": "builtin", "revision": None}
    made = Thresholds("a" * 64, "b" * 64, model, "c" * 64, 5, 5, 1900, 100, 0, {3: one, 7: other}, None, [900, 1000])
    made.save(tmp_path / "thresholds.json")
    return tmp_path / "thresholds.json"


def test_what_was_saved_is_read(path: Path) -> None:
    read = Thresholds.load(path)
    assert read.at(3, 0.01) == TESTED
    counts = read.counts([7, 3])
    assert counts is not None
    assert counts.active.tolist() == [[0, 3], [7, 4]]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((("features", "3", "rates", "0.01", "threshold"), value) for value in (-1.0, None, "0.5", True, [0.5])),
        *((("features", "3", "rates", "0.01", "low"), value) for value in (-1e9, 2.0, "0")),
        *((("features", "3", "rates", "0.01", "exceeded"), value) for value in (-1, 901, 1.5)),
        (("features", "3", "rates", "0.01", "tokens"), -7),
        (("features", "3", "rates"), {"7": {"threshold": 1}}),
        (("features", "3", "rates"), {"nan": asdict(TESTED)}),
        (("features", "3", "kind"), "both"),
        (("features", "3", "kind"), ["rate"]),
        (("features", "3", "frequency"), 1.5),
        (("features", "3", "frequency"), None),
        (("features", "3", "concept_share"), -0.1),
        (("features", "3", "recall"), {"0.01": 80}),
        (("features", "3", "recall"), [0.8]),
        (("features", "3", "active"), {"2": 1}),
        (("features", "3", "active"), {"-1": 1}),
        (("features", "3", "active"), {"0": 901}),
        (("features", "3", "active"), {"0": -1}),
        (("features", "3", "active"), {"0": [1]}),
        (("features", "-3"), {}),
        (("features",), []),
        (("sizes",), [900]),
        (("sizes",), 900),
        (("sizes",), [900, "1000"]),
        (("sizes",), [900, -1]),
        (("tokens",), -1),
        (("documents",), 2.5),
        (("longest",), "100"),
        (("confidence",), "high"),
        *((("roles",), value) for value in ("assistant", [], ["me"], [7])),
        (("sae",), None),
        (("model",), {"name": 7}),
        (("more",), 1),
    ],
)
def test_what_none_can_be_is_refused(path: Path, place: tuple[str, ...], value: Any) -> None:
    values = json.loads(path.read_text())
    *way, last = place
    holder = values
    for key in way:
        holder = holder[key]
    holder[last] = value
    path.write_text(json.dumps(values))
    with pytest.raises(FormatError, match=r"thresholds\.json' is damaged \(.*\); calibrate again") as caught:
        Thresholds.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", ["0", "1", "-0.01", "7", "inf"])
def test_a_rate_that_is_none(path: Path, rate: str) -> None:
    path.write_text(path.read_text().replace('"0.01": {', f'"{rate}": {{'))
    with pytest.raises(FormatError, match="is damaged"):
        Thresholds.load(path)


@pytest.mark.parametrize("text", ["[" * 5000, '{"kind": 1, "kind": 2}', '{"x": NaN}', '{"x": 1e999}', "\x00"])
def test_what_is_no_json_in_bounds(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(FormatError, match="is no JSON"):
        Thresholds.load(path)


def test_a_file_of_before_roles_is_of_all_tokens(path: Path) -> None:
    values = json.loads(path.read_text())
    assert (values["version"], values.pop("roles")) == (3, None)
    path.write_text(json.dumps(values | {"version": 2}))
    read = Thresholds.load(path)
    assert read.roles is None
    assert read.counts([3]) is not None


def test_a_file_of_before_counts_by_text(path: Path) -> None:
    values = json.loads(path.read_text())
    values["version"] = 1
    del values["sizes"], values["roles"]
    for one in values["features"].values():
        del one["active"]
        one |= {"alike": 1.5, "error": 0.1}
    path.write_text(json.dumps(values))
    read = Thresholds.load(path)
    assert read.at(3, 0.01) == TESTED
    assert read.counts([3]) is None
