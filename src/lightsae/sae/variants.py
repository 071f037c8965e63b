"""The variants by the names that users write, `--model.sae NAME`.

A variant is a structure with a mechanism. For the plain structure (an autoencoder of one site) each mechanism gives a
variant of its own name, whose settings are the mechanism's; the other structures take a mechanism as a setting.
"""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from lightsae.sae.base import SparseAutoencoder
from lightsae.sae.crosscoder import Crosscoder
from lightsae.sae.matryoshka import Matryoshka
from lightsae.sae.mechanisms import MECHANISMS, Mechanism
from lightsae.sae.transcoder import Transcoder

_ARGS = "\n\nArgs:\n"
Kind = TypeVar("Kind")


def plain(mechanism: type[Mechanism], base: type[SparseAutoencoder] = SparseAutoencoder) -> type[SparseAutoencoder]:
    """Make the class of the plain structure with one mechanism.

    `TopK(widths, d_sae, k=32)` is `SparseAutoencoder(widths, d_sae, mechanisms.TopK(k=32))`, with `k` as an attribute.

    Args:
        mechanism: Its settings, and their part of its docstring, become the class's.
        base: What the class derives from.
    """
    shared, own = inspect.signature(SparseAutoencoder.__init__).parameters, mechanism.parameters_of()
    parameters = [shared["self"], shared["widths"], shared["d_sae"], *own, shared["refinements"]]
    signature = inspect.Signature(parameters, return_annotation=None)

    def __init__(self: SparseAutoencoder, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        settings = {parameter.name: bound.arguments[parameter.name] for parameter in own}
        for name, value in settings.items():
            setattr(self, name, value)
        widths, d_sae, refinements = (bound.arguments[name] for name in ("widths", "d_sae", "refinements"))
        SparseAutoencoder.__init__(self, widths, d_sae, mechanism(**settings), refinements)

    __init__.__qualname__ = f"{mechanism.__name__}.__init__"
    __init__.__annotations__ = {p.name: p.annotation for p in parameters[1:]} | {"return": None}
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    docs = [inspect.cleandoc(kind.__doc__ or "").partition(_ARGS) for kind in mechanism.__mro__]
    described = next((args for _, _, args in docs if args), "").splitlines()
    shared_docs = ("    widths: Given by the data.", "    d_sae: Number of latents.")
    lines = [*shared_docs, *described, "    refinements: Options beside the mechanism."]
    doc = docs[0][0] + _ARGS + "\n".join(lines)
    return type(mechanism.__name__, (base,), {"__init__": __init__, "__doc__": doc, "__module__": __name__})


VARIANTS: dict[str, type[SparseAutoencoder]] = {}
for _name, _mechanism in MECHANISMS.items():
    _parents = (VARIANTS[kind.__name__] for kind in _mechanism.__mro__[1:] if kind.__name__ in VARIANTS)
    VARIANTS[_name] = plain(_mechanism, next(_parents, SparseAutoencoder))
VARIANTS |= {kind.__name__: kind for kind in (Matryoshka, Transcoder, Crosscoder)}
# pickle, jsonargparse and `from lightsae.sae.variants import TopK` look for a class in its module.
globals().update(VARIANTS)


def trained(kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    """Return those of the variants or mechanisms that are trained; the others are opened from files alone."""
    opened = {name for name, mechanism in MECHANISMS.items() if mechanism.train_instead}
    return {name: kind for name, kind in kinds.items() if name not in opened}


if TYPE_CHECKING:

    class _Plain(SparseAutoencoder):
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    BatchTopK = _Plain
    Gated = _Plain
    GroupMax = _Plain
    JumpReLU = _Plain
    ReLU = _Plain
    TopK = _Plain
