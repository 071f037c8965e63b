"""What `fit` and `validate` say before they begin: five lines, one of them for all SAEs of a sweep."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.markup import escape

from lightsae.callbacks.base import run_folder
from lightsae.compat import data_ranks
from lightsae.errors import listed
from lightsae.formats.files import shown
from lightsae.lm.dtypes import dtype_name, speed_of_bfloat16
from lightsae.sae import SparseAutoencoder

# Sites that are named before the rest is counted.
_NAMED = 4


@rank_zero_only
def announce(
    command: str, config: Any, trainer: Trainer, saes: Mapping[str, SparseAutoencoder], dtype: torch.dtype
) -> None:
    """Print what the command is about to do.

    Args:
        command: `fit` or `validate`.
        config: The settings, parsed.
        trainer: Made from them, not started.
        saes: The SAEs of the run, by name; their weights are not looked at.
        dtype: Of the language model, as the data module chose it.
    """
    data = config.data
    goes_on = command == "fit" and config.ckpt_path is not None
    reads = data.activations is None and data.cache is None and data.dataset != "synthetic"
    lines = {
        "SAE" if len(saes) == 1 else "SAEs": _sae(saes),
        "site": _sites(saes),
        "text" if reads else "data": f"{_source(data)}: {_length(command, data, trainer)}",
        "device": f"{_device(trainer)}, {trainer.precision}",
        "run": f"{shown(run_folder(trainer))}/",
    }
    if reads:
        lines["device"] += f"; language model in {dtype_name(dtype)}"
        lines["device"] += _why(trainer, goes_on) if data.dtype == "auto" else ""
    if config.ckpt_path is not None:
        lines["run"] += f", {'goes on from' if goes_on else 'measures'} {shown(config.ckpt_path)}"
    console = Console()
    for name, words in lines.items():
        # However long, as one line: a log file has no width.
        console.print(f"[dim]{name:<8}[/dim]{escape(words)}", soft_wrap=True, highlight=False)


def _sae(saes: Mapping[str, SparseAutoencoder]) -> str:
    latents, widths = _span(sae.d_sae for sae in saes.values()), _span(sae.d_in for sae in saes.values())
    if len(saes) > 1:
        variants = Counter(type(sae).__name__ for sae in saes.values())
        kinds = ", ".join(f"{number} {variant}" for variant, number in variants.items())
        return f"{kinds}; {latents} latents at width {widths}"
    sae = next(iter(saes.values()))
    variant, mechanism = type(sae).__name__, type(sae.mechanism).__name__
    k = getattr(sae.mechanism, "k", None)
    return (
        variant
        + (f" of {mechanism}" if mechanism.removesuffix("Mechanism") != variant else "")
        + f", {latents} latents at width {widths}"
        + (f", k {k}" if k is not None else "")
    )


def _sites(saes: Mapping[str, SparseAutoencoder]) -> str:
    by_model: dict[str, dict[str, None]] = {}
    for sae in saes.values():
        read, predicted = list(sae.widths.read), list(sae.widths.predicted)
        for site in read if read == predicted else [*read, *predicted]:
            words = f"{site.site} (predicted)" if site not in read else site.site
            by_model.setdefault(site.model, {})[words] = None
    return "; ".join(
        listed(list(sites), _NAMED) + (f" of {model}" if model else "") for model, sites in by_model.items()
    )


def _source(data: Any) -> str:
    if data.activations is not None:
        return str(shown(data.activations))
    if data.cache is not None:
        return f"cache {shown(data.cache)}"
    if data.dataset == "synthetic":
        return "synthetic features"
    text = data.dataset or ", ".join(part.name for part in data.datasets)
    return f"{text}, rows of {data.context_size} tokens"


def _length(command: str, data: Any, trainer: Trainer) -> str:
    if command == "validate":
        return f"{data.val_tokens:,} held-out tokens"
    per_step = data.batch_tokens * data_ranks(trainer)[1] * trainer.accumulate_grad_batches
    if trainer.max_steps > 0:
        steps = trainer.max_steps
    elif data.training_tokens is not None:
        steps = max(1, data.training_tokens // per_step)
    else:
        return f"{trainer.max_epochs} epochs, {per_step:,} tokens per step"
    return f"{steps * per_step:,} tokens in {steps:,} steps of {per_step:,}"


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    number = trainer.num_devices * trainer.num_nodes
    return f"{number} x {name}" if number > 1 else name


def _why(trainer: Trainer, goes_on: bool) -> str:
    """Say why `auto` is the dtype that it is."""
    if goes_on:
        return ", as before"
    return f" ({speed_of_bfloat16()})" if trainer.strategy.root_device.type == "cpu" else ""


def _span(values: Iterable[int]) -> str:
    least, *_, most = sorted(2 * list(values))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
