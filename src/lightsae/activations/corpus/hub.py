"""Open a dataset of the Hugging Face Hub as a source of documents, with errors that name the setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightsae.activations.contents import digest
from lightsae.activations.corpus.columns import Columns
from lightsae.activations.corpus.documents import Cursor, Document, DocumentSource, PartsSource
from lightsae.activations.corpus.suffixes import kind_of
from lightsae.activations.corpus.text_files import table_part
from lightsae.activations.settings import DataSettings
from lightsae.errors import CorpusError, arg, did_you_mean

SplitKey = Literal["dataset_split", "validation_split"]
_ROWS_IN_A_DIGEST = 64
SPLIT_KEYS: tuple[SplitKey, SplitKey] = ("dataset_split", "validation_split")


class HubStream:
    """A streamed Hub dataset; its own state is the cursor. Its shuffle is not used: it forgets its buffer on resume."""

    def __init__(self, dataset: Any, text_column: str, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        first = next(examples := iter(dataset), None)
        examples.close()
        if first is None:
            raise CorpusError(f"{arg('dataset')}: {fingerprint} is empty.")
        self._columns = Columns.choose(first, text_column, fingerprint)
        self._first = digest([repr(first).encode()])
        self._dataset = dataset.select_columns(self._columns.names)
        self._examples: Any = iter(self._dataset)

    def read(self) -> Document | None:
        for example in self._examples:
            if (document := self._columns.document_of(example, self.fingerprint)) is not None:
                return document
        return None

    def contents(self) -> dict[str, str]:
        return {f"the first record of {self.fingerprint}": self._first}

    def cursor(self) -> Cursor:
        return dict(self._dataset.state_dict())

    def seek(self, cursor: Cursor) -> None:
        self.close()
        self._dataset.load_state_dict(deepcopy(cursor))
        self._examples = iter(self._dataset)

    def close(self) -> None:
        # Left to the interpreter's end, the generators of `datasets` complain.
        self._examples.close()


def open_hub(settings: DataSettings, key: SplitKey) -> DocumentSource:
    """Return one whole split; the dataset is downloaded first unless `streaming` is on.

    Raises:
        CorpusError: The dataset, its configuration, split or column does not exist, or the Hub cannot be reached.
    """
    import datasets

    split = getattr(settings, key)
    with _hub_errors(settings, key):
        dataset: Any = datasets.load_dataset(
            settings.text,
            settings.dataset_config,
            split=split,
            revision=settings.dataset_revision,
            streaming=settings.streaming,
        )
        fingerprint = " ".join(
            [settings.text, settings.dataset_config or "default", split, settings.dataset_revision or "main"]
        )
        if settings.streaming:
            return HubStream(dataset, settings.text_column, fingerprint)
    part = table_part(dataset, settings.text_column, settings.text)
    return PartsSource([part], f"{fingerprint}: {len(dataset)} rows", partial(_some_rows, dataset))


def _some_rows(dataset: Any) -> dict[str, str]:
    """Return a digest of rows from all over a table, which does not depend on how it is stored."""
    places = np.linspace(0, len(dataset) - 1, _ROWS_IN_A_DIGEST).astype(int).tolist() if len(dataset) else []
    return {"rows": digest(repr(dataset[place]).encode() for place in places)}


def check_hub(settings: DataSettings) -> None:
    """Check what can be known without downloading the dataset: its name, configuration, splits and columns.

    Raises:
        CorpusError: As `open_hub`.
    """
    import datasets

    with _hub_errors(settings, "dataset_split"):
        info = datasets.load_dataset_builder(
            settings.text, settings.dataset_config, revision=settings.dataset_revision
        ).info
    for key in SPLIT_KEYS:
        name = getattr(settings, key)
        # A slice such as train[:10%] names a split too.
        if name and info.splits and name.partition("[")[0] not in info.splits:
            raise CorpusError(
                f"{arg(key)} is {name!r}, but {settings.text} has {', '.join(map(repr, info.splits))}."
                + did_you_mean(name, info.splits)
            )
    if info.features:
        Columns.choose(info.features, settings.text_column, settings.text)
    elif settings.streaming:
        open_hub(settings, "dataset_split").close()


@contextmanager
def _hub_errors(settings: DataSettings, key: SplitKey) -> Iterator[None]:
    from datasets.exceptions import DatasetNotFoundError

    try:
        yield
    except CorpusError:
        raise
    except (DatasetNotFoundError, ConnectionError) as error:
        near = ["builtin", *(entry.name for entry in Path().iterdir() if entry.is_dir() or kind_of(entry))]
        reason = (
            "the Hub has no such dataset" if isinstance(error, DatasetNotFoundError) else "the Hub cannot be reached"
        )
        raise CorpusError(
            f"{arg('dataset')} is {settings.dataset!r}: there is no such file or folder, and {reason}."
            f"{did_you_mean(settings.text, near)} Offline, use a local file or `builtin`."
        ) from None
    except (ValueError, RuntimeError, OSError) as error:
        # `datasets` lists what exists in its message, on the first line or two.
        setting = "dataset_config" if "config" in str(error).lower() else key
        raise CorpusError(
            f"{arg(setting)} is {getattr(settings, setting)!r}: {' '.join(str(error).split())[:300]}"
        ) from None
