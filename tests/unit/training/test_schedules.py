"""Values at the edges of rise and fall, counted by hand."""

import pytest

from lightsae.errors import ConfigError
from lightsae.training.schedules import Schedule


def values(schedule: Schedule, total: int) -> list[float]:
    return [schedule.at(step, total) for step in range(total)]


def test_constant() -> None:
    assert values(Schedule(3.0), 4) == [3.0] * 4


def test_rise_in_steps_ends_at_the_value() -> None:
    assert values(Schedule(8.0, warm_up=4.0), 6) == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_fall_in_steps_reaches_zero_after_the_last_step() -> None:
    schedule = Schedule(8.0, decay=4.0)
    assert values(schedule, 6) == [8.0, 8.0, 8.0, 6.0, 4.0, 2.0]
    assert schedule.at(6, 6) == 0.0
    assert schedule.at(7, 6) == 0.0


def test_shares_of_the_run_are_its_steps() -> None:
    assert values(Schedule(8.0, warm_up=0.2, decay=0.4), 20) == values(Schedule(8.0, warm_up=4.0, decay=8.0), 20)


def test_one_is_one_step_and_not_the_whole_run() -> None:
    assert values(Schedule(8.0, warm_up=1.0), 3) == [8.0] * 3
    assert Schedule(8.0, warm_up=0.999).at(0, 1000) == pytest.approx(8 / 999)


def test_rise_and_fall_that_overlap_stay_below_both() -> None:
    assert values(Schedule(4.0, warm_up=4.0, decay=4.0), 4) == [1.0, 2.0, 2.0, 1.0]


def test_a_share_that_comes_to_no_step_is_none() -> None:
    assert values(Schedule(4.0, warm_up=0.01, decay=0.01), 10) == [4.0] * 10


def test_value_of_zero_and_factor() -> None:
    assert values(Schedule(0.0, warm_up=2.0), 3) == [0.0] * 3
    assert [Schedule(7.0, warm_up=2.0).factor(step, 3) for step in range(3)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("name", ["warm_up", "decay"])
def test_negative_lengths(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is -0.1"):
        Schedule(1.0, **{name: -0.1})
