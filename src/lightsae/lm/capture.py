"""Read activations, and stop the forward pass at the last site that is read.

Axes: B rows, S positions, D width of a site.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.errors import SiteError
from lightsae.lm.hooks import hooked
from lightsae.lm.sites import Site


class _AllRead(Exception):
    """Leaves the forward pass: every site has been read."""


@torch.inference_mode()
def capture(model: Any, tokens: Int[Tensor, "B S"], sites: Sequence[Site]) -> dict[str, Float[Tensor, "B S _"]]:
    """Return the activations at each site, by name, in the order asked; dtype and device of the model.

    Modules after the last of the sites do not run. No KV cache is kept. Of a module that runs twice in a pass the first
    run counts. Interventions that are open are seen.

    Raises:
        SiteError: A site's module does not run, or does not hold one vector a token.
    """
    wanted = {site.name: site for site in sites}
    read: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[[Tensor], None]:
        def read_once(activations: Tensor) -> None:
            if name in read:
                return
            is_last = len(read) + 1 == len(wanted)
            # Whatever runs later could write into the tensor in place, so it is copied. After the last, nothing runs.
            read[name] = activations if is_last else activations.clone()
            if is_last:
                raise _AllRead

        return read_once

    with ExitStack() as stack:
        for site in wanted.values():
            stack.enter_context(hooked(model, site, reader(site.name)))
        try:
            model(tokens, **no_cache(model))
        except _AllRead:
            return {name: read[name] for name in wanted}
    missing = ", ".join(name for name in wanted if name not in read)
    raise SiteError(f"{missing}: does not run in a forward pass on tokens alone.")


def no_cache(model: Any) -> dict[str, bool]:
    """The arguments that keep a model from building a KV cache."""
    return {"use_cache": False} if hasattr(model.config.get_text_config(), "use_cache") else {}
