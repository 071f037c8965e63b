"""The stream with roles: their tokens alone, each once a fill, the same after a resume and on every rank."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.errors import refused
from helpers.streams import places, take
from lightsae.activations.corpus.mixture import open_rows
from lightsae.activations.fills import LanguageModelFills, ReadSettings
from lightsae.activations.roles import ROLES
from lightsae.activations.settings import DataSettings, MixedDataset
from lightsae.activations.stream import ActivationStream, StreamPlan
from lightsae.activations.timings import Timings
from lightsae.errors import CorpusError
from lightsae.lm import LanguageModel
from lightsae.sae import SiteRef

CONTEXT, FILL_ROWS, BLOCK, BATCH = 8, 6, 2, 12
SITE = SiteRef("tiny", "resid_post.0")
Make = Callable[..., ActivationStream]


@pytest.fixture(scope="module")
def model(tiny_text: Any) -> LanguageModel:
    return LanguageModel.from_pretrained(tiny_text.model)


@pytest.fixture
def make(tiny_text: Any, model: LanguageModel, tmp_path: Path) -> Iterator[Make]:
    talks = [
        [{"role": "user", "content": f"ask {i} " * 3}, {"role": "assistant", "content": f"say {i}"}] for i in range(300)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    (tmp_path / "t.jinja").write_text("{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}")
    opened: list[ActivationStream] = []

    def build(
        roles: tuple[str, ...] = ("assistant", "text"), rank: int = 0, world: int = 1, workers: int = 0, skip: int = 0
    ) -> ActivationStream:
        datasets = [
            MixedDataset("talks", 1.0, str(tmp_path / "talks.jsonl")),
            MixedDataset("texts", 1.0, tiny_text.corpus),
        ]
        settings = DataSettings(
            datasets=datasets, roles=list(roles), chat_template=str(tmp_path / "t.jinja"), context_size=CONTEXT,
            num_workers=workers, skip_positions=skip,
        )  # fmt: skip
        plan = StreamPlan(BATCH, FILL_ROWS * (CONTEXT - skip) // BATCH, 1000, 0, rank, world)
        reading = ReadSettings((SITE,), torch.float32, 4, skip_positions=skip, roles=roles)
        rows = open_rows(settings, model.vocabulary, "train")
        fills = LanguageModelFills(rows, {"tiny": model}, reading, plan, FILL_ROWS, BLOCK, Timings())
        opened.append(ActivationStream(fills, plan, Timings()))
        return opened[-1]

    yield build
    for stream in opened:
        stream.close()


def test_tokens_of_the_roles_are_served_and_hardly_one_twice(make: Make, model: LanguageModel) -> None:
    stream, in_fill = make(skip=1), FILL_ROWS * (CONTEXT - 1) // BATCH
    batches = take(stream, 4 * in_fill)
    for batch in batches:
        assert batch.roles is not None
        assert {ROLES[role] for role in batch.roles.tolist()} <= {"assistant", "text"}
        assert batch.positions.min() >= 1
    for start in range(0, len(batches), in_fill):
        served = places(batches[start : start + in_fill])
        # A fill may lack up to a row's tokens of what its batches take.
        assert len(set(served)) >= len(served) - CONTEXT
    blocks = [set(places(batches[start : start + 2 * in_fill])) for start in (0, 2 * in_fill)]
    assert not blocks[0] & blocks[1]
    assert max(row for row, _ in blocks[0]) > BLOCK * FILL_ROWS, "talks take more rows than tokens of all roles would"


def test_each_token_comes_with_its_own_activation(make: Make, model: LanguageModel) -> None:
    stream = make()
    source = make().source
    assert isinstance(source, LanguageModelFills)
    rows = source.rows.take(80)
    assert rows.roles is not None
    assert rows.datasets is not None
    for batch in take(stream, 6):
        numbers, positions = batch.rows.numpy(), batch.positions.numpy()
        assert batch.roles is not None
        assert batch.datasets is not None
        assert np.array_equal(batch.tokens.numpy(), rows.tokens[numbers, positions])
        assert np.array_equal(batch.roles.numpy(), rows.roles[numbers, positions])
        assert np.array_equal(batch.datasets.numpy(), rows.datasets[numbers])
        captured = model.capture(torch.from_numpy(rows.tokens[numbers].astype(np.int64)), [SITE.site])[SITE.site]
        expected = captured[torch.arange(BATCH), batch.positions]
        torch.testing.assert_close(batch.activations[SITE], expected.clone(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop", [0, 3, 8, 9])
def test_a_resumed_stream_goes_on_with_the_same_batches(make: Make, stop: int) -> None:
    whole = take(make(), 20)
    first = make()
    take(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    second = make(workers=2)
    second.load_state_dict(state)
    for a, b in zip(take(second, 20 - stop), whole[stop:], strict=True):
        assert a.index == b.index
        assert torch.equal(a.activations[SITE], b.activations[SITE])
        for name in ("tokens", "positions", "documents", "rows", "special", "roles", "datasets"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_ranks_share_no_row(make: Make) -> None:
    rows = [{row for row, _ in places(take(make(rank=rank, world=2), 8))} for rank in (0, 1)]
    assert not rows[0] & rows[1]


def test_roles_that_nobody_has(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightsae.activations.corpus.mixture._HOPELESS", 10_000)
    with refused(CorpusError, r"roles: there is no token of tool in 96 rows of text"):
        take(make(roles=("tool",)), 1)
