"""An SAE in files of each layout goes through interpret, steer, panel and monitor, and predicts what its file says.

The files are those of tests/helpers/layout_files, of random weights; what their SAE gives stands there in plain
formulas, against which counts, events and logits are held. The language model is as wide as they are.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import lightsae
from helpers.command_line import lightsae_at
from helpers.layout_files import (
    D,
    Function,
    Make,
    circuit_tracer,
    crosscoders,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    llama_scope_r1,
    llamascopium,
    openai,
    pickled,
    sparsify,
)
from helpers.layout_files.sae_lens import write_sae_lens
from lightsae.activations.settings import DataSettings
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.reading.text import Texts
from lightsae.analysis.steering import Ablate, Add
from lightsae.errors import LightsaeError
from lightsae.formats.layouts import LAYOUTS, PortableSAE
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm import LanguageModel

HOOK, SITE, CONTEXT, TOKENS = "blocks.1.hook_resid_post", "resid_post.1", 32, 640
HOOKS = {"hook_point_in": HOOK, "hook_point_out": HOOK}
TEXT = ("--dataset", "builtin", "--num_workers", "0", "--context_size", str(CONTEXT), "--dtype", "float32")
USES = {"tokens": TOKENS, "score_tokens": 320, "mining_tokens": 320}
SIZES = (
    *(word for name, count in USES.items() for word in (f"--{name}", str(count))),
    *("--dashboard", "false", "--ablation_windows", "0", "--neurons", "false"),
    *("--contexts", "4", "--sampled", "4", "--near_misses", "0"),
)
PANEL: dict[str, Any] = {
    "sweep": {
        "doses": [0.5],
        "max_perplexity_ratio": 1000,
        "sampling": {"max_new_tokens": 2, "min_new_tokens": 2},
    },
    "held_out_rows": 2,
    "others": 1,
    "prompts": ["if ", "for ", "def ", "class "],
}
# Ids that are no special tokens; one row.
ROW = torch.arange(2, 2 + CONTEXT)[None]


def of_sae_lens(folder: Path, architecture: str) -> tuple[Path, Function]:
    return folder / "sae", write_sae_lens(folder / "sae", architecture, metadata={"hook_name": HOOK})


# By layout; what follows a comma tells cases of one apart.
CASES: dict[str, Make] = {
    "gemma_scope": partial(gemma_scope.make, path="gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71"),
    "gemma_scope_2": partial(
        gemma_scope_2.make,
        path="resid_post/layer_1",
        model_name="gemma-3-1b-pt",
        hf_hook_point_in="model.layers.1.output",
        hf_hook_point_out="model.layers.1.output",
    ),
    "llama_scope": partial(llama_scope.make, **HOOKS),
    "llama_scope_r1": partial(llama_scope_r1.make, path="anywhere", norm=3.0, hook=HOOK),
    "llamascopium": partial(llamascopium.make, act_fn="jumprelu", norm_activation="inference", **HOOKS),
    "qwen_scope": partial(pickled.qwen, repository="SAE-Res-Qwen3-8B-Base-W64K-L0_5", k=5, layer=1),
    "goodfire": partial(pickled.linear, file="Llama-3.1-8B-Instruct-SAE-l1.pth", suffix="_linear"),
    "deepseek_r1": partial(pickled.linear, file="DeepSeek-R1-Distill-Llama-8B-SAE-l1.pt", suffix=""),
    "sae_lens": partial(of_sae_lens, architecture="topk"),
    "sae_lens, matching pursuit": partial(of_sae_lens, architecture="matching_pursuit"),
    # What neither says its site nor its model.
    "dictionary_learning": dictionary_learning.case(dictionary_learning.jump_relu),
    "openai": partial(openai.make, location="mine"),
    "sparsify": sparsify.case("layers.1"),
    # It predicts mlp_out.1 from mlp_in.1.
    "circuit_tracer": partial(circuit_tracer.make, layer=1),
}
OF_SEVERAL = ("ckkissane", "science_of_finetuning")


@dataclass(frozen=True)
class Work:
    """An SAE in somebody's files, and the feature dictionary that `interpret` made of it.

    Attributes:
        folder: Where all lies.
        path: The SAE, as a user names it.
        function: What its file stands for.
        named: Options of commands that read text.
    """

    folder: Path
    path: Path
    function: Function
    named: tuple[str, ...]

    @property
    def dictionary(self) -> FeatureDictionary:
        return FeatureDictionary.open(self.folder / "dictionary")

    @property
    def saved(self) -> SavedSAE:
        return self.dictionary.named(SavedSAE.open(self.path))

    @property
    def site(self) -> str:
        """What it reads."""
        return next(iter(self.saved.sae.widths.read)).site

    @property
    def written(self) -> str:
        """What it predicts."""
        return next(iter(self.saved.sae.widths.predicted)).site

    @property
    def feature(self) -> int:
        """Of those that are silent on some tokens the one that fires most often."""
        rows = [row for row in self.dictionary.features().to_pylist() if row["frequency"] < 0.8]
        return int(max(rows, key=lambda row: row["frequency"])["feature"])

    def latents(self, model: LanguageModel, tokens: Tensor) -> Tensor:
        """Return what the file's formula gives for tokens that are no first ones."""
        x = model.capture(tokens, [self.site])[self.site][:, 1:]
        return self.function(x.reshape(-1, D).float())[0].unflatten(0, x.shape[:2])


