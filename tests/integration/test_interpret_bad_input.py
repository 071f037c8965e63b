"""Every mistake around feature dictionaries: exit code 2, one line that says what is wrong, nothing half-made."""

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.planted_concepts import CONTEXT, WIDTH, plant
from lightsae.cli import main
from lightsae.formats.native import save_sae
from lightsae.sae import MECHANISMS, Crosscoder, ReLU, SiteRef, Widths

# Stages that may be told on stderr before the message.
STAGES = ("text", "contexts", "reading ", "matching", "predict", "labels")
INTERPRET = "interpret --sae sae --out new --tokens 500 --score_tokens 500 --mining_tokens 500 --num_workers 0"
PREDICT = "predict --sae sae --out new.parquet --tokens 500 --num_workers 0"
JUDGE = "label dictionary --judge m --sae sae --base_url http://127.0.0.1:9/v1 --num_workers 0"
DRIFT = "drift sae permuted --out new.json --tokens 500 --num_workers 0"


@dataclass(frozen=True)
class Case:
    """A command, and what the message has to say."""

    command: str
    says: tuple[str, ...]


def says(command: str, *fragments: str) -> Case:
    return Case(command, fragments)


INTERPRETING = {
    "nothing": says("interpret", "sae, out is missing", "lightsae interpret --sae DIR --out FOLDER"),
    "no out": says("interpret --sae sae", "out is missing"),
    "unknown sae": says(f"{INTERPRET} --sae none", "sae is 'none', which does not exist"),
    "folder of exports": says(f"{INTERPRET} --sae .", "no 'sae.json'", "Did you mean"),
    "sae without a model": says(f"{INTERPRET} --sae no_model", "'no_model'", "without a language model"),
    "out is a file": says(f"{INTERPRET} --out a_file", "out is 'a_file'", "which is a file"),
    "out holds other files": says(f"{INTERPRET} --out other", "out is 'other'", "holds other files", "new folder"),
    "no tokens": says(f"{INTERPRET} --tokens 0", "tokens is 0", "at least 1"),
    "no tokens to test on": says(f"{INTERPRET} --score_tokens 0", "score_tokens is 0", "at least 1"),
    "fewer than no training tokens": says(f"{INTERPRET} --mining_tokens -1", "mining_tokens is -1", "at least 0"),
    "less than a row": says(f"{INTERPRET} --tokens 10", "tokens is 10", f"context_size ({CONTEXT})", "or more"),
    "less than a row to learn from": says(f"{INTERPRET} --mining_tokens 10", "mining_tokens is 10", "one row"),
    "no contexts": says(f"{INTERPRET} --contexts 0", "contexts is 0", "at least 1"),
    "no samples": says(f"{INTERPRET} --sampled 0", "sampled is 0", "at least 1"),
    "negative near misses": says(f"{INTERPRET} --near_misses -1", "near_misses is -1", "at least 0"),
    "negative ablation windows": says(f"{INTERPRET} --ablation_windows -1", "ablation_windows is -1"),
    "negative seed": says(f"{INTERPRET} --seed -1", "seed is -1", "at least 0"),
    "words for a number": says(f"{INTERPRET} --tokens many", "tokens is 'many'", "whole number"),
    "misspelt option": says(f"{INTERPRET} --tokenz 3", "--tokenz is not an option", "Did you mean '--tokens'?"),
    "impossible gate": says(f"{INTERPRET} --gate.precision 2", "gate.precision is 2", "up to 1"),
    "gate without positives": says(f"{INTERPRET} --gate.min_positives 0", "gate.min_positives is 0"),
    "config file missing": says(f"{INTERPRET} --config none.yaml", "--config is 'none.yaml'", "does not exist"),
    "unknown model": says(f"{INTERPRET} --model ./none", "model is './none'", "no such folder"),
    "unknown model, in fit's words": says(f"{INTERPRET} --data.model ./none", "model is './none'", "no such folder"),
    "rows too long, in fit's words": says(f"{INTERPRET} --data.context_size 100", "context_size is 100"),
    "misspelt option, in fit's words": says(f"{INTERPRET} --data.datset x", "Did you mean '--data.dataset'?"),
    "model of another width": says(f"{INTERPRET} --model builtin", "model is 'builtin'", "width", f"{WIDTH}"),
    "dataset missing": says(f"{INTERPRET} --dataset none.jsonl", "dataset is 'none.jsonl'", "does not exist"),
    "one document held out": says(f"{INTERPRET} --dataset short.jsonl", "dataset is 'short.jsonl'", "too few"),
    "rows too long": says(f"{INTERPRET} --context_size 100", "context_size is 100", f"{CONTEXT} tokens at most"),
    "nothing at once": says(f"{INTERPRET} --model_batch_tokens 0", "model_batch_tokens is 0", "at least 1"),
    "no such device": says(f"{INTERPRET} --device cuda", "device is 'cuda'", "write 'cpu'"),
    "no such dtype": says(f"{INTERPRET} --dtype float13", "dtype is 'float13'", "bfloat16"),
}
PREDICTING = {
    "predict: nothing": says("predict", "sae, out is missing", "FILE.parquet"),
    "predict: not parquet": says(f"{PREDICT} --out new.csv", "out is 'new.csv'", ".parquet"),
    "predict: a folder": says(f"{PREDICT} --out folder.parquet", "out is 'folder.parquet'", "name a file"),
    "predict: below a file": says(f"{PREDICT} --out a_file/new.parquet", "Cannot write 'a_file/new.parquet'"),
    "predict: no tokens": says(f"{PREDICT} --tokens 0", "tokens is 0", "1 or more"),
    "predict: unknown split": says(f"{PREDICT} --split test", "split is 'test'", "train or validation"),
    "predict: unknown sae": says(f"{PREDICT} --sae none", "sae is 'none', which does not exist"),
}
LABELLING = {
    "label: nothing": says("label", "folder is missing"),
    "label: not how": says("label dictionary", "--judge, --export_csv and --import_csv", "found none"),
    "label: two ways": says(f"{JUDGE} --export_csv new.csv", "found --judge and --export_csv"),
    "label: no dictionary": says("label none --export_csv new.csv", "folder is 'none', which does not exist"),
    "label: an sae": says("label sae --export_csv new.csv", "'sae'", "no feature dictionary", "lightsae interpret"),
    "label: without the sae": says("label dictionary --judge m", "--sae is missing"),
    "label: another sae": says("label dictionary --judge m --sae stranger", "'stranger'", "is not the SAE"),
    "label: no endpoint": says("label dictionary --judge m --sae sae", "LIGHTSAE_LLM_BASE_URL"),
    "label: no address": says(f"{JUDGE} --base_url nonsense", "'nonsense'", "http://localhost:8000/v1"),
    "label: no local model": says("label dictionary --sae sae --judge hf:./none", "'./none'", "no such folder"),
    "label: unknown feature": says(f"{JUDGE} --features [99]", "features holds 99", "8 features"),
    "label: no feature": says(f"{JUDGE} --features []", "features is empty", "8 features"),
    "label: nothing at once": says(f"{JUDGE} --concurrency 0", "concurrency", "is 0", "at least 1"),
    "export: unknown feature": says(
        "label dictionary --export_csv new.csv --features [99]", "no feature 99", "which has 8"
    ),
    "import: missing": says("label dictionary --import_csv none.csv", "'none.csv' does not exist"),
    "import: nothing filled in": says("label dictionary --import_csv empty.csv", "no row with a human_label"),
    "import: unknown feature": says(
        "label dictionary --import_csv unknown.csv", "'unknown.csv', line 2", "'feature'", "no feature 99"
    ),
    "import: by nobody": says("label dictionary --import_csv nobody.csv", "'nobody.csv', line 2", "'by'", "write who"),
    "import: no time": says("label dictionary --import_csv late.csv", "line 2", "'when'", "'yesterday'", "2030-01-31"),
    "import: of another": says("label dictionary --import_csv alien.csv", "line 2", "'dictionary'", "'000000000000'"),
    "import: not a csv": says("label dictionary --import_csv dictionary/dictionary.json", "no column 'feature'"),
}
DRIFTING = {
    "drift: of one": says("drift sae", "b is missing", "SAE_A SAE_B"),
    "drift: unknown sae": says("drift sae none", "b is 'none', which does not exist"),
    "drift: not json": says(f"{DRIFT} --out new.txt", "out is 'new.txt'", ".json"),
    "drift: another width": says("drift sae neurons", "'neurons'", "mlp_act.0", "resid_pre.0", "same site"),
    "drift: another site": says("drift sae post", "'post'", "resid_post.0", "resid_pre.0", "same site"),
    "drift: several sites": says("drift cross cross", "'cross'", "2 sites"),
    "drift: one reseed": says(f"{DRIFT} --reseeds [sae]", "reseeds names 1", "name two"),
    "drift: no tokens": says(f"{DRIFT} --tokens 0", "tokens is 0", "1 or more"),
    "drift: impossible threshold": says(f"{DRIFT} --same 2", "same is 2", "up to 1"),
    "drift: no coverage": says(f"{DRIFT} --coverage 0", "coverage is 0", "above 0"),
    "drift: no firings": says(f"{DRIFT} --min_fires 0", "min_fires is 0", "1 or more"),
    "drift: no dictionary": says(f"{DRIFT} --dictionary none", "dictionary is 'none', which does not exist"),
    "drift: dictionary of the other": says(
        "drift stranger sae --dictionary dictionary", "'stranger'", "is not the SAE"
    ),
}
SERVING = {
    "serve: nothing": says("serve", "folder is missing"),
    "serve: no folder": says("serve none", "folder is 'none', which does not exist"),
    "serve: another folder": says("serve other", "'other'", "no feature dictionary"),
    "serve: no dashboard": says("serve dictionary", "'dictionary'", "no dashboard"),
    "serve: impossible port": says("serve dictionary --port 70000", "--port is 70000", "0..65535"),
    "serve: another sae": says("serve with_page --sae stranger", "'stranger'", "is not the SAE"),
    "serve: no address": says("serve with_page --port 0 --host 300.1.1.1", "--host is '300.1.1.1'", "127.0.0.1"),
}
CASES = INTERPRETING | PREDICTING | LABELLING | DRIFTING | SERVING


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dictionaries, a feature dictionary, and files that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("workplace")
    planted = plant(folder)
    provenance = json.loads((planted.sae / "sae.json").read_text())["provenance"]
    model = str(planted.model)
    before, after = SiteRef(model, "resid_pre.0"), SiteRef(model, "resid_post.0")
    both = {before: WIDTH, after: WIDTH}
    save_sae(ReLU(Widths.autoencoder(after, WIDTH), d_sae=8), folder / "post", provenance)
    save_sae(ReLU(Widths.autoencoder(SiteRef(model, "mlp_act.0"), 24), d_sae=8), folder / "neurons", provenance)
    save_sae(Crosscoder(Widths(both, both), d_sae=8, mechanism=MECHANISMS["TopK"](k=2)), folder / "cross", provenance)
    save_sae(ReLU(Widths.of(WIDTH), d_sae=8), folder / "no_model")
    (folder / "other").mkdir()
    (folder / "other" / "letter.txt").touch()
    (folder / "a_file").touch()
    (folder / "folder.parquet").mkdir()
    lines = planted.corpus.read_text().splitlines(keepends=True)
    (folder / "short.jsonl").write_text("".join(lines[:3]))

    with contextlib.chdir(folder):
        assert run(f"{INTERPRET} --out dictionary --dashboard false --neurons false").code == 0
        assert run("label dictionary --export_csv empty.csv").code == 0
    shutil.copytree(folder / "dictionary", folder / "with_page")
    (folder / "with_page" / "index.html").touch()
    rows = list(csv.DictReader(io.StringIO((folder / "empty.csv").read_text(encoding="utf-8-sig"))))
    wrong = {
        "unknown": {"feature": "99", "by": "Ada"},
        "nobody": {},
        "late": {"by": "Ada", "when": "yesterday"},
        "alien": {"by": "Ada", "dictionary": "0" * 64},
    }
    for name, cells in wrong.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerow(rows[0] | {"human_label": "a label"} | cells)
    return folder


