"""sparsify's names of places in a model, module paths below the model without its head, and our names of the same.

The output of a block is `resid_post.L` in every architecture. What a block's `mlp` or `self_attn` gives is `mlp_out.L`
or `attn_out.L` but in Gemma, which normalises it before it is added: without the model's name the path is kept.
"""

import re
from typing import Literal

from lightsae.formats.layouts.source import UNKNOWN_TARGET, Source

Side = Literal["input", "output"]
_HOOKPOINT = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+|embed_tokens|embed_in|wte|norm|ln_f|final_layer_norm", re.ASCII)
_IN_BLOCK = re.compile(r"(layers|h)\.(\d+)(?:\.(mlp|attn|attention|self_attn))?", re.ASCII)
_PORTABLE = re.compile(r"(resid_pre|resid_post|mlp_in|mlp_out|attn_out)\.(\d+)", re.ASCII)
# The base model's own name within a model with a head.
_PREFIX = re.compile(r"(?:model|transformer|gpt_neox)\.")
_WITH_H = re.compile(r"gpt2|gpt-neo-|distilgpt", re.IGNORECASE)
_NORMALISED_BEHIND = re.compile("gemma", re.IGNORECASE)


def is_hookpoint(name: str) -> bool:
    """Return whether a folder's name is the path of a module; somebody may have renamed it.

    >>> [is_hookpoint(name) for name in ("layers.10.mlp", "embed_tokens", "h.3", "my_sae", "v1")]
    [True, True, True, False, False]
    """
    return _HOOKPOINT.fullmatch(name) is not None


def site_of(hookpoint: str, side: Side, model: str | None) -> str:
    """Return our name of a side of a module.

    >>> [site_of(hookpoint, "output", None) for hookpoint in ("layers.10", "h.3.mlp", "layers.3.mlp")]
    ['resid_post.10', 'mlp_out.3', 'layers.3.mlp.output']
    >>> site_of("layers.3.mlp", "input", None), site_of("layers.3.mlp", "output", "EleutherAI/pythia-70m")
    ('mlp_in.3', 'mlp_out.3')
    """
    path = f"{hookpoint}.{side}"
    found = _IN_BLOCK.fullmatch(hookpoint)
    if found is None:
        return path
    blocks, layer, module = found.groups()
    if module is None:
        return f"{'resid_pre' if side == 'input' else 'resid_post'}.{layer}"
    if side == "input":
        return f"mlp_in.{layer}" if module == "mlp" else path
    # GPT-NeoX alone has an `attention`, GPT-2 and GPT-Neo a list `h`.
    sure = blocks == "h" or module == "attention" or (model is not None and not _NORMALISED_BEHIND.search(model))
    return f"{'mlp_out' if module == 'mlp' else 'attn_out'}.{layer}" if sure else path


def hookpoint_of(source: Source) -> str | None:
    """Return the module whose output an SAE reads, or which a transcoder stands for; None where there is none.

    >>> hookpoint_of(Source(model="openai-community/gpt2", site="resid_post.6"))
    'h.6'
    >>> hookpoint_of(Source(model="EleutherAI/pythia-70m", site="mlp_in.2", target_site="mlp_out.2"))
    'layers.2.mlp'
    >>> hookpoint_of(Source(model="EleutherAI/pythia-70m", site="attn_z.2")) is None
    True
    """
    site, target = source.site or "", source.target_site
    if target in (None, UNKNOWN_TARGET):
        return _module_of(site, "output", source.model) if target is None else None
    module = _module_of(site, "input", source.model)
    return module if module == _module_of(target, "output", source.model) else None


def _module_of(site: str, side: Side, model: str | None) -> str | None:
    """Return the module that has a site as its input or output, below the base model."""
    found = _PORTABLE.fullmatch(site)
    if found is None:
        path, _, of = site.rpartition(".")
        path = _PREFIX.sub("", path, count=1) if _PREFIX.match(path) else path
        return path if of == side and is_hookpoint(path) else None
    kind, layer = found.groups()
    if side == "output" and kind == "resid_pre":
        # What enters a block is what the one before gave.
        kind, layer = "resid_post", str(int(layer) - 1)
    if int(layer) < 0 or (kind in ("resid_pre", "mlp_in")) != (side == "input"):
        return None
    block = f"{'h' if _WITH_H.search(model or '') else 'layers'}.{layer}"
    if kind.startswith("resid"):
        return block
    if kind == "attn_out" or _NORMALISED_BEHIND.search(model or ""):
        # Their names differ from one architecture to the next.
        return None
    return f"{block}.mlp"
