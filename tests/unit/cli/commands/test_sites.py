"""`lightsae sites`: what is listed, and what is said of layers that lack a site."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lightsae.cli.commands.sites import run_sites

Lines = Callable[[str], list[str]]


@pytest.fixture
def lines(family_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> Lines:
    def listed(name: str) -> list[str]:
        assert run_sites([str(family_folder(name))]) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return listed


def test_a_hybrid_with_experts(lines: Lines) -> None:
    assert lines("jamba") == [
        "site width module",
        "resid_pre.0 16 model.layers.0.input",
        "mixer_out.0 16 model.layers.0.mamba.output",
        "mlp_in.0 16 model.layers.0.feed_forward.input",
        "mlp_act.0 24 model.layers.0.feed_forward.down_proj.input",
        "mlp_out.0 16 model.layers.0.feed_forward.output",
        "resid_post.0 16 model.layers.0.output",
        "resid_pre.1 16 model.layers.1.input",
        "attn_z.1 16 model.layers.1.self_attn.o_proj.input",
        "attn_out.1 16 model.layers.1.self_attn.output",
        "mlp_in.1 16 model.layers.1.feed_forward.input",
        "mlp_out.1 16 model.layers.1.feed_forward.output",
        "resid_post.1 16 model.layers.1.output",
        "no attn_z in layer 0: it has no attention",
        "no attn_out in layer 0: it has no attention",
        "no mixer_out in layer 1: it has no state-space mixer",
        "no mlp_act in layer 1: its MLP is a mixture of experts, whose neurons are other ones at each token",
        "Routers and shared experts are sites, too, by module path: model.layers.1.feed_forward.router.output",
        "2 layers; rows of at most 32 tokens",
    ]


def test_a_router_a_scale_and_images(lines: Lines) -> None:
    mixtral = lines("mixtral")
    assert mixtral[-3].startswith("no mlp_act in any layer: ")
    assert mixtral[-2] == "Routers and shared experts are sites, too, by module path: model.layers.0.mlp.gate.output"
    assert "attn_out.0 16 model.layers.0.self_attn.output x 0.22" in lines("granite")
    assert lines("vit")[-1] == "2 layers; reads images"
