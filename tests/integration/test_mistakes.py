"""What one mistake reads like, to somebody who calls a function and to somebody who types a command."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lightsae import ActivationDataModule, SAEModule
from lightsae.activations.synthetic.config import SyntheticConfig
from lightsae.analysis.drift.compare import DriftThresholds
from lightsae.analysis.interpret.run import InterpretSettings
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.callbacks import DeadLatentResampling, ExportSAE, Throughput
from lightsae.errors import LightsaeError
from lightsae.lm.generate import Sampling
from lightsae.sae import MECHANISMS, VARIANTS, SiteRef, Widths
from lightsae.toy.superposition import Superposition
from lightsae.training.entries import Entry

SITE = SiteRef("tiny", "resid_post.1")
TEXT = ("data.model", "data.site", "data.dataset")


@dataclass(frozen=True)
class Mistake:
    """One mistake, made twice.

    Attributes:
        text: What both read; [data.] stands on the command line alone.
        call: Makes it in Python; gets the folder of inputs.
        typed: Makes it on the command line: options of a complete `fit`, or a whole command.
        without: Options of the complete `fit` to leave out.
        yaml: A configuration file for it.
    """

    text: str
    call: Callable[[Path], Any]
    typed: str = ""
    without: tuple[str, ...] = ()
    yaml: str | None = None

    def read_by(self, inputs: Path, *, typed: bool) -> str:
        """Return the text for one of the two readers."""
        return re.sub(r"\[([A-Za-z_.]+\.)\]", r"\1" if typed else "", self.text).replace("{inputs}", str(inputs))


def data(**settings: Any) -> Callable[[Path], Any]:
    """Make the data of a complete run but for these settings, and check them as a run does."""

    def make(inputs: Path) -> None:
        complete: dict[str, Any] = {
            "model": "{inputs}/tiny", "site": "resid_post.1", "dataset": "{inputs}/text.jsonl", "context_size": 16,
            "batch_tokens": 64, "buffer_tokens": 256, "shuffle_tokens": 256, "val_tokens": 128, "num_workers": 0,
        }  # fmt: skip
        chosen = {
            name: value.format(inputs=inputs) if isinstance(value, str) else value
            for name, value in (complete | settings).items()
        }
        made = ActivationDataModule(**chosen)
        made.preflight()
        made.widths_at()

    return make


def sae(variant: str = "TopK", **settings: Any) -> Callable[[Path], Any]:
    return lambda _: VARIANTS[variant](Widths.autoencoder(SITE, 12), **({"d_sae": 24} | settings))


def module(**settings: Any) -> Callable[[Path], Any]:
    def make(_: Path) -> None:
        if "saes" not in settings:
            settings.setdefault("sae", lambda widths: VARIANTS["TopK"](widths, d_sae=24, k=4))
        made = SAEModule(**settings)

        class Data:
            def widths_at(self, *_: Any) -> Widths:
                return Widths.autoencoder(SITE, 12)

        made.build(Data())  # type: ignore[arg-type]

    return make


def top_k(**settings: Any) -> Any:
    return lambda widths: VARIANTS["TopK"](widths, **settings)


MISTAKES = {
    "a model that is nowhere": Mistake(
        "[data.]model is './none', and there is no such folder. Write a local folder, a Hub name such "
        "as 'openai-community/gpt2', or 'builtin'.",
        data(model="./none"),
        "--data.model ./none",
    ),
    "a layer that does not exist": Mistake(
        "[data.]site is 'resid_post.9', but '{inputs}/tiny' has layers 0..1. Did you mean "
        "'resid_post.1'? List them: lightsae sites {inputs}/tiny",
        data(site="resid_post.9"),
        "--data.site resid_post.9",
    ),
    "a site that is misspelt": Mistake(
        "[data.]site is 'resid_pots.1', which '{inputs}/tiny' does not have. Did you mean "
        "'resid_post.1'? List them: lightsae sites {inputs}/tiny",
        data(site="resid_pots.1"),
        "--data.site resid_pots.1",
    ),
    "no site": Mistake(
        "[data.]site is missing: say where to read, for example resid_post.2. List them: lightsae sites {inputs}/tiny",
        data(site=None),
        without=("data.site",),
    ),
    "no dataset": Mistake(
        "[data.]dataset is missing: name a text dataset, a file, or `builtin`.",
        data(dataset=None),
        without=("data.dataset",),
    ),
    "a dataset that is nowhere": Mistake(
        "[data.]dataset is '{inputs}/txt.jsonl', which does not exist. Did you mean 'text.jsonl'?",
        data(dataset="{inputs}/txt.jsonl"),
        "--data.dataset {inputs}/txt.jsonl",
    ),
    "an empty dataset": Mistake(
        "[data.]dataset is '{inputs}/empty.jsonl', which is empty.",
        data(dataset="{inputs}/empty.jsonl"),
        "--data.dataset {inputs}/empty.jsonl",
    ),
    "a column that is not there": Mistake(
        "[data.]text_column is 'body', but text.jsonl has 'text'.",
        data(text_column="body"),
        "--data.text_column body",
    ),
    "rows too long for the model": Mistake(
        "[data.]context_size is 100, but '{inputs}/tiny' reads 64 tokens at most.",
        data(context_size=100),
        "--data.context_size 100",
    ),
    "rows of one token": Mistake(
        "[data.]context_size is 1; write 2 or more.", data(context_size=1), "--data.context_size 1"
    ),
    "no tokens in a batch": Mistake(
        "[data.]batch_tokens is 0; write 1 or more.", data(batch_tokens=0), "--data.batch_tokens 0"
    ),
    "a buffer smaller than a batch": Mistake(
        "[data.]buffer_tokens is 32, less than [data.]batch_tokens (64); write 64 or more, better 2048.",
        data(buffer_tokens=32),
        "--data.buffer_tokens 32",
    ),
    "no held-out tokens": Mistake(
        "[data.]val_tokens is 0; write 1 or more.", data(val_tokens=0), "--data.val_tokens 0"
    ),
    "a share above one": Mistake(
        "[data.]validation_fraction is 2.0; write a share such as 0.05.",
        data(validation_fraction=2.0),
        "--data.validation_fraction 2",
    ),
    "a negative number of skipped positions": Mistake(
        "[data.]skip_positions is -1; it must lie in 0..15.", data(skip_positions=-1), "--data.skip_positions -1"
    ),
    "a model of no name": Mistake(
        "[data.]site is 'chat:resid_post.1', but 'chat' is no name in [data.]more_models (there: none).",
        data(site="chat:resid_post.1"),
        "--data.site chat:resid_post.1",
    ),
    "activations that are nowhere": Mistake(
        "[data.]activations is 'none.npy', which does not exist.",
        data(activations="none.npy", site=None, dataset=None),
        "--data.activations none.npy",
        without=TEXT,
    ),
    "activations without rows": Mistake(
        "[data.]activations: {inputs}/flat.npy has shape (4000,); it must be (rows, width) with at least one row.",
        data(activations="{inputs}/flat.npy", site=None, dataset=None),
        "--data.activations {inputs}/flat.npy",
        without=TEXT,
    ),
    "activations cut short": Mistake(
        "[data.]activations: {inputs}/cut.npy is not a readable .npy file (mmap length is greater than file size).",
        data(activations="{inputs}/cut.npy", site=None, dataset=None),
        "--data.activations {inputs}/cut.npy",
        without=TEXT,
    ),
    "a world that is not asked for": Mistake(
        "[data.]synthetic is set, but [data.]dataset is '{inputs}/text.jsonl'; write [data.]dataset synthetic.",
        data(synthetic=SyntheticConfig(features=64)),
        yaml="data: {synthetic: {features: 64}}",
    ),
    "k above d_sae": Mistake("[model.sae.]k is 64; it must lie in 1..d_sae (24).", sae(k=64), "--model.sae.k 64"),
    "no latents": Mistake(
        "[model.sae.]d_sae is 0; an SAE has at least 1 latent.", sae(d_sae=0, k=4), "--model.sae.d_sae 0"
    ),
    "groups that do not add up": Mistake(
        "[model.sae.]groups is [4, 8], which adds up to 12; it has to be d_sae (24).",
        sae("Matryoshka", groups=[4, 8], mechanism=MECHANISMS["TopK"](k=4)),
        "--model.sae Matryoshka --model.sae.d_sae 24 --model.sae.groups [4,8] --model.sae.mechanism "
        "TopK --model.sae.mechanism.k 4",
        without=("model.sae",),
    ),
    "k of a mechanism within": Mistake(
        "[model.sae.]mechanism.k is 64; it must lie in 1..d_sae (24).",
        sae("Matryoshka", groups=[12, 12], mechanism=MECHANISMS["TopK"](k=64)),
        "--model.sae Matryoshka --model.sae.d_sae 24 --model.sae.groups [12,12] --model.sae.mechanism "
        "TopK --model.sae.mechanism.k 64",
        without=("model.sae",),
    ),
    "a mechanism that is opened, not trained": Mistake(
        "[model.]sae is MatchingPursuit, which is opened from files and not trained; write TopK.",
        module(sae=lambda widths: VARIANTS["MatchingPursuit"](widths, d_sae=24, residual_threshold=0.1)),
        "--model.sae MatchingPursuit --model.sae.d_sae 24 --model.sae.residual_threshold 0.1",
        without=("model.sae",),
    ),
    "an unknown loss term": Mistake(
        "[model.]coefficients.foo: TopK has the loss terms mse, auxk, kl.",
        module(coefficients={"foo": 1.0}),
        "--model.coefficients.foo 1",
    ),
    "a negative learning rate": Mistake("[model.]lr is -1.0; it must be above 0.", module(lr=-1.0), "--model.lr -1"),
    "a negative warm-up": Mistake(
        "[model.]lr_warm_up is -0.1; write a share of the run (0.05) or steps (200).",
        module(lr_warm_up=-0.1),
        "--model.lr_warm_up -0.1",
    ),
    "dead after nothing": Mistake(
        "[model.]dead_after is 0; it counts tokens, so write 1 or more.", module(dead_after=0), "--model.dead_after 0"
    ),
    "a start that is nowhere": Mistake(
        "[model.]start is 'none', which does not exist.", module(start="none"), "--model.start none"
    ),
    "k of an entry": Mistake(
        "[model.]saes.a.sae.k is 64; it must lie in 1..d_sae (24).",
        module(saes={"a": Entry(top_k(d_sae=24, k=64))}),
        without=("model.sae",),
        yaml="model: {saes: {a: {sae: {class_path: TopK, init_args: {d_sae: 24, k: 64}}}}}",
    ),
    "a loss term of an entry": Mistake(
        "[model.]saes.a.coefficients.foo: TopK has the loss terms mse, auxk, kl.",
        module(saes={"a": Entry(top_k(d_sae=24, k=4), coefficients={"foo": 1.0})}),
        without=("model.sae",),
        yaml="model: {saes: {a: {coefficients: {foo: 1}, sae: {class_path: TopK, init_args: {d_sae: 24, k: 4}}}}}",
    ),
    "a learning rate of an entry": Mistake(
        "[model.]saes.a.lr is -1.0; it must be above 0.",
        module(saes={"a": Entry(top_k(d_sae=24, k=4), lr=-1.0)}),
        without=("model.sae",),
        yaml="model: {saes: {a: {lr: -1, sae: {class_path: TopK, init_args: {d_sae: 24, k: 4}}}}}",
    ),
    "a name that is none": Mistake(
        "[model.]saes: 'a.b' cannot be an SAE's name; write letters, digits, _ and -.",
        module(saes={"a.b": Entry(top_k(d_sae=24, k=4))}),
        without=("model.sae",),
        yaml="model: {saes: {a.b: {sae: {class_path: TopK, init_args: {d_sae: 24, k: 4}}}}}",
    ),
    "one and several": Mistake(
        "[model.]sae and [model.]saes (a) are both given; write [model.]sae for one SAE, [model.]saes "
        "for several. ([model.]sae null takes the first back.)",
        module(sae=top_k(d_sae=24, k=4), saes={"a": Entry(top_k(d_sae=24, k=4))}),
        yaml="model: {saes: {a: {sae: {class_path: TopK, init_args: {d_sae: 24, k: 4}}}}}",
    ),
    "a negative number of exports": Mistake(
        "[export.]checkpoints is -1; write 0 or more.", lambda _: ExportSAE(checkpoints=-1), "--export.checkpoints -1"
    ),
    "a device that is not here": Mistake(
        "[data.]device is 'cuda:97', which this machine or its PyTorch lacks. Write cpu.",
        data(device="cuda:97"),
        "--data.device cuda:97",
    ),
    "two places for the model": Mistake(
        "[data.]device_map is 'auto'; but [data.]device is 'cpu', too; give one of them.",
        data(device="cpu", device_map="auto"),
        "--data.device cpu --data.device_map auto",
    ),
    "a device map of no kind": Mistake(
        "[data.]device_map is 'everywhere'; write auto, balanced, balanced_low_0, sequential, or a mapping of modules "
        "to devices.",
        data(device_map="everywhere"),
        "--data.device_map everywhere",
    ),
    "throughput every no step": Mistake(
        "[throughput.]every_n_steps is 0; write 1 or more.",
        lambda _: Throughput(every_n_steps=0),
        "--throughput.every_n_steps 0",
    ),
    "resampling before the first step": Mistake(
        "[DeadLatentResampling.]steps is [0]; steps count from 1.",
        lambda _: DeadLatentResampling(steps=[0]),
        yaml="trainer: {callbacks: [{class_path: DeadLatentResampling, init_args: {steps: [0]}}]}",
    ),
    "nothing to interpret": Mistake(
        "tokens is 0; it must be at least 1.",
        lambda _: InterpretSettings(tokens=0),
        "interpret --sae x --out y --tokens 0",
    ),
    "fewer than no contexts": Mistake(
        "contexts is 0; it must be at least 1.",
        lambda _: InterpretSettings(contexts=0),
        "interpret --sae x --out y --contexts 0",
    ),
    "no tokens at once": Mistake(
        "model_batch_tokens is 0; it must be at least 1.",
        lambda _: TextSettings(model_batch_tokens=0),
        "predict --sae x --out y.parquet --data.model_batch_tokens 0",
    ),
    "a cosine above one": Mistake(
        "same is 2.0; write a number above 0, up to 1.", lambda _: DriftThresholds(same=2.0), "drift x y --same 2"
    ),
    "a share of nothing": Mistake(
        "top_p is 0.0; write a share above 0, up to 1.",
        lambda _: Sampling(top_p=0.0),
        "steer --sae x --feature 0 --prompt a --strength 1 --top_p 0",
    ),
    "a toy that does not learn": Mistake(
        "steps is 0; write 1 or more.", lambda _: Superposition(steps=0), "superpose --steps 0"
    ),
    "an SAE that is nowhere": Mistake(
        "sae is 'none', which does not exist.",
        lambda _: LoadedSAE.load("none", TextSettings()),
        "predict --sae none --out y.parquet",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_caller_reads_of_arguments(mistake: Mistake, inputs: Path) -> None:
    with pytest.raises(LightsaeError) as raised:
        mistake.call(inputs)
    assert str(raised.value) == mistake.read_by(inputs, typed=False)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_the_command_line_prints_what_was_typed(
    mistake: Mistake, inputs: Path, fit: Callable[..., Any], lightsae: Callable[..., Any]
) -> None:
    if mistake.typed.startswith("-") or not mistake.typed:
        ended = fit(mistake.typed, without=mistake.without, yaml=mistake.yaml)
    else:
        ended = lightsae(*shlex.split(mistake.typed))
    assert (ended.code, ended.out, ended.new) == (2, "", [])
    assert ended.err == f"lightsae: error: {mistake.read_by(inputs, typed=True)}\n"


def test_there_are_many_mistakes_of_every_kind() -> None:
    assert len(MISTAKES) >= 40
    sections = {section for one in MISTAKES.values() for section in re.findall(r"\[([A-Za-z_.]+\.)\]", one.text)}
    assert {"data.", "model.", "model.sae.", "export."} <= sections
