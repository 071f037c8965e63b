"""Reads a feature dictionary: opens and checks it, searches, filters, and says whether it belongs to an SAE.

Nothing is loaded at opening but dictionary.json; queries read the Parquet files through DuckDB, one feature's rows
through Parquet's row groups.
"""

import glob
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from lightsae.analysis.dictionary.integrity import AGAIN, read_manifest
from lightsae.analysis.dictionary.schema import KEYS, PATTERNS_BEFORE_2, TABLES, TIERS, file_of
from lightsae.errors import ConfigError, FormatError, SiteError, did_you_mean, reading, under
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import SiteRef, SparseAutoencoder

# Where a text may be found, best first, with the query of (feature, what was found). Windows of near misses are not
# searched: the feature does not fire there.
_PLACES = {
    "labels": "SELECT feature, label AS found FROM features WHERE contains(lower(label), lower($text))",
    "tokens": (
        "SELECT feature, hit.text AS found FROM (SELECT feature, unnest(tokens_on) AS hit FROM features)"
        " WHERE contains(lower(hit.text), lower($text))"
    ),
    "contexts": (
        "SELECT feature, found FROM (SELECT feature, array_to_string(texts, '') AS found FROM contexts"
        " WHERE kind <> 'near_miss') WHERE contains(lower(found), lower($text))"
    ),
}
# Of the columns that a dictionary of an earlier version may lack.
_SQL_TYPES = {pa.int32(): "INTEGER", pa.float32(): "FLOAT", pa.bool_(): "BOOLEAN"}
# What a search returns.
_HITS = pa.schema(
    [
        *(TABLES["features"].field(name) for name in ("feature", "label", "tier", "frequency")),
        ("place", pa.string()),
        ("found", pa.string()),
    ]
)


@dataclass(frozen=True)
class Feature:
    """Everything that a dictionary says about one feature.

    Attributes:
        index: The feature.
        row: Its row of the table `features`.
        contexts: Its windows, as they are ordered in the file.
        edges: The edges that start at it.
        labels: Its labels with their tests, those that did not pass among them.
    """

    index: int
    row: dict[str, Any]
    contexts: list[dict[str, Any]]
    edges: list[dict[str, Any]]
    labels: list[dict[str, Any]]


