"""Planted concepts: what `interpret` finds and names, and what the other commands make of that dictionary."""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from helpers.planted_concepts import (
    ANIMALS,
    DEAD,
    DIGITS,
    IMAGE,
    ON_ANIMALS,
    ON_DIGITS,
    ON_FILLER,
    ON_IMAGE,
    ON_POSITIONS,
    ON_RED,
    ON_SCRIPT,
    SCRIPT,
    TOKENS_OF,
    Planted,
    plant,
)
from lightsae import load_sae
from lightsae.activations.corpus.rows import RowSource
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.dictionary.schema import TABLES
from lightsae.analysis.labels.human import COLUMNS
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.cli import main

# One dtype, for what runs in another process is compared too.
TEXT = ("--num_workers", "0", "--model_batch_tokens", "1024", "--dtype", "float32")
SIZES = ("--tokens", "4000", "--score_tokens", "4000", "--mining_tokens", "6000")
PARQUET = [f"{population}{table}.parquet" for population in ("", "neurons/") for table in TABLES]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def lightsae(*args: str | Path) -> Ended:
    """Run a command in this process; good for fixtures of a whole module, unlike the fixture of this name."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        torch.random.fork_rng(),
        pytest.raises(SystemExit) as end,
    ):
        main([str(arg) for arg in args])
    assert isinstance(end.value.code, int)
    return Ended(end.value.code, out.getvalue(), err.getvalue())


def good(*args: str | Path) -> str:
    ended = lightsae(*args)
    assert ended.code == 0, ended.err
    return ended.out


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def made(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feature dictionary of the planted latents, with its dashboard."""
    folder = tmp_path_factory.mktemp("made") / "dictionary"
    good("interpret", "--sae", planted.sae, "--out", folder, *SIZES, *TEXT)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(made, tmp_path / "dictionary"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "features.parquet").to_pylist()
    return rows


# -- interpret ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latent", "named"),
    [
        (ON_RED, ["red"]),
        (ON_DIGITS, ["a number"]),
        (ON_ANIMALS, [animal.strip() for animal in ANIMALS]),
        (ON_SCRIPT, [SCRIPT.strip()]),
        (ON_IMAGE, [IMAGE.strip()]),
        (ON_FILLER, ["the"]),
    ],
    ids=["a token", "a class", "a set of tokens", "a script", "an image", "a frequent token"],
)
def test_a_planted_concept_is_found_and_named(latent: int, named: list[str], made: Path) -> None:
    row = rows_of(made)[latent]
    assert all(word in row["label"] for word in named), row["label"]
    assert row["label_source"] == "rule"
    assert row["tier"] == "high"
    assert row["precision"] >= 0.9
    assert row["recall"] >= 0.9
    assert {token["text"] for token in row["tokens_on"]} == set(TOKENS_OF[latent])
    assert sum(token["count"] for token in row["tokens_on"]) == row["fires"]


def test_contexts_mark_the_tokens_that_fire(made: Path) -> None:
    contexts = FeatureDictionary.open(made).feature(ON_DIGITS).contexts
    assert {context["kind"] for context in contexts} == {"top", "stratum", "near_miss"}
    for context in contexts:
        fires = [text for text, value in zip(context["texts"], context["values"], strict=True) if value > 0]
        assert set(fires) <= set(DIGITS)
        assert (context["kind"] == "near_miss") == (context["texts"][context["peak"]] not in DIGITS)
    strongest = [c["texts"][c["peak"]] for c in contexts if c["kind"] == "top"]
    assert set(strongest) == {" 9"}  # the digit that was planted strongest
    weakest = {c["texts"][c["peak"]] for c in contexts if c["kind"] == "stratum" and c["stratum"] == 0}
    assert weakest.isdisjoint(strongest)


def test_a_latent_that_no_pattern_of_text_tells_stays_unlabelled(made: Path) -> None:
    row = rows_of(made)[ON_POSITIONS]
    assert (row["label"], row["tier"]) == (None, "unlabelled")
    assert (row["precision"], row["recall"], row["label_source"]) == (None, None, None)
    assert row["fires"] > 100
    tried = FeatureDictionary.open(made).feature(ON_POSITIONS).labels
    assert not any(label["passed"] for label in tried)


