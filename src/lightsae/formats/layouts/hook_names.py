"""Names of sites and models in files of others, and ours.

Most libraries name a site by TransformerLens' hook, `blocks.6.hook_resid_post`, and a model by its short name,
`gpt2-small`; newer files name a module of the Hugging Face model beside it, `model.layers.6.output`.

Source:  TransformerLens' hook points and its table of models; the modules are those of `lightsae.lm.sites`.
"""

import re

_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "attn_z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    # The MLP's input after its norm and the norm's gain. `ln2.hook_normalized` lacks the gain, `hook_mlp_in` the norm.
    "mlp_in": "mlp.hook_in",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
_KINDS = {hook: kind for kind, hook in _HOOKS.items()}
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
# TransformerLens has no hook for what a state-space mixer adds.
_PORTABLE = re.compile(rf"({'|'.join(_HOOKS)}|mixer_out)\.(\d+)")
_MODULE_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)+")

# Short names that are not the end of the Hub's.
_SHORT = {
    "gpt2-small": "openai-community/gpt2",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.1",
    "tiny-stories-1L-21M": "roneneldan/TinyStories-1Layer-21M",
    "tiny-stories-2L-33M": "roneneldan/TinyStories-2Layers-33M",
}
# What stands before the short name on the Hub, by how the short name begins; what the Hub writes in another case.
_OWNERS = (
    (re.compile(r"gpt2(-medium|-large|-xl)?"), "openai-community/"),
    (re.compile(r"pythia-.+"), "EleutherAI/"),
    (re.compile(r"gemma-.+"), "google/"),
)
_TINY_STORIES = re.compile(r"tiny-stories-(\d+M)")
_QWEN = re.compile(r"qwen(\d(?:\.\d)?)-(\d+(?:\.\d+)?)b")

# `model_type` and the path of the base model, by what the model's name has in it; the first that is found counts.
_ARCHITECTURES = (
    (re.compile(r"gpt2"), "gpt2", "transformer"),
    (re.compile(r"gpt-neo-\d|TinyStories"), "gpt_neo", "transformer"),
    (re.compile(r"pythia|gpt-neox"), "gpt_neox", "gpt_neox"),
    (re.compile(r"gemma-2-"), "gemma2", "model"),
    (re.compile(r"gemma-3-(270m|1b)"), "gemma3_text", "model"),
    # With images: the language model lies a level deeper, which its family says.
    (re.compile(r"gemma-3-"), "gemma3", "model"),
    (re.compile(r"llama(?!-4|.*vision)", re.IGNORECASE), "llama", "model"),
    (re.compile(r"mistral-7b", re.IGNORECASE), "mistral", "model"),
    (re.compile(r"qwen2", re.IGNORECASE), "qwen2", "model"),
    (re.compile(r"qwen3-[\d.]+b(?!-a\d)", re.IGNORECASE), "qwen3", "model"),  # not the mixtures of experts
)


def site_of_hook(hook_name: str) -> str:
    """Return the portable name of a hook's site, or the hook's name where there is none.

    >>> site_of_hook("blocks.6.hook_resid_post"), site_of_hook("blocks.6.ln2.hook_normalized")
    ('resid_post.6', 'blocks.6.ln2.hook_normalized')
    """
    found = _HOOK.fullmatch(hook_name)
    kind = _KINDS.get(found[2]) if found else None
    return f"{kind}.{found[1]}" if found and kind else hook_name


def hook_of_site(site: str) -> str | None:
    """Return TransformerLens' name of a site; None for what has none, such as a module path.

    >>> hook_of_site("attn_z.3"), hook_of_site("transformer.h.3.mlp.output")
    ('blocks.3.attn.hook_z', None)
    """
    if found := _PORTABLE.fullmatch(site):
        return f"blocks.{found[2]}.{_HOOKS[found[1]]}" if found[1] in _HOOKS else None
    return site if _HOOK.fullmatch(site) or site.startswith("hook_") else None


def site_of_module(path: str, model: str | None) -> str:
    """Return the portable name of a module's input or output, or the path where the model's modules are not known.

    Args:
        path: `model.layers.6.mlp.output`; without a side the output is meant.
        model: Hub name.

    >>> site_of_module("model.layers.6", "google/gemma-2-2b"), site_of_module("model.layers.6", None)
    ('resid_post.6', 'model.layers.6.output')
    """
    path = path if path.endswith((".input", ".output")) else f"{path}.output"
    layer = re.search(r"\.(\d+)\.", path)
    sites = [f"{kind}.{layer[1]}" for kind in _HOOKS] if layer else []
    return next((site for site in sites if module_of_site(site, model) == path), path)


def module_of_site(site: str, model: str | None) -> str | None:
    """Return the module path of a site; None where the model's modules are not known.

    Args:
        site: A portable name, or a module path, which stays as it is.
        model: Hub name.

    >>> module_of_site("attn_z.6", "openai-community/gpt2"), module_of_site("attn_z.6", "somebody/model")
    ('transformer.h.6.attn.c_proj.input', None)
    """
    found = _PORTABLE.fullmatch(site)
    if found is None:
        return site if is_module_path(site) and hook_of_site(site) is None else None
    known = next((rest for has, *rest in _ARCHITECTURES if has.search(model or "")), None)
    if known is None:
        return None
    # Here: transformers takes seconds to import, and few files name a module.
    from lightsae.lm.families import FAMILIES

    family = FAMILIES[known[0]]
    path = next(iter(family.paths(found[1])), None)
    return None if path is None else f"{known[1]}.{family.blocks}.{found[2]}.{path}"


def is_module_path(name: str) -> bool:
    """Return whether a name could be a module's: names with dots between them.

    >>> is_module_path("model.layers.6"), is_module_path("resid_post"), is_module_path("a/b.c")
    (True, False, False)
    """
    return _MODULE_PATH.fullmatch(name) is not None


def hub_name(name: str) -> str:
    """Return a model's name on the Hub, of a short one; other names stay as they are.

    >>> [hub_name(name) for name in ("gpt2-small", "gemma-2-2b", "qwen3-1.7b", "meta-llama/Llama-3.1-8B")]
    ['openai-community/gpt2', 'google/gemma-2-2b', 'Qwen/Qwen3-1.7B', 'meta-llama/Llama-3.1-8B']
    """
    if name in _SHORT:
        return _SHORT[name]
    if found := _TINY_STORIES.fullmatch(name):
        return f"roneneldan/TinyStories-{found[1]}"
    if found := _QWEN.fullmatch(name):
        return f"Qwen/Qwen{found[1]}-{found[2]}B"
    return next((f"{owner}{name}" for begins, owner in _OWNERS if begins.fullmatch(name)), name)


def short_name(name: str) -> str:
    """Return the name by which TransformerLens knows a model of the Hub, where that is another.

    >>> short_name("openai-community/gpt2"), short_name("google/gemma-2-2b")
    ('gpt2-small', 'google/gemma-2-2b')
    """
    if name == "openai-community/gpt2":
        return "gpt2-small"
    return name.removeprefix("openai-community/")