class FeatureDictionary:
    """A feature dictionary on disk; made by `FeatureDictionary.open`. May be used by several threads.

    Example:
        dictionary = FeatureDictionary.open("dictionaries/topk")
        dictionary.search("return", limit=5)
        dictionary.filter(tier="high", max_frequency=0.01, order_by="frequency").to_pandas()
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        with self._reading():
            # With the schema, what a dictionary of an earlier version lacks is null.
            self._datasets = {
                name: ds.dataset(folder / file_of(name), schema=schema, format="parquet")
                for name, schema in TABLES.items()
            }
            self._connection = _connect(folder.resolve())
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> "FeatureDictionary":
        """Open a feature dictionary and check that it is whole and unchanged.

        Args:
            folder: A folder that `write_dictionary` wrote.
            verify: Whether to compare the files' hashes; without, only dictionary.json is checked.

        Raises:
            FormatError: The folder or a file is missing, damaged, changed, or of a newer version.
        """
        return cls(*read_manifest(folder, verify))

    @classmethod
    def of(cls, dictionary: "FeatureDictionary | str | Path") -> "FeatureDictionary":
        """Take a feature dictionary in either form in which a person has one: opened, or by its folder."""
        if isinstance(dictionary, FeatureDictionary):
            return dictionary
        with under(folder="dictionary"):
            return cls.open(dictionary)

    @property
    def id(self) -> str:
        """The SHA-256 of what it holds; labels, figures and the SAE's hash are part of it."""
        return str(self.manifest["id"])

    @property
    def label_limit(self) -> int:
        """The most patterns that the rule behind a label may have.

        3 where the words of a label are all of its rule. Dictionaries of before had labels of up to 64 patterns, of
        which the words said the most telling ones: their precision and recall are those of the whole rule.
        """
        offline = self.manifest["labels"].get("offline") or {}
        limit = offline.get("most_patterns", PATTERNS_BEFORE_2) if isinstance(offline, dict) else None
        if type(limit) is not int or limit < 1:
            raise FormatError(f"{str(self.folder)!r}: labels.offline.most_patterns is {limit!r}; {AGAIN}.")
        return limit

    def __len__(self) -> int:
        with self._reading():
            return int(self._datasets["features"].count_rows())

    def __repr__(self) -> str:
        of_long_rules = f", labels of rules of up to {limit} patterns" if (limit := self.label_limit) > 3 else ""
        return f"FeatureDictionary({str(self.folder)!r}, id={self.id[:12]}, features={len(self)}{of_long_rules})"

    def features(self) -> pa.Table:
        """Return the table of features, one row each."""
        return self._table("features")

    def contexts(self) -> pa.Table:
        """Return the windows of all features; see `feature` for those of one."""
        return self._table("contexts")

    def edges(self) -> pa.Table:
        """Return the edges between features."""
        return self._table("edges")

    def labels(self) -> pa.Table:
        """Return all labels with their tests, those that did not pass among them."""
        return self._table("labels")

    def to_pandas(self, table: str = "features") -> pd.DataFrame:
        """Return one of the tables as a pandas frame.

        Raises:
            ConfigError: There is no such table.
        """
        if table not in TABLES:
            raise ConfigError(f"table is {table!r}; there are {', '.join(TABLES)}.{did_you_mean(table, TABLES)}")
        with self._reading():
            frame: pd.DataFrame = self._table(table).to_pandas()
        return frame

    def feature(self, index: int) -> Feature:
        """Return one feature with its windows, edges and labels. Only their part of the files is read.

        Raises:
            ConfigError: There is no such feature.
        """
        with self._reading():
            rows = {name: self._table(name, ds.field(KEYS[name]) == index).to_pylist() for name in self._datasets}
        if not rows["features"]:
            raise ConfigError(f"There is no feature {index}; this dictionary has {len(self)} features, from 0.")
        return Feature(index, rows["features"][0], rows["contexts"], rows["edges"], rows["labels"])

    def search(self, text: str, in_: Iterable[str] = tuple(_PLACES), limit: int = 20) -> pa.Table:
        """Find features by a text: in their labels, in the tokens they fire on, in the windows around those.

        A feature is listed once, for the best place where the text was found: labels before tokens before contexts,
        then by tier, then the more frequent first.

        Args:
            text: What to look for, in any case; every character stands for itself.
            in_: Which of `labels`, `tokens`, `contexts` to look in.
            limit: Most features to return.

        Returns:
            A table (feature, label, tier, frequency, place, found), the best first.

        Raises:
            ConfigError: The text is empty, or a place is unknown.
        """
        places = [in_] if isinstance(in_, str) else list(in_)
        for place in places:
            if place not in _PLACES:
                raise ConfigError(f"in_ holds {place!r}; write some of {list(_PLACES)}.{did_you_mean(place, _PLACES)}")
        if not text:
            raise ConfigError("The text to search for is empty; write at least one character.")
        hits = _HITS.empty_table()
        # The places one after the other: the windows, by far the most text, are read only if the others fell short.
        for place in (place for place in _PLACES if place in places):
            if len(hits) >= limit:
                break
            more = self.sql(
                f"SELECT feature, label, tier, frequency, $place AS place, found FROM"
                f" (SELECT feature, first(found) AS found FROM ({_PLACES[place]}) GROUP BY feature)"
                f" JOIN features USING (feature) WHERE NOT list_contains($seen::INTEGER[], feature)"
                f" ORDER BY coalesce(list_position($tiers, tier), 99), frequency DESC, feature"
                f" LIMIT {int(limit) - len(hits)}",
                {"text": text, "place": place, "seen": hits["feature"].to_pylist(), "tiers": list(TIERS)},
            )
            hits = pa.concat_tables([hits, more])
        return hits

    def filter(
        self,
        sql_where: str | None = None,
        *,
        order_by: str | None = None,
        descending: bool = True,
        limit: int | None = None,
        **conditions: Any,
    ) -> pa.Table:
        """Return the rows of `features` for which all conditions hold.

        Args:
            sql_where: A condition in SQL over the columns of `features`, e.g. `"len(neurons) > 0"`.
            order_by: A column; without one, rows come in the order of the features.
            descending: Whether the largest comes first; nulls come last either way.
            limit: Most rows to return.
            **conditions: `column=value`, `column=[values]`, `min_column=value`, `max_column=value`, e.g.
                `tier="high"`, `min_frequency=1e-4`.

        Raises:
            ConfigError: There is no such column, or the SQL is wrong.
        """
        clauses, values = ([f"({sql_where}\n)"] if sql_where else []), {}
        for number, (name, value) in enumerate(conditions.items()):
            bound = next((b for b in ("min_", "max_") if name.startswith(b)), "")
            column = _column(name.removeprefix(bound), "a condition of filter")
            sign = {"min_": ">=", "max_": "<=", "": "IS NOT DISTINCT FROM"}[bound]
            many = not bound and isinstance(value, list | tuple | set | frozenset)
            values[f"v{number}"] = list(value) if many else value
            clauses.append(f"list_contains($v{number}, {column})" if many else f"{column} {sign} $v{number}")
        direction = "DESC" if descending else "ASC"
        order = "" if order_by is None else f"{_column(order_by, 'order_by')} {direction} NULLS LAST, "
        query = f"SELECT * FROM features WHERE {' AND '.join(clauses or ['true'])} ORDER BY {order}feature"
        return self.sql(query if limit is None else f"{query} LIMIT {int(limit)}", values)

    def sql(self, query: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Answer a SELECT over the tables `features`, `contexts`, `edges` and `labels`. Nothing can be written.

        Args:
            query: One SELECT statement in DuckDB's SQL; `$name` stands for a parameter.
            parameters: Values of the parameters.

        Raises:
            ConfigError: The query is wrong, or is something else than one SELECT.
        """
        try:
            with self._lock:
                statements = self._connection.extract_statements(query)
                if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                    raise ConfigError("The query has to be one SELECT statement; the dictionary is read-only.")
                return self._connection.sql(query, params=dict(parameters or {})).to_arrow_table()
        except duckdb.Error as error:
            raise ConfigError(f"The query cannot be answered: {str(error).strip().splitlines()[0]}") from error

    def _table(self, name: str, rows: ds.Expression | None = None) -> pa.Table:
        with self._reading():
            return self._datasets[name].to_table(filter=rows)

    def _reading(self) -> AbstractContextManager[None]:
        return reading(FormatError, f"a table of {str(self.folder)!r} cannot be read", AGAIN)

    def named(self, sae: SavedSAE | SparseAutoencoder | str | Path) -> SavedSAE:
        """Return an SAE with the names that it has here for the model and the sites that its file does not say."""
        return SavedSAE.of(sae).named_like(self.manifest["sae"])

    def check_belongs_to(self, sae: SavedSAE | SparseAutoencoder | str | Path) -> None:
        """Refuse any SAE but the one that this dictionary was made for.

        Args:
            sae: The SAE, or the folder of its export.

        Raises:
            SiteError: It reads or predicts another site, or that of another model.
            FormatError: It is another SAE of the same site, or its export is damaged.
        """
        saved, made_for = self.named(sae), self.manifest["sae"]
        name = f"The {saved}" if saved.folder is None else repr(str(saved))
        build = f"build a dictionary for this one: lightsae interpret --sae {saved}"
        for part, verb in (("read", "reads"), ("predicted", "predicts")):
            ours, theirs = _sites(made_for.get(part, [])), _sites(saved.widths[part])
            if ours != theirs:
                raise SiteError(
                    f"{name} {verb} {theirs}, but the feature dictionary {self.id[:12]} was made for an SAE that "
                    f"{verb} {ours}; give that SAE, or {build}"
                )
        if saved.sha256 != made_for["sha256"]:
            raise FormatError(
                f"{name} ({saved.variant}, SHA-256 {saved.sha256[:12]}) is not the SAE that the feature dictionary "
                f"{self.id[:12]} was made for ({made_for.get('variant')}, SHA-256 {made_for['sha256'][:12]}): its "
                f"labels do not hold there. Give that SAE, or {build}"
            )
        if (other := saved.first_other_setting(made_for)) is not None:
            raise FormatError(
                f"{name} has the weights of the SAE that the feature dictionary {self.id[:12]} was made for, but "
                f"{other}: its latents are others. Give that SAE, or {build}"
            )


def _connect(folder: Path) -> Any:
    """Return a connection that sees the tables alone: no other file, and no variable of the program."""
    connection = duckdb.connect(":memory:", config={"python_enable_replacements": False})
    paths = {name: str(folder / file_of(name)) for name in TABLES}
    # DuckDB takes a path for a pattern, and asks leave for both the pattern and the file that it finds.
    patterns = {name: glob.escape(path) for name, path in paths.items()}
    connection.execute("SET allowed_paths = $paths", {"paths": [*paths.values(), *patterns.values()]})
    for name, pattern in patterns.items():
        table = connection.read_parquet(pattern)
        lacking = [field for field in TABLES[name] if field.name not in table.columns]
        nulls = [f", NULL::{_SQL_TYPES[field.type]} AS {field.name}" for field in lacking]
        table.project("*" + "".join(nulls)).create_view(name)
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _column(name: str, where: str) -> str:
    names = TABLES["features"].names
    if name not in names:
        raise ConfigError(f"{where} names the column {name!r}, which 'features' lacks.{did_you_mean(name, names)}")
    return f'"{name}"'


def _sites(widths: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{SiteRef(entry['model'], entry['site'])} (width {entry['width']})" for entry in widths)
