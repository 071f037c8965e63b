"""Floating-point operations of a forward pass, counted on shapes alone."""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lightsae.lm.description import ModelDescription
from lightsae.lm.hooks import capture, no_cache
from lightsae.lm.load import on_shapes

# Of the kernels of attention the counter knows those of GPUs, and shapes are on the CPU.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
}


def flops_per_token(model: ModelDescription, sites: Sequence[str], context: int) -> int:
    """Return the FLOPs per token of a pass over rows of `context` tokens; a product of (T, D) with (D, F) counts 2TDF.

    Args:
        model: From `describe`: it has no weights.
        sites: The pass stops at the last of them; with none, it is that of the whole model.
        context: Tokens in a row.
    """
    mode = model.shapes_only
    assert mode is not None, "a loaded model would compute"
    wanted = [model.site(name) for name in sites]
    with on_shapes(mode), torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        tokens = torch.zeros(1, context, dtype=torch.long)
        if wanted:
            capture(model.model, tokens, wanted)
        else:
            model.model(tokens, **no_cache(model.model))
    return int(counter.get_total_flops()) // context
