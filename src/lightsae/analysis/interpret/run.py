"""From a trained dictionary to a feature dictionary: the stages, in order.

    text -> contexts (one pass) -> effects -> labels, learned and tested -> tables -> a folder

Raw neurons of the site go through the same stages beside the latents, and random directions as a floor.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightsae.activations.stream import Timings
from lightsae.analysis.contexts.moments import HISTOGRAM_EDGES
from lightsae.analysis.contexts.stage import SavedPass, gather_contexts
from lightsae.analysis.contexts.statistics import ContextSettings, ContextStatistics
from lightsae.analysis.dictionary.card import figures
from lightsae.analysis.dictionary.writer import write_dictionary
from lightsae.analysis.effects.ablation import ablation_effects
from lightsae.analysis.effects.coherence import document_coherence, window_coherence
from lightsae.analysis.effects.directions import directions
from lightsae.analysis.effects.final_norm import final_norm_scale, mean_site_norm
from lightsae.analysis.effects.logits import direct_logits
from lightsae.analysis.effects.neighbours import aligned_neurons, nearest_by_cosine
from lightsae.analysis.effects.roles import TOKENS, input_scores, output_scores
from lightsae.analysis.interpret.tables import Effects, Tables, make_tables
from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.stage import OfflineLabels, label_offline
from lightsae.analysis.reading.features import FeatureSource, NeuronFeatures, RandomFeatures, SAEFeatures, read_sites
from lightsae.analysis.reading.loaded_sae import Origin
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import Texts
from lightsae.errors import ConfigError, CorpusError
from lightsae.lm import LanguageModel
from lightsae.lm.model import vocabulary_of
from lightsae.metrics.conventions import FIRES_ABOVE
from lightsae.progress import Progress
from lightsae.randomness import keyed_generator
from lightsae.sae import SparseAutoencoder
from lightsae.version import version

SAE, NEURONS, RANDOM = "features", "neurons", "random"
# Tokens that means, scales and thresholds are measured on; random directions; the prompt of S_out.
_SAMPLE_ROWS, _RANDOM_FEATURES, _PROMPT_TOKENS = 32, 256, 16
_NEAREST = 8
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
        contexts: Windows kept of each feature around its strongest firings.
        sampled: Windows sampled by activation; strata are cut from them.
        near_misses: Windows kept where a feature nearly fired.
        ablation_windows: Windows a feature is removed on, to see what changes; 0: none.
        neurons: Run the same on the raw neurons of the site, for comparison.
        gate: What a label has to reach before it is shown.
        seed: Of samples and floors.

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
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")


@dataclass
class Interpretation:
    """What was found, before it is written.

    Attributes:
        tables: Of each population.
        manifest: What dictionary.json says.
        labels: Of each population, with the exact rules.
        activations: A sample at the site, raw, with its token ids, for maps.
    """

    tables: dict[str, Tables]
    manifest: dict[str, Any]
    labels: dict[str, OfflineLabels]
    activations: tuple[torch.Tensor, np.ndarray]
    saved: SavedPass


def interpret(origin: Origin, out: Path, settings: InterpretSettings, progress: Progress) -> Interpretation:
    """Run all stages on a dictionary.

    Args:
        origin: The dictionary, its language models, its corpus.
        out: Where the result will lie; an unfinished pass is kept beside it.
        settings: What to find out.
        progress: Told of every stage.

    Raises:
        ConfigError: Less text is asked for than one row.
        CorpusError: The corpus has no text for one of its uses.
    """
    sae, models = origin.sae, origin.models
    main = origin.main_model
    with progress.stage("text", 1):
        texts = _texts(origin, settings)
    reader = ActivationReader(models, origin.reading, Timings())
    sample, sample_tokens = _sample(reader, texts, sae)
    vocabulary = vocabulary_of(main)
    sources = _sources(sae, sample, settings)
    kept = ContextSettings(settings.contexts, settings.sampled, settings.near_misses, settings.seed)
    statistics = {
        name: ContextStatistics(source, len(vocabulary), texts.contexts.tokens.size, kept, together=name == SAE)
        for name, source in sources.items()
    }
    asked = {
        "sae": origin.entry["sha256"],
        "corpus": texts.fingerprint,
        "rows": len(texts.contexts),
        "settings": asdict(settings),
        "reading": str(origin.reading),
    }
    saved = SavedPass(out, asked)
    gather_contexts(statistics, reader, texts.contexts, saved, progress)
    effects = {name: _coherence(found, len(vocabulary), settings.seed) for name, found in statistics.items()}
    _effects_of(sae, effects[SAE], statistics[SAE], main, texts, settings, progress)
    labels = label_offline(
        sources,
        {name: found.moments.maximum for name, found in statistics.items()},
        {name: found.moments.fires for name, found in statistics.items()},
        reader,
        texts,
        vocabulary,
        settings.gate,
        settings.seed,
        progress,
    )
    shown = [name for name in sources if name != RANDOM]
    tables = {name: make_tables(statistics[name], effects[name], labels[name], vocabulary) for name in shown}
    manifest = _manifest(origin, texts, settings, labels, statistics, effects, tables)
    return Interpretation(tables, manifest, labels, (sample, sample_tokens), saved)


def write_interpretation(found: Interpretation, out: Path, extra: Callable[[Path], None] | None = None) -> str:
    """Write what was found to a folder, and return its id. `extra` adds dashboard and pictures to the staged folder."""

    def beside(staged: Path) -> None:
        if NEURONS in found.tables:
            neurons = {**found.manifest, "population": NEURONS}
            write_dictionary(staged / NEURONS, found.tables[NEURONS], neurons)
        if extra is not None:
            extra(staged)

    identity = write_dictionary(out, found.tables[SAE], found.manifest, beside)
    found.saved.clear()
    return identity


def _texts(origin: Origin, settings: InterpretSettings) -> Texts:
    """Read the text, all uses of which have at least a row (but `mining`, which may be asked to have none)."""
    wanted = {name: getattr(settings, name) for name in ("tokens", "score_tokens", "mining_tokens")}
    row = origin.corpus.context_size
    for name, tokens in wanted.items():
        if tokens < row and (tokens or name != "mining_tokens"):
            raise ConfigError(f"{name} is {tokens}, less than one row of context_size ({row}); write {row} or more.")
    texts = Texts.read(origin.corpus, origin.main_model.tokenizer, **wanted)
    if not len(texts.contexts) or not len(texts.scores):
        raise CorpusError(
            f"dataset is {origin.corpus.dataset!r}, whose held-out documents are too few to show contexts from some "
            "and test labels on others; give more text, or a larger validation split."
        )
    return texts


def _sample(reader: ActivationReader, texts: Texts, sae: SparseAutoencoder) -> tuple[torch.Tensor, np.ndarray]:
    """Return the counted tokens of the first rows: raw activations at what is read, and token ids."""
    rows = next(texts.contexts.batches(_SAMPLE_ROWS))
    found, tokens = [], []
    for batch, counted in reader.batches(rows):
        kept = torch.from_numpy(counted.ravel()).to(batch.tokens.device)
        found.append(read_sites(batch.activations, sae.widths.read)[kept].float())
        tokens.append(batch.tokens[kept].cpu().numpy())
    return torch.cat(found), np.concatenate(tokens)


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


def _coherence(found: ContextStatistics, vocabulary: int, seed: int) -> Effects:
    windows = found.top.windows()
    return Effects(
        window_coherence=window_coherence(windows, vocabulary, seed=seed),
        document_coherence=document_coherence(windows, vocabulary, seed=seed),
    )


def _effects_of(
    sae: SparseAutoencoder,
    effects: Effects,
    found: ContextStatistics,
    main: LanguageModel,
    texts: Texts,
    settings: InterpretSettings,
    progress: Progress,
) -> None:
    """Add what the features of a dictionary do and what they are near to."""
    written = [site for site in sae.widths.predicted if site.model == main.name]
    effects.nearest = nearest_by_cosine(sae.W_dec.detach(), _NEAREST)
    if sae.widths.read == sae.widths.predicted and len(sae.widths.predicted) == 1:
        effects.neurons = aligned_neurons(sae.W_dec.detach(), _NEAREST)
    if not written or not main.has_next_token_head:
        return
    windows = found.top.windows()
    site = written[-1]
    rows = torch.from_numpy(texts.contexts.tokens[:_SAMPLE_ROWS].astype(np.int64)).to(main.device)
    with progress.stage("effects on logits", 1):
        scale = final_norm_scale(main, rows)
        effects.logits = direct_logits(sae, main, site=site, norm_scale=scale)
        if (wide := direct_logits(sae, main, site=site, norm_scale=scale, top=TOKENS)) is not None:
            norm = mean_site_norm(main, rows, site.site)
            effects.s_in = input_scores(windows, wide.promoted)
            effects.s_out = output_scores(
                main,
                directions(sae, site),
                wide.promoted,
                rows[0, :_PROMPT_TOKENS],
                site=site.site,
                mean_norm=norm,
            )
            effects.manifest |= {"final_norm_scale": scale, "mean_site_norm": norm}
    if settings.ablation_windows and all(ref.model == main.name for ref in sae.widths.read):
        with progress.stage("effects of ablation", 1):
            effects.ablation = ablation_effects(main, sae, windows, site=site, per_feature=settings.ablation_windows)


def _manifest(
    origin: Origin,
    texts: Texts,
    settings: InterpretSettings,
    labels: Mapping[str, OfflineLabels],
    statistics: Mapping[str, ContextStatistics],
    effects: Mapping[str, Effects],
    tables: Mapping[str, Tables],
) -> dict[str, Any]:
    floors = {"shuffled labels": labels[SAE].floor, "random directions": labels[RANDOM].labelled_share}
    coherence = effects[SAE]
    summary: dict[str, Any] = figures(tables[SAE]) | {
        "floors": floors,
        "window_coherence_by_chance": _median(coherence.window_coherence.null),
        "document_coherence_by_chance": _median(coherence.document_coherence.null),
    }
    if NEURONS in tables:
        summary["neurons"] = figures(tables[NEURONS])
        if (floor := labels[NEURONS].floor) is not None:
            floors["shuffled labels of neurons"] = floor
    return {
        "sae": origin.entry,
        "model": {"name": origin.main_model.name, "revision": origin.main_model.revision},
        "tokenizer": origin.tokenizer_entry(),
        "corpus": {**origin.corpus_entry(), "fingerprint": texts.fingerprint},
        "tokens": {
            "contexts": int(statistics[SAE].moments.tokens),
            "scores": int(labels[SAE].scored.counted.sum()),
            "mining": int(texts.mining.tokens.size),
            "rows_left_out": texts.left_out,
        },
        "seeds": {"seed": settings.seed},
        "code_version": version(),
        "histogram_edges": HISTOGRAM_EDGES,
        "labels": {
            "offline": {"gate": asdict(settings.gate), "fires_above": FIRES_ABOVE},
            "llm": None,
        },
        "settings": asdict(settings),
        "effects": effects[SAE].manifest,
        "summary": summary,
    }


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return round(float(np.median(known)), 4) if len(known) else None
