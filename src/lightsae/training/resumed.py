"""What a resumed run says of its checkpoint: that nothing is left, or that its length or a rate is another one now."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightsae.compat import steps_trained


@dataclass(frozen=True)
class ResumedFrom:
    """The checkpoint that a run goes on from.

    Attributes:
        step: Its optimiser steps.
        total_steps: Of the run that wrote it; None in checkpoints from before version 0.2.
        rates: Peak learning rates by the SAE's name.
    """

    step: int
    total_steps: int | None
    rates: Mapping[str, float]

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> "ResumedFrom":
        """Return what a checked checkpoint says."""
        (optimizer,) = checkpoint["optimizer_states"]
        rates = {group["name"]: group["initial_lr"] for group in optimizer["param_groups"]}
        step = steps_trained(checkpoint["loops"]["fit_loop"])
        return cls(step, checkpoint["lightsae"].get("total_steps"), rates)

    def announce(self, total_steps: int, rates: Mapping[str, float]) -> None:
        """Say, once for all processes, what differs between the run that goes on and the one that stopped.

        Args:
            total_steps: Length of the run now.
            rates: Its peak learning rates.
        """
        if self.step >= total_steps:
            rank_zero_info(
                f"Nothing is left to train: the checkpoint is of step {self.step}, and the run of {total_steps} steps. "
                "To train on, make the run longer."
            )
            return
        if self.total_steps not in (None, total_steps):
            rank_zero_info(
                f"The run has {total_steps} steps now and had {self.total_steps}: what rises and falls over a run is "
                f"worked out anew for its new length, and goes on at step {self.step}."
            )
        for name, rate in rates.items():
            if rate != self.rates[name]:
                rank_zero_info(
                    f"The learning rate of {name} is {rate:g} now and was {self.rates[name]:g}: the run does not end "
                    "in the bytes of one that never stopped."
                )
