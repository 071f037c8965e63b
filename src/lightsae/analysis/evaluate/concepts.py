"""The concepts of an evaluation: the truth about its text, and what the latents of each SAE know of it.

Axes: T tokens of the text, N documents, B draws, F latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lightsae.analysis.concepts.files import ConceptFile
from lightsae.analysis.concepts.probe_stage import SAE, probe
from lightsae.analysis.concepts.read import read_truth, said_by
from lightsae.analysis.concepts.report import ConceptReport
from lightsae.analysis.concepts.stage import Scored, report_of, task_of
from lightsae.analysis.concepts.truth import Truth
from lightsae.analysis.evaluate.document_sums import FEWEST, draws
from lightsae.analysis.evaluate.report import Figure
from lightsae.analysis.evaluate.spread import Spread, spreads
from lightsae.analysis.evaluate.summaries import figures_of
from lightsae.analysis.reading.calibrated import neuron_sites
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.firing_collector import FiringCollector
from lightsae.analysis.reading.loaded_sae import LoadedSAE
from lightsae.analysis.reading.text import TextRows
from lightsae.progress import Progress
from lightsae.sae import SparseAutoencoder

# What the settings say for the truth that a text has by itself, and for none.
AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Concepts:
    """What holds where in a text, and who is told.

    Attributes:
        truth: About every token of the text.
        source: Where it comes from: `python`, `characters`, or the path of a file.
        rows: The text.
        progress: Who is told.
        seed: Of the draws that give the intervals, and of the probes' samples.
    """

    truth: Truth
    source: str
    rows: TextRows
    progress: Progress
    seed: int

    @classmethod
    def read(
        cls, loaded: LoadedSAE, rows: TextRows, file: ConceptFile | None, progress: Progress, seed: int
    ) -> "Concepts":
        """Find out what holds in a text: what a file says, or what the text says by itself.

        Raises:
            CorpusError: The text has none of the file's documents.
        """
        with progress.stage("concepts of the text", rows.n_tokens) as report:
            truth = read_truth(rows, said_by(loaded.main_model), report, file, loaded.reading.roles)
        source = "python" if "keyword" in truth.place else "characters"
        return cls(truth, source if file is None else file.path, rows, progress, seed)

    @staticmethod
    def collector(sae: SparseAutoencoder) -> FiringCollector:
        """Return what gathers all firings of an SAE, for `scored`."""
        return FiringCollector(SAEFeatures(sae), np.zeros(sae.d_sae, np.float32), keep_values=True)

    def scored(self, collectors: Mapping[str, FiringCollector]) -> dict[str, Scored]:
        """Return how well the latents of each SAE detect concepts; nothing if no concept holds often enough."""
        lists = {name: collector.lists() for name, collector in collectors.items()}
        # One task for all, on the text whose firings are known of all.
        task = task_of(self.truth, min(lists.values(), key=lambda one: one.tokens_read))
        if task is None:
            return {}
        found = {}
        with self.progress.stage("concepts", len(lists)) as report:
            for name, firings in lists.items():
                found[name] = Scored.of(task, firings)
                report(len(found))
        return found

    def times(self, scored: Scored) -> NDArray[np.float64]:
        """Return how often each document of the tests is in each draw."""
        return draws(scored.documents, self.seed)

    def figures(self, scored: Scored) -> tuple[dict[str, Figure], dict[str, Spread]]:
        """Return the figures of one SAE, and how they vary with the text: with the documents of the tests."""
        values = scored.figures(self.times(scored))
        task = scored.detection.task
        sizes = np.bincount(task.document_of[task.testing], minlength=scored.documents).astype(np.float64)
        return figures_of(values, scored.documents, scored.tokens), spreads(values, sizes)

    def report(self, scored: Mapping[str, Scored]) -> ConceptReport:
        """Return the report of the SAE, with the others beside."""
        own = scored[SAE]
        controls = {name: one for name, one in scored.items() if name != SAE}
        return report_of(own, self.source, self.times(own), own.documents >= FEWEST, controls)

    def probed(
        self,
        report: ConceptReport,
        scored: Scored,
        saes: Mapping[str, SparseAutoencoder],
        loaded: LoadedSAE,
        count: int,
    ) -> tuple[ConceptReport, dict[str, dict[str, Figure]]]:
        """Probe some of the concepts.

        Args:
            report: Of the concepts.
            scored: Of the SAE.
            saes: The SAE, and those that learned nothing.
            loaded: With its language models, all of whose layers are there.
            count: How many concepts.

        Returns:
            The report with the probes, and the figures of each population: of the SAEs, and of raw neurons.
        """
        neurons = neuron_sites(loaded.sae, loaded.models)
        reader, times = loaded.reader(tuple(neurons)), self.times(scored)
        task = scored.detection.task
        probed = probe(task, count, saes, neurons, reader, self.rows, times, self.seed, self.progress)
        figures = {name: figures_of(values, scored.documents, probed.tokens) for name, values in probed.figures.items()}
        return replace(report, probes=probed.scores), figures