@pytest.fixture(scope="module", autouse=True)
def _few_features_in_floors() -> Iterator[None]:
    """Floors are most of the time of `interpret`, and not what is asked here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightsae.analysis.interpret.floors._FEATURES", 8)
        yield


@pytest.fixture(scope="module")
def model_folder(byte_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers, whose residual stream is about as long as the files' weights suppose."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": D, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer),
        max_position_embeddings=64,
        initializer_range=1.0,
        bos_token_id=0,
        eos_token_id=1,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LanguageModel:
    return LanguageModel.from_pretrained(str(model_folder), dtype="float32")


@pytest.fixture(scope="module", params=CASES)
def work(request: pytest.FixtureRequest, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    path, function = CASES[request.param](folder / "theirs")
    named = ("--data.model", str(model_folder))
    if "site" in SavedSAE.open(path).unknown:
        named += ("--data.site", SITE)
    with lightsae_at(folder) as run:
        run("interpret", "--sae", str(path), "--out", "dictionary", *SIZES, *TEXT, *named)
    return Work(folder, path, function, named)


@pytest.fixture(scope="module")
def tokens_shown(model: LanguageModel) -> Tensor:
    """The rows whose firings each feature dictionary counts."""
    corpus = DataSettings(dataset="builtin", context_size=CONTEXT, num_workers=0)
    return torch.from_numpy(Texts.read(corpus, model.vocabulary, **USES).contexts.tokens).long()


@contextmanager
def by_hand(model: LanguageModel, site: str, change: Tensor) -> Iterator[None]:
    """Add something to what a module of the second layer takes or gives."""
    layer = model.model.get_submodule("model.layers.1")
    if site == "resid_pre.1":
        handle = layer.register_forward_pre_hook(lambda _, args: (args[0] + change, *args[1:]))
    else:
        module = layer.mlp if site == "mlp_out.1" else layer
        handle = module.register_forward_hook(lambda _, args, output: output + change)
    yield
    handle.remove()


def test_every_layout_is_at_work() -> None:
    assert {name.partition(",")[0] for name in CASES} | set(OF_SEVERAL) == set(LAYOUTS)


def test_interpret_counts_the_firings_of_the_file_s_formula(
    work: Work, model: LanguageModel, tokens_shown: Tensor
) -> None:
    latents = work.latents(model, tokens_shown)
    counted = (tokens_shown[:, 1:] > 1)[..., None]  # no special tokens
    expected = ((latents > 0) & counted).sum((0, 1)).tolist()
    rows = sorted(work.dictionary.features().to_pylist(), key=lambda row: row["feature"])
    assert [row["feature"] for row in rows] == list(range(len(expected)))
    # A pre-activation may lie within rounding of the threshold.
    assert max(abs(row["fires"] - fires) for row, fires in zip(rows, expected, strict=True)) <= 1
    assert 0.05 < sum(expected) / (len(expected) * int(counted.sum())) < 0.7


def test_steer_writes_along_the_file_s_decoder_row(work: Work, model: LanguageModel) -> None:
    saved, feature = work.saved, work.feature
    assert isinstance(saved.opened, PortableSAE)
    maximum = next(row["max"] for row in work.dictionary.features().to_pylist() if row["feature"] == feature)
    fires = work.latents(model, ROW)[..., feature, None]
    with torch.no_grad():
        untouched = model.logits(ROW)
        for intervention, amount in (
            (Add(feature, 0.5, unit="max"), torch.full_like(fires, 0.5 * maximum)),
            (Ablate(feature), -fires),
        ):
            # First positions are left alone.
            change = torch.nn.functional.pad(amount * saved.opened.W_dec[feature], (0, 0, 1, 0))
            with by_hand(model, work.written, change):
                expected = model.logits(ROW)
            with lightsae.steer(model, intervention, saved, dictionary=work.dictionary, any_model=True):
                steered = model.logits(ROW)
            assert not torch.allclose(expected, untouched, atol=1e-2)
            torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4)
        with lightsae.steer(model, Add(feature, 0.0), saved, dictionary=work.dictionary, any_model=True):
            assert torch.equal(model.logits(ROW), untouched)


def test_panel_gives_a_verdict(work: Work) -> None:
    (work.folder / "panel.yaml").write_text(yaml.safe_dump(PANEL | {"choose": {"features": [work.feature]}}))
    with lightsae_at(work.folder) as run:
        said = run(
            *("panel", "--sae", str(work.path), "--dictionary", "dictionary", "--panel", "panel.yaml"),
            *("--out", "panel", *TEXT, *work.named),
        )
    report = json.loads((work.folder / "panel" / "panel.json").read_text())
    assert report["summary"]["features"] == 1
    assert "1 feature: " in said


def test_monitor_reports_each_firing(work: Work, model: LanguageModel) -> None:
    feature, events = work.feature, list[Any]()
    watched = {"features": [feature], "thresholds": {feature: 1e-6}, "sinks": events.append}
    with lightsae.monitor(model, work.dictionary, sae=work.saved, any_model=True, **watched):
        model.logits(ROW)
    latents = work.latents(model, ROW)[0, :, feature]
    fires = latents > 1e-6
    assert fires.any()
    assert [event.position for event in events] == [1 + place for place in fires.nonzero()[:, 0].tolist()]
    torch.testing.assert_close(torch.tensor([event.value for event in events]), latents[fires], rtol=1e-4, atol=1e-4)


def test_diagnose_takes_a_matching_pursuit(model_folder: Path, tmp_path: Path) -> None:
    path, _ = CASES["sae_lens, matching pursuit"](tmp_path)
    with lightsae_at(tmp_path) as run:
        said = run("diagnose", "--sae", str(path), "--tokens", "256", *TEXT, "--data.model", str(model_folder))
    assert "as the file has it" in said
    assert any(line.startswith(("cause: ", "no cause found: ")) for line in said.splitlines())


# -- crosscoders -------------------------------------------------------------------------------------------------------


def refused(run: Callable[[], object]) -> str:
    """Return what somebody is told in one line."""
    with pytest.raises(LightsaeError) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_crosscoder_of_two_models_is_interpreted_and_what_one_pass_cannot_do_is_refused(
    model: LanguageModel, model_folder: Path, tmp_path: Path
) -> None:
    path, _ = crosscoders.ckkissane(tmp_path / "theirs", hook_point="blocks.1.hook_resid_pre")
    # The second model is read under its name; here a folder has it.
    (tmp_path / "google").mkdir()
    (tmp_path / "google" / "gemma-2-2b-it").symlink_to(model_folder)
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump(PANEL | {"choose": {"features": [0]}}))
    named = (*TEXT, "--data.model", str(model_folder))
    with lightsae_at(tmp_path) as run:
        run("interpret", "--sae", str(path), "--out", "dictionary", *SIZES, *named)
        said = run(
            *("panel", "--sae", str(path), "--dictionary", "dictionary", "--panel", "panel.yaml", "--out", "panel"),
            *named,
            code=2,
        )
    assert "name one of them" in said.splitlines()[-1]
    dictionary = FeatureDictionary.open(tmp_path / "dictionary")
    assert any(row["fires"] for row in dictionary.features().to_pylist())
    saved = dictionary.named(SavedSAE.open(path))

    def steer() -> None:
        with lightsae.steer(model, Add(0, 1.0), saved, site="resid_pre.1", any_model=True):
            pass

    def watch() -> None:
        with lightsae.monitor(model, dictionary, sae=saved, features=[0], any_model=True):
            pass

    assert "predicts of several models" in refused(steer)
    assert "reads several models" in refused(watch)


def test_a_crosscoder_that_says_no_sites_is_refused(model_folder: Path, tmp_path: Path) -> None:
    path, _ = crosscoders.make(tmp_path / "theirs")
    named = ("--sae", str(path), *TEXT, "--data.model", str(model_folder))
    with lightsae_at(tmp_path) as run:
        for command in (
            ("interpret", "--out", "dictionary"),
            ("predict", "--out", "firings.parquet"),
            ("steer", "--feature", "0", "--prompt", "if", "--strength", "1"),
        ):
            said = run(*command, *named, code=2).splitlines()
            assert "reads several sites and does not say which" in said[-1]
        assert "Several sites cannot be named" in run("open", str(path))
