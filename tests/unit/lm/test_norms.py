"""The side `normalised` of a norm: what TransformerLens calls hook_normalized, by the formulas of the norms."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightsae.errors import SiteError
from lightsae.lm import LanguageModel, describe
from lightsae.lm.norms import is_centred


def by_formula(norm: nn.Module, x: Tensor) -> Tensor:
    if isinstance(norm, nn.LayerNorm):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


def site_of(tiny) -> str:
    return f"{tiny.wiring.blocks}.1.{tiny.wiring.norm}"


def test_it_is_the_norm_without_its_gain(tiny) -> None:
    site, norm = site_of(tiny), tiny.blocks[1].get_submodule(tiny.wiring.norm)
    found = tiny.lm.capture(tiny.tokens, [f"{site}.{side}" for side in ("input", "output", "normalised")])
    expected = by_formula(norm, found[f"{site}.input"])
    torch.testing.assert_close(found[f"{site}.normalised"], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[f"{site}.output"], expected, atol=1e-2)
    assert describe(str(tiny.folder)).width(f"{site}.normalised") == tiny.lm.width(f"{site}.output")


def test_what_is_written_there_meets_the_gain(tiny) -> None:
    site, norm = site_of(tiny), tiny.blocks[1].get_submodule(tiny.wiring.norm)
    before = tiny.lm.capture(tiny.tokens, [f"{site}.output"])[f"{site}.output"]
    with tiny.lm.intervene(f"{site}.normalised", lambda x: x):
        assert torch.equal(tiny.lm.capture(tiny.tokens, [f"{site}.output"])[f"{site}.output"], before)
    # Twice the normalised activations, by the norm's own gain and bias: twice the output, less the bias once.
    bias = getattr(norm, "bias", None)
    expected = 2 * before - (0 if bias is None else bias)
    with tiny.lm.intervene(f"{site}.normalised", lambda x: 2 * x):
        after = tiny.lm.capture(tiny.tokens, [f"{site}.output"])[f"{site}.output"]
        twice = tiny.lm.capture(tiny.tokens, [f"{site}.normalised"])[f"{site}.normalised"]
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    once = tiny.lm.capture(tiny.tokens, [f"{site}.normalised"])[f"{site}.normalised"]
    torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-5)


def test_a_dimension_without_gain_stays_as_it_is(tiny) -> None:
    site, norm = site_of(tiny), tiny.blocks[1].get_submodule(tiny.wiring.norm)
    kept = norm.weight.detach().clone()
    try:
        norm.weight[0] = -1.0 if "Gemma" in type(norm).__name__ else 0.0
        found = tiny.lm.capture(tiny.tokens, [f"{site}.normalised"])[f"{site}.normalised"]
        assert bool(found.isfinite().all())
        assert not bool(found[..., 0].any())
    finally:
        norm.weight.copy_(kept)


@pytest.mark.parametrize("path", ["mlp", "self_attn"])
def test_other_modules_have_no_such_side(tiny, path: str) -> None:
    if not hasattr(tiny.blocks[1], path):
        pytest.skip("named otherwise")
    with pytest.raises(SiteError, match="only a norm has that side"):
        tiny.lm.site(f"{tiny.wiring.blocks}.1.{path}.normalised")


# A LayerNorm of its own, one without gain, and one that does not centre.
OWN_NORMS = {
    "cohere": ("layers.1.input_layernorm", True),
    "olmo": ("layers.1.input_layernorm", True),
    "t5": ("encoder.block.1.layer.0.layer_norm", False),
}


@pytest.mark.parametrize("name", OWN_NORMS)
def test_norms_of_an_architecture_s_own(name: str, family_folder: Callable[[str], Path]) -> None:
    path, centred = OWN_NORMS[name]
    lm = LanguageModel.from_pretrained(str(family_folder(name)))
    tokens = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    read, found = lm.capture(tokens, [f"{path}.input", f"{path}.normalised"]).values()
    x = read - read.mean(-1, keepdim=True) if centred else read
    torch.testing.assert_close(found, x / x.square().mean(-1, keepdim=True).sqrt(), rtol=1e-3, atol=1e-4)
    assert is_centred(lm.site(f"{path}.output").module, read) == centred
