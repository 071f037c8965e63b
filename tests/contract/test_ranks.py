"""Two processes with half of a batch each train as one process does with all of it: every variant, to rounding."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contract.test_variants import CASES, TRAINED, F, T
from lightsae.callbacks.resampling import resample
from lightsae.metrics import LatentFrequencies, ReconstructionStatistics
from lightsae.sae import LatentUsage, SparseAutoencoder
from lightsae.sae.ranks import among_largest, one_batch, over_ranks
from lightsae.training.entries import merge_coefficients
from lightsae.training.optimiser import normalise_gradients

STEPS, WORLD = 4, 2
# Dead from the start, so that AuxK and `pre_act` have something to do, and one that is resampled.
DEAD, RESAMPLED = [1, 7, 30], 7
# Whatever fires is decided by float64, so that no sum's order of terms decides it.
CLOSE = {"rtol": 1e-7, "atol": 1e-9}


def batches(sae: SparseAutoencoder) -> list[dict[Any, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    widths = {**sae.widths.read, **sae.widths.predicted}
    features = {site: torch.randn(60, width, generator=draw, dtype=torch.float64) for site, width in widths.items()}
    made = []
    for _ in range(STEPS):
        strengths = (torch.randn(T, 60, generator=draw, dtype=torch.float64) - 1).relu()
        made.append({site: strengths @ of_site + 2 for site, of_site in features.items()})
    return made


def read_and_predicted(sae: SparseAutoencoder, batch: dict[Any, Tensor], share: slice) -> list[Tensor]:
    places = (sae.widths.read, sae.widths.predicted)
    return [torch.cat([batch[site][share] for site in sites], dim=1) for sites in places]


def trained(name: str, share: slice) -> dict[str, Any]:
    """Train as `SAEModule` does on a share of every batch's tokens; return losses, weights and all that is measured."""
    torch.manual_seed(0)
    sae = CASES[name]().double()
    whole = batches(sae)
    # As a run has it: rank 0's start is that of all.
    sae.start_from(whole[0], "sqrt_d")
    sae.double()
    usage = LatentUsage(F, dead_after=3 * T)
    usage.known_dead[DEAD] = True
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    coefficients = merge_coefficients(sae)
    losses = []
    for step, batch in enumerate(whole):
        sae.progress = step / STEPS
        read, predicted = (
            torch.cat([batch[site][share] for site in sites], dim=1)
            for sites in (sae.widths.read, sae.widths.predicted)
        )
        with one_batch():
            output = sae(read)
            terms = sae.loss_terms(predicted, output, usage)
        loss = torch.stack([coefficients[term].value * value for term, value in terms.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        for parameter in sae.parameters():
            over_ranks(parameter.grad, "mean")  # what DDP does
        usage.observe(output.latents)
        sae.observe(output)
        sae.before_step()
        normalise_gradients(sae.parameters())
        optimizer.step()
        sae.commit()
        usage.commit()
        losses.append(over_ranks(loss.detach().clone(), "mean"))
        if step == 1 and not sae.mechanism.has_auxk:
            drawn = torch.ones(1, sae.d_in, dtype=torch.float64), torch.ones(1, sae.d_out, dtype=torch.float64)
            resample(sae, optimizer, torch.tensor([RESAMPLED]), drawn, live=~usage.dead)
            usage.revive(torch.tensor([RESAMPLED]))
    sae.eval()
    statistics, frequencies = ReconstructionStatistics(sae.d_out), LatentFrequencies(F)
    for batch in whole:
        read, predicted = (
            torch.cat([batch[site][share] for site in sites], dim=1)
            for sites in (sae.widths.read, sae.widths.predicted)
        )
        output = sae(read)
        latents = output.dense_latents()
        statistics.update(predicted, output.x_hat, (latents > 0).sum(1), torch.zeros(len(read), dtype=torch.bool))
        frequencies.update((latents > 0).sum(0), len(read))
    figures = statistics.compute() | frequencies.compute()
    return {
        "losses": torch.stack(losses),
        **{f"figures.{key}": torch.as_tensor(value) for key, value in figures.items()},
        **{key: value.detach().clone() for key, value in sae.state_dict().items()},
        **{f"usage.{key}": value.clone() for key, value in usage.named_buffers()},
    }


def run_on_ranks(work: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what `work(rank, *args)` gives in two processes that know each other."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_rank, args=(rank, folder, work, args)) for rank in range(WORLD)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
        results = [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(WORLD)]
    for result in results:
        if isinstance(result, str):
            pytest.fail(result)
    return results


def _rank(rank: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    store = torch.distributed.FileStore(str(Path(folder, "store")), WORLD)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    try:
        result = work(rank, *args)
    except BaseException:
        result = traceback.format_exc()
    torch.save(result, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def _all_variants(rank: int) -> dict[str, dict[str, Any]]:
    # Not halves that follow each other: what one of them knows is not what the other one needs.
    return {name: trained(name, slice(rank, None, WORLD)) for name in TRAINED}


@pytest.fixture(scope="module")
def halves() -> list[dict[str, dict[str, Any]]]:
    return run_on_ranks(_all_variants)


@pytest.mark.parametrize("name", TRAINED)
def test_two_halves_are_one_batch(name: str, halves: list[dict[str, dict[str, Any]]]) -> None:
    whole = trained(name, slice(None))
    for half in halves:
        for key, value in whole.items():
            torch.testing.assert_close(half[name][key], value, **CLOSE, msg=lambda m, key=key: f"{name}, {key}: {m}")


@pytest.mark.parametrize("name", TRAINED[:3])
def test_what_is_measured_is_the_same_on_both_ranks(name: str, halves: list[dict[str, dict[str, Any]]]) -> None:
    first, second = (half[name] for half in halves)
    assert all(torch.equal(first[key], second[key]) for key in first)


def _largest(rank: int, values: Tensor, counts: list[int]) -> list[Tensor]:
    with one_batch():
        return [among_largest(values[rank::WORLD], count) for count in counts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_largest_of_all_ranks(dtype: torch.dtype) -> None:
    """As many as asked for, ties too, and none that is not positive."""
    values = torch.randn(999, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[::7] = values.max() / 2
    positive = int((values > 0).sum())
    counts = [1, 10, 150, positive, positive + 10]
    kept = run_on_ranks(_largest, values, counts)
    for place, count in enumerate(counts):
        mask = torch.empty(len(values), dtype=torch.bool)
        for rank in range(WORLD):
            mask[rank::WORLD] = kept[rank][place]
        expected = values.double().sort(descending=True).values[: min(count, positive)]
        assert torch.equal(values[mask].double().sort(descending=True).values, expected)
