"""An SAE in files of another library goes where ours go: interpret, steer, panel, monitor, predict, registry.

The files are Gemma Scope's, in a folder without its path, so that neither model nor site is known: they are named. The
SAE in them was trained for a few steps on the built-in language model.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import lightsae
from helpers.command_line import lightsae_at
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.steering import Ablate
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm import LanguageModel
from lightsae.production.registry import load_channel
from lightsae.sae import SiteRef, SparseAutoencoder

SITE, WIDTH, LATENTS = "resid_post.2", 192, 16
FIT = f"""
fit --data.model builtin --data.site {SITE} --data.dataset builtin --data.batch_tokens 512 --data.buffer_tokens 4096
    --data.shuffle_tokens 8192 --data.val_tokens 1024 --data.num_workers 0 --model.sae BatchTopK
    --model.sae.d_sae {LATENTS} --model.sae.k 4 --trainer.max_steps 3 --trainer.accelerator cpu
    --trainer.enable_progress_bar false --language_model_metrics.max_rows 2
"""
TEXT = ("--dataset", "builtin", "--num_workers", "0", "--context_size", "64")
NAMED = ("--data.model", "builtin", "--data.site", SITE)
SIZES = (
    *("--tokens", "1000", "--score_tokens", "800", "--mining_tokens", "1000", "--dashboard", "false"),
    *("--ablation_windows", "0", "--neurons", "false"),
)
PANEL: dict[str, Any] = {
    "sweep": {
        "doses": [0.5, 1.0],
        "max_perplexity_ratio": 1000,
        "sampling": {"max_new_tokens": 3, "min_new_tokens": 3},
    },
    "held_out_rows": 2,
    "others": 2,
    "prompts": [f"{word} " for word in ("if", "for", "def", "class", "import", "while")],
}


def written_as_gemma_scope(sae: SparseAutoencoder, folder: Path) -> None:
    """Write params.npz as Gemma Scope's files are: raw activations, a threshold each, b_dec not subtracted."""
    portable = PortableSAE.of(sae, Source())
    b_enc = portable.b_enc - (portable.b_dec @ portable.W_enc if portable.subtracts_b_dec else 0)
    assert portable.threshold is not None
    arrays = {
        "W_enc": portable.W_enc,
        "b_enc": b_enc,
        "W_dec": portable.W_dec,
        "b_dec": portable.b_dec,
        "threshold": portable.threshold,
    }
    folder.mkdir()
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in arrays.items()})


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """`open` measures on few tokens here."""
    monkeypatch.setattr("lightsae.cli.commands.open._TOKENS", 128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/: of the training; foreign/: its SAE in another library's file."""
    folder = tmp_path_factory.mktemp("open")
    with lightsae_at(folder) as good:
        good(*FIT.split())
        (folder / "lightning_logs" / "version_0").rename(folder / "run")
        written_as_gemma_scope(lightsae.load_sae(folder / "run"), folder / "foreign")
    return folder


@pytest.fixture(scope="module")
def dictionary(folder: Path) -> Path:
    """A feature dictionary of the foreign SAE, beside it."""
    with lightsae_at(folder) as good:
        good("interpret", "--sae", "foreign", "--out", "dictionary", *SIZES, *TEXT, *NAMED)
    return folder / "dictionary"


@pytest.fixture
def good(folder: Path) -> Any:
    """Run a command there, which has to end well; returns what it printed."""
    with lightsae_at(folder) as run:
        yield run


@pytest.fixture
def feature(dictionary: Path) -> int:
    """One that fires."""
    features = FeatureDictionary.open(dictionary).features().to_pylist()
    return int(max(features, key=lambda row: row["frequency"])["feature"])


def test_the_files_are_the_sae_that_was_trained(folder: Path) -> None:
    ours, theirs = lightsae.load_sae(folder / "run"), lightsae.load_sae(folder / "foreign" / "params.npz")
    x = LanguageModel.from_pretrained("builtin").capture(torch.arange(2, 66)[None], [SITE])[SITE][0].float()
    assert (ours.encode(x) > 0).any()
    torch.testing.assert_close(theirs.encode(x), ours.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs(x).x_hat, ours(x).x_hat, rtol=1e-4, atol=1e-4)


def test_the_dictionary_is_of_the_named_sites(folder: Path, dictionary: Path) -> None:
    manifest = json.loads((dictionary / "dictionary.json").read_text())
    assert manifest["sae"]["read"] == [{"model": "builtin", "site": SITE, "width": WIDTH}]
    assert manifest["sae"]["sha256"] == SavedSAE.open(folder / "foreign").sha256
    assert manifest["model"]["name"] == "builtin"


def test_predict(folder: Path, good: Callable[..., str]) -> None:
    good("predict", "--sae", "foreign", "--out", "firings.parquet", "--tokens", "1000", *TEXT, *NAMED)
    ours = ("predict", "--sae", "run", "--out", "ours.parquet", "--tokens", "1000", "--num_workers", "0")
    good(*ours, "--context_size", "64")
    firings, ours_of = (pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("firings", "ours"))
    # First positions are left out, as this library's training left them out.
    assert min(firings["position"]) > 0
    found, expected = (
        set(zip(*(table[name] for name in ("row", "position", "latent")), strict=True)) for table in (firings, ours_of)
    )
    # A pre-activation may lie within rounding of the threshold.
    assert len(found ^ {place for place in expected if place[1] > 0}) <= 0.01 * len(found)


def test_steer_names_what_the_dictionary_does_not(good: Callable[..., str], feature: int) -> None:
    command = ("steer", "--sae", "foreign", "--feature", str(feature), "--prompt", "import", "--samples", "1", *TEXT)
    steering = (*command, "--strength", "0.5", "--max_new_tokens", "3", "--min_new_tokens", "3")
    # The dictionary was found beside it, and knows the model and the site.
    said = good(*steering)
    assert f"builtin:{SITE} (mean norm " in said.splitlines()[0]
    assert f"add feature {feature}: +0.5 x mean norm" in said.splitlines()[0]
    assert good(*steering, *NAMED) == said


def test_panel(folder: Path, good: Callable[..., str], feature: int) -> None:
    (folder / "panel.yaml").write_text(yaml.safe_dump(PANEL | {"choose": {"features": [feature]}}))
    good("panel", "--sae", "foreign", "--panel", "panel.yaml", "--out", "panel", *TEXT, *NAMED)
    assert json.loads((folder / "panel" / "panel.json").read_text())["summary"]["features"] == 1


def test_monitor(folder: Path, feature: int) -> None:
    model, tokens = LanguageModel.from_pretrained("builtin"), torch.arange(2, 66)[None]
    events: list[Any] = []
    watched = {"features": [feature], "thresholds": {feature: 1e-9}, "sinks": events.append}
    with lightsae.monitor(model, folder / "dictionary", sae=folder / "foreign", **watched):
        model.logits(tokens)
    with lightsae.steer(model, Ablate(feature), folder / "foreign", dictionary=folder / "dictionary") as steering:
        assert f"builtin:{SITE}" in str(steering)
    x = model.capture(tokens, [SITE])[SITE][0].float()
    fires = lightsae.load_sae(folder / "foreign").encode(x)[1:, feature] > 1e-9
    assert len(events) == int(fires.sum()) > 0


def test_publish_writes_an_export_of_ours(folder: Path, dictionary: Path, good: Callable[..., str]) -> None:
    (folder / "easy.yaml").write_text("labels: {min_lower: 0.0}\n")
    assert "(published)" in good("registry", "publish", "dictionary", "--sae", "foreign", "--why", "good")
    assert "already published" in good("registry", "publish", "dictionary", "--sae", "foreign", "--why", "again")
    version = next((folder / "registry" / "versions").iterdir()).name
    good("registry", "promote", version, "--channel", "staging", "--policy", "easy.yaml", "--why", "good")
    promoted = load_channel(folder / "registry", "staging", LanguageModel.from_pretrained("builtin"))
    assert promoted.site == SiteRef("builtin", SITE)
    assert torch.equal(promoted.sae.W_dec, lightsae.load_sae(folder / "foreign").W_dec)


# -- open and convert --------------------------------------------------------------------------------------------------


def test_open_says_what_it_is(folder: Path, good: Callable[..., str]) -> None:
    said = good("open", "foreign")
    assert said.splitlines()[0] == "layout     Gemma Scope"
    for words in (
        f"JumpReLU, {LATENTS} latents",
        f"activations (width {WIDTH})",
        "model      not known",
        "BOS        left out of training",
        "folded     nothing",
        "it has no sae.json",
        "(it is)",
        "Not known: model, site.",
        "--sae foreign --data.model MODEL --data.site SITE",
    ):
        assert words in said, words
    named = good("open", "foreign", *NAMED)
    assert f"builtin:{SITE} (width {WIDTH})" in named
    assert "Not known" not in named
    for path in ("run", "run/sae", "run/checkpoints/last.ckpt"):
        told = good("open", path)
        assert f"BatchTopK, k 4, {LATENTS} latents" in told
        assert "context    128 tokens" in told
        assert "text       builtin" in told


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("open", "nowhere"), "path is 'nowhere', which does not exist"),
        (("open", "empty"), "'empty' has no 'sae.json' and holds no SAE of a known layout"),
        (("open",), "PATH. Write: lightsae open PATH"),
        (("open", "run", "--data.site", "mlp_out.1"), f"site is 'mlp_out.1', but 'run/sae' belongs to {SITE}"),
        (("convert", "run", "--out", "x"), "--to. Write: lightsae convert PATH --to LAYOUT --out DIR"),
        (("convert", "run", "--to", "gemma_scope", "--out", "x"), "is read, and not written"),
        (("convert", "run", "--to", "native", "--out", "foreign"), "holds other files ('params.npz')"),
        (("convert", "run", "--to", "circuit_tracer", "--out", "x"), "this SAE predicts what it reads"),
        (("predict", "--sae", "foreign", "--out", "x.parquet", *TEXT), "name the model, the site: --data.model MODEL"),
    ],
)
def test_mistakes_are_one_line(args: tuple[str, ...], says: str, folder: Path) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    before = sorted(os.listdir(folder))
    with lightsae_at(folder) as run:
        said = run(*args, code=2)
    assert says in said.splitlines()[-1]
    assert said.splitlines()[-1].startswith("lightsae: error: ")
    if args == ("open", "empty"):
        assert "it has no params.npz" in said
        assert "it has no config.yaml" in said
    assert sorted(os.listdir(folder)) == before


def test_convert_names_what_the_file_does_not_know(folder: Path, good: Callable[..., str]) -> None:
    said = good("convert", "foreign", "--to", "native", "--out", "ours", *NAMED)
    assert said.splitlines()[0].split() == ["native", "ours"]
    assert "latents differ by at most 0.0e+00 of the largest, 0 fire elsewhere" in said
    # From here on nothing has to be named.
    good("predict", "--sae", "ours", "--out", "named.parquet", "--tokens", "500", *TEXT)
    assert SavedSAE.open(folder / "ours").sha256 == SavedSAE.open(folder / "foreign").sha256
