"""The stream over a language model: every token once a fill, the same after a resume, whatever the workers do."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.errors import refused
from helpers.streams import places, take
from lightsae.activations.batch import ActivationBatch, check_finite, with_sinks
from lightsae.activations.corpus.rows import RowSource
from lightsae.activations.fills import LanguageModelFills, ReadSettings, validation_rows
from lightsae.activations.settings import DataSettings
from lightsae.activations.stream import (
    ActivationStream,
    Fill,
    Process,
    StreamPlan,
)
from lightsae.activations.timings import Timings
from lightsae.errors import ActivationError
from lightsae.lm import LanguageModel
from lightsae.sae import SiteRef

CONTEXT, FILL_ROWS, BLOCK = 8, 4, 3
SITES = ("resid_post.0", "mlp_out.1")
REFS = tuple(SiteRef("tiny", site) for site in SITES)
HERE = SiteRef("m", "here")
NOWHERE = torch.full((12,), -1)  # the positions of activations that come from no text


@pytest.fixture(scope="module")
def model(tiny_text: Any) -> LanguageModel:
    return LanguageModel.from_pretrained(tiny_text.model)


Make = Callable[..., ActivationStream]


@pytest.fixture
def make(tiny_text: Any, model: LanguageModel) -> Iterator[Make]:
    """Build a stream: fills of 4 rows of 8 tokens, blocks of 3 fills, batches of 10."""
    opened: list[ActivationStream] = []

    def build(
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        batch: int = 10,
        skip_special: bool = False,
        skip_positions: int = 0,
        rows_at_once: int = 3,
        prepend_bos: bool | None = None,
        total: int = 1000,
        dtype: torch.dtype = torch.float32,
    ) -> ActivationStream:
        config = DataSettings(
            dataset=tiny_text.corpus, context_size=CONTEXT, num_workers=num_workers, prepend_bos=prepend_bos
        )
        plan = StreamPlan(batch, FILL_ROWS * (CONTEXT - skip_positions) // batch, total, seed, rank, world)
        reading = ReadSettings(REFS, dtype, rows_at_once, skip_special, skip_positions)
        rows = RowSource(config, model.vocabulary, "train")
        fills = LanguageModelFills(rows, {"tiny": model}, reading, plan, FILL_ROWS, BLOCK, Timings())
        opened.append(ActivationStream(fills, plan, Timings()))
        return opened[-1]

    yield build
    for stream in opened:
        stream.close()


def same(a: ActivationBatch, b: ActivationBatch) -> bool:
    names = ("tokens", "positions", "documents", "rows", "special")
    return (
        a.index == b.index
        and all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)
        and a.activations.keys() == b.activations.keys()
        and all(torch.equal(a.activations[site], b.activations[site]) for site in a.activations)
        and a.sinks.keys() == b.sinks.keys() == a.activations.keys()
        and all(torch.equal(a.sinks[site], b.sinks[site]) for site in a.sinks)
    )


# -- what is served --------------------------------------------------------------------------------------------------


def test_a_fill_is_served_once_but_for_the_ragged_end(make: Make) -> None:
    stream = make()
    for _ in range(7):
        served = places(take(stream, 3))
        assert len(set(served)) == len(served) == 30  # of 32 tokens
        assert len({row for row, _ in served}) == FILL_ROWS
        assert served != sorted(served)


def test_nothing_is_lost_where_batches_divide_the_fill(make: Make) -> None:
    stream = make(batch=8)
    served = places(take(stream, 4 * 2 * BLOCK))
    expected = {(row, position) for row in range(2 * BLOCK * FILL_ROWS) for position in range(CONTEXT)}
    assert len(served) == len(expected)
    assert set(served) == expected


def test_blocks_mix_rows_and_go_on_in_the_order_of_the_corpus(make: Make) -> None:
    stream = make(batch=8)
    per_block = 4 * BLOCK
    for block in range(3):
        rows = {row for row, _ in places(take(stream, per_block))}
        assert rows == set(range(block * BLOCK * FILL_ROWS, (block + 1) * BLOCK * FILL_ROWS))
    first_fill = {row for row, _ in places(take(make(batch=8), 4))}
    assert first_fill != {0, 1, 2, 3}


def test_each_token_comes_with_its_own_activation(make: Make, model: LanguageModel, tiny_text: Any) -> None:
    config = DataSettings(dataset=tiny_text.corpus, context_size=CONTEXT, num_workers=0)
    source = RowSource(config, model.vocabulary, "train")
    rows = source.take(2 * BLOCK * FILL_ROWS)
    source.close()
    for batch in take(make(), 18):
        numbers, positions = batch.rows.numpy(), batch.positions.numpy()
        assert np.array_equal(batch.tokens.numpy(), rows.tokens[numbers, positions])
        assert np.array_equal(batch.documents.numpy(), rows.documents[numbers, positions])
        captured = model.capture(torch.from_numpy(rows.tokens[numbers].astype(np.int64)), list(SITES))
        for site in SITES:
            expected = captured[site][torch.arange(10), batch.positions]
            torch.testing.assert_close(batch.activations[SiteRef("tiny", site)], expected.clone(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_rows_of_one_forward_pass_do_not_matter(make: Make, rows_at_once: int) -> None:
    for a, b in zip(take(make(), 7), take(make(rows_at_once=rows_at_once), 7), strict=True):
        assert places([a]) == places([b])
        for site in a.activations:
            torch.testing.assert_close(a.activations[site], b.activations[site], rtol=1e-4, atol=1e-5)


def test_what_is_served_can_meet_autograd_and_outlives_the_fill(make: Make) -> None:
    stream = make()
    (batch,) = take(stream, 1)
    site, values = next(iter(batch.activations.items()))
    kept = values.clone()
    take(stream, 20)
    assert torch.equal(batch.activations[site], kept)
    weight = torch.ones(values.shape[1], requires_grad=True)
    (values @ weight).sum().backward()
    assert weight.grad is not None


def test_batches_are_numbered_through_the_run(make: Make) -> None:
    assert [batch.index for batch in take(make(), 14)] == list(range(14))


def test_every_fill_has_an_order_of_its_own(make: Make) -> None:
    stream = make(batch=8)
    orders = [tuple(position for _, position in places(take(stream, 4))) for _ in range(5)]
    assert len(set(orders)) == 5


# -- the schedule follows from shared numbers ------------------------------------------------------------------------


def test_ranks_share_no_row_and_cover_the_block(make: Make) -> None:
    ranks = [make(rank=rank, world=2, batch=8) for rank in (0, 1)]
    for block in range(2):
        rows = [{row for row, _ in places(take(stream, 4 * BLOCK))} for stream in ranks]
        assert not rows[0] & rows[1]
        size = 2 * BLOCK * FILL_ROWS
        assert rows[0] | rows[1] == set(range(block * size, (block + 1) * size))


def test_the_state_of_one_rank_serves_every_other(make: Make) -> None:
    # Lightning keeps only rank 0's state.
    zero, one = make(rank=0, world=2), make(rank=1, world=2)
    take(zero, 13)
    whole = take(one, 25)
    resumed = make(rank=1, world=2)
    resumed.load_state_dict(zero.state_dict())
    assert all(same(a, b) for a, b in zip(take(resumed, 12), whole[13:], strict=True))


def test_seeds_repeat_and_differ(make: Make) -> None:
    first, again, other = (places(take(make(seed=seed), 12)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_workers_do_not_matter(make: Make) -> None:
    assert all(same(a, b) for a, b in zip(take(make(), 20), take(make(num_workers=2), 20), strict=True))


def test_the_global_generator_does_not_matter_and_is_not_moved(make: Make) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = take(make(), 10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(same(a, b) for a, b in zip(first, take(make(), 10), strict=True))


# -- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 8, 9, 10, 17, 18, 19, 40])
def test_a_resumed_stream_goes_on_with_the_same_batches(make: Make, stop: int) -> None:
    whole = take(make(), 50)
    first = make()
    take(first, stop)
    state = first.state_dict()
    assert state["served_batches"] == stop
    second = make(num_workers=2 if stop in (2, 17) else 0)
    second.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(take(second, 50 - stop), whole[stop:], strict=True))


def test_resumed_twice(make: Make) -> None:
    whole = take(make(), 40)
    state, served = make().state_dict(), []
    for count in (5, 9, 1, 25):
        stream = make()
        stream.load_state_dict(state)
        served += take(stream, count)
        state = stream.state_dict()
    assert all(same(a, b) for a, b in zip(served, whole, strict=True))


def test_a_stream_in_use_can_be_set_back(make: Make) -> None:
    stream = make()
    take(stream, 4)
    state = stream.state_dict()
    after = take(stream, 20)
    stream.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(take(stream, 20), after, strict=True))


def test_looking_at_the_sample_changes_nothing(make: Make) -> None:
    whole = take(make(), 12)
    stream = make()
    assert len(stream.sample()) == FILL_ROWS * CONTEXT
    served = take(stream, 4)
    _ = stream.sample()
    assert all(same(a, b) for a, b in zip([*served, *take(stream, 8)], whole, strict=True))


def test_the_state_is_small_and_plain(make: Make) -> None:
    stream = make()
    take(stream, 20)
    plain = (str, int, float, bool, type(None))

    def size(value: Any) -> int:
        if isinstance(value, dict):
            return sum(size(k) + size(v) for k, v in value.items())
        if isinstance(value, list):
            return sum(size(v) for v in value)
        assert type(value) in plain, type(value)
        return 1

    assert size(stream.state_dict()) < 60


# -- iteration -------------------------------------------------------------------------------------------------------


def test_an_epoch_ends_after_its_length_and_the_next_goes_on(make: Make) -> None:
    whole = take(make(), 14)
    stream = make(total=7)
    assert len(stream) == 7
    first, second = list(stream), list(stream)
    assert [b.index for b in first + second] == list(range(14))
    assert all(same(a, b) for a, b in zip(first + second, whole, strict=True))


def test_resumed_within_an_epoch_it_serves_the_rest(make: Make) -> None:
    first = make(total=7)
    take(first, 5)
    second = make(total=7)
    second.load_state_dict(first.state_dict())
    assert [b.index for b in second] == [5, 6]


def test_no_block_is_read_that_the_run_does_not_need(make: Make) -> None:
    stream = make(total=9)  # 3 fills of 3 batches: one block
    list(stream)
    assert stream.source._next is None


# -- what is left out ------------------------------------------------------------------------------------------------


def test_skipped_positions_are_never_served(make: Make) -> None:
    stream = make(skip_positions=3, batch=5)
    served = places(take(stream, 4 * BLOCK))
    assert len(set(served)) == len(served) == BLOCK * FILL_ROWS * 5
    assert {position for _, position in served} == {3, 4, 5, 6, 7}
    assert len(stream.sample()) == FILL_ROWS * CONTEXT, "the sample is of everything"


def test_special_tokens_are_left_out(make: Make, model: LanguageModel) -> None:
    special = set(model.special_token_ids)
    assert special == {0, 1}
    with_special = take(make(batch=4), 60)
    assert special <= {token for batch in with_special for token in batch.tokens.tolist()}
    without = take(make(batch=4, skip_special=True), 60)
    assert not special & {token for batch in without for token in batch.tokens.tolist()}
    assert not any(batch.special.any() for batch in without)
    assert all(len(batch) == 4 for batch in without)


def test_a_fill_short_of_tokens_begins_again(make: Make) -> None:
    # Each row of 8 opens with BOS: 28 tokens or fewer are left for 4 batches of 8.
    for number in range(3):
        stream = make(batch=8, skip_special=True, seed=number)
        counts = Counter(places(take(stream, 4)))
        assert sum(counts.values()) == 32
        assert max(counts.values()) == 2


def test_special_and_sinks_are_marked(make: Make, model: LanguageModel) -> None:
    for batch in take(make(), 30):
        expected = torch.tensor([token in model.special_token_ids for token in batch.tokens.tolist()])
        assert torch.equal(batch.special, expected)
        for site in REFS:
            assert (batch.sinks[site] | ~batch.special).all()
            assert (batch.sinks[site] | (batch.positions != 0)).all()


def batch_of(values: torch.Tensor, **masks: torch.Tensor) -> ActivationBatch:
    count = len(values)
    ids, no = torch.arange(count), torch.zeros(count, dtype=torch.bool)
    given = {"tokens": ids, "positions": ids % 4, "documents": ids, "rows": ids, "special": no} | masks
    return ActivationBatch({HERE: values}, **given, sinks={})


def test_sinks_by_position_by_kind_and_by_norm() -> None:
    values = torch.nn.functional.normalize(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    values[2] *= 9.9
    values[7] *= 10.1
    special = torch.zeros(12, dtype=torch.bool)
    special[5] = True
    batch = batch_of(values, special=special)
    assert with_sinks(batch).sinks[HERE].nonzero().flatten().tolist() == [0, 4, 5, 7, 8]
    assert with_sinks(replace(batch, positions=NOWHERE)).sinks[HERE].nonzero().flatten().tolist() == [5, 7]


def test_each_site_has_its_own_sinks() -> None:
    there = SiteRef("m", "there")
    batch = batch_of(torch.ones(12, 5), positions=NOWHERE)
    others = torch.ones(12, 3)
    others[7] *= 11
    both = replace(batch, activations={HERE: batch.activations[HERE], there: others})
    marked = with_sinks(both)
    assert marked.sinks[HERE].nonzero().flatten().tolist() == []
    assert marked.sinks[there].nonzero().flatten().tolist() == [7]
    assert marked.sinks_at([HERE, there]).nonzero().flatten().tolist() == [7]
    # What else is read changes nothing for a site.
    assert torch.equal(with_sinks(batch).sinks[HERE], marked.sinks[HERE])


def test_norms_of_half_precision_do_not_overflow() -> None:
    values = torch.full((12, 64), 3e4, dtype=torch.float16)
    values[3] = 100.0
    assert not with_sinks(batch_of(values, positions=NOWHERE)).sinks[HERE].any()


def test_chosen_tokens_keep_what_is_known_of_them() -> None:
    values = torch.arange(24.0).reshape(12, 2)
    sinks = torch.arange(12) == 3
    chosen = replace(batch_of(values), sinks={HERE: sinks}).take(torch.tensor([7, 3]), 5)
    assert chosen.index == 5
    assert chosen.rows_shape is None
    assert chosen.positions.tolist() == [3, 3]
    assert chosen.rows.tolist() == [7, 3]
    assert torch.equal(chosen.activations[HERE], values[[7, 3]])
    assert chosen.sinks[HERE].tolist() == [False, True]


# -- NaN and memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_name_the_site_and_the_batch(value: float, dtype: torch.dtype) -> None:
    values = torch.ones(12, 5, dtype=dtype)
    values[3, 2] = value
    with pytest.raises(ActivationError, match=r"m:here holds NaN or infinity on 1 of 12 tokens in batch 40\.") as error:
        check_finite(batch_of(values), "in batch 40")
    assert "\n" not in str(error.value)


def test_infinities_that_cancel_are_found() -> None:
    values = torch.ones(12, 5)
    values[3, 2], values[4, 2] = float("inf"), float("-inf")
    with pytest.raises(ActivationError, match="2 of 12"):
        check_finite(batch_of(values), "in batch 0")


def test_large_finite_values_pass() -> None:
    check_finite(batch_of(torch.full((12, 5), 3e38)), "in batch 0")
    check_finite(batch_of(torch.full((12, 5), 6e4, dtype=torch.float16)), "in batch 0")


def test_a_model_that_gives_nan_stops_the_stream(make: Make, model: LanguageModel) -> None:
    stream = make()
    take(stream, 5)
    with (
        model.intervene("resid_post.0", lambda x: x * float("nan")),
        refused(ActivationError, r"tiny:resid_post\.0 holds NaN .*Try data\.dtype: float32"),
    ):
        take(stream, 5)


def test_the_buffers_are_allocated_once(make: Make) -> None:
    stream = make()

    def addresses() -> list[int]:
        return [values.data_ptr() for values in stream.sample().activations.values()]

    first = addresses()
    for _ in range(5):
        take(stream, 3)
        assert addresses() == first
    assert [tuple(v.shape) for v in stream.sample().activations.values()] == [(32, 12)] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_buffer_has_the_dtype_that_is_asked_for(make: Make, dtype: torch.dtype) -> None:
    (batch,) = take(make(dtype=dtype), 1)
    assert {values.dtype for values in batch.activations.values()} == {dtype}


# -- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_serves_whole_rows_in_order(tiny_text: Any, model: LanguageModel, world: int) -> None:
    source = RowSource(
        DataSettings(dataset=tiny_text.corpus, context_size=CONTEXT, num_workers=0), model.vocabulary, "validation"
    )
    rows = source.take(7)
    source.close()
    reading = ReadSettings(REFS, torch.float32, 2, skip_special=True, skip_positions=2)
    seen: list[int] = []
    for rank in range(world):
        process = Process(REFS, model.device, torch.float32, rank, world)
        loader = validation_rows(rows, {"tiny": model}, reading, 2, process, Timings())
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch in batches:
            assert batch.rows_shape is not None
            numbers = batch.rows.reshape(batch.rows_shape)[:, 0]
            seen += numbers.tolist()
            shaped = batch.tokens.reshape(batch.rows_shape)
            assert np.array_equal(shaped.numpy(), rows.tokens[numbers.numpy()])
            assert (batch.positions.reshape(batch.rows_shape) == torch.arange(CONTEXT)).all()
    assert sorted(seen) == list(range(7 - 7 % world))


def test_a_fill_says_which_tokens_are_served(make: Make) -> None:
    fill = make(skip_positions=2, batch=4).source.fill(0)
    assert isinstance(fill, Fill)
    assert set((fill.served % CONTEXT).tolist()) == set(range(2, CONTEXT))