def test_a_latent_that_never_fires_is_dead(made: Path) -> None:
    found = FeatureDictionary.open(made).feature(DEAD)
    assert (found.row["tier"], found.row["label"], found.row["fires"]) == ("dead", None, 0)
    assert [context for context in found.contexts if context["kind"] != "near_miss"] == []


def test_the_folder_is_complete(made: Path) -> None:
    for name in ("card.md", "index.html", "dictionary.json", "neurons/dictionary.json", *PARQUET):
        assert (made / name).stat().st_size > 0, name
    for path in PARQUET:
        assert pq.read_schema(made / path).equals(TABLES[Path(path).stem]), path
    manifest = json.loads((made / "dictionary.json").read_text())
    assert manifest["tokens"]["contexts"] > 3000
    # What says that a label is worth something: labels of others, and directions at random, do not pass.
    # Nor those of the SAE's shuffled weights.
    floors = manifest["summary"]["floors"]
    assert set(floors) == {"shuffled labels", "random directions", "the SAE with shuffled weights"}
    assert all(floor["share"] < 0.1 and floor["low"] > 0 for floor in floors.values()), floors
    assert manifest["summary"]["above_chance"] is True
    assert manifest["summary"]["labelled_share"] == pytest.approx(6 / 7, abs=1e-4)
    neurons = manifest["summary"]["neurons"]
    assert neurons["kind"] == "raw neurons"
    assert neurons["features"] == 2 * neurons["width"]
    assert neurons["sites"][0].endswith("mlp_act.0")
    assert [path.name for path in made.parent.iterdir()] == [made.name], "a state was left behind"


KILLED = """
import os, signal, sys
from lightsae.analysis.contexts import stage as context_stage
from lightsae.cli import main

context_stage.SAVE_EVERY = 0.0
save = context_stage.SavedPass.save

def killed_after(saved, statistics):
    save(saved, statistics)
    if next(iter(statistics.values())).batches == 2:
        os.kill(os.getpid(), signal.SIGKILL)

context_stage.SavedPass.save = killed_after
main(sys.argv[1:])
"""


