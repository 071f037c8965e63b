"""Write at a site: replace the activations there, for splicing, ablation and steering.

Axes: B rows, S positions, D width of the site.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightsae.errors import SiteError
from lightsae.lm.hooks import hooked
from lightsae.lm.sites import Site

Intervention = Callable[[Float[Tensor, "B S D"]], Float[Tensor, "B S D"]]


@contextmanager
def intervene(model: Any, site: Site, fn: Intervention) -> Iterator[None]:
    """While open, what `fn` returns takes the place of the activations at `site` in every forward pass.

    With a KV cache (`generate`), `fn` sees the prompt in the first call and one new position in each later one.
    The result is cast to the model's dtype. Gradients flow, unless the caller turns them off.

    Raises:
        SiteError: In the forward pass, where `fn` returns another shape than it was given.
    """

    def replace(activations: Tensor) -> Tensor:
        new = fn(activations)
        if new.shape != activations.shape:
            raise SiteError(
                f"the intervention at {site.name!r} returned shape {tuple(new.shape)}; "
                f"it was given {tuple(activations.shape)} and must keep it."
            )
        return new.to(activations.dtype)

    with hooked(model, site, replace):
        yield