@dataclass(frozen=True)
class Ended:
    code: Any
    out: str
    err: str


def run(command: str) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        torch.random.fork_rng(),
        pytest.raises(SystemExit) as end,
    ):
        main(command.split())
    return Ended(end.value.code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return all files with what tells whether they were written to."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def mistaken(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Run a command that has to fail; return the lines it says. No file is new, gone or changed."""
    monkeypatch.chdir(workplace)
    for name in ("BASE_URL", "MODEL", "API_KEY"):
        monkeypatch.delenv(f"LIGHTSAE_LLM_{name}", raising=False)

    def fail(command: str) -> list[str]:
        before = contents(workplace)
        ended = run(command)
        assert ended.code == 2, ended
        assert ended.out == ""
        assert contents(workplace) == before
        return ended.err.splitlines()

    return fail


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_message(case: Case, mistaken: Callable[[str], list[str]]) -> None:
    *stages, message = mistaken(case.command)
    assert all(stage.startswith(STAGES) for stage in stages), stages
    assert message.startswith("lightsae: error: ")
    assert len(message) < 420
    assert "data." not in message.replace("--data.", ""), "these commands have their settings under no `data`"
    for fragment in case.says:
        assert fragment in message, f"{fragment!r} is not in {message!r}"


@pytest.mark.parametrize("damage", ["features.parquet", "labels.parquet", "dictionary.json"])
def test_a_dictionary_that_was_changed_is_refused(
    damage: str, workplace: Path, mistaken: Callable[[str], list[str]]
) -> None:
    changed = workplace / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(workplace / "dictionary", changed)
    data = bytearray((changed / damage).read_bytes())
    # A byte in the middle of a table, or a figure of the manifest.
    data = data.replace(b'"score_tokens": 500', b'"score_tokens": 900') if damage.endswith("json") else data[:-1]
    (changed / damage).write_bytes(data)
    for command in ("label changed --export_csv new.csv", f"{DRIFT} --dictionary changed"):
        (message,) = mistaken(command)
        assert damage in message