def test_killed_and_started_again_gives_the_same_bytes(planted: Planted, made: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    command = ["interpret", "--sae", str(planted.sae), "--out", str(again), *SIZES, *TEXT, "--dashboard", "false"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not again.exists()
    resumed = lightsae(*command)
    assert resumed.code == 0, resumed.err
    assert "contexts, resumed" in resumed.err
    assert [path.name for path in tmp_path.iterdir()] == [again.name], "the saved state was not cleared"
    same_dictionary(made, again)


def test_a_rerun_gives_the_same_bytes(planted: Planted, made: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    command = ["interpret", "--sae", str(planted.sae), "--out", str(again), *SIZES, *TEXT, "--dashboard", "false"]
    ended = lightsae(*command)
    assert ended.code == 0, ended.err
    assert "resumed" not in ended.err
    same_dictionary(made, again)


def same_dictionary(one: Path, other: Path) -> None:
    assert FeatureDictionary.open(one).id == FeatureDictionary.open(other).id
    for path in PARQUET:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path


def test_no_text_of_the_corpus_is_markup(made: Path) -> None:
    pages = [made / "index.html", *made.glob("assets/data/**/*.js")]
    assert len(pages) > 5
    for page in pages:
        assert not re.search("script>alert|<img", page.read_text(), re.IGNORECASE), page
    # The data's scripts hold no markup of any kind; the corpus is there, escaped.
    scripts = "".join(page.read_text() for page in pages[1:])
    assert not set("<>&") & set(scripts)
    assert "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e" in scripts
    assert "\\u003c/script\\u003e\\u003cimg/src=x/onerror=alert(2)\\u003e" in scripts


# -- predict -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded(planted: Planted) -> dict[str, np.ndarray]:
    """What the SAE gives on the first held-out rows, token by token: document, special, latents."""
    loaded = LoadedSAE.load(planted.sae, TextSettings(num_workers=0), whole_model=False)
    source = RowSource(loaded.corpus, loaded.main_model.vocabulary, "validation")
    rows = source.take(2000 // loaded.corpus.context_size)
    source.close()
    captured = loaded.main_model.capture(torch.from_numpy(rows.tokens.astype(np.int64)), ["resid_pre.0"])
    latents = load_sae(planted.sae).encode(captured["resid_pre.0"])
    special = np.isin(rows.tokens, loaded.main_model.special_token_ids)
    return {
        "tokens": rows.tokens,
        "documents": rows.documents,
        "special": special,
        "latents": latents.detach().numpy(),
    }


@pytest.mark.parametrize("everything", [False, True])
def test_predict_writes_what_the_sae_encodes(
    everything: bool, planted: Planted, encoded: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "firings.parquet"
    said = good(
        "predict",
        "--sae",
        planted.sae,
        "--out",
        out,
        "--tokens",
        "2000",
        "--everything",
        str(everything).lower(),
        *TEXT,
    )
    found = pq.read_table(out).to_pydict()
    latents = encoded["latents"].copy()
    if not everything:
        latents[encoded["special"]] = 0
        latents[:, 0] = 0
    row, position, latent = np.nonzero(latents)
    places = list(zip(found["row"], found["position"], found["latent"], strict=True))
    order = sorted(range(len(places)), key=places.__getitem__)
    assert [places[i] for i in order] == list(zip(row.tolist(), position.tolist(), latent.tolist(), strict=True))
    np.testing.assert_allclose(np.array(found["value"])[order], latents[row, position, latent], rtol=1e-4)
    assert np.array_equal(np.array(found["document"])[order], encoded["documents"][row, position])
    assert np.array_equal(np.array(found["token"])[order], encoded["tokens"][row, position])
    assert f"{len(row):,} firings" in said


def test_a_delphi_cache_holds_what_the_sae_encodes(
    planted: Planted, encoded: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "latents"
    words = ("predict", "--sae", planted.sae, "--out", out, "--tokens", "2000", "--layout", "delphi", "--splits", "3")
    good(*words, "--everything", "true", *TEXT)
    said = good(*words, "--everything", "true", *TEXT)  # an earlier one is replaced
    rebuilt, width, files = np.zeros_like(encoded["latents"]), encoded["latents"].shape[2], []
    (folder,) = out.iterdir()
    for path in folder.glob("*.safetensors"):
        first, last = map(int, path.stem.split("_"))
        tensors = load_file(path)
        row, position, latent = tensors["locations"].astype(int).T
        assert tensors["locations"].dtype == np.uint16
        assert latent.max(initial=0) <= last - first
        rebuilt[row, position, first + latent] = tensors["activations"]
        assert tensors["activations"].dtype == np.float16
        assert np.array_equal(tensors["tokens"], encoded["tokens"])
        files.append((first, last))
    edges = sorted(files)
    assert (edges[0][0], edges[-1][1], len(edges)) == (0, width - 1, 3)
    assert all(following[0] == before[1] + 1 for before, following in itertools.pairwise(edges))
    np.testing.assert_allclose(rebuilt, encoded["latents"], rtol=2e-3, atol=2e-5)
    config = json.loads((folder / "config.json").read_text())
    assert (config["n_splits"], config["n_tokens"]) == (3, encoded["tokens"].size)
    assert f"{np.count_nonzero(rebuilt):,} firings" in said


# -- drift -------------------------------------------------------------------------------------------------------------


def drift(planted: Planted, other: Path, made: Path, out: Path) -> list[dict[str, Any]]:
    good("drift", planted.sae, other, "--tokens", "3000", "--out", out, "--dictionary", made, *TEXT)
    report = json.loads(out.read_text())
    named = [json.loads((folder / "sae.json").read_text())["sha256"] for folder in (planted.sae, other)]
    assert list(report["summary"]["sae"].values()) == named
    told: list[dict[str, Any]] = report["features"]
    assert [row["feature"] for row in told if row["verdict"] == "untested"] == [DEAD]
    return [row for row in told if row["feature"] != DEAD]


def test_drift_against_itself_keeps_everything(planted: Planted, made: Path, tmp_path: Path) -> None:
    found = drift(planted, planted.sae, made, tmp_path / "drift.json")
    assert {row["verdict"] for row in found} == {"kept"}
    assert all(row["match"] == row["feature"] for row in found)
    assert {row["label_status"] for row in found if row["feature"] != ON_POSITIONS} == {"carried"}


def test_drift_finds_latents_that_changed_places(planted: Planted, made: Path, tmp_path: Path) -> None:
    found = drift(planted, planted.permuted, made, tmp_path / "drift.json")
    assert {row["verdict"] for row in found} == {"kept"}
    assert [row["match"] for row in found] == [planted.order.index(row["feature"]) for row in found]
    assert planted.order != sorted(planted.order)


def test_drift_against_a_stranger_loses_everything(planted: Planted, made: Path, tmp_path: Path) -> None:
    found = drift(planted, planted.stranger, made, tmp_path / "drift.json")
    assert {row["verdict"] for row in found} == {"lost"}
    assert {row["label_status"] for row in found if row["label"] is not None} == {"revoked"}


# -- label -------------------------------------------------------------------------------------------------------------


class Judge:
    """An OpenAI-compatible server that names the marked words, up to three, and finds those that a name lists."""

    def __init__(self) -> None:
        self.requests, self.garbled = 0, ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                system, user = (message["content"] for message in body["messages"][:2])
                outer.requests += 1
                said = (
                    "I would rather not." if outer.garbled and outer.garbled in system else outer.answer(system, user)
                )
                answer = {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
                    ],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }
                raw = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    @staticmethod
    def answer(system: str, user: str) -> str:
        if "Name what" in system:
            words = {word.strip() for word in re.findall(r"«([^»]*)»\{\d\}", user)}
            return json.dumps({"label": "one of: " + " ".join(sorted(words)[:3]) if len(words) <= 10 else None})
        words = set(re.findall("one of: (.*)", user)[0].split())
        excerpts = [line.split(". ", 1)[1] for line in user.split("Excerpts:\n")[1].splitlines()]
        if "marked rightly" in system:
            marked = [{word.strip() for word in re.findall("«([^»]*)»", text)} for text in excerpts]
            fits = [number for number, found in enumerate(marked, 1) if found <= words]
        else:
            fits = [number for number, text in enumerate(excerpts, 1) if words & set(text.split())]
        return json.dumps({"choice": (fits or [0])[0]} if '"choice"' in system else {"matches": fits})

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    for name in ("BASE_URL", "MODEL"):
        monkeypatch.delenv(f"LIGHTSAE_LLM_{name}", raising=False)
    monkeypatch.setenv("LIGHTSAE_LLM_API_KEY", "none")
    running = Judge()
    yield running
    running.stop()


@pytest.fixture
def label(judge: Judge, planted: Planted, copied: Path) -> Callable[..., str]:
    """Label some latents by the server, with one file of answers."""

    def run(*more: str) -> str:
        features = ("--features", f"[{ON_RED}, {ON_DIGITS}, {ON_ANIMALS}, {ON_POSITIONS}]")
        options = ("--judge", "reader", "--base_url", judge.url, *features)
        return good("label", copied, "--sae", planted.sae, *options, *TEXT, *more)

    return run


def test_a_language_model_labels(label: Callable[..., str], judge: Judge, copied: Path, made: Path) -> None:
    said = label()
    dictionary = FeatureDictionary.open(copied)
    rows = rows_of(copied)
    assert (rows[ON_RED]["label"], rows[ON_RED]["label_source"]) == ("one of: red", "llm")
    assert (rows[ON_ANIMALS]["label"], rows[ON_ANIMALS]["label_source"]) == ("one of: cat cow dog", "llm")
    assert min(rows[ON_RED]["precision"], rows[ON_RED]["recall"]) >= 0.9
    assert rows[ON_POSITIONS]["label"] is None
    # Three digits of ten are too few: the label is on record, and the one that passed stays.
    assert (rows[ON_DIGITS]["label_source"], rows[ON_DIGITS]["tier"]) == ("rule", "high")
    tried = [
        row for row in dictionary.feature(ON_DIGITS).labels if row["source"] == "llm" and row["test"] == "detection"
    ]
    assert {row["label"] for row in tried} == {"one of: 0 1 2"}
    assert False in {row["passed"] for row in tried}
    tests = {(row["test"], row["source"]) for row in dictionary.feature(ON_RED).labels}
    assert {("detection", "llm"), ("fuzzing", "llm"), ("tokens", "rule")} <= tests
    assert dictionary.id != dictionary.manifest["made_from"] == FeatureDictionary.open(made).id
    assert dictionary.manifest["labels"]["llm"]["model"] == "reader"
    assert "one of: cat cow dog" in "".join(path.read_text() for path in copied.rglob("*.js"))
    assert f"{judge.requests} questions asked, 0 answered before" in said

    asked = judge.requests
    said = label()
    assert judge.requests == asked, "a rerun costs nothing"
    assert f"0 questions asked, {asked} answered before; 0 + 0 tokens" in said
    assert rows_of(copied) == rows


def test_answers_of_no_use_are_counted(label: Callable[..., str], judge: Judge, copied: Path) -> None:
    judge.garbled = "marked rightly"
    said = label()
    times = re.search(r"(\d+) x fuzzing: not parseable", said)
    assert times is not None, said
    assert int(times[1]) >= 2
    assert rows_of(copied)[ON_RED]["label_source"] == "llm"  # fuzzing does not decide


def test_labels_of_neuronpedia_are_tested_and_only_what_passes_is_shown(
    label: Callable[..., str], judge: Judge, copied: Path, tmp_path: Path
) -> None:
    said = {ON_RED: "one of: red", ON_ANIMALS: "one of: 1 2 3"}
    layer = FeatureDictionary.open(copied).manifest["sae"]["read"][0]["site"].rpartition(".")[2]
    source = {"modelId": "planted", "layer": f"{layer}-res", "explanationModelName": "someone"}
    lines = [json.dumps({**source, "index": str(feature), "description": text}) for feature, text in said.items()]
    (tmp_path / "e.jsonl").write_text("\n".join(lines))
    before = rows_of(copied)
    out = label("--import_neuronpedia", str(tmp_path / "e.jsonl"))
    assert "2 labelled and tested, 1 passed" in out
    rows = rows_of(copied)
    assert (rows[ON_RED]["label"], rows[ON_RED]["label_source"]) == ("one of: red", "neuronpedia")
    assert rows[ON_RED]["precision"] >= 0.9
    assert rows[ON_ANIMALS] == before[ON_ANIMALS]
    kept = [row for row in FeatureDictionary.open(copied).feature(ON_ANIMALS).labels if row["source"] == "neuronpedia"]
    assert {(row["label"], row["model"]) for row in kept} == {("one of: 1 2 3", "someone")}
    assert False in {row["passed"] for row in kept}


def test_labels_of_people_go_out_and_come_back(copied: Path, tmp_path: Path) -> None:
    file, before = tmp_path / "labels.csv", FeatureDictionary.open(copied)
    assert "7 features" in good("label", copied, "--export_csv", file)
    frame = pd.read_csv(file, dtype=str, keep_default_na=False).astype({"feature": int})
    assert list(frame.columns) == list(COLUMNS)
    frame.loc[frame["feature"] == ON_POSITIONS, ["human_label", "by", "when"]] = ["every so often", "Ada", "2025-03-01"]
    frame.to_csv(file, index=False)

    assert "1 labels of people" in good("label", copied, "--import_csv", file)
    after = FeatureDictionary.open(copied)
    found = after.feature(ON_POSITIONS)
    assert (found.row["label"], found.row["label_source"]) == ("every so often", "human")
    assert [(row["model"], row["made"]) for row in found.labels if row["source"] == "human"] == [("Ada", "2025-03-01")]
    assert after.feature(ON_RED).row == before.feature(ON_RED).row
    # Its file is of the dictionary that it was; a label cannot move to another one unseen.
    refused = lightsae("label", copied, "--import_csv", file)
    assert refused.code == 2
    assert "column 'dictionary'" in refused.err
