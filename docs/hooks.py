"""README.md is the first page of the site, and CHANGELOG.md a page of it: their text stands once."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}


def on_page_read_source(page: Any, config: Any) -> str | None:
    """Return the text of those pages, with the links as they are from within docs/."""
    source = PAGES.get(page.file.src_uri)
    if source is None:
        return None
    text = (ROOT / source).read_text(encoding="utf-8")
    return text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")
