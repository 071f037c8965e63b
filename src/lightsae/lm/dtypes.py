"""Which dtype a language model runs in: the one that is named, or what the device at hand is fast and right with.

Whether a processor is fast with bfloat16 is measured, not asked: its flags do not know what the libraries make of them
(oneDNN's ONEDNN_MAX_CPU_ISA hides instructions that cpuid still names), and there is one set of flags per architecture.
"""

import logging
import time
from functools import cache

import torch

from lightsae.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Below this speedup float32 is taken, for its digits; it then costs a fifth of the speed at most.
WORTHWHILE = 1.25
# Of square products: a fraction of a millisecond each, so that some of them run undisturbed on a busy machine.
_SIDE, _ROUNDS = 256, 15

logger = logging.getLogger(__name__)


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype that a setting means on a device.

    Args:
        dtype: A name, or `auto`: bfloat16 on an accelerator that has it, and on a CPU that is faster with it; float32
            elsewhere. What is a dtype already is taken as it is.
        device: Where the model goes.

    Raises:
        ModelError: `dtype` is none of the known names.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        fast = bfloat16_speedup() >= WORTHWHILE if device.type == "cpu" else _has_bfloat16(device)
        return torch.bfloat16 if fast else torch.float32
    if dtype not in DTYPES:
        raise ModelError("dtype", dtype, f"write auto, {', '.join(DTYPES)}")
    if dtype == "bfloat16" and device.type == "cpu":
        warn_if_slow("dtype", dtype, "auto or float32")
    return DTYPES[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that a setting has for a dtype: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


@cache
def bfloat16_speedup() -> float:
    """Return how many times faster this CPU multiplies in bfloat16 than in float32; below 1 if it is slower.

    Measured on one thread, for on a busy machine several wait for each other longer than they work. The first call
    takes a few milliseconds, on a CPU without the instructions a few tens.
    """
    threads = torch.get_num_threads()
    pairs = [[torch.ones(_SIDE, _SIDE, dtype=dtype)] * 2 for dtype in (torch.float32, torch.bfloat16)]
    torch.set_num_threads(1)
    try:
        # In turn, and the fastest of each: what else the machine does slows both. The first round warms up.
        rounds = [[_seconds(*pair) for pair in pairs] for _ in range(_ROUNDS + 1)]
    finally:
        torch.set_num_threads(threads)
    single, half = (min(seconds[i] for seconds in rounds[1:]) for i in range(2))
    return single / half


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        torch.nn.functional.linear(x, weight)
    return time.perf_counter() - start


def speed_of_bfloat16() -> str:
    """Say how fast bfloat16 is on this CPU: `bfloat16 is 3.3 times faster than float32 here`."""
    speedup = bfloat16_speedup()
    times, how = (speedup, "faster") if speedup >= 1 else (1 / speedup, "slower")
    return f"bfloat16 is {times:.1f} times {how} than float32 here"


@cache
def warn_if_slow(setting: str, value: str, instead: str) -> None:
    """Warn, once in a process, that a setting asks the CPU for bfloat16 where float32 is faster.

    Args:
        setting: What the user set.
        value: To what.
        instead: What to write.
    """
    if bfloat16_speedup() < 1:
        logger.warning("%s is %r, but %s; write %s.", setting, value, speed_of_bfloat16(), instead)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether an accelerator computes in bfloat16 itself; one that emulates it loses time."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        one = torch.ones(1, 1, dtype=torch.bfloat16, device=device)
        return bool((one @ one).isfinite())
    except (RuntimeError, TypeError):
        return False
