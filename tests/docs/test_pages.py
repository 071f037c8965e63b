"""Every block of README and guide is run: Python as it stands, commands by the parser that reads them, or to their end.

What takes long is made small by the stand-ins below, and by the run of `conftest.py` in place of the reader's own.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import pytest
import torch

from helpers.pages import PAGES, ROOT, Block, blocks_of, commands_of
from helpers.tiny_families import CASES
from lightsae.cli import main
from lightsae.formats.convert import writable
from lightsae.formats.layouts import LAYOUTS
from lightsae.lm.families import FAMILIES, PARTS
from lightsae.production.registry.log import read_state

PAGES_BY_NAME = {page.name: page.read_text() for page in PAGES}
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# What stands in a page, and what is run in its place. Longer names first.
STAND_INS = {
    "training_tokens=500_000": "training_tokens=4_096, batch_tokens=512, buffer_tokens=4_096, val_tokens=1_024",
    "d_sae=1024": "d_sae=64",
    "max_rows=64": "max_rows=2",
    "max_new_tokens=40": "max_new_tokens=3",
    "sae.direction(7)": "sae.direction(5)",
    "feature(700)": "feature(7)",
    "--feature 2958": "--feature 11",
    "--feature 406": "--feature 6",
    "(406,": "(6,",
    "[406]": "[6]",
    # Four steps give few features with a good label, which are what is watched if none are named.
    "sae=promoted, sinks": "sae=promoted, features=[6], sinks",
    "sites openai-community/gpt2": "sites builtin",
    "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71": "RUN/sae",
    '"openai-community/gpt2"': '"builtin"',
    '"resid_post.6"': '"resid_post.2"',
}
# Commands that are cheap enough to be run, with options that make them so.
RUN = {
    ("sites",): "",
    ("open",): "--check false",
    ("convert",): "",
    ("fit", "--data.activations"): "--trainer.max_steps 3 --trainer.accelerator cpu --data.buffer_tokens 4096"
    " --trainer.enable_progress_bar false",
    ("label", "dictionary", "--export_csv"): "",
    ("steer", "--sae", "RUN/sae", "--feature", "11", "--prompt"): "--max_new_tokens 3 --num_workers 0",
    ("registry", "publish"): "",
    ("registry", "promote"): "--policy easy.yaml",
    ("registry", "list"): "",
    ("registry", "log"): "",
    ("registry", "verify"): "",
}
# Blocks that can't be run, each with its reason in a comment before it.
NOT_RUN = 0


class Parsed(BaseException):
    """The options were read, and nothing is to be done with them."""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_says_what_works(
    page: Path, page_folder: Path, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        where = f"{page.name}, line {block.line}"
        if block.not_run or block.language == "text":
            continue
        if block.language == "python":
            _run_python(block, where, names)
        elif block.language == "yaml":
            (page_folder / "block.yaml").write_text(block.text)
            _parse(["fit", "--config", "block.yaml"], where, monkeypatch)
        else:
            for words in commands_of(_with_stand_ins(block.text)):
                _follow(words, where, command, monkeypatch)


def test_blocks_are_of_a_kind_that_is_run() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page)]
    assert {block.language for block in blocks} <= {"bash", "python", "yaml", "text"}
    assert sum(bool(block.not_run) for block in blocks) == NOT_RUN
    assert sum(block.language == "bash" for block in blocks) > 15


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_has_no_block_that_is_overlooked(page: Path) -> None:
    outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    assert "```" not in outside
    assert not re.findall(r"^    \S.*", outside, re.M), "an indented block is not run; write a fenced one"


def test_readme_is_one_page_with_one_picture() -> None:
    text = PAGES[0].read_text()
    assert len(text.splitlines()) <= 90
    assert text.count("![") == 1


def test_the_table_of_layouts_is_whole() -> None:
    rows = re.findall(r"^\| `(\w+)` .*\| (\S.*?) \|$", (ROOT / "docs" / "guide" / "open.md").read_text(), re.M)
    assert {name for name, _ in rows} == {"native", *LAYOUTS}
    assert {name for name, written in rows if written != "no"} == set(writable())


def test_the_table_of_architectures_is_that_of_the_code() -> None:
    """`yes` where every layer of the tested models has the site, `no` where none has, other words where some have."""
    rows = re.findall(r"^\| (`.*?) \| .*? \| (.*?) \| (.*?) \|", PAGES_BY_NAME["architectures.md"], re.M)
    table = {name: cells for names, *cells in rows[1:] for name in re.findall(r"`([\w-]+)`", names)}
    assert set(table) == {*FAMILIES, *PARTS}
    for name, cells in table.items():
        layers = [kinds for case, tiny in CASES.items() if case.split(":")[0] == name for kinds in tiny.kinds]
        for kind, cell in zip(("attn_out", "mlp_act"), cells, strict=True):
            has = {kind in kinds for kinds in layers} or {True}
            assert (cell == "yes", cell == "no") == (has == {True}, has == {False}), (name, kind)


def test_stand_ins_stand_in_for_something() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in STAND_INS if name not in text] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "benchmarks.md"], ids=lambda page: page.name)
def test_recipes_and_files_that_a_page_names_are_there(page: Path) -> None:
    named = set(re.findall(r"\b(?:configs|benchmarks|scripts|src)/[\w./-]+\w", page.read_text()))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def _with_stand_ins(text: str) -> str:
    for name, stand_in in STAND_INS.items():
        text = text.replace(name, stand_in)
    return text


def _run_python(block: Block, where: str, names: dict[str, Any]) -> None:
    code = compile("\n" * block.line + _with_stand_ins(block.text), where, "exec")
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, names)


def _follow(words: list[str], where: str, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *args = words
    if program == "make":
        assert re.search(rf"^{args[0]}:", (ROOT / "Makefile").read_text(), re.M), where
    elif program == "lightsae":
        if "VERSION" in args:
            args[args.index("VERSION")] = read_state(Path("registry"), "registry").published[0]
        beginning = next((words for words in RUN if tuple(args[: len(words)]) == words), None)
        if beginning is None:
            _parse(args, where, monkeypatch)
        else:
            command(*args, *RUN[beginning].split())
    elif program in ("torchrun", "srun"):
        # What starts the processes of a run; behind it the command as it would be typed.
        _parse(args[args.index("lightsae") + 1 :], where, monkeypatch)
    elif program == "python":
        script = (ROOT / args[0]).read_text()
        assert all(f'"{option}"' in script for option in args if option.startswith("--")), where
    else:
        assert program in ("pip", "tensorboard"), where


def _parse(args: Sequence[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a command read its options, and stop there."""
    read = jsonargparse.ArgumentParser.parse_args

    def read_only(self: Any, *given: Any, **settings: Any) -> NoReturn:
        monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", read)
        read(self, *given, **settings)
        raise Parsed

    err = io.StringIO()
    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", read_only)
    try:
        with contextlib.redirect_stderr(err):
            main(args)
    except Parsed:
        return
    except SystemExit:
        pass
    finally:
        monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", read)
    raise AssertionError(f"{where}: lightsae {' '.join(args)}\n{err.getvalue()}")
