"""Where a language model can be read and written: portable site names, module paths, and how they are found.

A site is a module's input or output, one vector a token. Portable names (L counts layers from 0):

    resid_pre.L    the residual stream entering block L: the block's input
    attn_z.L       the heads' outputs, joined: the input of attention's output projection
    attn_out.L     what attention, softmax or linear, adds to the residual stream
    mixer_out.L    what a state-space mixer (Mamba) adds to the residual stream
    mlp_in.L       what the MLP, or the mixture of experts, reads, after its norm
    mlp_act.L      the neurons: the input of the down projection; act(gate) * up in gated MLPs
    mlp_out.L      what the MLP, or the mixture of experts, adds to the residual stream
    resid_post.L   the residual stream leaving block L: the block's output

`lightsae.lm.families` says which of them an architecture has. A mixture of experts has no `mlp_act`: its neurons are
other ones at each token. Pre-norm models satisfy resid_pre + attn_out + mixer_out + mlp_out == resid_post, also where
attention and MLP run in parallel (GPT-NeoX, Phi, Cohere). Gemma 2 and 3, OLMo 2 and GLM-4 normalise before they add;
attn_out and mlp_out come after that norm. Granite multiplies what it adds by a number, outside every module: there
attn_out and mlp_out are the module's output times that number (`Site.scale`). Post-norm models (BERT, OPT-350m)
normalise the sum: attn_out and mlp_out are still what is added, mlp_in is norm(resid_pre + attn_out) and resid_post is
norm(mlp_in + mlp_out).

Anything else is a module path of the Hugging Face model followed by `.input` or `.output`, such as
`transformer.h.6.mlp.act.output`. Of a module that takes or returns several values the first is meant. A norm has
`.normalised`, too: its output before gain and bias (`lightsae.lm.norms`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightsae.errors import SiteError, arg, did_you_mean
from lightsae.lm.families import FAMILIES, Family
from lightsae.lm.norms import is_norm

SIDES = ("input", "output", "normalised")
# In the order of computation.
PORTABLE = ("resid_pre", "attn_z", "attn_out", "mixer_out", "mlp_in", "mlp_act", "mlp_out", "resid_post")
# What is added to the stream. Some architectures multiply it outside of every module (`Family.branch_scale`).
_ADDED = ("attn_out", "mixer_out", "mlp_out")


@dataclass(frozen=True)
class SiteInfo:
    """A site as it is listed for a user: `path` is the module's path in the model, `side` is one of `SIDES`.

    `scale` is what the module's output is multiplied by; 1 but for what some architectures add to the stream.
    """

    name: str
    width: int
    path: str
    side: str
    scale: float = 1.0


@dataclass(frozen=True)
class AbsentSite:
    """A portable name that some layers lack: their numbers, ascending, and why."""

    kind: str
    layers: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Site:
    """A site found in a model. `layer` is the block it lies in, None outside the blocks or where they are unknown.

    The activations are what the module takes or returns, times `scale`.
    """

    name: str
    module: nn.Module
    path: str
    side: str
    layer: int | None
    scale: float = 1.0


def family_of(model: Any) -> Family | None:
    """Return where a transformers model has its portable sites; None where its architecture is not known."""
    family = FAMILIES.get(model.config.model_type)
    # Code from a model's repository may call its architecture by a known name and build it in its own way.
    return family if family and path_in_body(model, family.blocks) is not None else None


def portable_names(model: Any) -> list[str]:
    """Every portable name of the blocks in memory, layer by layer, in the order of computation.

    None for unknown architectures. Where blocks differ, each has its own.
    """
    family = family_of(model)
    if family is None:
        return []
    return [
        f"{kind}.{layer}"
        for layer, block in enumerate(_blocks(model, family))
        for kind in PORTABLE
        if _path_in(block, family, kind) is not None
    ]


def absent_sites(model: Any) -> list[AbsentSite]:
    """Return the portable names that layers in memory lack, but those that are of another kind of model altogether.

    A model without state-space mixers is not said to lack them.
    """
    family = family_of(model)
    if family is None:
        return []
    found = []
    blocks = _blocks(model, family)
    for kind in PORTABLE:
        layers = tuple(n for n, block in enumerate(blocks) if _path_in(block, family, kind) is None)
        if layers and not (kind == "mixer_out" and not family.mixer_out):
            found.append(AbsentSite(kind, layers, _why_absent(blocks[layers[0]], family, kind)))
    return found


def find_site(model: Any, name: str, *, model_name: str, n_layers: int) -> Site:
    """Find the module and side that a site's name stands for.

    Args:
        model: A transformers model.
        name: Portable name or module path with `.input` / `.output` / `.normalised`.
        model_name: The model as the user wrote it, for messages.
        n_layers: Layers of the whole model; `model` may hold fewer.

    Raises:
        SiteError: There is no such site; the message suggests the nearest, or says why the block lacks it.
    """
    family = family_of(model)
    listing = f"List them: lightsae sites {model_name}"
    named = f"{arg('site')} is {name!r}"
    scale = 1.0
    portable = re.fullmatch(rf"({'|'.join(PORTABLE)})\.(\d+)", name)
    if portable and family is None:
        raise SiteError(
            f"{named}, but portable names are not known for {model_name!r} (model_type {model.config.model_type!r}). "
            "Write a module path, such as 'model.layers.0.mlp.output'. The guide lists the architectures with names."
        )
    if portable and family:
        kind, layer = portable[1], int(portable[2])
        if layer >= n_layers:
            raise SiteError(
                f"{named}, but {model_name!r} has layers 0..{n_layers - 1}. "
                f"Did you mean '{kind}.{n_layers - 1}'? {listing}"
            )
        blocks = _blocks(model, family)
        if layer >= len(blocks):
            raise SiteError(f"{named}, above the part of {model_name!r} that was loaded. Load it with this site.")
        inside = _path_in(blocks[layer], family, kind)
        if inside is None:
            there = ", ".join(other for other in PORTABLE if _path_in(blocks[layer], family, other) is not None)
            raise SiteError(
                f"{named}, which layer {layer} of {model_name!r} lacks: {_why_absent(blocks[layer], family, kind)}. "
                f"It has {there}, and module paths. {listing}"
            )
        path, _, side = f"{_blocks_path(model, family)}.{layer}.{inside}".rpartition(".")
        if family.branch_scale and kind in _ADDED:
            scale = float(getattr(model.config.get_text_config(), family.branch_scale))
    else:
        path, _, side = name.rpartition(".")

    module = _find_module(model, path) if path and side in SIDES else None
    if module is None:
        known = portable_names(model)
        known += [f"{p}.{s}" for p, _ in model.named_modules() if p for s in ("output", "input")]
        has_no_side = name and _find_module(model, name) is not None
        hint = f" Did you mean '{name}.output'?" if has_no_side else did_you_mean(name, known)
        raise SiteError(f"{named}, which {model_name!r} does not have.{hint} {listing}")
    if side == "normalised" and not is_norm(module):
        what = type(module).__name__
        raise SiteError(f"{named}, and only a norm has that side; {path!r} is a {what}. Write '{path}.output'.")
    path = next(p for p, m in model.named_modules() if m is module)
    return Site(name, module, path, side, _layer_of(model, family, path), scale)


def blocks_before(model: Any, sites: Sequence[Site]) -> list[nn.Module]:
    """Return the blocks whose outputs no site can change: those before the first of them; none where that is unknown.

    A block whose output is the site is one of them: it computes the same whatever is then put in the output's place.
    """
    family = family_of(model)
    if family is None:
        return []
    blocks = _blocks(model, family)
    whole = [
        0 if site.layer is None else site.layer + (site.side == "output" and site.module is blocks[site.layer])
        for site in sites
    ]
    return list(blocks[: min(whole, default=0)])


def path_in_body(model: Any, path: str) -> str | None:
    """Return the path from `model` of a module that has this path in the base model; None where it has no such module.

    `model` may be the base model or one with a head around it.
    """
    bodies = [f"{model.base_model_prefix}."] if model.base_model is not model else ["", "model."]
    # The last is Llama 4's, whose model with a head does not find its body by `base_model_prefix`.
    return next((f"{body}{path}" for body in bodies if _has_module(model, f"{body}{path}")), None)


def _blocks_path(model: Any, family: Family) -> str:
    path = path_in_body(model, family.blocks)
    assert path is not None  # `family_of` has found it
    return path


def _blocks(model: Any, family: Family) -> nn.ModuleList:
    blocks = model.get_submodule(_blocks_path(model, family))
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _path_in(block: nn.Module, family: Family, kind: str) -> str | None:
    """Return the path, with its side, of a portable site in a block; None where the block has none."""
    # The block itself has an empty path.
    return next((path for path in family.paths(kind) if _has_module(block, path.rpartition(".")[0])), None)


def _why_absent(block: nn.Module, family: Family, kind: str) -> str:
    if kind == "mlp_act" and _path_in(block, family, "mlp_in") is not None:
        return "its MLP is a mixture of experts, whose neurons are other ones at each token"
    missing = {"attn": "attention", "mixer": "state-space mixer", "mlp": "MLP"}
    return f"it has no {missing[kind.partition('_')[0]]}"


def _has_module(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _layer_of(model: Any, family: Family | None, path: str) -> int | None:
    if family is None:
        return None
    inside = re.match(rf"{re.escape(_blocks_path(model, family))}\.(\d+)(\.|$)", path)
    return int(inside[1]) if inside else None


def _find_module(model: Any, path: str) -> nn.Module | None:
    # Without its head (a truncated load) a model has no prefix, but the user's path is that of the whole model.
    for root, sub_path in ((model, path), (model.base_model, path.removeprefix(f"{model.base_model_prefix}."))):
        try:
            return root.get_submodule(sub_path)  # type: ignore[no-any-return]
        except AttributeError:
            continue
    return None
