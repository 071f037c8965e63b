"""Names of others are told from ours both ways, and the modules that they name are those that our sites stand for."""

import pytest
import torch
import transformers

from helpers.tiny_models import ARCHITECTURES, SITE_KINDS
from lightsae.formats.layouts.hook_names import (
    hook_of_site,
    hub_name,
    is_module_path,
    module_of_site,
    short_name,
    site_of_hook,
    site_of_module,
)
from lightsae.lm.sites import find_site

# A model of the Hub for every architecture whose modules are known by its models' names.
MODELS = {
    "gpt2": "openai-community/gpt2",
    "gpt_neo": "roneneldan/TinyStories-33M",
    "gpt_neox": "EleutherAI/pythia-70m-deduped",
    "llama": "meta-llama/Llama-3.1-8B",
    "mistral": "mistralai/Mistral-7B-v0.1",
    "qwen2": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3": "Qwen/Qwen3-8B-Base",
    "gemma2": "google/gemma-2-2b",
    "gemma3_text": "google/gemma-3-1b-pt",
    "gemma3": "google/gemma-3-4b-it",
}


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_every_portable_site_has_a_hook_and_back(kind: str) -> None:
    hook = hook_of_site(f"{kind}.11")
    assert hook is not None
    assert hook.startswith("blocks.11.")
    assert site_of_hook(hook) == f"{kind}.11"


@pytest.mark.parametrize("hook", ["blocks.3.hook_resid_mid", "blocks.3.hook_mlp_in", "hook_embed", "blocks.x.hook_z"])
def test_a_hook_without_a_portable_site_keeps_its_name(hook: str) -> None:
    assert site_of_hook(hook) == hook


def test_a_mixer_has_no_hook_and_is_no_module() -> None:
    assert hook_of_site("mixer_out.3") is None
    assert module_of_site("mixer_out.3", "state-spaces/mamba-130m-hf") is None
    assert module_of_site("mixer_out.3", MODELS["llama"]) is None


def test_a_hook_s_name_is_not_taken_for_a_module() -> None:
    assert hook_of_site("blocks.3.hook_resid_mid") == "blocks.3.hook_resid_mid"
    assert module_of_site("blocks.3.hook_resid_mid", MODELS["gpt2"]) is None
    assert hook_of_site("model.layers.3.output") is None
    assert not is_module_path("resid_post 3")


@pytest.mark.parametrize("architecture", MODELS)
def test_paths_name_the_modules_of_our_sites(architecture: str) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture][0])
    for kind in SITE_KINDS:
        path = module_of_site(f"{kind}.1", MODELS[architecture])
        assert path is not None
        module, _, side = path.rpartition(".")
        site = find_site(model, f"{kind}.1", model_name=architecture, n_layers=3)
        assert (model.get_submodule(module), side) == (site.module, site.side)
        assert site_of_module(path, MODELS[architecture]) == f"{kind}.1"


def test_a_module_of_an_unknown_model_keeps_its_path() -> None:
    assert site_of_module("model.layers.3.mlp", "somebody/else") == "model.layers.3.mlp.output"
    assert module_of_site("model.layers.3.mlp.output", None) == "model.layers.3.mlp.output"
    # One path in two architectures, with another meaning in each.
    gemma = "model.layers.3.post_attention_layernorm.output"
    assert site_of_module(gemma, MODELS["gemma2"]) == "attn_out.3"
    assert site_of_module(gemma, MODELS["llama"]) == gemma


@pytest.mark.parametrize(
    "model", ["Qwen/Qwen3-30B-A3B-Base", "openai/gpt-oss-20b", "google/gemma-2b", "builtin", "", None]
)
def test_what_is_not_known_of_a_model_is_not_guessed(model: str | None) -> None:
    assert module_of_site("resid_post.1", model) is None


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("gpt2-medium", "openai-community/gpt2-medium"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("gemma-2-9b-it", "google/gemma-2-9b-it"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("tiny-stories-33M", "roneneldan/TinyStories-33M"),
        ("google/gemma-3-1b-pt", "google/gemma-3-1b-pt"),
        ("builtin", "builtin"),
    ],
)
def test_short_names_of_models(short: str, name: str) -> None:
    assert hub_name(short) == name
    assert hub_name(short_name(name)) == name
