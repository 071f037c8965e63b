"""Every architecture: portable sites hold what they promise, by hand-written hooks and by the model's own algebra."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.tiny_models import SITE_KINDS
from lightsae.errors import ModelError, SiteError
from lightsae.lm import LanguageModel, describe

LAYERS, WIDTH, NEURONS = 3, 24, 52


def run_with_hooks(lm: LanguageModel, tokens: Tensor, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The first value that each module takes (`name.in`) and returns (`name.out`), one row a token."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in modules.items():

        def note(_m: Any, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            taken = args[0] if args else kwargs["hidden_states"]
            returned = output[0] if isinstance(output, tuple) else output
            seen[f"{name}.in"] = taken.reshape(*tokens.shape, -1)
            seen[f"{name}.out"] = returned.reshape(*tokens.shape, -1)

        handles.append(module.register_forward_hook(note, with_kwargs=True))
    with torch.inference_mode():
        lm.model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def part(block: nn.Module, path: str) -> Callable[[Tensor], Tensor]:
    """The module at `path`; the identity for an empty path."""
    return block.get_submodule(path) if path else lambda x: x


def test_resid_equals_hidden_states(tiny) -> None:
    sites = [f"resid_pre.{i}" for i in range(LAYERS)] + [f"resid_post.{i}" for i in range(LAYERS)]
    found = tiny.lm.capture(tiny.tokens, sites)
    with torch.inference_mode():
        states = tiny.lm.model(tiny.tokens, output_hidden_states=True, use_cache=False).hidden_states
    for layer in range(LAYERS):
        assert torch.equal(found[f"resid_pre.{layer}"], states[layer])
        if layer + 1 < LAYERS:  # the last entry comes after the final norm
            assert torch.equal(found[f"resid_post.{layer}"], states[layer + 1])


@pytest.mark.parametrize("layer", [0, LAYERS - 1])
def test_sites_equal_hand_written_hooks(tiny, layer: int) -> None:
    block, wiring = tiny.blocks[layer], tiny.wiring
    hooks = {
        name: block.get_submodule(path)
        for name, path in {"block": "", "attention": wiring.attention, "up": wiring.up, "down": wiring.down}.items()
    }
    seen = run_with_hooks(tiny.lm, tiny.tokens, hooks)
    found = tiny.lm.capture(tiny.tokens, [f"{kind}.{layer}" for kind in SITE_KINDS])
    site = {kind: found[f"{kind}.{layer}"] for kind in SITE_KINDS}
    with torch.inference_mode():
        assert torch.equal(site["resid_pre"], seen["block.in"])
        assert torch.equal(site["resid_post"], seen["block.out"])
        assert torch.equal(site["attn_z"], seen["attention.in"])
        assert torch.equal(site["attn_out"], part(block, wiring.attention_norm)(seen["attention.out"]))
        assert torch.equal(site["mlp_in"], seen["up.in"])
        assert torch.equal(site["mlp_act"], seen["down.in"])
        assert torch.equal(site["mlp_out"], part(block, wiring.mlp_norm)(seen["down.out"]))


def test_block_is_rebuilt_from_its_sites(tiny) -> None:
    wiring = tiny.wiring
    for layer, block in enumerate(tiny.blocks):
        found = tiny.lm.capture(tiny.tokens, [f"{kind}.{layer}" for kind in SITE_KINDS])
        pre, z, attn, mlp_in, act, mlp, post = (found[f"{kind}.{layer}"] for kind in SITE_KINDS)
        with torch.inference_mode():
            read = pre if wiring.parallel else pre + attn
            expected = {
                "attn_out": (attn, part(block, wiring.attention_norm)(part(block, wiring.attention)(z))),
                "mlp_in": (mlp_in, part(block, wiring.norm)(read)),
                "mlp_out": (mlp, part(block, wiring.mlp_norm)(part(block, wiring.down)(act))),
            }
            up, activate = part(block, wiring.up)(mlp_in), part(block, wiring.act)
            expected["mlp_act"] = act, activate(part(block, wiring.gate)(mlp_in)) * up if wiring.gate else activate(up)
            if wiring.post_norm:
                expected["resid_post"] = post, part(block, wiring.post_norm)(mlp_in + mlp)
            else:
                expected["resid_post"] = post, pre + attn + mlp
        for name, (is_, should_be) in expected.items():
            torch.testing.assert_close(is_, should_be, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_description_measures_without_weights(tiny) -> None:
    description = describe(str(tiny.folder))
    sites = description.sites()
    assert sites == tiny.lm.sites()
    assert [s.name for s in sites] == [f"{kind}.{layer}" for layer in range(LAYERS) for kind in SITE_KINDS]
    joined_heads = tiny.blocks[0].get_submodule(tiny.wiring.attention).weight.numel() // WIDTH
    widths = {"attn_z": joined_heads, "mlp_act": NEURONS}
    assert [s.width for s in sites] == [widths.get(s.name.split(".")[0], WIDTH) for s in sites]
    assert all(hasattr(p, "fake_mode") for p in description.model.parameters())  # no memory behind it
    assert (description.n_layers, description.max_context) == (LAYERS, 32)
    assert description.has_next_token_head == (tiny.name != "bert")


def test_listed_paths_are_raw_sites(tiny) -> None:
    sites = [s for s in tiny.lm.sites() if s.name.endswith(".1")]
    by_name = tiny.lm.capture(tiny.tokens, [s.name for s in sites])
    by_path = tiny.lm.capture(tiny.tokens, [f"{s.path}.{s.side}" for s in sites])
    for site in sites:
        assert torch.equal(by_name[site.name], by_path[f"{site.path}.{site.side}"])


def test_neurons_by_raw_path(tiny) -> None:
    name = f"{tiny.wiring.blocks}.1.{tiny.wiring.act}.output"
    assert describe(str(tiny.folder)).width(name) == NEURONS
    found = tiny.lm.capture(tiny.tokens, [name, "mlp_act.1"])
    assert torch.equal(found[name], found["mlp_act.1"]) == (not tiny.wiring.gate)


@pytest.mark.parametrize("site", ["resid_pre.1", "attn_out.1", "mlp_act.1", "resid_post.1"])
def test_forward_stops_at_the_last_site(tiny, site: str) -> None:
    ran = []
    handles = [
        block.register_forward_hook(lambda _m, _a, _o, i=i: ran.append(i)) for i, block in enumerate(tiny.blocks)
    ]
    handles.append(tiny.lm.model.register_forward_hook(lambda *_: ran.append("model")))
    tiny.lm.capture(tiny.tokens, [site, "resid_pre.0"])
    for handle in handles:
        handle.remove()
    assert ran in ([0], [0, 1])  # a hook on the block's own output may come before the capturing one
    assert (1 in ran) == (site == "resid_post.1")


def test_truncated_load_reads_the_same_bits(tiny) -> None:
    sites = [f"{kind}.1" for kind in SITE_KINDS]
    part = LanguageModel.from_pretrained(str(tiny.folder), sites=[*sites[1:], f"{tiny.wiring.blocks}.0.output"])
    assert part.n_layers == LAYERS
    assert len(part.model.get_submodule(part.site("resid_post.0").path.removesuffix(".0"))) == 2
    assert not any(p.shape[0] == 61 for n, p in part.model.named_parameters() if "embed" not in n and "wte" not in n)
    found, whole = part.capture(tiny.tokens, sites), tiny.lm.capture(tiny.tokens, sites)
    for site in sites:
        assert torch.equal(found[site], whole[site])
    assert not part.has_next_token_head
    with pytest.raises(SiteError, match="above the part"):
        part.capture(tiny.tokens, ["resid_post.2"])
    with pytest.raises(ModelError, match="without a next-token head"):
        part.logits(tiny.tokens)


def test_model_is_frozen_and_loading_leaves_the_rng_alone(tiny) -> None:
    state = torch.get_rng_state()
    lm = LanguageModel.from_pretrained(str(tiny.folder), sites=["resid_post.0"])
    assert torch.equal(torch.get_rng_state(), state)
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert not isinstance(lm, nn.Module)


def test_captured_tensors_outlive_in_place_writes(tiny) -> None:
    """A later module that writes in place does not reach what was captured before."""
    block = tiny.blocks[1]
    clean = tiny.lm.capture(tiny.tokens, ["resid_pre.1"])["resid_pre.1"]
    handle = block.register_forward_pre_hook(lambda _m, args, kwargs: (args[0].mul_(2), None)[1], with_kwargs=True)
    found = tiny.lm.capture(tiny.tokens, ["resid_post.0", "resid_post.1"])
    handle.remove()
    assert torch.equal(found["resid_post.0"], clean)
