"""What `dtype: auto` chooses, the probe behind it, and the warning where a CPU is slow with the bfloat16 asked for."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lightsae.errors import ModelError
from lightsae.lm import LanguageModel, dtypes
from lightsae.lm.dtypes import bfloat16_speedup, choose_dtype, warn_if_slow

CPU = torch.device("cpu")
Speedup = Callable[[float], None]


@pytest.fixture
def speedup(monkeypatch: pytest.MonkeyPatch) -> Iterator[Speedup]:
    """Set how much faster bfloat16 is; each warning may come once more."""
    warn_if_slow.cache_clear()
    yield lambda times: monkeypatch.setattr(dtypes, "bfloat16_speedup", lambda: times)
    warn_if_slow.cache_clear()


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        (0.05, torch.float32),
        (1.0, torch.float32),
        (1.24, torch.float32),
        (1.25, torch.bfloat16),
        (8.0, torch.bfloat16),
    ],
)
def test_auto_on_a_cpu_is_what_is_faster(times: float, chosen: torch.dtype, speedup: Speedup, make_model) -> None:
    speedup(times)
    assert choose_dtype("auto", CPU) is chosen
    assert LanguageModel.from_pretrained(str(make_model())).dtype is chosen


def test_either_choice_keeps_four_fifths_of_the_speed_of_the_other() -> None:
    assert 1 / dtypes.WORTHWHILE >= 0.8


@pytest.mark.parametrize(("native", "chosen"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_gpu_is_bfloat16_if_it_has_it(
    native: bool, chosen: torch.dtype, speedup: Speedup, monkeypatch: pytest.MonkeyPatch
) -> None:
    speedup(0.1)  # of the CPU, which does not matter
    # A GPU without it emulates it, slowly.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert choose_dtype("auto", torch.device("cuda")) is chosen


@pytest.mark.parametrize(("error", "chosen"), [(None, torch.bfloat16), (TypeError, torch.float32)])
def test_auto_on_another_accelerator_is_bfloat16_if_it_computes_in_it(
    error: type[Exception] | None, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = torch.ones

    def on_the_accelerator(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if error is not None:
            raise error("BFloat16 is not supported on MPS")
        return ones(*shape, dtype=dtype)

    monkeypatch.setattr(torch, "ones", on_the_accelerator)
    assert choose_dtype("auto", torch.device("mps")) is chosen


def test_what_is_named_is_taken(speedup: Speedup) -> None:
    speedup(0.1)
    for name in ("float32", "bfloat16", "float16"):
        assert choose_dtype(name, CPU) is getattr(torch, name)
    assert choose_dtype(torch.bfloat16, CPU) is torch.bfloat16
    with pytest.raises(ModelError, match=r"dtype is 'fp8'; write auto, float32, bfloat16, float16"):
        choose_dtype("fp8", CPU)


# -- the probe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "times"), [((0.004, 0.001), 4.0), ((0.001, 0.02), 0.05)])
def test_the_probe_compares_the_undisturbed_rounds(
    seconds: tuple[float, float], times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first round, which warms up, and one that the machine disturbs do not count."""
    calls: list[torch.dtype] = []

    def took(x: torch.Tensor, weight: torch.Tensor) -> float:
        calls.append(x.dtype)
        mine = seconds[0] if x.dtype == torch.float32 else seconds[1]
        # The warm-up would be the fastest of all, if it counted.
        return mine / 100 if len(calls) <= 2 else mine * (5 if len(calls) in (5, 6, 9) else 1)

    monkeypatch.setattr(dtypes, "_seconds", took)
    assert bfloat16_speedup.__wrapped__() == pytest.approx(times)
    assert calls[:4] == [torch.float32, torch.bfloat16] * 2


def test_the_probe_is_short_and_leaves_no_trace() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        start = time.process_time()
        assert bfloat16_speedup.__wrapped__() > 0
        assert time.process_time() - start < 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert bfloat16_speedup() == bfloat16_speedup()  # measured once in a process


# -- the warning -----------------------------------------------------------------------------------------------------


def test_bfloat16_by_name_is_warned_of_once_where_it_is_slow(
    speedup: Speedup, make_model: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    speedup(0.125)
    for _ in range(2):
        assert LanguageModel.from_pretrained(str(make_model()), dtype="bfloat16").dtype is torch.bfloat16
    (record,) = [record for record in caplog.records if record.name == "lightsae.lm.dtypes"]
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "dtype is 'bfloat16', but bfloat16 is 8.0 times slower than float32 here; write auto or float32."
    )


def test_nothing_is_said_where_it_is_not_slow(speedup: Speedup, caplog: pytest.LogCaptureFixture) -> None:
    speedup(1.1)
    choose_dtype("bfloat16", CPU)
    speedup(0.1)
    for name in ("float32", "float16", "auto"):
        choose_dtype(name, CPU)
    choose_dtype("bfloat16", torch.device("cuda"))
    assert caplog.records == []
