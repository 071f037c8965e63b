"""Figures of groups of tokens: those of each group alone, whatever batches they come in."""

import pytest
import torch

from lightsae.callbacks.reconstruction_metrics import firings_by_group
from lightsae.metrics import GroupedReconstruction, ReconstructionStatistics
from lightsae.sae import SparseLatents


def test_each_group_has_the_figures_that_it_has_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(90, 5, generator=generator)
    x_hat = x + 0.3 * torch.randn(90, 5, generator=generator)
    latents = torch.randn(90, 7, generator=generator).relu() * (torch.arange(7) > 1)
    groups = torch.randint(0, 3, (90,), generator=generator).to(torch.uint8) + 1  # of group 0 there is none
    latents[groups == 2, 4] = 0
    sinks = torch.arange(90) % 20 == 3
    x[sinks] *= 50
    metric = GroupedReconstruction(["a", "b", "c", "d"], 5, 7)
    fired = (latents > 0).sum(1)
    for part in (slice(0, 31), slice(31, 32), slice(32, 90)):
        firings = firings_by_group(latents[part], groups[part].long(), 4)
        metric.update(x[part], x_hat[part], fired[part], firings, groups[part], sinks[part])
    figures = metric.compute()
    assert {name.partition("/")[2] for name in figures} == {"b", "c", "d"}
    for number, name in enumerate("abcd"):
        chosen = groups == number
        if not chosen.any():
            continue
        alone = ReconstructionStatistics(5)
        alone.update(x[chosen], x_hat[chosen], fired[chosen], sinks[chosen])
        for figure in ("fve", "fve_no_sinks", "l0"):
            assert figures[f"{figure}/{name}"].item() == pytest.approx(alone.compute()[figure].item(), rel=1e-6)
        dead = (latents[chosen] == 0).all(0).double().mean().item()
        assert figures[f"dead_fraction/{name}"].item() == pytest.approx(dead)
        assert figures[f"tokens/{name}"] == chosen.sum()
    assert figures["dead_fraction/c"] > figures["dead_fraction/b"]


def test_firings_of_sparse_latents_are_those_of_dense_ones() -> None:
    dense = torch.randn(40, 9, generator=torch.Generator().manual_seed(1)).relu()
    values, indices = dense.topk(4, dim=1)
    kept = torch.zeros_like(dense).scatter(1, indices, values)
    groups = torch.arange(40) % 3
    sparse = SparseLatents.from_rows(values, indices, width=9)
    assert torch.equal(firings_by_group(sparse, groups, 3), firings_by_group(kept, groups, 3))
