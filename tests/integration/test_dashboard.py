"""The dashboard in a real headless Chromium, opened from the disk."""

import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from helpers.fake_dictionary import fake_manifest, fake_tables
from lightsae.activations.roles import ROLES
from lightsae.analysis.dashboard import Colouring, Map, write_dashboard

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome", "chrome") if (p := shutil.which(n))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)")
HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


class Dom(HTMLParser):
    """What stands in a page: its elements, its text, and what could run code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str | None] = []
        self.text = ""
        self.title = re.search("<title>(.*?)</title>", html, re.DOTALL)[1]  # type: ignore[index]
        self.feed(html)
        self.ready = re.search(r'data-ready="(\d+)"', html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, value in attrs if name.startswith("on")]
        if tag == "script":
            self.scripts.append(dict(attrs).get("src"))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dom]:
    """Return a function from a folder and a route to the page as it is once its scripts have run."""

    def dump(folder: Path, route: str = "", milliseconds: int = 8000) -> Dom:
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
            *([f"--virtual-time-budget={milliseconds}"] if milliseconds else []),
            "--dump-dom",
            f"{(folder / 'index.html').as_uri()}#{route}",
        ]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        return Dom(done.stdout.decode("utf-8"))

    return dump


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dashboard of a corpus whose every string is HTML and script."""
    tables = fake_tables(64)
    for name, columns in {
        "features": ["label", "label_source"],
        "labels": ["label", "rule", "evidence", "model"],
    }.items():
        rows = tables[name].to_pylist()
        for row in rows:
            row.update({c: HOSTILE for c in columns if row[c] is not None and c != "label_source"})
            for column in ("tokens_on", "tokens_before", "tokens_after", "promoted", "suppressed"):
                for token in row.get(column) or []:
                    token["text"] = HOSTILE
        tables[name] = type(tables[name]).from_pylist(rows, schema=tables[name].schema)
    contexts = tables["contexts"].to_pylist()
    for context in contexts:
        context["texts"] = [HOSTILE] * len(context["texts"])
    tables["contexts"] = type(tables["contexts"]).from_pylist(contexts, schema=tables["contexts"].schema)
    points = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    colour = Colouring(HOSTILE, [HOSTILE, "b"] * 32)
    maps = [Map(HOSTILE, HOSTILE, points, [colour], texts=[HOSTILE] * 64, links=np.arange(64))]
    made = tmp_path_factory.mktemp("hostile")
    manifest = fake_manifest(64) | {"corpus": {"name": HOSTILE}}
    manifest["summary"]["neurons"] = {"sites": [HOSTILE, "mlp_act.0"]}
    write_dashboard(made, tables, manifest, neurons=tables, maps=maps)
    return made


ROUTES = {
    "/features": "unlabelled",
    "/features?q=onerror&in=contexts": "of 64",
    "/feature/3": "All labels and their tests",
    "/feature/2": "is not guessed here",
    "/neurons": "Fires on",
    "/map": "colour by",
    "/compare": "Side by side",
    "/about": "mlp_act.0",
    "/feature/999": "There is no feature 999",
    "/feature/x": "There is no feature",
}


@pytest.mark.parametrize("route", ROUTES)
def test_texts_of_a_corpus_are_shown_and_never_run(route: str, folder: Path, browse: Callable[..., Dom]) -> None:
    dom = browse(folder, route)
    assert dom.ready
    assert ROUTES[route] in dom.text
    assert "img" not in dom.tags
    assert not dom.handlers
    assert all(source and source.startswith(("assets/", "file:")) for source in dom.scripts)
    if route not in ("/feature/999", "/feature/x", "/feature/2"):
        assert "onerror=document.title='owned'" in dom.text
    assert dom.title != "owned"


def test_a_page_of_a_feature_shows_its_evidence(browse: Callable[..., Dom], tmp_path: Path) -> None:
    write_dashboard(tmp_path, fake_tables(64), fake_manifest(64))
    dom = browse(tmp_path, "/feature/0")
    for words in (
        "«return» before a call (0)",
        "Precision 0.95",
        "Recall 0.9",
        "Near misses",
        "promotes",
        "Nearest by direction",
    ):
        assert words in dom.text, words
    assert "Raw neurons" not in dom.text.split("Aligned")[0]
    searched = browse(tmp_path, "/features?q=%22digits+inside%22&tier=high")
    assert "digits inside a string" in searched.text
    assert "unlabelled" not in searched.text.split("Fires on")[1]


def test_whose_words_a_feature_fires_in_stands_in_the_list_and_on_its_page(
    browse: Callable[..., Dom], tmp_path: Path
) -> None:
    tables = fake_tables(64)
    rows = tables["features"].to_pylist()
    for row in rows:
        row |= {f"{role}_share": 0.0 for role in ROLES} | {"assistant_share": 0.875, "other_share": 0.125}
    tables["features"] = pa.Table.from_pylist(rows, schema=tables["features"].schema)
    write_dashboard(tmp_path, tables, fake_manifest(64))
    page, listed = browse(tmp_path, "/feature/0").text, browse(tmp_path, "/features?sort=-assistant_share").text
    assert "In assistant87.5%In other12.5%" in page
    for text in (page, listed):
        assert "In assistant" in text
        assert "In tool" not in text


def test_thirty_thousand_features_open_nearly_as_soon_as_a_hundred(browse: Callable[..., Dom], tmp_path: Path) -> None:
    # The list loads nothing but the features' columns: the contexts of a few stand for those of all.
    tables, copies = fake_tables(1000), 30
    write_dashboard(tmp_path / "few", fake_tables(100), fake_manifest(100))
    features = pa.concat_tables([tables["features"]] * copies)
    tables["features"] = features.set_column(0, features.schema.field(0), pa.array(range(1000 * copies), pa.int32()))
    write_dashboard(tmp_path / "many", tables, fake_manifest(1000 * copies))
    # No virtual time, which does not count work. The better of two, in turn: other processes may be busy.
    doms = [browse(tmp_path / name, milliseconds=0) for name in ("few", "many") * 2]
    few, many = ([int(dom.ready[1]) for dom in doms[first::2] if dom.ready] for first in (0, 1))
    assert few
    assert many
    assert min(many) < 4 * min(few)
    assert doms[1].tags.count("a") > 10
