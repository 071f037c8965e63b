"""Values that change over a run: learning rates and loss coefficients."""

from dataclasses import dataclass

from lightsae.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """Rises linearly from 0, stays, and may fall linearly to 0 at the end. May begin late: until then it is 0.

    Lengths are a share of the run where they are below 1, and steps where they are 1 or more.

    Args:
        value: The value between rise and fall.
        warm_up: Length of the rise; 0 for none.
        decay: Length of the fall; 0 for none.
        begin: Where the rise begins.
    """

    value: float
    warm_up: float = 0.0
    decay: float = 0.0
    begin: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warm_up", "decay", "begin"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "write a share of the run (0.05) or steps (200)")

    def factor(self, step: int, total_steps: int) -> float:
        """Return the share of `value` that holds in optimiser step `step`, counted from 0."""
        rise, fall, begin = (_steps(length, total_steps) for length in (self.warm_up, self.decay, self.begin))
        if step < begin:
            return 0.0
        up = (step - begin + 1) / rise if step - begin < rise else 1.0
        down = (total_steps - step) / fall if total_steps - step < fall else 1.0
        return max(0.0, min(up, down))

    def at(self, step: int, total_steps: int) -> float:
        """Return the value in optimiser step `step`, counted from 0.

        >>> [Schedule(3.0, warm_up=2.0, decay=0.4).at(step, total_steps=10) for step in (0, 1, 5, 8, 9)]
        [1.5, 3.0, 3.0, 1.5, 0.75]
        """
        return self.value * self.factor(step, total_steps)


def _steps(length: float, total_steps: int) -> int:
    return round(length * total_steps) if length < 1 else round(length)
