"""The clock that all libraries are timed by: whole steps, from the end of one optimiser step to the end of a later one.

A hook that PyTorch calls after each optimiser step, whoever wrote the loop around it. Which steps a library's own
loop needs for whole cycles of fills, its runner says; so the tokens that the language model ran on in the window are
those that were trained on, and the first fill flatters nobody.
"""

import functools
import json
import resource
import time
from collections.abc import Callable
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from speed.cases import Case

KIB = 1024


class Window:
    """Times whole cycles of one library's training.

    Args:
        case: What is trained.
        cycle: Steps after which the library's buffer is where it was, with the language model run on as many tokens.
    """

    def __init__(self, case: Case, cycle: int) -> None:
        self.case, self.cycle = case, cycle
        # The first fill, and the steps on it, warm up.
        self.begin = max(cycle, -(-case.steps_of_buffer // cycle) * cycle)
        self.end = self.begin + max(cycle, -(-case.steps // cycle) * cycle)
        self.steps, self.lm_tokens = 0, 0
        self._at: dict[int, tuple[float, float, int, int]] = {}
        register_optimizer_step_post_hook(self._step_ended)

    def count_tokens_of(self, kind: Any) -> None:
        """Count the tokens that instances of a class of language models are run on, from its first argument."""
        forward: Callable[..., Any] = kind.forward

        @functools.wraps(forward)
        def counted(model: Any, *args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs.get("input_ids")
            if isinstance(given, torch.Tensor):
                self.lm_tokens += given.numel()
            return forward(model, *args, **kwargs)

        kind.forward = counted

    def _step_ended(self, *_: Any) -> None:
        self.steps += 1
        if self.steps in (self.begin, self.end):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            self._at[self.steps] = (time.perf_counter(), time.process_time(), self.lm_tokens, peak)

    def write(self, path: Path, distribution: str) -> None:
        """Write what was measured of an installed library, as JSON."""
        assert self.end in self._at, f"training ended after {self.steps} steps, not {self.end}"
        (start, cpu_start, lm_start, _), (end, cpu_end, lm_end, peak) = self._at[self.begin], self._at[self.end]
        tokens = (self.end - self.begin) * self.case.batch
        measured = {
            "version": installed(distribution),
            "tokens": tokens,
            "tokens_per_second": tokens / (end - start),
            "tokens_per_cpu_second": tokens / (cpu_end - cpu_start),
            "lm_tokens_before": lm_start,
            "lm_tokens_per_token": (lm_end - lm_start) / tokens,
            "peak_mib": peak / KIB,
        }
        path.write_text(json.dumps(measured))
