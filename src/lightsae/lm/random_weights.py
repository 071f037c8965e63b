"""A language model with random weights, the floor of what an SAE finds in a trained one: NAME@random, NAME@random-SEED.

Every parameter is drawn anew, normal, with the mean and the standard deviation of the trained one: activations keep
their sizes, and nothing that was learned is left. What a parameter becomes follows from seed and name alone, so that a
model of which a part is loaded has the weights of the whole one.

Source: Heap et al. 2025, "Sparse autoencoders can interpret randomly initialized transformers", arXiv:2501.17727, their
        re-randomised models, embeddings included.
"""

import re
from pathlib import Path
from typing import Any

import torch

from lightsae.randomness import keyed_generator

_RANDOM = re.compile(r"(?P<model>.+)@random(?:-(?P<seed>\d+))?")


def split_name(name: str) -> tuple[str, int | None]:
    """Return the model that a name stands for, and the seed of its random weights; None for the trained ones.

    A folder of that very name comes first.

    >>> split_name("openai-community/gpt2"), split_name("builtin@random"), split_name("builtin@random-3")
    (('openai-community/gpt2', None), ('builtin', 0), ('builtin', 3))
    """
    match = _RANDOM.fullmatch(name)
    if match is None or Path(name).expanduser().exists():
        return name, None
    return match["model"], int(match["seed"] or 0)


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    """Draw all parameters of a transformers model anew, in place, each with its mean and standard deviation.

    Args:
        model: On any device, whole or truncated, with or without its head.
        seed: Of the draw.
    """
    base = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        generator = keyed_generator(seed, f"random weights/{name.removeprefix(base)}")
        drawn = torch.randn(parameter.shape, generator=generator)
        trained = parameter.float()
        drawn = trained.mean() + trained.std(correction=0) * drawn.to(parameter.device)
        parameter.copy_(drawn)
