"""Timings: nothing is lost between threads, and what holds them can be copied."""

import copy
import threading
import time

import pytest

from lightsae.activations.timings import Timings


def test_threads_add_up() -> None:
    timings = Timings()

    def work() -> None:
        for _ in range(20):
            with timings.measure("part"):
                time.sleep(0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert timings.totals()["part"] >= 4 * 20 * 0.001


def test_what_fails_is_counted_too() -> None:
    timings = Timings()
    with pytest.raises(ValueError, match="mine"), timings.measure("part"):
        raise ValueError("mine")
    assert timings.totals()["part"] > 0


def test_a_copy_counts_for_itself() -> None:
    timings = Timings()
    with timings.measure("part"):
        pass
    other, before = copy.deepcopy(timings), timings.totals()
    with other.measure("part"):
        pass
    assert timings.totals() == before
    assert other.totals()["part"] > before["part"]
