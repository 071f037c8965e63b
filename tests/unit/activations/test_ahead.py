"""Fills made ahead in a thread: the same bits, the same resume, errors as themselves, and nothing left running."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from lightsae.activations.ahead import Ahead
from lightsae.activations.batch import ActivationBatch
from lightsae.activations.datamodule import ActivationDataModule
from lightsae.activations.stream import ActivationStream
from lightsae.activations.synthetic.config import SyntheticConfig
from lightsae.errors import ActivationError
from lightsae.lm import LanguageModel
from lightsae.lm.hooks import apart
from lightsae.sae import TopK
from lightsae.training.module import SAEModule

CPU = torch.device("cpu")
BATCHES = 30  # of 16 tokens: 8 fills of 4 batches, in blocks of 4 fills


@pytest.fixture(params=["text", "files", "synthetic"])
def settings(request: pytest.FixtureRequest, tiny_text: Any, activation_file: Callable[..., str]) -> dict[str, Any]:
    sizes = {"batch_tokens": 16, "buffer_tokens": 64, "val_tokens": 64, "seed": 3}
    if request.param == "files":
        return sizes | {"activations": activation_file(300)}
    if request.param == "synthetic":
        return sizes | {"dataset": "synthetic", "synthetic": SyntheticConfig(features=32, width=8)}
    return sizes | {
        "model": tiny_text.model,
        "site": ["resid_post.0", "mlp_out.1"],
        "dataset": tiny_text.corpus,
        "context_size": 8,
        "shuffle_tokens": 256,
        "num_workers": 0,
        "validation_fraction": 0.2,
    }


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if "lightsae-fills" in thread.name] == []


def opened(settings: dict[str, Any], quiet: dict[str, Any], *, prefetch: bool) -> ActivationDataModule:
    data = ActivationDataModule(**settings, prefetch=prefetch)
    data.trainer = Trainer(**quiet, max_steps=BATCHES)
    data.setup("fit")
    return data


def take(of: ActivationStream, count: int) -> list[ActivationBatch]:
    batches = iter(of)
    return [next(batches) for _ in range(count)]


def same(a: ActivationBatch, b: ActivationBatch) -> bool:
    names = ("tokens", "positions", "documents", "rows", "special")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names) and all(
        torch.equal(a.activations[site], b.activations[site]) and torch.equal(a.sinks[site], b.sinks[site])
        for site in a.sinks
    )


# -- the same bits ---------------------------------------------------------------------------------------------------


def test_the_batches_are_those_of_fills_made_in_turn(settings: dict[str, Any], quiet: dict[str, Any]) -> None:
    in_turn, ahead = (opened(settings, quiet, prefetch=prefetch) for prefetch in (False, True))
    for a, b in zip(in_turn.train_dataloader(), ahead.train_dataloader(), strict=True):
        assert same(a, b)
        # What callbacks ask for in between is the fill of the batch, whatever is being made.
        assert torch.equal(
            in_turn.train_dataloader().present_fill().everything.rows,
            ahead.train_dataloader().present_fill().everything.rows,
        )
    for data in (in_turn, ahead):
        data.teardown("fit")


@pytest.mark.parametrize("stop", [0, 3, 4, 15, 17, 29])
def test_a_run_goes_on_from_any_batch(settings: dict[str, Any], quiet: dict[str, Any], stop: int) -> None:
    whole = opened(settings, quiet, prefetch=False)
    first = opened(settings, quiet, prefetch=True)
    expected = list(whole.train_dataloader())
    take(first.train_dataloader(), stop)
    # The next fill is made by now, and with it the next block is read.
    first.train_dataloader()._fills.forget()
    state = first.state_dict()
    for prefetch in (True, False):
        second = opened(settings, quiet, prefetch=prefetch)
        second.check_place(state, 1)
        second.load_state_dict(state)
        assert all(same(a, b) for a, b in zip(take(second.train_dataloader(), 30 - stop), expected[stop:], strict=True))
        second.teardown("fit")
    for data in (whole, first):
        data.teardown("fit")


def test_the_state_is_that_of_fills_made_in_turn(settings: dict[str, Any], quiet: dict[str, Any]) -> None:
    in_turn, ahead = (opened(settings, quiet, prefetch=prefetch) for prefetch in (False, True))
    batches = [iter(data.train_dataloader()) for data in (in_turn, ahead)]
    for _ in range(20):
        for each in batches:
            next(each)
        ahead.train_dataloader()._fills.forget()
        assert in_turn.state_dict() == ahead.state_dict()
        ahead.train_dataloader()._fills.begin_next((ahead.train_dataloader().served_batches - 1) // 4)
    for data in (in_turn, ahead):
        data.teardown("fit")


def test_weights_are_the_same(settings: dict[str, Any], quiet: dict[str, Any]) -> None:
    weights = []
    for prefetch in (False, True):
        data = ActivationDataModule(**settings, prefetch=prefetch)
        module = SAEModule(lambda widths: TopK(widths, d_sae=16, k=2), lr=0.01)
        Trainer(**quiet, max_steps=BATCHES).fit(module, data)
        weights.append(module.each_sae()["sae"].W_dec)
    assert torch.equal(*weights)


def test_no_fill_is_made_that_the_run_does_not_need(
    settings: dict[str, Any], quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(settings, quiet, prefetch=True)
    numbers: list[int] = []
    fill = type(data.train_dataloader().source).fill
    monkeypatch.setattr(
        type(data.train_dataloader().source), "fill", lambda self, n: (numbers.append(n), fill(self, n))[1]
    )
    list(data.train_dataloader())
    data.teardown("fit")
    assert numbers == list(range(8))


def test_it_takes_a_second_buffer(activation_file: Any, quiet: dict[str, Any]) -> None:
    for prefetch in (False, True):
        data = opened(
            {"activations": activation_file(300), "batch_tokens": 16, "buffer_tokens": 64}, quiet, prefetch=prefetch
        )
        assert data.train_dataloader().source.slots == 1 + prefetch
        data.teardown("fit")


# -- beside what the main thread does --------------------------------------------------------------------------------


def test_what_the_main_thread_does_to_the_model_is_not_seen(tiny_text: Any) -> None:
    model = LanguageModel.from_pretrained(tiny_text.model)
    tokens = torch.arange(8).view(1, 8)
    plain = model.capture(tokens, ["resid_post.1"])["resid_post.1"]
    seen: list[torch.Tensor] = []

    def read() -> None:
        seen.append(model.capture(tokens, ["resid_post.1"])["resid_post.1"])
        with apart(), model.intervene("resid_post.0", lambda x: x + 1):
            seen.append(model.capture(tokens, ["resid_post.1"])["resid_post.1"])
        with apart():
            seen.append(model.capture(tokens, ["resid_post.1"])["resid_post.1"])

    with model.intervene("resid_post.0", lambda x: x * 0):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert not torch.equal(seen[0], plain), "a thread that does not ask for it sees interventions, as ever"
    assert not torch.equal(seen[1], plain), "its own it sees in any case"
    assert torch.equal(seen[2], plain)


def test_the_next_fill_is_made_while_one_is_served() -> None:
    made, may_go_on = threading.Event(), threading.Event()

    def make(number: int) -> int:
        if number == 1:
            may_go_on.wait(5)
            made.set()
        return number

    fills = Ahead(make, lambda number: number < 2, CPU)
    assert fills.get(0) == 0
    fills.begin_next(0)
    assert not made.is_set()
    may_go_on.set()
    assert made.wait(5), "nobody asked for it yet"
    assert fills.get(1) == 1
    fills.begin_next(1)
    assert fills._next is None, "the run is over"
    assert fills.get(0) == 0, "whatever was begun"
    fills.close()


def test_it_has_as_many_threads_as_the_caller() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    fills = Ahead(lambda _: torch.get_num_threads(), lambda _: True, CPU)
    try:
        assert fills.get(0) == 2
    finally:
        torch.set_num_threads(threads)
        fills.close()


# -- failures and ends -----------------------------------------------------------------------------------------------


def test_a_failure_is_told_when_its_fill_is_due_as_what_it_is(tmp_path: Path, quiet: dict[str, Any]) -> None:
    values = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    values[:, 1] = np.where(np.arange(400) == 391, np.nan, values[:, 1])
    np.save(tmp_path / "acts.npy", values)
    settings = {"activations": str(tmp_path / "acts.npy"), "batch_tokens": 16, "buffer_tokens": 64, "seed": 0}
    told = []
    for prefetch in (False, True):
        data = opened(settings, quiet, prefetch=prefetch)
        with pytest.raises(ActivationError, match="acts holds NaN or infinity on 1 of 64 tokens of training") as error:
            list(data.train_dataloader())
        told.append((error.value.as_typed(), data.state_dict()))
        assert data.state_dict()["served_batches"] % 4 == 0
        data.teardown("fit")
    assert told[0] == told[1]


def test_an_end_gives_up_the_fill_that_is_made(
    tiny_text: Any, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = LanguageModel.capture

    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return capture(*args)

    settings = {
        **{"model": tiny_text.model, "site": "resid_post.0", "dataset": tiny_text.corpus, "context_size": 8},
        **{"batch_tokens": 16, "buffer_tokens": 1600, "val_tokens": 64, "num_workers": 0, "model_batch_tokens": 8},
    }
    data = opened(settings, quiet, prefetch=True)
    take(data.train_dataloader(), 1)
    monkeypatch.setattr(LanguageModel, "capture", slow)
    data.train_dataloader()._fills.forget()
    data.train_dataloader()._fills._begin(2)
    time.sleep(0.2)
    began = time.monotonic()
    data.on_exception(KeyboardInterrupt())
    assert time.monotonic() - began < 5, "200 passes take 10 seconds"
    assert data.state_dict()["served_batches"] == 1


def test_a_fit_that_fails_ends_the_thread(settings: dict[str, Any], quiet: dict[str, Any]) -> None:
    class Fails(SAEModule):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ValueError("mine")

    data = ActivationDataModule(**settings, prefetch=True)
    with pytest.raises(ValueError, match="mine"):
        Trainer(**quiet, max_steps=BATCHES).fit(Fails(lambda widths: TopK(widths, d_sae=16, k=2)), data)
