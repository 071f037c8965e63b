"""Every architecture of the table: its sites hold what their names promise, read, written, and loaded in part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.tiny_families import CASES, LAYERS, TinyFamily
from lightsae.errors import SiteError
from lightsae.lm import LanguageModel, describe
from lightsae.lm.families import FAMILIES, PARTS
from lightsae.lm.hooks import no_cache
from lightsae.lm.splice import spliced_logits


def test_every_family_is_tested(architectures: list[str]) -> None:
    tested = {name.split("-")[0] for name in architectures} | {name.split(":")[0] for name in CASES}
    assert tested == {*FAMILIES, *PARTS}


def test_what_is_added_makes_the_stream(family: TinyFamily) -> None:
    """In post-norm models the norm of the sum, and the MLP reads the first of them."""
    read = family.lm.capture(family.rows, family.names)
    for layer, block_kinds in enumerate(family.case.kinds):
        added = [read[f"{kind}.{layer}"] for kind in ("attn_out", "mixer_out", "mlp_out") if kind in block_kinds]
        expected = read[f"resid_pre.{layer}"]
        for number, part in enumerate(added):
            expected = expected + part
            if family.case.post_norms:
                block = family.lm.site(f"resid_post.{layer}").module
                with torch.inference_mode():
                    expected = block.get_submodule(family.case.post_norms[number])(expected)
                if number == 0:
                    torch.testing.assert_close(read[f"mlp_in.{layer}"], expected)
            assert part.abs().max() > 1e-3
        torch.testing.assert_close(read[f"resid_post.{layer}"], expected)


def test_the_stream_is_the_hidden_states(family: TinyFamily) -> None:
    with torch.inference_mode():
        states = family.lm.model(family.rows, output_hidden_states=True, **no_cache(family.lm.model)).hidden_states
    names = [name for name in family.names if name.startswith("resid")]
    read = family.lm.capture(family.rows, names)
    first = family.case.states
    # The last entry comes after the final norm in most models.
    for layer in range(LAYERS):
        if layer + first >= 0:
            assert torch.equal(read[f"resid_pre.{layer}"], states[layer + first])
        if layer + 1 < LAYERS:
            assert torch.equal(read[f"resid_post.{layer}"], states[layer + 1 + first])


def test_the_pass_stops_at_the_last_site(family: TinyFamily) -> None:
    whole, ran = family.lm.capture(family.rows, family.names), []
    blocks = [family.lm.site(f"resid_post.{layer}").module for layer in range(LAYERS)]
    handles = [
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer)) for layer, block in enumerate(blocks)
    ]
    try:
        for kind in family.case.kinds[0]:
            ran.clear()
            name = f"{kind}.0"
            assert torch.equal(family.lm.capture(family.rows, [name])[name], whole[name])
            assert 1 not in ran
    finally:
        for handle in handles:
            handle.remove()


def test_a_part_reads_what_the_whole_reads(family: TinyFamily) -> None:
    names = [name for name in family.names if name.endswith(".0")]
    part = LanguageModel.from_pretrained(str(family.folder), sites=names, dtype="float32")
    assert {site.name for site in part.sites()} == set(names)
    assert not part.has_next_token_head
    read, whole = part.capture(family.rows, names), family.lm.capture(family.rows, names)
    for name in names:
        assert torch.equal(read[name], whole[name]), name


def test_config_alone_tells_sites_and_widths(family: TinyFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(LanguageModel, "from_pretrained", refused)
    description = describe(str(family.folder))
    assert description.sites() == family.lm.sites()
    assert [site.name for site in description.sites()] == family.names
    routers = [path for path, module in family.lm.model.named_modules() if "Router" in type(module).__name__]
    for router in routers[:1]:  # named by `lightsae sites`
        assert description.width(f"{router}.output") == family.lm.width(f"{router}.output") <= 4
    assert description.has_next_token_head == family.lm.has_next_token_head
    assert (description.n_layers, description.reads_images) == (LAYERS, family.rows.ndim == 4)


def test_what_is_written_takes_effect(family: TinyFamily) -> None:
    clean = family.output()
    for name in family.names:
        with family.lm.intervene(name, lambda x: x):
            assert torch.equal(family.output(), clean), name
        fresh: list[Tensor] = []

        def write(x: Tensor, fresh: list[Tensor] = fresh) -> Tensor:
            fresh.append(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)))
            return fresh[0]

        with family.lm.intervene(name, write):
            assert not torch.allclose(family.output(), clean, atol=1e-4), name
            read = family.lm.capture(family.rows, [name])[name]
        kept = torch.randn(read.shape, generator=torch.Generator().manual_seed(2))
        assert torch.equal(fresh[0], kept), "a block wrote into the caller's tensor"
        torch.testing.assert_close(read, kept)


def test_splice_and_generation(family: TinyFamily) -> None:
    lm = family.lm
    if not lm.has_next_token_head:
        assert family.rows.ndim == 4 or family.case.saved == "AutoModelForMaskedLM" or "t5" in family.name
        return
    names = [name for name in family.names if name.endswith("_out.0")]
    own = lm.capture(family.rows, names)
    torch.testing.assert_close(spliced_logits(lm, family.rows, own), lm.logits(family.rows))
    zeros = {name: torch.zeros(own[name].shape[-1]) for name in names}
    assert not torch.allclose(spliced_logits(lm, family.rows, zeros), lm.logits(family.rows), atol=1e-4)
    prompt, direction = (
        family.rows[:, :4],
        torch.randn(lm.width("resid_post.1"), generator=torch.Generator().manual_seed(3)),
    )
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    for use_cache in (True, False):
        seen: list[int] = []

        def steer(x: Tensor, seen: list[int] = seen) -> Tensor:
            seen.append(x.shape[1])
            return x + direction

        with lm.intervene("resid_post.1", steer):
            lm.model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=use_cache, **settings)
        assert seen == ([4, 1, 1] if use_cache else [4, 5, 6])


# -- mixtures of experts -----------------------------------------------------------------------------------------------

# Layer with experts, and widths of the modules that are sites by their paths.
EXPERTS = {
    "mixtral": (1, {"gate": 4}),
    "qwen2_moe": (0, {"gate": 4, "shared_expert": 16, "shared_expert.down_proj": 16, "shared_expert_gate": 1}),
    "deepseek_v3": (1, {"gate": 4, "shared_experts": 16, "shared_experts.down_proj": 16}),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_router_and_shared_experts_are_sites_by_module_path(name: str, family_folder: Callable[[str], Path]) -> None:
    layer, widths = EXPERTS[name]
    folder = str(family_folder(name))
    lm, description = LanguageModel.from_pretrained(folder), describe(folder)
    tokens = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    paths = {part: f"model.layers.{layer}.mlp.{part}.output" for part in widths}
    read = lm.capture(tokens, [f"mlp_in.{layer}", *paths.values()])
    for part, path in paths.items():
        assert description.width(path) == lm.width(path) == read[path].shape[-1] == widths[part]
    block = lm.site(f"resid_post.{layer}").module
    with torch.inference_mode():
        logits = read[f"mlp_in.{layer}"] @ block.mlp.gate.weight.T
    torch.testing.assert_close(read[paths["gate"]], logits)
    assert LanguageModel.from_pretrained(folder, sites=[paths["gate"]]).width(paths["gate"]) == 4
    clean = lm.logits(tokens)
    for part in widths.keys() - {"gate"}:  # the block goes on with the router's choice, not with its logits
        with lm.intervene(paths[part], torch.zeros_like):
            assert not torch.allclose(lm.logits(tokens), clean, atol=1e-4)


@pytest.mark.parametrize("name", EXPERTS)
def test_neurons_of_experts_are_no_site(name: str, family_folder: Callable[[str], Path]) -> None:
    layer, folder = EXPERTS[name][0], str(family_folder(name))
    with pytest.raises(SiteError) as error:
        describe(folder).width(f"mlp_act.{layer}")
    assert str(error.value) == (
        f"site is 'mlp_act.{layer}', which layer {layer} of {folder!r} lacks: its MLP is a mixture of experts, "
        "whose neurons are other ones at each token. It has resid_pre, attn_z, attn_out, mlp_in, mlp_out, resid_post, "
        f"and module paths. List them: lightsae sites {folder}"
    )


def test_a_state_space_model_has_no_attention(family_folder: Callable[[str], Path]) -> None:
    folder = str(family_folder("mamba"))
    with pytest.raises(SiteError, match=r"lacks: it has no attention\. It has resid_pre, mixer_out, resid_post"):
        describe(folder).width("attn_out.0")
    absent = {one.kind: one.layers for one in describe(folder).absent_sites()}
    assert absent == dict.fromkeys(("attn_z", "attn_out", "mlp_in", "mlp_act", "mlp_out"), (0, 1))


def test_layers_of_two_kinds_are_told_apart(family_folder: Callable[[str], Path]) -> None:
    absent = {one.kind: one.layers for one in describe(str(family_folder("jamba"))).absent_sites()}
    assert absent == {"attn_z": (0,), "attn_out": (0,), "mixer_out": (1,), "mlp_act": (1,)}
    assert describe(str(family_folder("glm4"))).absent_sites() == []


def test_a_scaled_branch_is_what_is_added(family_folder: Callable[[str], Path]) -> None:
    """Granite's multiplier stands outside every module: the module path is without it."""
    lm = LanguageModel.from_pretrained(str(family_folder("granite")))
    tokens = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    scales = {site.name.split(".")[0]: site.scale for site in lm.sites()}
    assert {kind for kind, scale in scales.items() if scale != 1} == {"attn_out", "mlp_out"}
    read = lm.capture(tokens, ["mlp_out.0", "model.layers.0.mlp.output"])
    assert torch.equal(read["mlp_out.0"], read["model.layers.0.mlp.output"] * 0.22)
    with lm.intervene("mlp_out.0", lambda x: x + 1):
        moved = lm.capture(tokens, ["mlp_out.0", "model.layers.0.mlp.output"])
    torch.testing.assert_close(moved["mlp_out.0"], read["mlp_out.0"] + 1)
    torch.testing.assert_close(moved["model.layers.0.mlp.output"], read["model.layers.0.mlp.output"] + 1 / 0.22)
