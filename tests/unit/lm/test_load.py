"""Loading: what is found, what is refused, and what the refusal says."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaModel, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.utils import logging as transformers_logging

from lightsae.errors import ModelError, SiteError, under
from lightsae.lm import LanguageModel, describe
from lightsae.lm.config import truncated


@pytest.fixture
def folder(tiny_folder, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may spoil."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "llama"))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    assert error.value.__cause__ is None
    return text


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model", "not a name"])
def test_unknown_name(name: str) -> None:
    for call in (describe, LanguageModel.from_pretrained):
        with pytest.raises(ModelError) as error:
            call(name)
        assert message(error).startswith(f"name_or_path is {name!r}")
        assert "Hub" in message(error)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "~/nowhere/model", "a/b/c"])
def test_missing_folder(name: str) -> None:
    with pytest.raises(ModelError, match=f"name_or_path is '{name}', and there is no such folder"):
        describe(name)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a folder without config\.json"):
        describe(str(tmp_path))


def test_file_in_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match="a file, not a model's folder"):
        describe(str(folder / "model.safetensors"))


@pytest.mark.parametrize("text", ["{", '{"model_type": "nonsense"}', "{}", "[]"])
def test_spoiled_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError) as error:
        describe(str(folder))
    assert "config.json cannot be used" in message(error)


def test_remote_code_is_off_until_allowed(folder: Path) -> None:
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text("raise SystemExit('code from the repository ran')")
    with pytest.raises(ModelError, match=r"trust_remote_code: true"):
        describe(str(folder))


@pytest.mark.parametrize("size", [0, 7, 400, -100])
def test_truncated_weights(folder: Path, size: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    describe(str(folder))  # needs no weights
    with pytest.raises(ModelError) as error:
        LanguageModel.from_pretrained(str(folder))
    assert "its weights cannot be read" in message(error)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="its weights cannot be read"):
        LanguageModel.from_pretrained(str(folder))


def test_weights_without_some_tensors(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"lack \d+ tensors, such as model\.layers\.3"):
        LanguageModel.from_pretrained(str(folder))


def test_weights_of_other_shapes(folder: Path) -> None:
    edit_config(folder, intermediate_size=48)
    with pytest.raises(ModelError, match=r"do not fit its config\.json: .*down_proj.* has shape"):
        LanguageModel.from_pretrained(str(folder))


def test_pickled_weights_are_never_unpickled_as_code(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="its weights cannot be read"):
        LanguageModel.from_pretrained(str(folder))
    assert not (tmp_path / "ran").exists()


def test_device_that_is_absent(folder: Path) -> None:
    for device in ("cuda", "nonsense"):
        with pytest.raises(ModelError, match=f"device is '{device}'"):
            LanguageModel.from_pretrained(str(folder), device=device)


def test_dtype(folder: Path) -> None:
    assert LanguageModel.from_pretrained(str(folder)).dtype == torch.float32
    assert LanguageModel.from_pretrained(str(folder), dtype="float16").dtype == torch.float16
    with pytest.raises(ModelError, match=r"dtype is 'fp8'"):
        LanguageModel.from_pretrained(str(folder), dtype="fp8")


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What transformers logs, which keeps its records from the root logger."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield messages
    logging.getLogger("transformers").removeHandler(handler)


def test_loading_a_part_is_silent(folder: Path, said: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    LanguageModel.from_pretrained(str(folder), sites=["resid_post.0"])
    assert said == []
    assert capfd.readouterr() == ("", "")
    logger = logging.getLogger("transformers.modeling_utils")
    assert not logger.filters
    logger.warning("still heard")
    assert said == ["still heard"]
    assert transformers_logging.is_progress_bar_enabled()


def test_rows_that_end_with_the_pad_token_raise_no_alarm(tiny_folder: Callable[[str], Path], said: list[str]) -> None:
    lm = LanguageModel.from_pretrained(str(tiny_folder("gpt2")))
    lm.logits(torch.full((2, 4), 2))
    assert said == []


def test_truncation_cuts_the_lists_of_layers(tiny_folder: Callable[[str], Path]) -> None:
    for name, key in (("gemma3_text", "layer_types"), ("gpt_neo", "attention_layers")):
        lm = LanguageModel.from_pretrained(str(tiny_folder(name)), sites=["resid_post.1"])
        assert len(getattr(lm.model.config, key)) == 2
        assert lm.n_layers == 3


def test_chunked_feed_forward_is_read_whole(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("bert"), tmp_path / "bert"))
    edit_config(folder, chunk_size_feed_forward=3)
    lm = LanguageModel.from_pretrained(str(folder))
    assert lm.capture(torch.full((2, 9), 5), ["mlp_act.1"])["mlp_act.1"].shape == (2, 9, 52)


def test_unused_weights_are_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_config(folder, num_hidden_layers=2)
    LanguageModel.from_pretrained(str(folder))
    assert "tensors, such as model.layers.2" in caplog.text


def test_layer_out_of_range(folder: Path) -> None:
    with pytest.raises(SiteError) as error:
        describe(str(folder)).width("resid_post.9")
    assert str(error.value) == (
        f"site is 'resid_post.9', but {str(folder)!r} has layers 0..2. "
        f"Did you mean 'resid_post.2'? List them: lightsae sites {folder}"
    )


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("residpost.1", "resid_post.1"),
        ("resid_post", "resid_post.2"),
        ("mlp_output.2", "mlp_out.2"),
        ("model.layers.1.mlp.act.output", "model.layers.1.mlp.act_fn.output"),
        ("model.layers.1.mlp", "model.layers.1.mlp.output"),
    ],
)
def test_unknown_site_suggests_the_nearest(folder: Path, wrong: str, right: str) -> None:
    with pytest.raises(SiteError) as error:
        describe(str(folder)).width(wrong)
    assert f"Did you mean {right!r}?" in message(error)
    with pytest.raises(SiteError) as error:
        LanguageModel.from_pretrained(str(folder), sites=[wrong])
    assert f"Did you mean {right!r}?" in message(error)


def test_the_key_of_the_message_is_the_callers(folder: Path) -> None:
    with pytest.raises(SiteError, match=r"^--site is 'nonsense'"), under(site="--site"):
        describe(str(folder)).width("nonsense")


@pytest.mark.parametrize("site", ["model.rotary_emb.output", "model.layers.0.self_attn.q_norm.output", "model.output"])
def test_modules_that_hold_no_vector_a_token(folder: Path, site: str) -> None:
    with pytest.raises(SiteError):
        describe(str(folder)).width(site)


def test_sites_outside_the_blocks_load_everything(folder: Path, tokens: torch.Tensor) -> None:
    lm = LanguageModel.from_pretrained(str(folder), sites=["resid_post.0", "lm_head.output"])
    assert torch.equal(lm.capture(tokens, ["lm_head.output"])["lm_head.output"], lm.logits(tokens))


def test_raw_paths_of_an_architecture_outside_the_table(folder: Path, tokens: torch.Tensor) -> None:
    edit_config(folder, model_type="arcee", architectures=["ArceeForCausalLM"])
    description = describe(str(folder))
    assert description.width("model.layers.1.mlp.down_proj.input") == 52
    assert description.sites() == []
    with pytest.raises(SiteError, match="portable names are not known"):
        description.width("resid_post.1")


def test_config_that_no_model_can_be_built_from(folder: Path) -> None:
    for wrong in ({"num_attention_heads": 5}, {"num_attention_heads": 4, "hidden_act": "nonsense"}):
        edit_config(folder, **wrong)
        with pytest.raises(ModelError) as error:
            describe(str(folder))
        assert "config.json cannot be used" in message(error)


def test_config_that_no_forward_pass_fits(folder: Path) -> None:
    """It is not measured from config.json, and the weights have other shapes."""
    edit_config(folder, num_key_value_heads=3)
    with pytest.raises(ModelError) as error:
        describe(str(folder)).width("resid_post.1")
    assert "do not fit its config.json" in message(error)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are loaded."""
    names: list[str] = []
    load = LanguageModel.from_pretrained

    def noted(name: str, **kwargs: object) -> LanguageModel:
        names.append(name)
        return load(name, **kwargs)

    monkeypatch.setattr(LanguageModel, "from_pretrained", noted)
    return names


