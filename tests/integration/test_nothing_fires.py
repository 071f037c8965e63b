"""An SAE none of whose latents ever fires, and text with nothing in it: every command answers, or says it in a line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from lightsae import load_sae, save_sae
from lightsae.analysis.dashboard import maps
from lightsae.analysis.dashboard.server import DashboardServer
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.cli import main
from lightsae.errors import ConfigError
from lightsae.formats.native import describe_sae
from lightsae.lm import LanguageModel
from lightsae.production.monitor import calibrate, monitor

D_SAE = 16
# Far below whatever a pre-activation of a start can reach.
SILENT = -1e3
TRAINED = """--data.model builtin --data.site resid_post.2 --data.dataset builtin --data.context_size 32
    --data.batch_tokens 64 --data.buffer_tokens 256 --data.shuffle_tokens 256 --data.val_tokens 128
    --data.num_workers 0 --data.dtype float32 --model.sae ReLU --model.sae.d_sae 16 --trainer.max_steps 1
    --trainer.accelerator cpu --trainer.enable_progress_bar false""".split()
RUN = Path("lightning_logs/version_0")
TEXT = ("--num_workers", "0", "--dtype", "float32")
SIZES = ("--tokens", "512", "--score_tokens", "256", "--mining_tokens", "256")
DRAWN = ("--max_new_tokens", "3", "--samples", "1")
PROMPTS = [f"{word} {name}" for word in ("def", "class", "import", "for", "if") for name in ("a", "b")]
DOCUMENTS = [f"def f{number}(x):\n    return x + {number}\n" for number in range(48)]
PANEL = {
    "choose": {"features": [3, 5]},
    "held_out_rows": 2,
    "prompts": PROMPTS,
    "sweep": {"doses": [1.0], "samples": 1, "sampling": {"max_new_tokens": 3, "min_new_tokens": 3}},
}


def ended(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, list[str]]:
    """Run a command; return its exit code, what it printed, and the lines of its messages."""
    capsys.readouterr()
    with torch.random.fork_rng(), pytest.raises(SystemExit) as end:
        main([str(arg) for arg in args])
    assert isinstance(end.value.code, int)
    out, err = capsys.readouterr()
    return end.value.code, out, err.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work in a folder that holds a run of dead latents, its SAE `sae`, and `dictionary`, made of it with its pages."""
    made = tmp_path_factory.mktemp("silent")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setenv("PL_GLOBAL_SEED", "0")
        with torch.random.fork_rng(), pytest.raises(SystemExit, match=r"^0$"):
            main(["fit", *TRAINED])
        checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=False)
        (name,) = (name for name in checkpoint["state_dict"] if name.endswith("b_enc"))
        checkpoint["state_dict"][name].fill_(SILENT)
        torch.save(checkpoint, RUN / "checkpoints" / "last.ckpt")
        sae = load_sae(RUN / "sae")
        with torch.no_grad():
            sae.b_enc.fill_(SILENT)
        save_sae(sae, "sae", describe_sae(RUN / "sae")["provenance"])
        # Compiling UMAP takes longer than all else here; its maps then are of principal components.
        patch.setattr(maps, "_umap", lambda: None)
        with torch.random.fork_rng(), pytest.raises(SystemExit, match=r"^0$"):
            main(["interpret", "--sae", "sae", "--out", "dictionary", *SIZES, *TEXT])
        Path("prompts.txt").write_text("\n".join(PROMPTS))
        Path("panel.yaml").write_text(json.dumps(PANEL))
        Path("empty.jsonl").touch()
        Path("one.jsonl").write_text('{"text": "def f(): pass"}\n')
        Path("blank.jsonl").write_text('{"text": ""}\n' * 40)
        yield made


@pytest.fixture(autouse=True)
def _there(folder: Path) -> None:
    assert Path.cwd() == folder


