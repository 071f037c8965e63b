"""docs/extending.md, followed to the letter in a copy of the package: files written, lines changed, commands run."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.pages import ROOT, Block, blocks_of, commands_of

PAGE = ROOT / "docs" / "extending.md"
# What makes the runs of the page short; the later option wins.
SHORT = """
--data.batch_tokens 128 --data.buffer_tokens 512 --data.shuffle_tokens 512 --data.val_tokens 256 --data.num_workers 0
--model.sae.d_sae 32 --trainer.max_steps 2 --trainer.accelerator cpu --trainer.enable_progress_bar false
--language_model_metrics.max_rows 1
""".split()
# The commands of the page one after the other in one process, which imports PyTorch once.
ALL = """
import json, sys
from lightsae.cli import main
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as end:
        if end.code:
            sys.exit(f"{command}: {end.code}")
"""


def change(path: Path, diff: str) -> None:
    """Apply a diff without line numbers: imports at its top go before the first import, the rest where it fits."""
    text, lines = path.read_text(), diff.splitlines()
    while lines[0].startswith("+from "):
        text = text.replace("\nfrom ", f"\n{lines.pop(0)[1:]}\nfrom ", 1)
    before = "\n".join(line[1:] for line in lines if line[0] != "+")
    after = "\n".join(line[1:] for line in lines if line[0] != "-")
    assert text.count(before) == 1, f"{path.name} does not hold, once:\n{before}"
    path.write_text(text.replace(before, after))


@pytest.fixture
def folder(tmp_path: Path, tiny_corpus: Path) -> Path:
    """A folder to work in, with a copy of the package in src/ that the page has changed, and texts as SQLite."""
    large = [path.name for path in (ROOT / "src/lightsae/lm/builtin").iterdir() if path.stat().st_size > 1_000_000]
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", *large))
    for name in large:
        (tmp_path / "src/lightsae/lm/builtin" / name).symlink_to(ROOT / "src/lightsae/lm/builtin" / name)
    for block in blocks_of(PAGE):
        if block.language == "diff":
            change(tmp_path / block.title, block.text)
        elif block.title:
            (tmp_path / block.title).write_text(block.text)
    with sqlite3.connect(tmp_path / "texts.sqlite") as database:
        database.execute("CREATE TABLE documents (text TEXT)")
        texts = [(json.loads(line)["text"],) for line in tiny_corpus.read_text().splitlines()]
        database.executemany("INSERT INTO documents VALUES (?)", texts)
    database.close()
    return tmp_path


def test_each_example_works(folder: Path) -> None:
    commands = [words[1:] for block in blocks_of(PAGE) if block.language == "bash" for words in commands_of(block.text)]
    assert [command[0] for command in commands] == ["fit", "validate", "fit", "fit", "norms"]
    done = subprocess.run(
        [sys.executable, "-c", ALL, json.dumps([[*c, *(SHORT if c[0] == "fit" else [])] for c in commands])],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [folder / "lightning_logs" / f"version_{number}" for number in range(4)]
    assert 0 < json.loads((runs[1] / "validation.json").read_text())["figures"]["val/relative_error"] < 2
    of_mechanism, of_source = (json.loads((run / "sae" / "sae.json").read_text()) for run in runs[2:])
    assert of_mechanism["variant"] == "SoftThreshold"
    assert of_mechanism["settings"]["theta"] == 0.2
    assert of_source["provenance"]["dataset"] == "texts.sqlite"
    assert "thread" not in done.stderr
    norms = done.stdout.split()[-3:]
    assert all(float(norm) >= 0 and len(norm.partition(".")[2]) == 2 for norm in norms)


def test_the_examples_are_in_the_style_of_the_house(folder: Path) -> None:
    written = [folder / block.title for block in blocks_of(PAGE) if block.language == "python"]
    for command in (["check"], ["format", "--check"]):
        words = ["ruff", *command, "--no-cache", "--config", str(ROOT / "pyproject.toml"), *map(str, written)]
        done = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_page_has_nothing_beside_its_four_examples() -> None:
    def kinds(blocks: list[Block]) -> list[str]:
        return [block.language for block in blocks if not block.title]

    blocks = blocks_of(PAGE)
    assert kinds(blocks) == ["text", "bash", "bash", "bash", "bash"]
    assert [block.title.rpartition("/")[2] for block in blocks if block.language == "python"] == [
        "relative_error.py",
        "soft_threshold.py",
        "sqlite.py",
        "norms.py",
    ]
