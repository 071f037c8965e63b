"""`lightsae diagnose` on files of several layouts with one mistake each, and on a sound one; `lightsae open` measures.

The SAE was trained for some steps on the built-in language model.
"""

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.command_line import lightsae_at
from lightsae.formats.layouts import LAYOUTS, PortableSAE, Source, WritableLayout
from lightsae.formats.native import save_sae
from lightsae.formats.saved_sae import load_sae

SITE = "resid_post.2"
FIT = f"""
fit --data.model builtin --data.site {SITE} --data.dataset builtin --data.batch_tokens 512 --data.buffer_tokens 4096
    --data.context_size 64 --data.shuffle_tokens 8192 --data.val_tokens 256 --data.num_workers 0 --data.dtype float32
    --model.sae TopK --model.sae.d_sae 192 --model.sae.k 16 --trainer.max_steps 60 --trainer.accelerator cpu
    --trainer.enable_progress_bar false --language_model_metrics.max_rows 1
"""
NAMED = ("--data.model", "builtin", "--data.site", SITE)
TEXT = ("--num_workers", "0", "--tokens", "256", "--dtype", "float32", "--context_size", "64")


def scale(sae: PortableSAE) -> float:
    """About what makes the mean norm sqrt(192) there."""
    return 192**0.5 / 63