def test_interpret_writes_a_dictionary_of_dead_features() -> None:
    dictionary = FeatureDictionary.open("dictionary")
    rows = dictionary.features().to_pylist()
    assert [(row["tier"], row["fires"], row["label"]) for row in rows] == [("dead", 0, None)] * D_SAE
    assert set(dictionary.contexts()["kind"].to_pylist()) <= {"near_miss"}
    summary = dictionary.manifest["summary"]
    assert (summary["alive"], summary["tested"], summary["labelled_share"]) == (0, 0, None)
    # Of no features there is no share, neither labelled nor by patterns.
    assert summary["labelled_by_patterns"] == {}
    assert all(floor["share"] is None for floor in summary["floors"].values())
    assert "no feature was tested" in Path("dictionary/card.md").read_text()
    assert {path.name for path in Path("dictionary/pictures").iterdir()} >= {"density.png", "map_1.png"}


def test_validate_measures_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = ended(capsys, "validate", "--config", RUN / "config.yaml", "--ckpt_path", "last")
    assert code == 0
    (report,) = Path("lightning_logs").glob("*/validation.json")
    figures = json.loads(report.read_text())["figures"]
    assert (figures["val/l0"], figures["val/dead_fraction"]) == (0, 1)


def test_predict_finds_no_firing(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ended(capsys, "predict", "--sae", "sae", "--out", "firings.parquet", "--tokens", "256", *TEXT)
    assert (code, out.split()[:2]) == (0, ["0", "firings"])
    assert pq.read_table("firings.parquet").num_rows == 0


def test_label_has_nothing_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    judge = ("--judge", "reader", "--base_url", "http://127.0.0.1:9/v1")  # nobody is there, and nobody is asked
    code, out, _ = ended(capsys, "label", "dictionary", "--sae", "sae", *judge, *TEXT)
    assert code == 0
    assert "nothing was labelled; the dictionary is as it was" in out
    code, _, said = ended(capsys, "label", "dictionary", "--export_csv", "rows.csv")
    assert code == 0
    code, _, said = ended(capsys, "label", "dictionary", "--import_csv", "rows.csv")
    assert (code, len(said)) == (2, 1)


@pytest.mark.parametrize("other", ["sae", RUN / "sae"])
def test_drift_compares_none(other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("drift", "sae", other, "--out", "drift.json", "--tokens", "256", "--dictionary", "dictionary")
    code, out, _ = ended(capsys, *command, *TEXT)
    assert code == 0
    assert f"0 of {D_SAE} features fire often enough" in out
    assert {row["verdict"] for row in json.loads(Path("drift.json").read_text())["features"]} == {"untested"}


@pytest.mark.parametrize("dictionary", [(), ("--dictionary", "dictionary")])
def test_a_dead_feature_can_be_steered(dictionary: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    command = ("steer", "--sae", "sae", "--feature", "3", *dictionary, *DRAWN, *TEXT)
    code, out, _ = ended(capsys, *command, "--strength", "2", "--prompt", "def f(")
    assert code == 0
    assert "feature 3: unlabelled" in out


def test_a_dead_feature_has_no_maximum(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("steer", "--sae", "sae", "--feature", "3", "--dictionary", "dictionary", "--unit", "max", *TEXT)
    code, _, said = ended(capsys, *command, "--strength", "2", "--prompt", "def f(")
    assert (code, len(said)) == (2, 1)
    assert "feature 3 never fires in the text of the feature dictionary, so it has no maximum" in said[0]


def test_a_sweep_and_a_panel_of_dead_features(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ("steer", "--sae", "sae", "--feature", "3", "--prompts", "prompts.txt", "--doses", "[1]", "--out", "swept")
    code, _, _ = ended(capsys, *sweep, *DRAWN, *TEXT)
    assert code == 0
    panel = ("panel", "--sae", "sae", "--dictionary", "dictionary", "--out", "panel", *TEXT)
    code, out, _ = ended(capsys, *panel, "--panel", "panel.yaml")
    assert code == 0
    assert "2 features: 0 reliable" in out
    # Without features by name, a panel takes labelled ones.
    Path("chosen.yaml").write_text(json.dumps({key: value for key, value in PANEL.items() if key != "choose"}))
    code, _, said = ended(capsys, *panel, "--panel", "chosen.yaml")
    assert code == 2
    assert "no feature has a tier among high, medium" in said[-1]


def test_serve_encodes_what_is_typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(server: DashboardServer) -> None:
        assert server.encode is not None
        tokens = server.encode("def f(x):\n")["tokens"]
        assert len(tokens) > 3
        assert all(token["features"] == [] for token in tokens)

    monkeypatch.setattr(DashboardServer, "serve_forever", ask)
    code, out, _ = ended(capsys, "serve", "dictionary", "--sae", "sae", "--port", "0")
    assert code == 0
    assert "http://127.0.0.1:" in out


def test_publish_takes_it_and_a_policy_stops_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ended(capsys, "registry", "publish", "dictionary", "--sae", "sae", "--who", "ann")
    assert code == 0
    version = out.split()[1]
    assert ended(capsys, "registry", "verify")[0] == 0
    policy = Path(__file__).parents[2] / "configs" / "policies" / "default.yaml"
    more = ("--channel", "staging", "--policy", policy, "--why", "x", "--who", "ann")
    code, _, said = ended(capsys, "registry", "promote", version, *more)
    assert code == 2
    assert any("labels.share_labelled: not measured" in line for line in said)


def test_calibrate_and_monitor() -> None:
    lm = LanguageModel.from_pretrained("builtin", dtype="float32")
    watched: dict[str, Any] = {"sae": "sae", "features": [3, 5]}
    with pytest.raises(ConfigError, match="No feature of the dictionary is labelled with tier 'high'"):
        calibrate(lm, "dictionary", sae="sae", texts=DOCUMENTS)
    found = calibrate(lm, "dictionary", texts=DOCUMENTS, rates=[0.2], **watched)
    for feature in (3, 5):
        tested = found.at(feature, 0.2)
        assert (tested.threshold, found.features[feature].frequency) == (0, 0)
    with monitor(lm, "dictionary", thresholds=found, false_positive_rate=0.2, **watched) as watch:
        lm.logits(torch.tensor([lm.tokenizer.encode(DOCUMENTS[0])]))
    summary = watch.summary()
    assert summary.tokens > 0
    assert [(one.feature, one.firings) for one in summary.features] == [(3, 0), (5, 0)]


@pytest.mark.parametrize("corpus", ["empty", "one", "blank"])
@pytest.mark.parametrize(
    "command",
    [
        ("interpret", "--sae", "sae", "--out", "new", *SIZES),
        ("predict", "--sae", "sae", "--out", "new.parquet"),
        ("predict", "--sae", "sae", "--out", "new.parquet", "--split", "train"),
        ("drift", "sae", "sae", "--out", "new.json"),
        ("label", "dictionary", "--sae", "sae", "--judge", "reader", "--base_url", "http://127.0.0.1:9/v1"),
        ("panel", "--sae", "sae", "--dictionary", "dictionary", "--panel", "panel.yaml", "--out", "new"),
    ],
    ids=lambda command: command[0],
)
def test_a_split_without_text_is_one_line(
    command: tuple[str, ...], corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir())
    code, out, said = ended(capsys, *command, *TEXT, "--dataset", f"{corpus}.jsonl")
    assert (code, out) == (2, "")
    errors = [line for line in said if line.startswith("lightsae: error: ")]
    assert errors == said[-1:]
    assert "dataset " in errors[0]
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("corpus", ["empty", "one", "blank"])
def test_validate_of_a_split_without_text_is_one_line(corpus: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("validate", "--config", RUN / "config.yaml", "--ckpt_path", "last", "--data.dataset", f"{corpus}.jsonl")
    code, _, said = ended(capsys, *command)
    assert code == 2
    assert len(said) == 1
    assert said[0].startswith("lightsae: error: data.dataset ")
