"""The stream: fills of activations, shuffled, served batch by batch, resumable.

A fill is a buffer of activations of `fill_tokens` tokens. Batch number n of the run lies in fill n // batches_per_fill;
which tokens it holds follows from (seed, n, rank, world size) and the source alone. So the position of a run is one
number, the same on all ranks, plus the cursor that the source stored at the start of the fill's block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightsae.activations.ahead import Ahead, InTurn
from lightsae.activations.batch import ActivationBatch, check_finite
from lightsae.activations.timings import Timings
from lightsae.errors import CheckpointError, arg, section
from lightsae.randomness import keyed_generator
from lightsae.sae.sites import SiteRef
from lightsae.stored import misfit

# Numbers of the schedule that say what a batch holds, and the settings that they come from.
_SETTINGS = {
    "batch_tokens": arg("batch_tokens"),
    "batches_per_fill": f"{arg('buffer_tokens')} (or {arg('context_size')}, {arg('skip_positions')})",
    "seed": f"{arg('seed')} (or seed_everything)",
    "world": arg("devices", "trainer"),
}


@dataclass(frozen=True)
class Process:
    """What one process of a run reads, and where it puts it.

    Attributes:
        sites: Every site that some SAE of the run reads or predicts.
        device: Where the activations go.
        dtype: What they are stored in.
        rank: Number of the process.
        world: Number of processes.
        whole_models: Load language models with all layers and the head, not only up to the last site.
    """

    sites: tuple[SiteRef, ...]
    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1
    whole_models: bool = False

    def buffer(self, tokens: int, width: int) -> Tensor:
        """Return memory for the activations of some tokens at one site."""
        return torch.empty(tokens, width, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class StreamPlan:
    """The numbers that all ranks share.

    Attributes:
        batch_tokens: Tokens in a batch of one rank.
        batches_per_fill: Batches that one rank serves from a fill.
        total_batches: Batches of the run, or of an epoch for a source that has epochs.
        epochs: How many of these the run has.
        seed: Of all draws of the stream.
        rank: This process.
        world: Number of processes.
    """

    batch_tokens: int
    batches_per_fill: int
    total_batches: int
    seed: int
    rank: int = 0
    world: int = 1
    epochs: int = 1

    def needs_fill(self, number: int) -> bool:
        """Return whether the run takes a batch from this fill."""
        return number * self.batches_per_fill < self.total_batches * self.epochs


@dataclass(frozen=True)
class Fill:
    """A buffer of activations as one large batch in source order, and the tokens of it that may be served."""

    everything: ActivationBatch
    served: Tensor


class FillSource(ABC):
    """Makes the numbered fills of one rank. If the number alone says what a fill holds, `fill` is all that it takes.

    Attributes:
        slots: How many fills are in memory at once: 2 where the next is made while one is served.
        stopped: Nobody will take the fill that is being made.
    """

    slots = 1
    stopped = False

    @abstractmethod
    def fill(self, number: int) -> Fill:
        """Return the fill; the buffers of the fill `slots` before may be overwritten."""

    def state_dict(self) -> dict[str, Any]:
        """Return what it takes to make the present fill again, in another process."""
        return {}

    def check_state(self, state: Any, number: int) -> None:
        """Check that `load_state_dict` can take a state, and that fill `number` can be made from there.

        Raises:
            CheckpointError: It cannot.
        """
        refuse_place(misfit(state, self.state_dict(), "source", partial=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go to the place of a `state_dict`."""

    def close(self) -> None:  # noqa: B027
        """End threads, and close files."""


def slot(buffers: list[Tensor], number: int, slots: int) -> Tensor:
    """Return the buffer of a fill; those beyond the first are made when they are first needed."""
    while len(buffers) < slots:
        buffers.append(torch.empty_like(buffers[0]))
    return buffers[number % slots]


@dataclass(frozen=True)
class _MadeFill:
    """A fill, the order in which it is served, and the state of the source that makes it again."""

    number: int
    fill: Fill
    order: Tensor
    state: dict[str, Any]


