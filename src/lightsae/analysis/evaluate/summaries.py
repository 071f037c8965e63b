"""Sums over documents as figures with their intervals.

Axes: N documents, B draws.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.evaluate.document_sums import DocumentSums, draws, interval
from lightsae.analysis.evaluate.faithfulness import Spliced
from lightsae.analysis.evaluate.figures import (
    Values,
    dense_fractions,
    faithfulness,
    l0_quantiles,
    reconstruction,
)
from lightsae.analysis.evaluate.measure import FREQUENCIES, POSITIONS, Measured, names_of
from lightsae.analysis.evaluate.report import Band, Figure
from lightsae.analysis.evaluate.spread import Spread, dead_spread, spreads


def figures_of(values: Mapping[str, Values], documents: int, tokens: int) -> dict[str, Figure]:
    """Return figures, whose values are known for every draw of documents, the text itself first."""
    return {name: Figure(float(drawn[0]), *interval(drawn, documents), tokens) for name, drawn in values.items()}


def reconstruction_figures(measured: Measured, seed: int) -> tuple[dict[str, Figure], dict[str, Spread]]:
    """Return the figures of reconstruction and sparsity, and how they vary with the text."""
    tables, fires = measured.tables, measured.fires_table
    documents = len(tables["tokens"])
    times = draws(documents, seed)
    values = reconstruction(tables, times)
    values |= l0_quantiles(*measured.l0_table(), times)
    values |= dense_fractions(fires, tables["tokens"], times)
    figures = _of_tokens(values, tables, fires.sum(0))
    found = spreads(values, tables["tokens"])
    if (spread := dead_spread(fires, tables["tokens"])) is not None:
        found["dead_fraction"] = spread
    return figures, found


def group_figures(measured: Measured, spliced: Spliced | None, seed: int) -> dict[str, dict[str, dict[str, Figure]]]:
    """Return the figures of each group of tokens by what it is a group by and its name: {"roles": {"user": ...}}.

    FVE is around the group's own mean. Documents that have tokens of the group are what is drawn.
    """
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    for (by, name), sums in sorted(measured.groups.sums.items()):
        tables = sums.tables()
        values = reconstruction(tables, draws(len(tables["tokens"]), seed))
        figures = _of_tokens(values, tables, measured.groups.fires[by, name])
        if spliced is not None and (of_predictions := spliced.groups.sums.get((by, name))) is not None:
            figures |= faithfulness_figures(of_predictions, seed)[0]
        found.setdefault(by, {})[name] = figures
    return found


def _of_tokens(
    values: Mapping[str, Values], tables: Mapping[str, NDArray[np.float64]], fires: NDArray[np.number[Any]]
) -> dict[str, Figure]:
    """Return figures of the tokens whose sums by document are in the tables, and the share of dead latents."""
    documents = len(tables["tokens"])
    tokens, ordinary = (int(tables[name].sum()) for name in ("tokens", "tokens_no_sinks"))
    figures = figures_of(values, documents, tokens)
    figures |= figures_of({name: one for name, one in values.items() if "no_sinks" in name}, documents, ordinary)
    # Draws of the same text leave out documents: they would find more dead latents, not about as many.
    figures["dead_fraction"] = Figure(float((fires == 0).mean()), None, None, tokens)
    return figures


def faithfulness_figures(sums: DocumentSums, seed: int) -> tuple[dict[str, Figure], dict[str, Spread]]:
    """Return what splicing costs the language model, and how it varies with the text."""
    tables = sums.tables()
    documents, predictions = len(tables["predictions"]), int(tables["predictions"].sum())
    values = faithfulness(tables, draws(documents, seed))
    return figures_of(values, documents, predictions), spreads(values, tables["predictions"])


def bands(measured: Measured, seed: int) -> dict[str, list[Band]]:
    """Return the bands of positions, and those of the tokens' frequencies."""
    names = {"positions": names_of(POSITIONS, "on"), "frequencies": names_of(FREQUENCIES, "or more", "%")}
    return {side: list(_bands(measured, side, of_side, seed)) for side, of_side in names.items()}


def _bands(measured: Measured, side: str, names: Sequence[str], seed: int) -> Iterator[Band]:
    tables, whole = measured.bands[side].tables(), measured.tables
    documents = len(whole["tokens"])
    times = draws(documents, seed)
    tokens, error, square, fired = (times @ tables[name] for name in ("tokens", "error", "square", "fired"))
    # Squares around the mean of all tokens but sinks; how far that lies from the fixed vector moves no interval.
    mean = whole["offset_no_sinks"].sum(0) / whole["tokens_no_sinks"].sum()
    moved = tokens[0] * (mean @ mean) - 2 * measured.band_offsets[side] @ mean
    with np.errstate(divide="ignore", invalid="ignore"):
        fve = 1 - error / (square * (1 + moved / square[0]))
        l0 = fired / tokens
    for place, name in enumerate(names):
        if (count := int(tokens[0, place])) > 0:
            drawn = {"fve": fve[:, place], "l0": l0[:, place]}
            yield Band(name, **figures_of(drawn, documents, count))


def histogram(measured: Measured, tokens: int) -> dict[str, int]:
    """Return how many latents fire how often, by powers of ten of the share of tokens."""
    rates: NDArray[np.float64] = np.asarray(measured.fires_table.sum(0)).ravel() / tokens
    powers = np.floor(np.log10(np.where(rates > 0, rates, 1))).astype(np.int64)
    counts = {f"1e{power}": int((powers[rates > 0] == power).sum()) for power in range(int(powers.min()), 1)}
    return {"never": int((rates == 0).sum())} | counts
