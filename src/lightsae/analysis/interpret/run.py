"""From a trained SAE to a feature dictionary: the stages, in order.

    text -> contexts (one pass) -> effects -> labels, learned and tested -> tables -> a folder

Raw neurons of the site go through the same stages beside the latents, and random directions as a floor.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightsae.analysis.contexts.moments import HISTOGRAM_EDGES
from lightsae.analysis.contexts.stage import SavedPass, gather_contexts
from lightsae.analysis.contexts.statistics import ContextSettings, ContextStatistics
from lightsae.analysis.dictionary.card import median
from lightsae.analysis.dictionary.writer import write_dictionary
from lightsae.analysis.effects.stage import Effects
from lightsae.analysis.interpret.population import NEURONS, RANDOM, SAE, Population
from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.learning import LABEL_PATTERNS, LIST_TOKENS
from lightsae.analysis.labels.stage import label_offline
from lightsae.analysis.reading.features import FeatureSource, NeuronFeatures, RandomFeatures, SAEFeatures, read_sites
from lightsae.analysis.reading.loaded_sae import LoadedSAE
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import Texts
from lightsae.errors import ConfigError, CorpusError, arg
from lightsae.lm.model import vocabulary_of
from lightsae.metrics.conventions import FIRES_ABOVE
from lightsae.progress import Progress
from lightsae.randomness import keyed_generator
from lightsae.sae import SparseAutoencoder
from lightsae.version import version

# Rows that means and thresholds are measured on; random directions.
_SAMPLE_ROWS, _RANDOM_FEATURES = 32, 256
# The least that each setting can be.
_LEAST = {
    "tokens": 1,
    "score_tokens": 1,
    "mining_tokens": 0,
    "contexts": 1,
    "sampled": 1,
    "near_misses": 0,
    "ablation_windows": 0,
    "seed": 0,
}


@dataclass(frozen=True)
class InterpretSettings:
    """What to find out.

    Attributes:
        tokens: Held-out tokens whose firings are shown: counts, contexts, co-firing.
        score_tokens: Tokens of other held-out documents, on which labels are tested.
        mining_tokens: Training tokens that the offline labels are learned on; 0: the held-out ones of the contexts.
        contexts: Windows kept per feature around its strongest firings.
        sampled: Windows sampled by activation; strata are cut from them.
        near_misses: Windows kept where a feature nearly fired.
        ablation_windows: Windows a feature is removed on, to see what changes; 0: none.
        neurons: Run the same on the raw neurons of the site, for comparison.
        gate: What a label has to reach before it is shown.
        seed: Seed of samples and floors.

    Raises:
        ConfigError: A value is out of its range.
    """

    tokens: int = 1_000_000
    score_tokens: int = 500_000
    mining_tokens: int = 1_200_000
    contexts: int = 16
    sampled: int = 24
    near_misses: int = 4
    ablation_windows: int = 2
    neurons: bool = True
    gate: Gate = field(default_factory=Gate)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) < least:
                raise ConfigError(name, value, f"it must be at least {least}")


@dataclass
class Interpretation:
    """What was found, before it is written.

    Attributes:
        populations: By name.
        manifest: What dictionary.json says.
        sample: (T, D) activations at the site, raw, for maps.
        sample_tokens: (T,) their token ids.
        saved: The state of the pass over the contexts, to be cleared once all is written.
    """

    populations: dict[str, Population]
    manifest: dict[str, Any]
    sample: torch.Tensor
    sample_tokens: np.ndarray
    saved: SavedPass


def interpret(loaded: LoadedSAE, out: Path, settings: InterpretSettings, progress: Progress) -> Interpretation:
    """Run all stages on an SAE.

    Args:
        loaded: The SAE, its language models, its corpus.
        out: Where the result will lie; an unfinished pass is kept beside it.
        settings: What to find out.
        progress: Receives every stage.

    Raises:
        ConfigError: Less text is asked for than one row.
        CorpusError: The corpus has no text for one of its uses.
    """
    sae, model, reader = loaded.sae, loaded.main_model, loaded.reader()
    vocabulary = vocabulary_of(model)
    with progress.stage("text", 1):
        texts = _texts(loaded, settings)
    sample, sample_tokens = _sample(reader, texts, sae)
    kept = ContextSettings(settings.contexts, settings.sampled, settings.near_misses, settings.seed)
    populations = {}
    for name, source in _sources(sae, sample, settings).items():
        total = texts.contexts.n_tokens
        statistics = ContextStatistics(source, len(vocabulary), total, kept, together=name == SAE)
        populations[name] = Population(name, source, statistics, vocabulary)
    inputs = {
        "sae": loaded.saved.sha256,
        "corpus": texts.fingerprint,
        "rows": len(texts.contexts),
        "settings": asdict(settings),
        "reading": str(loaded.reading),
    }
    saved = SavedPass(out, inputs)
    statistics_of = {name: population.statistics for name, population in populations.items()}
    gather_contexts(statistics_of, reader, texts.contexts, saved, progress)
    for population in populations.values():
        population.effects = Effects.of_windows(population.statistics.top.windows(), vocabulary, settings.seed)
    latents = populations[SAE]
    windows = latents.statistics.top.windows()
    latents.effects.add_those_of(sae, model, windows, texts.contexts, settings.ablation_windows, progress)
    everyone = list(populations.values())
    labels = label_offline(everyone, reader, texts, vocabulary, settings.gate, settings.seed, progress)
    for population, its_labels in zip(everyone, labels, strict=True):
        population.labels = its_labels
    manifest = _manifest(loaded, texts, settings, populations)
    return Interpretation(populations, manifest, sample, sample_tokens, saved)


def write_interpretation(made: Interpretation, out: Path, extra: Callable[[Path], None] | None = None) -> str:
    """Write what was found to a folder, and return its id. `extra` adds dashboard and pictures to the staged folder."""

    def beside(staged: Path) -> None:
        if NEURONS in made.populations:
            neurons = {**made.manifest, "population": NEURONS}
            write_dictionary(staged / NEURONS, made.populations[NEURONS].tables, neurons)
        if extra is not None:
            extra(staged)

    identity = write_dictionary(out, made.populations[SAE].tables, made.manifest, beside)
    made.saved.clear()
    return identity


def _texts(loaded: LoadedSAE, settings: InterpretSettings) -> Texts:
    """Read the text, all uses of which have at least a row (but `mining`, which may be asked to have none)."""
    counts = {name: getattr(settings, name) for name in ("tokens", "score_tokens", "mining_tokens")}
    row = loaded.corpus.context_size
    for name, tokens in counts.items():
        if tokens < row and (tokens or name != "mining_tokens"):
            raise ConfigError(
                f"{arg(name)} is {tokens}, less than one row of {arg('context_size')} ({row}); write {row} or more."
            )
    texts = Texts.read(loaded.corpus, loaded.main_model.tokenizer, **counts)
    if not len(texts.contexts) or not len(texts.scores):
        raise CorpusError(
            f"{arg('dataset')} is {loaded.corpus.dataset!r}, whose held-out documents are too few to show contexts "
            "from some and test labels on others; give more text, or a larger validation split."
        )
    return texts


def _sample(reader: ActivationReader, texts: Texts, sae: SparseAutoencoder) -> tuple[torch.Tensor, np.ndarray]:
    """Return the counted tokens of the first rows: raw activations at what is read, and token ids."""
    activations, tokens = [], []
    for batch, counted in reader.batches(next(texts.contexts.batches(_SAMPLE_ROWS))):
        kept = torch.from_numpy(counted.ravel()).to(batch.tokens.device)
        activations.append(read_sites(batch.activations, sae.widths.read)[kept].float())
        tokens.append(batch.tokens[kept].cpu().numpy())
    return torch.cat(activations), np.concatenate(tokens)


def _sources(sae: SparseAutoencoder, sample: torch.Tensor, settings: InterpretSettings) -> dict[str, FeatureSource]:
    sources: dict[str, FeatureSource] = {SAE: SAEFeatures(sae)}
    if settings.neurons:
        sources[NEURONS] = NeuronFeatures(sae.widths.read, sample)
    generator = keyed_generator(settings.seed, "random features")
    floor = RandomFeatures(sae.widths.read, _RANDOM_FEATURES, generator)
    with torch.no_grad():
        fires = (sae.encode(sample) > 0).float().mean(0)
    alive = fires[fires > 0]
    # As often as the latents fire: the spread of their frequencies, not its mean, for frequent features are easier.
    quantiles = torch.linspace(0, len(alive) - 1, _RANDOM_FEATURES).long()
    floor.calibrate(sample, alive.sort().values[quantiles.to(alive.device)])
    sources[RANDOM] = floor
    return sources


def _manifest(
    loaded: LoadedSAE, texts: Texts, settings: InterpretSettings, populations: Mapping[str, Population]
) -> dict[str, Any]:
    latents, neurons, model = populations[SAE], populations.get(NEURONS), loaded.main_model
    floors = {
        "shuffled labels": latents.labels.floor,
        "random directions": populations[RANDOM].labels.labelled_share,
    }
    summary: dict[str, Any] = latents.figures | {
        "floors": floors,
        "window_coherence_by_chance": median(latents.effects.window_coherence.null),
        "document_coherence_by_chance": median(latents.effects.document_coherence.null),
    }
    if neurons is not None:
        summary["neurons"] = neurons.figures
        if neurons.labels.floor is not None:
            floors["shuffled labels of neurons"] = neurons.labels.floor
    return {
        "sae": loaded.saved.entry,
        "model": {"name": model.name, "revision": model.revision},
        "tokenizer": loaded.tokenizer_entry(),
        "corpus": {**loaded.corpus_entry(), "fingerprint": texts.fingerprint},
        "tokens": {
            "contexts": int(latents.statistics.moments.tokens),
            "scores": int(latents.labels.scored.counted.sum()),
            "mining": texts.mining.n_tokens,
            "rows_left_out": texts.left_out,
        },
        "seeds": {"seed": settings.seed},
        "code_version": version(),
        "histogram_edges": HISTOGRAM_EDGES,
        "labels": {
            "offline": {
                "gate": asdict(settings.gate),
                "fires_above": FIRES_ABOVE,
                "most_patterns": LABEL_PATTERNS,
                "listed_tokens": LIST_TOKENS,
            },
            "llm": None,
        },
        "settings": asdict(settings),
        "effects": latents.effects.manifest,
        "summary": summary,
    }
