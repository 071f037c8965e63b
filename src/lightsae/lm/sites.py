"""Where a language model can be read and written: portable site names, module paths, and the table that ties them.

A site is a module's input or output, one vector a token. Portable names (L counts layers from 0):

    resid_pre.L    the residual stream entering block L: the block's input
    attn_z.L       the heads' outputs, joined: the input of attention's output projection
    attn_out.L     what attention adds to the residual stream
    mlp_in.L       what the MLP reads, after its norm
    mlp_act.L      the neurons: the input of the down projection; act(gate) * up in gated MLPs
    mlp_out.L      what the MLP adds to the residual stream
    resid_post.L   the residual stream leaving block L: the block's output

Pre-norm models satisfy resid_pre + attn_out + mlp_out == resid_post, also where attention and MLP run in parallel
(GPT-NeoX, Phi). Gemma 2 and 3 normalise before they add; attn_out and mlp_out come after that norm. Post-norm models
(BERT, OPT-350m) normalise the sum: attn_out and mlp_out are still what is added, mlp_in is norm(resid_pre + attn_out)
and resid_post is norm(mlp_in + mlp_out).

Anything else is a module path of the Hugging Face model followed by `.input` or `.output`, such as
`transformer.h.6.mlp.act.output`. Of a module that takes or returns several values the first is meant. A norm has
`.normalised`, too: its output before gain and bias (`lightsae.lm.norms`).

Source: the modelling files of transformers, read one by one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lightsae.errors import SiteError, arg, did_you_mean
from lightsae.lm.norms import is_norm

SIDES = ("input", "output", "normalised")
PORTABLE = ("resid_pre", "attn_z", "attn_out", "mlp_in", "mlp_act", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Family:
    """Where the portable sites of an architecture lie.

    `blocks` is the path of the list of blocks from the base model (the one without a head); all others are paths
    from a block, ending with the side.
    """

    blocks: str
    attn_z: str
    attn_out: str
    mlp_in: str
    mlp_act: str
    mlp_out: str
    resid_pre: str = "input"
    resid_post: str = "output"


_GPT2 = Family("h", "attn.c_proj.input", "attn.output", "mlp.input", "mlp.c_proj.input", "mlp.output")
_GPT_NEO = Family("h", "attn.attention.out_proj.input", "attn.output", "mlp.input", "mlp.c_proj.input", "mlp.output")
_GPT_NEOX = Family(
    "layers", "attention.dense.input", "attention.output", "mlp.input", "mlp.dense_4h_to_h.input", "mlp.output"
)
_LLAMA = Family(
    "layers", "self_attn.o_proj.input", "self_attn.output", "mlp.input", "mlp.down_proj.input", "mlp.output"
)
_GEMMA = Family(
    "layers",
    "self_attn.o_proj.input",
    "post_attention_layernorm.output",
    "mlp.input",
    "mlp.down_proj.input",
    "post_feedforward_layernorm.output",
)
_PHI = Family("layers", "self_attn.dense.input", "self_attn.output", "mlp.input", "mlp.fc2.input", "mlp.output")
_OPT = Family("decoder.layers", "self_attn.out_proj.input", "self_attn.output", "fc1.input", "fc2.input", "fc2.output")
_BERT = Family(
    "encoder.layer",
    "attention.output.dense.input",
    "attention.output.dense.output",
    "intermediate.input",
    "output.dense.input",
    "output.dense.output",
)

# By `model_type` of config.json. A new architecture takes one line here and one in the test's table.
FAMILIES = {
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _GPT_NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3": replace(_GEMMA, blocks="language_model.layers"),  # with images; its text model is a part of it
    "gemma3_text": _GEMMA,
    "phi": _PHI,
    "opt": _OPT,
    "bert": _BERT,
}


@dataclass(frozen=True)
class SiteInfo:
    """A site as it is listed for a user: `path` is the module's path in the model, `side` is one of `SIDES`."""

    name: str
    width: int
    path: str
    side: str


@dataclass(frozen=True)
class Site:
    """A site found in a model. `layer` is the block it lies in, None outside the blocks or where they are unknown."""

    name: str
    module: nn.Module
    path: str
    side: str
    layer: int | None


def portable_names(model: Any, n_layers: int) -> list[str]:
    """Every portable name of the model, layer by layer, in the order of computation; none for unknown architectures."""
    if model.config.model_type not in FAMILIES:
        return []
    return [f"{kind}.{layer}" for layer in range(n_layers) for kind in PORTABLE]


def find_site(model: Any, name: str, *, model_name: str, n_layers: int) -> Site:
    """Find the module and side that a site's name stands for.

    Args:
        model: A transformers model.
        name: Portable name or module path with `.input` / `.output` / `.normalised`.
        model_name: The model as the user wrote it, for messages.
        n_layers: Layers of the whole model; `model` may hold fewer.

    Raises:
        SiteError: There is no such site; the message suggests the nearest.
    """
    family = FAMILIES.get(model.config.model_type)
    listing = f"List them: lightsae sites {model_name}"
    named = f"{arg('site')} is {name!r}"
    portable = re.fullmatch(rf"({'|'.join(PORTABLE)})\.(\d+)", name)
    if portable and family:
        kind, layer = portable[1], int(portable[2])
        if layer >= n_layers:
            raise SiteError(
                f"{named}, but {model_name!r} has layers 0..{n_layers - 1}. "
                f"Did you mean '{kind}.{n_layers - 1}'? {listing}"
            )
        path, _, side = f"{_blocks_path(model, family)}.{layer}.{getattr(family, kind)}".rpartition(".")
    elif portable:
        raise SiteError(
            f"{named}, but portable names are not known for {model_name!r} "
            f"(model_type {model.config.model_type!r}). Write a module path, such as 'model.layers.0.mlp.output'. "
            f"Known: {', '.join(FAMILIES)}."
        )
    else:
        path, _, side = name.rpartition(".")

    module = _find_module(model, path) if path and side in SIDES else None
    if module is None and portable:
        raise SiteError(f"{named}, above the part of {model_name!r} that was loaded. Load it with this site.")
    if module is None:
        known = portable_names(model, n_layers)
        known += [f"{p}.{s}" for p, _ in model.named_modules() if p for s in ("output", "input")]
        has_no_side = name and _find_module(model, name) is not None
        hint = f" Did you mean '{name}.output'?" if has_no_side else did_you_mean(name, known)
        raise SiteError(f"{named}, which {model_name!r} does not have.{hint} {listing}")
    if side == "normalised" and not is_norm(module):
        kind = type(module).__name__
        raise SiteError(f"{named}, and only a norm has that side; {path!r} is a {kind}. Write '{path}.output'.")
    path = next(p for p, m in model.named_modules() if m is module)
    return Site(name, module, path, side, _layer_of(model, family, path))


def blocks_before(model: Any, sites: Sequence[Site]) -> list[nn.Module]:
    """Return the blocks whose outputs no site can change: those before the first of them; none where that is unknown.

    A block whose output is the site is one of them: it computes the same whatever is then put in the output's place.
    """
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return []
    blocks = model.get_submodule(_blocks_path(model, family))
    whole = [
        0 if site.layer is None else site.layer + (site.side == "output" and site.module is blocks[site.layer])
        for site in sites
    ]
    return list(blocks[: min(whole, default=0)])


def _blocks_path(model: Any, family: Family) -> str:
    """Path of the list of blocks from `model`, which may be a base model or one with a head around it."""
    return family.blocks if model.base_model is model else f"{model.base_model_prefix}.{family.blocks}"


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
