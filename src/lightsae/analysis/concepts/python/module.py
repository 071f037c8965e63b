"""Everything that is marked of one document of Python source."""

from lightsae.analysis.concepts.documents import DocumentText
from lightsae.analysis.concepts.python.lexical import mark_tokens
from lightsae.analysis.concepts.python.lines import mark_lines
from lightsae.analysis.concepts.python.source import parse
from lightsae.analysis.concepts.python.statements import mark_structure
from lightsae.analysis.concepts.truth import Marks


def mark_python(document: DocumentText, marks: Marks) -> int:
    """Mark a document; return how many of its characters were read: 0 if it is no Python."""
    source = parse(document.text)
    if source is None:
        return 0
    mark_tokens(source, marks)
    mark_lines(source, marks)
    try:
        mark_structure(source, marks)
    except RecursionError:
        # Deeper than it can be walked: what was marked belongs to a text of which nothing is known.
        return 0
    return source.end