def test_a_pass_that_asks_for_values_is_measured_on_the_loaded_model(
    folder: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LlamaMLP.forward
    assert describe(str(folder)).width("mlp_act.1") == 52
    assert loads == []
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: forward(self, x) if float(x.sum()) < 1e9 else x)
    description = describe(str(folder))
    assert description.width("resid_pre.0") == 24  # the pass stops before
    assert loads == []
    assert description.width("mlp_act.1") == 52
    assert loads == [str(folder)]


def test_a_model_that_asks_for_values_while_it_is_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = LlamaModel.__init__

    def asking(self: LlamaModel, config: LlamaConfig) -> None:
        assert torch.linspace(0, 1, 3, device="cpu").tolist() == [0.0, 0.5, 1.0]
        built(self, config)

    monkeypatch.setattr(LlamaModel, "__init__", asking)
    assert describe(str(folder)).width("mlp_act.1") == 52
    assert LanguageModel.from_pretrained(str(folder), sites=["mlp_act.1"]).width("mlp_act.1") == 52


def test_a_model_that_runs_on_no_tokens_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("pixel_values are missing")

    monkeypatch.setattr(LlamaMLP, "forward", refusing)
    with pytest.raises(ModelError) as error:
        describe(str(folder)).width("resid_post.1")
    assert "does not run on tokens alone: pixel_values are missing." in message(error)


