"""What a monitor prints: the features that fired most, and how many are left."""

from lightsae.production.monitor.summary import FeatureSummary, Summary


def feature(number: int, firings: int, label: str = "a label") -> FeatureSummary:
    known = {"feature": number, "label": label, "threshold": 0.5, "kind": "given", "firings": firings}
    rest = {name: None for name in FeatureSummary.__dataclass_fields__ if name not in known}
    return FeatureSummary(**{**rest, **known, "frequency": firings / 1000, "alarms": 0})


def test_what_fired_most_comes_first_and_the_rest_is_counted() -> None:
    shown = str(Summary(1000, [feature(number, number % 40) for number in range(100)], 0))
    numbers = [int(line.split("\u2502")[1]) for line in shown.splitlines() if line.startswith("\u2502")]
    assert len(numbers) == 25
    assert numbers[:2] == [39, 79]
    assert "and 75 more features, of which 72 fired" in shown


def test_a_long_label_leaves_the_numbers_their_room() -> None:
    shown = str(Summary(1000, [feature(7, 123, "x" * 300)], 0))
    assert "123" in shown
    assert "x" * 39 + "\u2026" in shown