def layout(name: str) -> WritableLayout:
    found = LAYOUTS[name]
    assert isinstance(found, WritableLayout)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sound/ and, by the mistake that is in it: b_dec/, scale/, transposed/, activation/."""
    folder = tmp_path_factory.mktemp("diagnose")
    with lightsae_at(folder) as run:
        run(*FIT.split())
    sae = PortableSAE.of(load_sae(folder / "lightning_logs" / "version_0"), Source())
    save_sae(sae.to_sae(), folder / "sound")
    (folder / "b_dec").mkdir()
    layout("sae_lens").write(sae, folder / "b_dec")
    config = json.loads((folder / "b_dec" / "cfg.json").read_text())
    (folder / "b_dec" / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": False}))
    (folder / "scale").mkdir()
    layout("dictionary_learning").write(sae.with_scales(1 / scale(sae), 1 / scale(sae)), folder / "scale")
    (folder / "transposed").mkdir()
    wrong = sae.W_dec.T.contiguous().reshape(sae.W_dec.shape)
    layout("sparsify").write(replace(sae, W_dec=wrong, source=Source(site="layers.2.output")), folder / "transposed")
    return folder


@pytest.fixture
def good(folder: Path) -> Iterator[Callable[..., str]]:
    with lightsae_at(folder) as run:
        yield run


def test_a_sound_one_has_no_cause(folder: Path, good: Callable[..., str]) -> None:
    said = good("diagnose", "--sae", "sound", *NAMED, *TEXT, "--l0", "16", "--out", "report/sound.json")
    assert said.splitlines()[0] == "sound: 256 tokens of builtin, read by builtin"
    assert "no cause found: nothing that was tried explains the data better" in said
    report = json.loads((folder / "report" / "sound.json").read_text())
    assert report["verdict"]["cause"] is None
    assert "published: l0 16\n" in said
    assert report["published"] == {"l0": 16.0}
    assert report["said"]["fve_no_sinks"] > 0.5
    assert {"site", "norm", "b_dec", "transposed", "token_norm", "bos"} <= {one["cause"] for one in report["tried"]}


@pytest.mark.parametrize(
    ("name", "site", "cause", "words"),
    [
        ("b_dec", SITE, "b_dec", "b_dec was subtracted from the input in training"),
        ("scale", SITE, "scale", "is not in the weights"),
        ("transposed", SITE, "transposed", "W_dec was read in the other order of its axes"),
        ("sound", "resid_post.3", "site", "it is of resid_post.2"),
    ],
)
def test_a_mistake_is_named(name: str, site: str, cause: str, words: str, good: Callable[..., str]) -> None:
    said = good("diagnose", "--sae", name, "--data.model", "builtin", "--data.site", site, *TEXT)
    assert f"\ncause: {cause}: " in said
    assert words in said[said.index("\nhere: ") :]
    assert "\nmend: " in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--sae", "nowhere"), "sae is 'nowhere', which does not exist"),
        (("--sae", "sound"), "name the model, the site: --data.model MODEL --data.site SITE"),
        (("--sae", "sound", *NAMED, "--tokens", "0"), "tokens is 0; write 1 or more."),
        (("--sae", "sound", *NAMED, "--l0", "0"), "l0 is 0.0; write a number above 0, or null."),
        (("--sae", "sound", *NAMED, "--out", "x.txt"), "out is 'x.txt'; name a file that ends in .json."),
        (("--sae", "sound", *NAMED, "--other_model", "nothing/here"), "other_model is 'nothing/here'"),
        (("--sae", "crosscoder", *NAMED), "which reads several sites; give an SAE or a transcoder of one."),
        (("--sae", "twice", *NAMED), "which has second_step; give one without it."),
    ],
)
def test_a_mistake_of_the_user_is_one_line(args: tuple[str, ...], says: str, folder: Path) -> None:
    from lightsae.sae import Crosscoder, Refinements, SiteRef, TopK, Widths, mechanisms

    if args[1] == "crosscoder":
        sites = {SiteRef("builtin", f"resid_post.{layer}"): 192 for layer in (1, 2)}
        save_sae(Crosscoder(Widths(sites, sites), 8, mechanisms.ReLU()), folder / "crosscoder")
        args = args[:2]
    if args[1] == "twice":
        widths = Widths.autoencoder(SiteRef("builtin", SITE), 192)
        save_sae(TopK(widths, 8, k=2, refinements=Refinements(second_step=0.3)), folder / "twice")
        args = args[:2]
    with lightsae_at(folder) as run:
        said = run("diagnose", *args, code=2)
    assert says in said.splitlines()[-1]


def test_of_thresholds_without_an_l0_it_says_what_would_tell(
    folder: Path, good: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("lightsae.analysis.diagnose.diagnose"), "try_all", lambda *args: [])
    sae = PortableSAE.of(load_sae(folder / "sound"), Source())
    (folder / "jump").mkdir()
    layout("sae_lens").write(replace(sae, activation="jumprelu", k=None, threshold=sae.b_enc.abs()), folder / "jump")
    line = "thresholds that are off may not show in these figures; give l0"
    assert line in good("diagnose", "--sae", "jump", *NAMED, *TEXT).splitlines()[-1]
    assert line not in good("diagnose", "--sae", "jump", *NAMED, *TEXT, "--l0", "20")
    assert line not in good("diagnose", "--sae", "sound", *NAMED, *TEXT)


def test_another_model_of_other_tokens_is_refused(folder: Path, make_model: Callable[..., Path]) -> None:
    with lightsae_at(folder) as run:
        other = ("--other_model", str(make_model("llama")))
        said = run("diagnose", "--sae", "sound", *NAMED, *TEXT, *other, code=2)
    assert "whose vocabulary has 258 tokens and not 4,096" in said


def test_open_measures_beside_what_is_published(
    folder: Path, good: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightsae.cli.commands.open._TOKENS", 256)
    said = good("open", "sound", *NAMED)
    assert "on 256 tokens of builtin" in said
    for name in ("fve", "fve_no_sinks", "l0", "ce_recovered"):
        assert any(line.split()[0] == name and line.endswith("not said") for line in said.splitlines() if line)
    assert "Poor" not in said
    assert "on 256 tokens" not in good("open", "sound", *NAMED, "--check", "false")
    assert "on 256 tokens" not in good("open", "sound")
    poor = good("open", "scale", *NAMED)
    assert "lightsae diagnose --sae scale searches for" in poor
    assert "not checked: model is 'nothing/here'" in good("open", "sound", "--model", "nothing/here", "--site", SITE)


def test_rows_are_as_long_as_the_model_reads(
    folder: Path, good: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightsae.cli.commands.open._TOKENS", 256)
    (folder / "long").mkdir()
    sae = PortableSAE.of(load_sae(folder / "sound"), Source())
    longer = replace(sae, source=Source(model="builtin", site=SITE, context_size=8192))
    layout("sae_lens").write(longer, folder / "long")
    line = "rows of 256 tokens, the most that 'builtin' reads: the SAE's file says 8,192"
    said = good("diagnose", "--sae", "long", *TEXT[:-2], "--out", "report/long.json")
    assert line in said.splitlines()
    report = json.loads((folder / "report" / "long.json").read_text())
    assert (report["notes"], report["text"]["context_size"]) == ([line], 256)
    assert line in good("open", "long").splitlines()
    assert "rows of" not in good("diagnose", "--sae", "long", *TEXT)


def test_open_without_its_model_says_so(folder: Path, good: Callable[..., str], tmp_path: Path) -> None:
    (folder / "far").mkdir()
    sae = PortableSAE.of(load_sae(folder / "sound"), Source())
    named = replace(sae, source=Source(model="somebody/far", site=SITE))
    layout("sae_lens").write(named, folder / "far")
    said = good("open", "far")
    assert "not checked: the model 'somebody/far' is not on this machine; name one by --data.model MODEL" in said
