"""The evaluation of one SAE: text, figures with their intervals, controls.

Axes: N documents, B draws.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.analysis.concepts.files import ConceptFile
from lightsae.analysis.concepts.probe_stage import SAE, Probed, probe
from lightsae.analysis.concepts.read import read_truth, said_by
from lightsae.analysis.concepts.report import ConceptReport
from lightsae.analysis.concepts.stage import Scored, report_of, task_of
from lightsae.analysis.concepts.truth import Truth
from lightsae.analysis.evaluate.control import random_sae
from lightsae.analysis.evaluate.document_sums import FEWEST, draws, interval
from lightsae.analysis.evaluate.faithfulness import splice
from lightsae.analysis.evaluate.figures import (
    DEFINITIONS,
    dense_fractions,
    faithfulness,
    l0_quantiles,
    reconstruction,
)
from lightsae.analysis.evaluate.measure import FREQUENCIES, POSITIONS, Measured, measure, names_of
from lightsae.analysis.evaluate.report import Band, Evaluation, Figure
from lightsae.analysis.evaluate.spread import Spread, dead_spread, spreads
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.firing_collector import FiringCollector
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.analysis.reading.neurons import neuron_sites
from lightsae.analysis.reading.text import TextRows
from lightsae.errors import ConfigError, CorpusError, arg
from lightsae.formats.saved_sae import SavedSAE
from lightsae.progress import NullProgress, Progress
from lightsae.sae import SparseAutoencoder, Widths

Control = Literal["random_sae"]
# Of which the mean is taken that sums are centred by, and what the control is given.
_SAMPLE = 16_384


@dataclass(frozen=True)
class EvaluateSettings:
    """What is measured.

    Args:
        tokens: Held-out tokens that reconstruction and sparsity are measured on.
        ce_tokens: So many of them, from all over the text, measure what splicing costs the language model; 0: not
            measured.
        controls: SAEs that learned nothing, measured beside. `random_sae`: as wide, with as many latents per token,
            directions drawn at random; it is given the mean and the best single gain.
        seed: Of the controls, and of the draws that give the intervals.
        concepts: The truth that latents are held against. `auto`: what Python's parser says of the text, if it is
            Python, and what its characters are; FILE: documents with named spans, see the guide; `none`: nothing.
        probes: So many of the concepts are probed with 1, 2, 5 and 16 latents, beside neurons and the activation.

    Raises:
        ConfigError: A number is too small.
    """

    tokens: int = 200_000
    ce_tokens: int = 20_000
    controls: tuple[Control, ...] = ("random_sae",)
    seed: int = 0
    concepts: str = "auto"
    probes: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError("tokens", self.tokens, "write 1 or more")
        if self.ce_tokens < 0:
            raise ConfigError("ce_tokens", self.ce_tokens, "write how many, 0 for none")
        if self.probes < 0:
            raise ConfigError("probes", self.probes, "write how many concepts, 0 for none")
        if self.probes and self.concepts == "none":
            raise ConfigError(
                f"{arg('probes')} is {self.probes}, but {arg('concepts')} is 'none'; write auto or a file."
            )


def evaluate(
    sae: SavedSAE | str | Path,
    text: TextSettings | None = None,
    settings: EvaluateSettings | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge an SAE on held-out text.

    Args:
        sae: It, or its folder or file, of any layout.
        text: What differs from the training.
        settings: What is measured.
        progress: Who is told.

    Raises:
        FormatError, ConfigError, ModelError, SiteError: As `LoadedSAE.load`.
        CorpusError: The text has no held-out rows, or none of the documents of the concepts' file.
    """
    return evaluate_on_text(sae, text or TextSettings(), settings or EvaluateSettings(), progress or NullProgress())[0]


