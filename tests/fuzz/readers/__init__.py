"""All readers, by name."""

from fuzz.readers.base import Files as Files
from fuzz.readers.base import Reader as Reader
from fuzz.readers.corpora import CORPORA
from fuzz.readers.exports import EXPORTS
from fuzz.readers.layouts import LAYOUT_READERS
from fuzz.readers.opened import OPENED
from fuzz.readers.published import PUBLISHED
from fuzz.readers.texts import TEXTS

READERS: dict[str, Reader] = {**TEXTS, **EXPORTS, **OPENED, **PUBLISHED, **CORPORA, **LAYOUT_READERS}
