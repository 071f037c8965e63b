"""Rounded weights, and a model that is spread over devices: what is refused, what transformers is told, what it gives.

bitsandbytes and accelerate are optional; what needs them is skipped where they are missing.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.analysis.effects.final_norm import final_norm
from lightsae.analysis.effects.logits import logits_of
from lightsae.errors import ConfigError, ModelError
from lightsae.lm import LanguageModel, describe, placement
from lightsae.lm.config import load_config, truncated
from lightsae.lm.generate import Sampling, generate_samples
from lightsae.lm.load import told_of
from lightsae.lm.placement import Placement

CPU = torch.device("cpu")
SITES = ["resid_pre.1", "mlp_out.1", "resid_post.1"]
ROUNDED = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages are there, as far as is looked."""
    monkeypatch.setattr(placement, "find_spec", lambda name: name)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved_rounded(tiny_folder: Callable[[str], Path], tmp_path: Path) -> str:
    """A model whose config.json says that its weights were rounded."""
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "rounded"))
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"quantization_config": ROUNDED}))
    return str(folder)


def told(name: str, where: Placement, layers: int | None = None) -> dict[str, Any]:
    config = load_config(name, None, False)
    part, head = (config, True) if layers is None else (truncated(config, layers), False)
    shared = {"dtype": torch.bfloat16, "trust_remote_code": False}
    return told_of(where, name, part, config, with_head=head, **shared)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"quantization": "3bit"}, "quantization is '3bit'; write 8bit or 4bit, or leave it out."),
        (
            {"device_map": "everywhere"},
            "device_map is 'everywhere'; write auto, balanced, balanced_low_0, sequential, or a mapping of modules to "
            "devices.",
        ),
        ({"device_map": {}}, "device_map is {}; name modules with their devices, or leave it out."),
        (
            {"device_map": "auto", "device": "cpu"},
            "device_map is 'auto'; but device is 'cpu', too; give one of them.",
        ),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        LanguageModel.from_pretrained(**settings)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"quantization": "4bit"},
            "quantization is '4bit', which needs bitsandbytes and accelerate: pip install 'lightsae[quantized]'",
        ),
        ({"device_map": "auto"}, "device_map needs accelerate, which is not installed: pip install accelerate"),
    ],
)
def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], text: str) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(ModelError) as error:
        LanguageModel.from_pretrained(**settings)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"device": "cuda:97"}, "device is 'cuda:97', which this machine or its PyTorch lacks"),
        ({"output_device": "cuda:97"}, "output_device is 'cuda:97', which this machine or its PyTorch lacks"),
        ({"device_map": {"": 97}}, "device_map is 97, which this machine or its PyTorch lacks"),
        (
            {"quantization": "4bit", "device_map": {"": "cpu", "model.layers.0": "disk"}},
            "quantization is '4bit', and rounded weights stay on the device that computes; leave cpu and disk out",
        ),
        (
            {"name_or_path": "builtin@random", "quantization": "8bit"},
            "name_or_path is 'builtin@random', but quantization is '8bit': random weights are not rounded",
        ),
        ({"device_map": {"model.layer.0": "cpu"}}, "device_map names 'model.layer.0', which 'builtin' does not have"),
        ({"device_map": {"model.layers.0": "cpu"}}, "device_map has no device for 'model.embed_tokens.weight'"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_what_does_not_fit(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError) as error:
        LanguageModel.from_pretrained(**settings)
    assert str(error.value).startswith(text)


@pytest.mark.usefixtures("installed")
def test_what_was_saved_rounded_is_read_as_it_is(saved_rounded: str) -> None:
    assert len(describe(saved_rounded).sites()) == 3 * 7
    with pytest.raises(ModelError, match="was saved rounded, by bitsandbytes, and is read as it is; leave it out"):
        LanguageModel.from_pretrained(saved_rounded, quantization="8bit")
    with pytest.raises(ModelError, match=r"@random', but bitsandbytes has rounded its weights: random weights are not"):
        LanguageModel.from_pretrained(f"{saved_rounded}@random")


def test_an_architecture_of_other_matrices(family_folder: Callable[[str], Path]) -> None:
    # Falcon's linear modules are of a class of their own, which bitsandbytes leaves alone.
    with pytest.raises(ModelError, match="has no matrices that bitsandbytes rounds"):
        told(str(family_folder("falcon")), Placement(CPU, None, "8bit"))


# -- what transformers is told ---------------------------------------------------------------------------------------


def test_nothing_is_told_of_a_plain_model() -> None:
    assert told("builtin", Placement(CPU)) == {}


@pytest.mark.parametrize(("quantization", "kind"), [("8bit", "llm_int8"), ("4bit", "nf4")])
def test_the_config_of_the_rounding(quantization: str, kind: str) -> None:
    whole, part = (told("builtin", Placement(CPU, None, quantization), layers) for layers in (None, 2))
    assert whole["device_map"] == part["device_map"] == {"": CPU}
    config = whole["quantization_config"]
    assert (config.quantization_method(), config.bnb_4bit_compute_dtype) == (kind, torch.bfloat16)
    # The head is all that a part has less, so that the blocks are the same.
    assert set(config.llm_int8_skip_modules) - set(part["quantization_config"].llm_int8_skip_modules) == {"lm_head"}


@pytest.mark.usefixtures("installed")
def test_what_was_saved_rounded_goes_to_its_device(saved_rounded: str) -> None:
    assert told(saved_rounded, Placement(CPU)) == {"device_map": {"": CPU}}


@pytest.mark.parametrize(
    ("given", "whole", "part"),
    [
        ("auto", "auto", "auto"),
        ({"": "cpu"}, {"": "cpu"}, {"": "cpu"}),
        ({"model": 0, "lm_head": 1}, {"model": 0, "lm_head": 1}, {"": 0}),
        (
            {"": 0, "model.layers.1": 1},
            {"lm_head": 0, "model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "model.layers.2": 0}
            | {"model.norm": 0, "model.rotary_emb": 0},
            {"embed_tokens": 0, "layers.0": 0, "layers.1": 1, "norm": 0, "rotary_emb": 0},
        ),
        (
            {"layers": 1, "embed_tokens": 0, "norm": 0, "lm_head": 0},
            {"model.layers": 1, "model.embed_tokens": 0, "model.norm": 0, "lm_head": 0},
            {"layers": 1, "embed_tokens": 0, "norm": 0},
        ),
    ],
)
def test_a_device_map_is_written_for_the_whole_model(
    tiny_folder: Callable[[str], Path], given: Any, whole: Any, part: Any
) -> None:
    name = str(tiny_folder("llama"))
    assert told(name, Placement(CPU, given))["device_map"] == whole
    assert told(name, Placement(CPU, given), 2)["device_map"] == part


# -- where activations go ----------------------------------------------------------------------------------------------


def test_activations_arrive_elsewhere(tokens: Tensor) -> None:
    """Meta stands for a second device: things can be brought there, but not back."""
    plain = LanguageModel.from_pretrained(dtype="float32")
    lm = LanguageModel.from_pretrained(dtype="float32", output_device="meta")
    assert (lm.device.type, lm.model.device.type) == ("meta", "cpu")
    read = lm.capture(tokens, SITES)
    assert [(x.device.type, x.shape) for x in read.values()] == [("meta", torch.Size((2, 9, lm.width(SITES[0]))))] * 3
    assert lm.logits(tokens).device.type == "meta"
    shown, written = [], []

    def change(x: Tensor) -> Tensor:
        shown.append(x.device.type)
        return torch.ones(x.shape)  # what it returns is brought to the block

    lm.site("resid_post.1").module.register_forward_pre_hook(lambda _, args: written.append(args[0]))
    with lm.intervene("resid_post.0", change):
        lm.logits(tokens)
    assert shown == ["meta"]
    assert torch.equal(written[0], torch.ones(2, 9, lm.width(SITES[0])))
    with pytest.raises(ModelError, match="stays where it was loaded"):
        lm.to("cpu")
    assert plain.device == CPU


# -- rounded weights -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["8bit", "4bit"])
def quantization(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    return str(request.param)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_rounded_model_is_near_the_plain_one(
    tiny_folder: Callable[[str], Path], tokens: Tensor, name: str, dtype: str, quantization: str
) -> None:
    folder = str(tiny_folder(name))
    plain, lm, again, part = (
        LanguageModel.from_pretrained(folder, dtype=dtype, quantization=rounded, sites=sites)
        for rounded, sites in ((None, None), (quantization, None), (quantization, None), (quantization, SITES))
    )
    exact, read = plain.capture(tokens, SITES), lm.capture(tokens, SITES)
    for site in SITES:
        error = (read[site] - exact[site]).norm() / exact[site].norm()
        assert 0 < error < (0.1 if quantization == "8bit" else 0.5)
        assert read[site].dtype == lm.dtype == getattr(torch, dtype)
        for other in (again, part):
            assert torch.equal(other.capture(tokens, [site])[site], read[site])
    # What is written is read by the blocks above.
    with lm.intervene("resid_pre.0", torch.zeros_like):
        assert not torch.equal(lm.logits(tokens), again.logits(tokens))
    assert torch.equal(lm.logits(tokens), again.logits(tokens))
    with pytest.raises(ModelError, match="stays where it was loaded"):
        lm.to("cpu")


def test_a_rounded_model_is_saved_and_read(tmp_path: Path, tokens: Tensor, quantization: str) -> None:
    lm = LanguageModel.from_pretrained(quantization=quantization, dtype="float32")
    lm.model.save_pretrained(tmp_path / "rounded")
    read = LanguageModel.from_pretrained(str(tmp_path / "rounded"), dtype="float32")
    assert torch.equal(read.logits(tokens), lm.logits(tokens))
    with pytest.raises(ModelError, match="stays where it was loaded"):
        read.to("cpu")


def test_gradients_pass_through_rounded_weights(tokens: Tensor, quantization: str) -> None:
    lm = LanguageModel.from_pretrained(quantization=quantization, dtype="float32")
    direction = torch.zeros(lm.width("resid_post.0"), requires_grad=True)
    with lm.intervene("resid_post.0", lambda x: x + direction):
        lm.model(tokens).logits.logsumexp(-1).sum().backward()
    assert direction.grad is not None
    assert direction.grad.abs().max() > 0


# -- spread over devices --------------------------------------------------------------------------------------------

BLOCK = {"gpt2": "transformer.h.1", "llama": "model.layers.1", "gpt_neox": "gpt_neox.layers.1"}


@pytest.fixture(params=[*BLOCK, "all"])
def spread(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> tuple[LanguageModel, LanguageModel]:
    """A plain model, and the same with weights on the disk: a block, or everything."""
    pytest.importorskip("accelerate")
    name = request.param if request.param != "all" else "llama"
    device_map = {"": "cpu", BLOCK[name]: "disk"} if request.param != "all" else {"": "disk"}
    folder = str(tiny_folder(name))
    plain = LanguageModel.from_pretrained(folder, dtype="float32")
    return plain, LanguageModel.from_pretrained(folder, dtype="float32", device_map=device_map)


def test_a_spread_model_gives_the_same_bits(spread: tuple[LanguageModel, LanguageModel], tokens: Tensor) -> None:
    plain, lm = spread
    assert any(parameter.is_meta for parameter in lm.model.parameters())
    assert lm.device == CPU
    sites = [*SITES, f"{lm.site('mlp_out.1').path.rsplit('.mlp', 1)[0]}.{norm_of(lm)}.normalised"]
    for _ in range(2):
        for site, x in plain.capture(tokens, sites).items():
            assert torch.equal(lm.capture(tokens, [site])[site], x)
        assert torch.equal(lm.logits(tokens), plain.logits(tokens))
    with plain.intervene("resid_post.1", torch.neg), lm.intervene("resid_post.1", torch.neg):
        assert torch.equal(lm.logits(tokens), plain.logits(tokens))
    with lm.computed_once(["resid_post.1"]), lm.intervene("resid_post.1", torch.neg):
        lm.logits(tokens)
        once = lm.logits(tokens)
    with plain.intervene("resid_post.1", torch.neg):
        assert torch.equal(once, plain.logits(tokens))


def norm_of(lm: LanguageModel) -> str:
    return "ln_2" if lm.model.config.model_type == "gpt2" else "post_attention_layernorm"


def test_blocks_above_the_last_site_do_not_run(spread: tuple[LanguageModel, LanguageModel], tokens: Tensor) -> None:
    _, lm = spread
    ran = []
    lm.site("resid_post.2").module.register_forward_pre_hook(lambda *_: ran.append(2))
    lm.capture(tokens, ["resid_post.1"])
    assert ran == []
    lm.logits(tokens)
    assert ran == [2]


def test_a_spread_model_generates(spread: tuple[LanguageModel, LanguageModel]) -> None:
    drawn = [
        model.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        for model in spread
    ]
    assert torch.equal(*drawn)


def test_the_weights_of_a_spread_model_are_looked_at(spread: tuple[LanguageModel, LanguageModel]) -> None:
    looked = []
    for model in spread:
        norm = final_norm(model)
        assert norm is not None
        looked.append((norm.gain, logits_of(model, norm, torch.ones(1, len(norm.gain)), 1.0)))
    for ours, plain in zip(*looked, strict=True):
        assert torch.equal(ours, plain)


def test_a_spread_model_is_not_moved(spread: tuple[LanguageModel, LanguageModel]) -> None:
    with pytest.raises(ModelError, match="stays where it was loaded"):
        spread[1].to("cpu")


def test_a_mapping_to_one_device_is_that_device(tokens: Tensor) -> None:
    pytest.importorskip("accelerate")
    plain, mapped, chosen = (
        LanguageModel.from_pretrained(dtype="float32", device_map=one) for one in (None, {"": "cpu"}, "auto")
    )
    for lm in (mapped, chosen):
        assert torch.equal(lm.logits(tokens), plain.logits(tokens))


def test_texts_of_a_spread_model() -> None:
    pytest.importorskip("accelerate")
    plain, lm = (
        LanguageModel.from_pretrained(dtype="float32", device_map=one)
        for one in (None, {"": "cpu", "model.layers.0": "disk"})
    )
    sampling = Sampling(max_new_tokens=5)
    assert generate_samples(lm, ["def f"], sampling=sampling) == generate_samples(plain, ["def f"], sampling=sampling)
