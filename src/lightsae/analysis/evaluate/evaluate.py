"""The evaluation of one SAE: text, figures with their intervals, controls.

Axes: N documents, B draws.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lightsae.analysis.concepts.files import ConceptFile
from lightsae.analysis.concepts.probe_stage import SAE
from lightsae.analysis.evaluate.concepts import AUTO, NONE, Concepts
from lightsae.analysis.evaluate.control import Sample
from lightsae.analysis.evaluate.faithfulness import Spliced, splice
from lightsae.analysis.evaluate.figures import DEFINITIONS
from lightsae.analysis.evaluate.groups import Groups
from lightsae.analysis.evaluate.measure import Measured, measure
from lightsae.analysis.evaluate.report import Evaluation, Figure
from lightsae.analysis.evaluate.spread import Spread
from lightsae.analysis.evaluate.summaries import (
    bands,
    faithfulness_figures,
    group_figures,
    histogram,
    reconstruction_figures,
)
from lightsae.analysis.reading.firing_collector import FiringCollector
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.analysis.reading.models import LanguageModels
from lightsae.analysis.reading.text import TextRows
from lightsae.errors import ConfigError, CorpusError, arg
from lightsae.formats.saved_sae import SavedSAE
from lightsae.progress import NullProgress, Progress
from lightsae.sae import SparseAutoencoder, Widths

Control = Literal["random_sae", "random_model"]
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
            directions drawn at random; it is given the mean and the best single gain. `random_model`: the same recipe,
            trained on the language model with random weights; of a run's SAE, from the command line, takes as long as
            the training did, once.
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
        if self.probes and self.concepts == NONE:
            raise ConfigError(
                f"{arg('probes')} is {self.probes}, but {arg('concepts')} is 'none'; write auto or a file."
            )


def evaluate(
    sae: SavedSAE | str | Path,
    text: TextSettings | None = None,
    settings: EvaluateSettings | None = None,
    progress: Progress | None = None,
    shared: LanguageModels | None = None,
) -> Evaluation:
    """Judge an SAE on held-out text.

    Args:
        sae: It, or its folder or file, of any layout.
        text: What differs from the training.
        settings: What is measured.
        progress: Who is told.
        shared: Language models that the evaluations of other SAEs have loaded; None: none.

    Raises:
        FormatError, ConfigError, ModelError, SiteError: As `LoadedSAE.load`.
        ConfigError: `random_model` is among the controls.
        CorpusError: The text has no held-out rows, or none of the documents of the concepts' file.
    """
    text, settings, progress = text or TextSettings(), settings or EvaluateSettings(), progress or NullProgress()
    if "random_model" in settings.controls:
        raise ConfigError(
            f"{arg('controls')} has 'random_model', which is trained by the command line: lightsae evaluate."
        )
    return evaluate_on_text(sae, text, settings, progress, shared)[0]


def evaluate_on_text(
    sae: SavedSAE | str | Path,
    text: TextSettings,
    settings: EvaluateSettings,
    progress: Progress,
    shared: LanguageModels | None = None,
) -> tuple[Evaluation, Mapping[str, Spread], str]:
    """Return an evaluation, how its figures vary with the text, and a hash of the rows that were read.

    The spreads of two SAEs can be subtracted where the hashes are equal, and the seeds.
    """
    file = None if settings.concepts in (AUTO, NONE) else ConceptFile.read(settings.concepts)
    loaded = LoadedSAE.load(sae, text, whole_model=bool(settings.ce_tokens or settings.probes), shared=shared)
    on_text = _Text.read(loaded, settings, progress, file)
    evaluation, spread = on_text.evaluation(str(sae))
    return evaluation, spread, on_text.sha256


@dataclass(frozen=True)
class _Text:
    """A text with what an evaluation needs to know of it before SAEs are run."""

    loaded: LoadedSAE
    settings: EvaluateSettings
    progress: Progress
    rows: TextRows
    sample: Sample
    concepts: Concepts | None

    @classmethod
    def read(
        cls, loaded: LoadedSAE, settings: EvaluateSettings, progress: Progress, file: ConceptFile | None
    ) -> "_Text":
        with progress.stage("text", settings.tokens) as report:
            rows = loaded.held_out_rows(settings.tokens)
            report(rows.n_tokens)
        if not len(rows):
            raise CorpusError("dataset", loaded.corpus_entry()["dataset"], "it has no held-out text: name one that has")
        reader = loaded.reader(tuple(loaded.sae.widths.predicted))
        spread = rows.spread(max(1, _SAMPLE // rows.tokens.shape[1]))
        sample = Sample.of(loaded.sae.widths, (batch for batch, _ in reader.batches(spread)))
        concepts = None
        if settings.concepts != NONE:
            concepts = Concepts.read(loaded, rows, file, progress, settings.seed)
        return cls(loaded, settings, progress, rows, sample, concepts)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.rows.tokens.tobytes() + self.rows.documents.tobytes()).hexdigest()

    def evaluation(self, name: str) -> tuple[Evaluation, Mapping[str, Spread]]:
        seed, loaded = self.settings.seed, self.loaded
        saes = {SAE: loaded.sae}
        if "random_sae" in self.settings.controls:
            saes["random_sae"] = self.sample.random_sae(loaded.sae, seed)
        collectors = {} if self.concepts is None else {one: Concepts.collector(sae) for one, sae in saes.items()}
        measured = self._measured(saes, collectors)
        own = measured[SAE]
        figures, spread = dict[str, dict[str, Figure]](), dict[str, Spread]()
        for one, its in measured.items():
            figures[one], of_text = reconstruction_figures(its, seed)
            spread |= of_text if one == SAE else {}
        spliced = self._spliced(saes, own)
        for one, its_own in spliced.items():
            costs, of_text = faithfulness_figures(its_own.sums, seed)
            figures[one] |= costs
            spread |= of_text if one == SAE else {}
        report = None
        if self.concepts is not None and (scored := self.concepts.scored(collectors)):
            report = self.concepts.report(scored)
            for one, its_scores in scored.items():
                found, of_text = self.concepts.figures(its_scores)
                figures[one] |= found
                spread |= of_text if one == SAE else {}
            if count := self.settings.probes:
                report, of_probes = self.concepts.probed(report, scored[SAE], saes, loaded, count)
                for one, of_one in of_probes.items():
                    figures[one] = figures.get(one, {}) | of_one
        text = {
            "model": loaded.main_model.name,
            "model_revision": loaded.main_model.revision,
            "tokens": self.rows.n_tokens,
            "documents": len(own.tables["tokens"]),
            **loaded.corpus_entry(),
        }
        published = loaded.saved.provenance.values.get("published") or {}
        ordered = {one: _in_order(found) for one, found in figures.items()}
        groups = {
            by: {group: _in_order(found) for group, found in of_groups.items()}
            for by, of_groups in group_figures(own, spliced.get(SAE), seed).items()
        }
        by_band = bands(own, seed)
        evaluation = Evaluation(
            name=name,
            sae=loaded.saved.entry,
            text=text,
            figures=ordered.pop(SAE),
            positions=by_band["positions"],
            frequencies=by_band["frequencies"],
            firing_histogram=histogram(own, self.rows.n_tokens),
            published={key: float(value) for key, value in published.items()},
            controls=ordered,
            concepts=report,
            roles=groups.get("roles", {}),
            datasets=groups.get("datasets", {}),
        )
        return evaluation, spread

    def _measured(
        self, saes: Mapping[str, SparseAutoencoder], collectors: Mapping[str, FiringCollector]
    ) -> dict[str, Measured]:
        counts = np.bincount(self.rows.tokens.ravel(), minlength=1)
        reader = self.loaded.reader(tuple(self.loaded.sae.widths.predicted))
        batches = reader.read(self.rows, "reconstructions", self.progress)
        documents = int(self.rows.documents.max()) + 1
        shares = counts / counts.sum()
        return measure(saes, batches, self.sample.centre, shares, documents, collectors, self._groups)

    def _spliced(self, saes: Mapping[str, SparseAutoencoder], measured: Measured) -> dict[str, Spliced]:
        """Return what splicing costs the language model; nothing where it is not asked for, or cannot be had."""
        model, widths = self.loaded.main_model, self.loaded.sae.widths.predicted
        ours = all(site.model == model.name for site in widths)
        if not self.settings.ce_tokens or not model.has_next_token_head or not ours:
            return {}
        tables = measured.tables
        # From all over the text: of so many documents come intervals.
        rows = self.rows.spread(max(1, self.settings.ce_tokens // self.rows.tokens.shape[1]))
        offset = tables["offset_no_sinks"].sum(0) / tables["tokens_no_sinks"].sum()
        mean = self.sample.centre + torch.from_numpy(offset).to(self.sample.centre)
        batches = self.loaded.reader(tuple(widths)).read(rows, "splicing", self.progress)
        return splice(saes, model, (batch for batch, _ in batches), Widths.split(mean, widths), self._groups)

    @property
    def _groups(self) -> dict[str, Groups]:
        """The groups of tokens whose figures are given, of the SAE alone."""
        return {SAE: Groups([part.name for part in self.loaded.corpus.datasets or []])}


def _in_order(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    return {name: figures[name] for name in DEFINITIONS if name in figures}
