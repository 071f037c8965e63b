"""A language model of a run's shape with random weights, or the first blocks of it, and how long a pass takes."""

import logging
from collections.abc import Callable

import torch

from lightsae.activations.corpus.token_rows import TokenRows
from lightsae.activations.fills import ReadSettings, read_rows
from lightsae.activations.settings import DataSettings
from lightsae.activations.timings import Timings
from lightsae.estimate.plan import RunPlan
from lightsae.lm import LanguageModel, describe
from lightsae.lm.config import load_config, truncated
from lightsae.lm.description import flops_per_token
from lightsae.lm.load import random_model
from lightsae.lm.vocabulary import Vocabulary
from lightsae.sae import SiteRef

# As many blocks as have so many weights, one at the least; and as many rows as take about so many seconds.
_WEIGHTS, _SECONDS = 1 << 28, 1.0

logger = logging.getLogger(__name__)


def seconds_per_flop(
    plan: RunPlan,
    device: torch.device,
    dtype: torch.dtype,
    matrix_flops: float,
    seconds_of: Callable[[Callable[[], object]], float],
) -> float:
    """Return the seconds per FLOP of a pass of the run's main model, with all that goes from it into the buffer.

    Args:
        plan: Of the run.
        device: Where the run computes.
        dtype: Of its weights.
        matrix_flops: FLOPs per second of a product of matrices; says how many rows are enough.
        seconds_of: Times a call.
    """
    data = plan.data
    model, site, per_token = _first_blocks(data, plan, device, dtype)
    rows = max(1, data.model_batch_tokens // data.context_size)
    rows = max(1, min(rows, int(_SECONDS * matrix_flops / (per_token * data.context_size))))
    size = model.vocabulary.size or 2
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, max(3, size), (rows, data.context_size), generator=generator)
    numbers = torch.arange(rows).numpy()
    reading = ReadSettings((SiteRef(data.model, site),), dtype, rows)
    buffers: dict[SiteRef, torch.Tensor] = {}
    timings = Timings()

    def read() -> None:
        read_rows(
            {data.model: model}, TokenRows(tokens.int().numpy(), tokens.numpy()), numbers, reading, buffers, timings
        )

    return seconds_of(read) / (per_token * rows * data.context_size)


def _first_blocks(
    data: DataSettings, plan: RunPlan, device: torch.device, dtype: torch.dtype
) -> tuple[LanguageModel, str, int]:
    """Return a model of random weights, the site it is read at, and FLOPs per token up to there."""
    trust = data.trust_remote_code
    outline = describe(data.model, revision=data.model_revision, trust_remote_code=trust)
    sites = [ref.site for ref in plan.sites if ref.model == data.model]
    config = load_config(data.model, data.model_revision, trust)
    layers = [outline.site(site).layer for site in sites]
    last = max((layer for layer in layers if layer is not None), default=0)
    site = next((s for s, layer in zip(sites, layers, strict=True) if layer == last), sites[0])
    if None not in layers:
        each = sum(p.numel() for p in outline.model.parameters()) // outline.n_layers
        # The places of one block are those of all; a module's path stays as it is.
        keep = max(1, min(last + 1, _WEIGHTS // each)) if site.endswith(f".{last}") else last + 1
        config = truncated(config, keep)
        site = site.removesuffix(f".{last}") + f".{keep - 1}" if site.endswith(f".{last}") else site
    model = random_model(data.model, config, dtype, trust).to(device if data.device is None else data.device)
    loaded = LanguageModel(data.model, data.model_revision, config, model, trust, device)
    # The tokenizer might have to be fetched, and nothing is read by it here.
    loaded.vocabulary = Vocabulary(None, 0, 1, model.get_input_embeddings().num_embeddings)
    return loaded, site, flops_per_token(outline, [site], data.context_size)