def test_lists_of_layers_by_number_are_not_cut() -> None:
    config = transformers.Qwen2MoeConfig(num_hidden_layers=2, mlp_only_layers=[1, 0])
    assert truncated(config, 1).mlp_only_layers == [1, 0]


# -- architectures outside the table -----------------------------------------------------------------------------------

_SMALL = {"hidden_size": 24, "intermediate_size": 52, "num_hidden_layers": 3, "num_attention_heads": 4}
_LLAMA_4 = {"num_key_value_heads": 2, "head_dim": 6, "num_local_experts": 2, "intermediate_size_mlp": 52}


def saved(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", ["ModernBertForMaskedLM", "ModernBertModel"])
def test_weights_that_look_at_themselves_while_they_are_drawn(kind: str, device: str, tmp_path: Path) -> None:
    config = transformers.ModernBertConfig(**_SMALL, vocab_size=61, pad_token_id=0, cls_token_id=1, sep_token_id=2)
    folder = saved(getattr(transformers, kind)(config), tmp_path / kind)
    with torch.device(device):
        description = describe(folder)
        assert [description.width(f"layers.{layer}.output") for layer in range(3)] == [24] * 3
        assert description.width("layers.1.mlp.Wo.input") == 52
    lm = LanguageModel.from_pretrained(folder, sites=["layers.1.output"])
    assert lm.capture(torch.full((2, 5), 7), ["layers.1.output"])["layers.1.output"].shape == (2, 5, 24)


@pytest.mark.parametrize("kind", ["ASTModel", "ResNetModel"])
def test_models_that_read_neither_text_nor_images(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = getattr(transformers, kind).config_class()
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as error:
        describe(str(tmp_path)).width("embeddings.output")
    assert message(error).startswith(f"name_or_path is {str(tmp_path)!r}, ")
    assert capfd.readouterr().err == ""


def test_a_model_of_images_is_no_language_model(family_folder: Callable[[str], Path], tokens: torch.Tensor) -> None:
    lm = LanguageModel.from_pretrained(str(family_folder("vit")))
    with pytest.raises(ModelError, match="reads images, and has no tokenizer"):
        _ = lm.tokenizer
    with pytest.raises(ModelError, match="without a next-token head"):
        lm.logits(tokens)


def test_an_encoder_decoder_of_which_nothing_is_read(tmp_path: Path) -> None:
    transformers.BartConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError) as error:
        describe(str(tmp_path))
    assert "an encoder-decoder. Causal language models and encoders are supported, that of t5" in message(error)


def test_the_head_of_a_model_that_does_not_know_its_body(tmp_path: Path, tokens: torch.Tensor) -> None:
    """Llama 4's body is not at its `base_model_prefix`, so that transformers takes the whole for the body."""
    config = transformers.Llama4TextConfig(**_SMALL, **_LLAMA_4, vocab_size=61, attention_chunk_size=32)
    folder = saved(transformers.Llama4ForCausalLM(config), tmp_path / "whole")
    lm = LanguageModel.from_pretrained(folder)
    assert lm.model.base_model is lm.model
    assert lm.has_next_token_head
    assert lm.logits(tokens).shape == (2, 9, 61)
    assert describe(folder).width("model.layers.2.output") == 24
    base = LanguageModel.from_pretrained(saved(lm.model.model, tmp_path / "base"))
    assert not base.has_next_token_head


def test_head_of_every_family(tiny_folder: Callable[[str], Path], architectures: list[str]) -> None:
    for name in architectures:
        assert LanguageModel.from_pretrained(str(tiny_folder(name))).has_next_token_head == (name != "bert"), name


@pytest.mark.parametrize(
    ("library", "quantised"),
    [
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("optimum", {"quant_method": "gptq", "bits": 4, "group_size": 128}),
        ("gptqmodel", {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}),
        ("torchao", {"quant_method": "torchao", "quant_type": "int8_weight_only"}),
        ("hqq", {"quant_method": "hqq", "quant_config": {}}),
    ],
)
def test_quantised_weights_without_their_library(folder: Path, library: str, quantised: dict[str, object]) -> None:
    if find_spec(library):
        pytest.skip(f"{library} is installed")
    edit_config(folder, quantization_config=quantised)
    assert describe(str(folder)).width("resid_post.1") == 24
    for sites in (None, ["resid_post.1"]):
        with pytest.raises(ModelError) as error:
            LanguageModel.from_pretrained(str(folder), sites=sites)
        assert "needs something that is not installed here" in message(error)


def test_builtin_model_ships_complete() -> None:
    lm = LanguageModel.from_pretrained(sites=["resid_post.0"])
    assert lm.name == "builtin"
    assert len(lm.tokenizer) == lm.model.config.vocab_size
    assert {lm.bos_token_id, lm.eos_token_id} <= set(lm.special_token_ids)
    tokens = torch.tensor([lm.tokenizer.encode("import os")])
    assert lm.capture(tokens, ["resid_post.0"])["resid_post.0"].shape[-1] == describe("builtin").width("resid_post.0")


def test_tokenizer_is_missed_only_when_needed(folder: Path) -> None:
    lm = LanguageModel.from_pretrained(str(folder))
    assert (lm.bos_token_id, lm.eos_token_id, lm.special_token_ids) == (1, 2, (1, 2))
    with pytest.raises(ModelError, match="tokenizer is missing"):
        _ = lm.tokenizer


def test_special_tokens_follow_the_tokenizer(folder: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(["[CLS]", "[SEP]", "[PAD]", "a", "b", "[UNK]"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")),
        cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    lm = LanguageModel.from_pretrained(str(folder))
    assert (lm.bos_token_id, lm.eos_token_id, lm.special_token_ids) == (0, 1, (0, 1, 2, 5))
    assert len(lm.tokenizer) == 6


def test_model_saved_without_its_head_gives_no_logits(folder: Path, tokens: torch.Tensor) -> None:
    LanguageModel.from_pretrained(str(folder)).model.model.save_pretrained(folder / "base")
    lm = LanguageModel.from_pretrained(str(folder / "base"))
    assert not lm.has_next_token_head
    assert lm.capture(tokens, ["resid_post.2"])["resid_post.2"].shape == (2, 9, 24)
    with pytest.raises(ModelError, match="without a next-token head"):
        lm.logits(tokens)


# -- random weights ----------------------------------------------------------------------------------------------------


def parameters(name: str, **options: object) -> dict[str, torch.Tensor]:
    model = LanguageModel.from_pretrained(name, **options).model  # type: ignore[arg-type]
    base = f"{model.base_model_prefix}."
    return {key.removeprefix(base): value for key, value in model.named_parameters()}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "bert"])
def test_random_weights_keep_nothing_but_the_sizes(architecture: str, tiny_folder: Callable[[str], Path]) -> None:
    folder = str(tiny_folder(architecture))
    trained, drawn = parameters(folder), parameters(f"{folder}@random")
    assert trained.keys() == drawn.keys()
    for name, before in trained.items():
        after = drawn[name]
        # Norms' gains of an untrained model are all alike: no spread, so they stay.
        if before.std(correction=0) > 0:
            assert not torch.equal(before, after), name
        if before.numel() > 1000 and before.std() > 0:
            together = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]
            assert together.abs() < 5 / before.numel() ** 0.5, name
            torch.testing.assert_close(after.std(), before.std(), rtol=0.1, atol=0)


def test_random_weights_follow_from_the_seed_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    first, again, other = (parameters(f"{folder}@random{suffix}") for suffix in ("", "-0", "-1"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.mlp.up_proj.weight"], other["layers.0.mlp.up_proj.weight"])


def test_a_part_of_a_random_model_is_that_of_the_whole(folder: Path, tokens: torch.Tensor) -> None:
    name, site = f"{folder}@random-2", "resid_post.1"
    whole, part = LanguageModel.from_pretrained(name), LanguageModel.from_pretrained(name, sites=[site])
    assert len(part.model.base_model.layers) < len(whole.model.base_model.layers)
    assert torch.equal(whole.capture(tokens, [site])[site], part.capture(tokens, [site])[site])
    assert whole.name == describe(name).name == name
    assert describe(name).width(site) == describe(str(folder)).width(site)


def test_a_folder_of_that_name_comes_first(folder: Path) -> None:
    twin = Path(shutil.copytree(folder, folder.with_name("llama@random")))
    assert all(torch.equal(a, b) for a, b in zip(*(parameters(str(f)).values() for f in (folder, twin)), strict=True))