class ActivationStream:
    """Serves batches from fills. Iterating goes on from where the last iteration stopped.

    It has a length: Lightning would fetch one batch ahead from a loader that has none, and a checkpoint would then say
    one batch too many.

    Args:
        source: Makes the fills.
        plan: The numbers that all ranks share.
        timings: Where the time is counted for which the caller waits for a fill made ahead, as "waiting".
        ahead: The device on which the next fill is made while one is served; None: fills are made when they are needed.
            The batches are the same.
    """

    def __init__(
        self, source: FillSource, plan: StreamPlan, timings: Timings, ahead: torch.device | None = None
    ) -> None:
        self.source, self.plan, self.timings = source, plan, timings
        self.served_batches = 0
        self._current: _MadeFill | None = None
        self._state = source.state_dict()
        self._fills: InTurn[_MadeFill] = InTurn(self._make)
        if ahead is not None:
            source.slots = 2
            self._fills = Ahead(self._make, plan.needs_fill, ahead)

    def __len__(self) -> int:
        return self.plan.total_batches

    def __iter__(self) -> Iterator[ActivationBatch]:
        while True:
            number, place = divmod(self.served_batches, self.plan.batches_per_fill)
            made = self._fill(number)
            start = place * self.plan.batch_tokens
            chosen = made.order[start : start + self.plan.batch_tokens]
            batch = made.fill.everything.take(chosen, self.served_batches)
            self.served_batches += 1
            yield batch
            if self.served_batches % self.plan.total_batches == 0:
                return

    def sample(self) -> ActivationBatch:
        """Return the present fill whole, in source order."""
        return self._fill(self.served_batches // self.plan.batches_per_fill).fill.everything

    def present_fill(self) -> Fill:
        """Return the fill that the last batch came from."""
        return self._fill(max(0, self.served_batches - 1) // self.plan.batches_per_fill).fill

    def state_dict(self) -> dict[str, Any]:
        return {
            "served_batches": self.served_batches,
            "schedule": {key: getattr(self.plan, key) for key in _SETTINGS},
            # Not the source's own: it may be at the next fill already.
            "source": self._state,
        }

    def check(self, state: Any) -> None:
        """Check that `load_state_dict` can take a state; see there."""
        check_place(state, self.plan)
        # Until the first batch of a fill is asked for, the source is at the fill before.
        self.source.check_state(state["source"], max(0, state["served_batches"] - 1) // self.plan.batches_per_fill)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place of a `state_dict`.

        Raises:
            CheckpointError: It is none, or was written with other numbers, by which the place would mean another one.
        """
        self.check(state)
        self.served_batches = state["served_batches"]
        self._fills.forget()
        self.source.load_state_dict(state["source"])
        self._current, self._state = None, self.source.state_dict()

    def close(self) -> None:
        """End threads, and close files. A fill that is being made is given up."""
        self.source.stopped = True
        self._fills.close()
        self.source.close()

    def _fill(self, number: int) -> _MadeFill:
        if self._current is None or self._current.number != number:
            self._current = None  # a failure below must not leave a stale fill
            with section("data"):  # Lightning calls the loader, not the data module that would say so
                with self.timings.measure("waiting"):
                    made = self._fills.get(number)
            self._current, self._state = made, made.state
            self._fills.begin_next(number)
        return self._current

    def _make(self, number: int) -> _MadeFill:
        fill = self.source.fill(number)
        check_finite(fill.everything, f"of training, from batch {number * self.plan.batches_per_fill} on")
        return _MadeFill(number, fill, self._order(number, fill.served), self.source.state_dict())

    def _order(self, number: int, served: Tensor) -> Tensor:
        """Return the order in which the fill's tokens are served; a fill that is short of tokens begins again."""
        generator = keyed_generator(self.plan.seed, f"fill order, rank {self.plan.rank}", number)
        order = served[torch.randperm(len(served), generator=generator).to(served.device)]
        needed = self.plan.batches_per_fill * self.plan.batch_tokens
        return order.repeat(-(-needed // len(order)))[:needed]


class HeldOut:
    """The validation batches of one rank: made anew in each validation, and the same each time.

    Args:
        make: Makes the activations of a part.
        parts: What `make` takes, for each batch in turn.
    """

    def __init__(self, make: Callable[[Any], ActivationBatch], parts: Sequence[Any]) -> None:
        self.make, self.parts = make, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[ActivationBatch]:
        with section("data"):
            for index, batch in enumerate(map(self.make, self.parts)):
                check_finite(batch, f"of validation, in batch {index}")
                yield replace(batch, index=index)


def check_place(state: Any, plan: StreamPlan) -> None:
    """Check that the `state_dict` of a stream names a place in the stream of a plan.

    Raises:
        CheckpointError: Something is missing, of another kind or negative; or a number of the plan was another one.
    """
    refuse_place(misfit(state, {"served_batches": 0, "schedule": dict.fromkeys(_SETTINGS, 0), "source": {}}))
    for key, setting in _SETTINGS.items():
        stored, present = state["schedule"][key], getattr(plan, key)
        if stored != present:
            raise CheckpointError(
                f"{setting} differs from the checkpoint's: {key} was {stored} and is {present}. "
                "Go on with the run's own config.yaml, or start a new run."
            )


def refuse_place(difference: str | None) -> None:
    """Raise a CheckpointError about the place in the data, where there is something against it."""
    if difference is not None:
        raise CheckpointError(f"--ckpt_path: the place in the data cannot be used: {difference}. Use an earlier one.")