def evaluate_on_text(
    sae: SavedSAE | str | Path, text: TextSettings, settings: EvaluateSettings, progress: Progress
) -> tuple[Evaluation, Mapping[str, Spread], str]:
    """Return an evaluation, how its figures vary with the text, and a hash of the rows that were read.

    The spreads of two SAEs can be subtracted where the hashes are equal, and the seeds.
    """
    told = None if settings.concepts in ("auto", "none") else ConceptFile.read(settings.concepts)
    loaded = LoadedSAE.load(sae, text, whole_model=bool(settings.ce_tokens or settings.probes))
    on_text = _Text.read(loaded, settings, progress, told)
    evaluation, measured = on_text.evaluation(str(sae))
    return evaluation, measured.spreads, on_text.sha256


class _Text:
    """A text with what an evaluation needs to know of it before the SAE is run."""

    def __init__(
        self,
        loaded: LoadedSAE,
        settings: EvaluateSettings,
        progress: Progress,
        rows: TextRows,
        sample: "_Sample",
        truth: Truth | None,
    ) -> None:
        self.loaded, self.settings, self.progress, self.rows, self.sample = loaded, settings, progress, rows, sample
        self.truth = truth
        self.reader = loaded.reader(tuple(loaded.sae.widths.predicted))
        counts = np.bincount(rows.tokens.ravel(), minlength=1)
        self.share_of_token: NDArray[np.float64] = counts / counts.sum()
        self.documents = int(rows.documents.max()) + 1

    @classmethod
    def read(
        cls, loaded: LoadedSAE, settings: EvaluateSettings, progress: Progress, told: ConceptFile | None
    ) -> "_Text":
        with progress.stage("text", settings.tokens) as report:
            rows = loaded.held_out_rows(settings.tokens)
            report(rows.n_tokens)
        if not len(rows):
            raise CorpusError("dataset", loaded.corpus_entry()["dataset"], "it has no held-out text: name one that has")
        reader = loaded.reader(tuple(loaded.sae.widths.predicted))
        spread = rows.spread(max(1, _SAMPLE // rows.tokens.shape[1]))
        sample = _Sample.of(loaded, (batch for batch, _ in reader.batches(spread)))
        truth = None
        if settings.concepts != "none":
            with progress.stage("concepts of the text", rows.n_tokens) as report:
                truth = read_truth(rows, said_by(loaded.main_model), report, told)
        return cls(loaded, settings, progress, rows, sample, truth)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.rows.tokens.tobytes() + self.rows.documents.tobytes()).hexdigest()

    def evaluation(self, name: str) -> tuple[Evaluation, Measured]:
        sae = self.loaded.sae
        figures, measured, scored = self._figures(sae, "the SAE")
        controls: dict[str, Mapping[str, Figure]] = {}
        saes, beside = {SAE: sae}, dict[str, Scored]()
        for control in self.settings.controls:
            learned_nothing = self.sample.random_sae(sae, figures["l0"].value, self.settings.seed)
            controls[control], _, its_own = self._figures(learned_nothing, control.replace("_", " "))
            saes[control] = learned_nothing
            if its_own is not None:
                beside[control] = its_own
        concepts = self._concepts(scored, beside) if scored is not None else None
        if scored is not None and concepts is not None and self.settings.probes:
            probed = self._probed(scored, saes)
            concepts = replace(concepts, probes=probed.scores)
            named = {name: self._as_figures(values, scored, probed.tokens) for name, values in probed.figures.items()}
            figures = self._in_order(figures | named.pop(SAE, {}))
            controls |= {name: self._in_order({**controls.get(name, {}), **own}) for name, own in named.items()}
        text = {
            "model": self.loaded.main_model.name,
            "model_revision": self.loaded.main_model.revision,
            "tokens": self.rows.n_tokens,
            "documents": len(measured.tables["tokens"]),
            **self.loaded.corpus_entry(),
        }
        published = self.loaded.saved.provenance.values.get("published") or {}
        evaluation = Evaluation(
            name=name,
            sae=self.loaded.saved.entry,
            text=text,
            figures=figures,
            positions=self._bands(measured, "positions", names_of(POSITIONS, "on")),
            frequencies=self._bands(measured, "frequencies", names_of(FREQUENCIES, "or more", "%")),
            firing_histogram=_histogram(measured, self.rows.n_tokens),
            published={key: float(value) for key, value in published.items()},
            controls=controls,
            concepts=concepts,
        )
        return evaluation, measured

    def _figures(self, sae: SparseAutoencoder, what: str) -> tuple[dict[str, Figure], Measured, Scored | None]:
        nothing = np.zeros(sae.d_sae, np.float32)
        collector = FiringCollector(SAEFeatures(sae), nothing, keep_values=True) if self.truth is not None else None
        with self.progress.stage(f"reconstructions: {what}", self.rows.n_tokens) as report:
            batches = self._batches(self.rows, report, collector)
            measured = measure(sae, batches, self.sample.centre, self.share_of_token, self.documents)
        tables = measured.tables
        documents = len(tables["tokens"])
        times = draws(documents, self.settings.seed)
        values = reconstruction(tables, times)
        values |= l0_quantiles(*measured.l0_table(), times)
        fires = measured.fires_table
        values |= dense_fractions(fires, tables["tokens"], times)
        tokens = int(tables["tokens"].sum())
        ordinary = int(tables["tokens_no_sinks"].sum())
        figures = {
            name: Figure(float(of_draws[0]), *interval(of_draws, documents), ordinary if "no_sinks" in name else tokens)
            for name, of_draws in values.items()
        }
        # Draws of the same text leave out documents: they would find more dead latents, not about as many.
        figures["dead_fraction"] = Figure(float((fires.sum(0) == 0).mean()), None, None, tokens)
        measured.spreads |= spreads(values, tables["tokens"])
        if (spread := dead_spread(fires, tables["tokens"])) is not None:
            measured.spreads["dead_fraction"] = spread
        figures |= self._faithfulness(sae, what, measured)
        scored = self._scored(collector, what)
        return self._in_order(figures | self._of_concepts(scored)), measured, scored

    def _scored(self, collector: FiringCollector | None, what: str) -> Scored | None:
        if self.truth is None or collector is None:
            return None
        with self.progress.stage(f"concepts: {what}", 1) as report:
            firings = collector.lists()
            task = task_of(self.truth, firings)
            scored = None if task is None else Scored.of(task, firings)
            report(1)
        return scored

    def _of_concepts(self, scored: Scored | None) -> dict[str, Figure]:
        if scored is None:
            return {}
        return self._as_figures(scored.figures(draws(scored.documents, self.settings.seed)), scored, scored.tokens)

    @staticmethod
    def _as_figures(values: Mapping[str, NDArray[np.float64]], scored: Scored, tokens: int) -> dict[str, Figure]:
        return {
            name: Figure(float(of_draws[0]), *interval(of_draws, scored.documents), tokens)
            for name, of_draws in values.items()
        }

    def _probed(self, scored: Scored, saes: Mapping[str, SparseAutoencoder]) -> Probed:
        neurons = neuron_sites(self.loaded.sae, self.loaded.models)
        reader, times = self.loaded.reader(tuple(neurons)), draws(scored.documents, self.settings.seed)
        return probe(
            scored.detection.task,
            self.settings.probes,
            saes,
            neurons,
            reader,
            self.rows,
            times,
            self.settings.seed,
            self.progress,
        )

    def _concepts(self, scored: Scored, beside: Mapping[str, Scored]) -> ConceptReport:
        source = "python" if self.truth is not None and "keyword" in self.truth.place else "characters"
        source = source if self.settings.concepts == "auto" else self.settings.concepts
        times = draws(scored.documents, self.settings.seed)
        return report_of(scored, source, times, scored.documents >= FEWEST, beside)

    def _faithfulness(self, sae: SparseAutoencoder, what: str, measured: Measured) -> dict[str, Figure]:
        model = self.loaded.main_model
        ours = all(site.model == model.name for site in sae.widths.predicted)
        if not self.settings.ce_tokens or not model.has_next_token_head or not ours:
            return {}
        tables = measured.tables
        # From all over the text: of so many documents come intervals.
        rows = self.rows.spread(max(1, self.settings.ce_tokens // self.rows.tokens.shape[1]))
        offset = tables["offset_no_sinks"].sum(0) / tables["tokens_no_sinks"].sum()
        mean = self.sample.centre + torch.from_numpy(offset).to(self.sample.centre)
        with self.progress.stage(f"splicing: {what}", rows.n_tokens) as report:
            of_sites = Widths.split(mean, sae.widths.predicted)
            sums = splice(sae, model, self._batches(rows, report), of_sites)
        of_documents = sums.tables()
        documents, predictions = len(of_documents["predictions"]), int(of_documents["predictions"].sum())
        values = faithfulness(of_documents, draws(documents, self.settings.seed))
        measured.spreads |= spreads(values, of_documents["predictions"])
        return {
            name: Figure(float(of_draws[0]), *interval(of_draws, documents), predictions)
            for name, of_draws in values.items()
        }

    def _batches(
        self, rows: TextRows, report: Callable[[int], None], collector: FiringCollector | None = None
    ) -> Iterator[ActivationBatch]:
        done = 0
        for batch, counted in self.reader.batches(rows):
            yield batch
            if collector is not None:
                collector.update(batch, counted)
            done += len(batch)
            report(done)

    def _bands(self, measured: Measured, side: str, names: Sequence[str]) -> list[Band]:
        tables, whole = measured.bands[side].tables(), measured.tables
        documents = len(whole["tokens"])
        times = draws(documents, self.settings.seed)
        tokens, error, square, fired = (times @ tables[name] for name in ("tokens", "error", "square", "fired"))
        # Squares around the mean of all tokens but sinks; how far that lies from the fixed vector moves no interval.
        mean = whole["offset_no_sinks"].sum(0) / whole["tokens_no_sinks"].sum()
        moved = tokens[0] * (mean @ mean) - 2 * measured.band_offsets[side] @ mean
        with np.errstate(divide="ignore", invalid="ignore"):
            fve = 1 - error / (square * (1 + moved / square[0]))
            l0 = fired / tokens
        bands = []
        for place, name in enumerate(names):
            if (count := int(tokens[0, place])) > 0:
                pair = (
                    Figure(float(values[0, place]), *interval(values[:, place], documents), count)
                    for values in (fve, l0)
                )
                bands.append(Band(name, *pair))
        return bands

    @staticmethod
    def _in_order(figures: Mapping[str, Figure]) -> dict[str, Figure]:
        return {name: figures[name] for name in DEFINITIONS if name in figures}


@dataclass(frozen=True)
class _Sample:
    """Some rows from all over the text, without sinks: what is read, what is predicted."""

    read: Tensor
    predicted: Tensor

    @classmethod
    def of(cls, loaded: LoadedSAE, batches: Iterator[ActivationBatch]) -> "_Sample":
        widths = loaded.sae.widths
        parts = []
        for batch in batches:
            kept = ~batch.sinks_at((*widths.read, *widths.predicted))
            parts.append(
                tuple(Widths.join(batch.activations, side)[kept].float() for side in (widths.read, widths.predicted))
            )
        read, predicted = (torch.cat(side) for side in zip(*parts, strict=True))
        return cls(read, predicted)

    @cached_property
    def centre(self) -> Tensor:
        return self.predicted.mean(0)

    def random_sae(self, sae: SparseAutoencoder, l0: float, seed: int) -> SparseAutoencoder:
        return random_sae(sae.widths, sae.d_sae, l0, self.read, self.predicted, seed)


def _histogram(measured: Measured, tokens: int) -> dict[str, int]:
    """Return how many latents fire how often, by powers of ten of the share of tokens."""
    rates = np.asarray(measured.fires_table.sum(0)).ravel() / tokens
    powers = np.floor(np.log10(np.where(rates > 0, rates, 1))).astype(np.int64)
    counts = {f"1e{power}": int((powers[rates > 0] == power).sum()) for power in range(int(powers.min()), 1)}
    return {"never": int((rates == 0).sum())} | counts
