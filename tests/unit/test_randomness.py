"""Draws depend on seed, purpose and step, and on nothing else."""

import subprocess
import sys

import torch

from lightsae.randomness import keyed_generator


def draw(*key: object) -> list[int]:
    return torch.randint(2**40, (4,), generator=keyed_generator(*key)).tolist()


def test_the_same_key_gives_the_same_draws() -> None:
    assert draw(1, "rows", 5) == draw(1, "rows", 5)


def test_every_part_of_the_key_matters() -> None:
    keys = [
        (0, "rows", 0),
        (1, "rows", 0),
        (0, "rows", 1),
        (0, "row", 0),
        (0, "rows/0", 0),
        (10, "rows", 0),
        (1, "0/rows", 0),
    ]
    draws = [tuple(draw(*key)) for key in keys]
    assert len(set(draws)) == len(keys)


def test_neighbouring_steps_are_unrelated() -> None:
    orders = torch.stack([torch.randn(500, generator=keyed_generator(0, "x", step)) for step in range(20)])
    correlations = torch.corrcoef(orders) - torch.eye(20)
    assert correlations.abs().max() < 0.25


def test_it_neither_reads_nor_moves_the_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = draw(1, "rows", 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert draw(1, "rows", 5) == first


def test_another_process_draws_the_same() -> None:
    # Python's own hash of strings differs from process to process; a checkpoint must not.
    code = (
        "import torch; from lightsae.randomness import keyed_generator; "
        "print(torch.randint(2**40, (4,), generator=keyed_generator(1, 'rows', 5)).tolist())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(draw(1, "rows", 5))
