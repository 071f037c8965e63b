"""From a trained SAE to a feature dictionary: the stages, in order.

    text -> contexts (one pass) -> effects -> labels, learned and tested -> tables -> a folder

Raw neurons of the blocks read go through the same stages beside the latents; floors, that fire as often, through the
last. Where the latents' labels pass no more often than a floor's, their tiers are withheld.
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
from lightsae.analysis.dictionary.figures import above_chance, against, f1_against, median_of
from lightsae.analysis.dictionary.writer import write_dictionary
from lightsae.analysis.effects.stage import NEAREST, Effects
from lightsae.analysis.interpret.floors import FLOORS, NEURONS, comparisons, held_against, neurons_near
from lightsae.analysis.interpret.population import SAE, Population
from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.rule_search import LABEL_PATTERNS, LIST_TOKENS
from lightsae.analysis.labels.stage import label_offline
from lightsae.analysis.reading.calibrated import neuron_sites
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.loaded_sae import LoadedSAE
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import Texts
from lightsae.errors import ConfigError, CorpusError, arg
from lightsae.lm.dtypes import dtype_name
from lightsae.lm.model import vocabulary_of
from lightsae.metrics.conventions import FIRES_ABOVE
from lightsae.progress import Progress
from lightsae.sae import SiteRef, SparseAutoencoder, Widths
from lightsae.version import version

# Rows that are drawn in maps.
_SAMPLE_ROWS = 32
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
        neurons: Run the same on the raw neurons (`mlp_act`, both signs) of the blocks read, for comparison.
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
    sae, model = loaded.sae, loaded.main_model
    vocabulary = vocabulary_of(model)
    neurons = neuron_sites(sae, loaded.models) if settings.neurons else None
    reader = loaded.reader(beside=tuple(neurons or ()))
    with progress.stage("text", 1):
        texts = _texts(loaded, settings)
    sample, sample_tokens = _sample(reader, texts, sae)
    kept = ContextSettings(settings.contexts, settings.sampled, settings.near_misses, settings.seed)
    sources = {SAE: SAEFeatures(sae)} | comparisons(sae, neurons, reader, texts.contexts, settings.seed, progress)
    populations = {name: Population(name, source, vocabulary) for name, source in sources.items()}
    described = {name: one for name, one in populations.items() if name not in FLOORS}
    for name, population in described.items():
        population.statistics = ContextStatistics(
            population.source, len(vocabulary), texts.contexts.n_tokens, kept, together=name == SAE
        )
    inputs = {
        "sae": loaded.saved.sha256,
        "corpus": texts.fingerprint,
        "rows": len(texts.contexts),
        "settings": asdict(settings),
        "reading": str(loaded.reading),
        "neurons": str(neurons),
        "dtype": dtype_name(model.dtype),
    }
    saved = SavedPass(out, inputs)
    statistics_of = {name: population.counted for name, population in described.items()}
    gather_contexts(statistics_of, reader, texts.contexts, saved, progress)
    for population in described.values():
        population.effects = Effects.of_windows(population.counted.top.windows(), vocabulary, settings.seed)
    latents = populations[SAE]
    windows = latents.counted.top.windows()
    latents.effects.add_those_of(sae, model, windows, texts.contexts, settings.ablation_windows, progress)
    if neurons is not None and (near := neurons_near(sae, neurons, loaded.models, NEAREST)) is not None:
        latents.effects.neurons = near
    everyone = list(populations.values())
    labels = label_offline(everyone, reader, texts, vocabulary, settings.gate, settings.seed, progress)
    for population, its_labels in zip(everyone, labels, strict=True):
        population.labels = its_labels
    latents.labels, floors = held_against(latents.labels, {name: populations[name].labels for name in FLOORS})
    manifest = _manifest(loaded, texts, settings, populations, floors, neurons)
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
    texts = Texts.read(loaded.corpus, loaded.main_model.vocabulary, **counts)
    if not len(texts.contexts) or not len(texts.scores):
        raise CorpusError(
            f"{arg('dataset')} is {loaded.corpus_entry()['dataset']!r}, whose held-out documents are too few to show "
            "contexts from some and test labels on others; give more text, or a larger validation split."
        )
    return texts


def _sample(reader: ActivationReader, texts: Texts, sae: SparseAutoencoder) -> tuple[torch.Tensor, np.ndarray]:
    """Return the counted tokens of rows from all over the text: raw activations at what is read, and token ids."""
    activations, tokens = [], []
    for batch, counted in reader.batches(texts.contexts.spread(_SAMPLE_ROWS)):
        kept = torch.from_numpy(counted.ravel()).to(batch.tokens.device)
        activations.append(Widths.join(batch.activations, sae.widths.read)[kept].float())
        tokens.append(batch.tokens[kept].cpu().numpy())
    return torch.cat(activations), np.concatenate(tokens)


def _manifest(
    loaded: LoadedSAE,
    texts: Texts,
    settings: InterpretSettings,
    populations: Mapping[str, Population],
    floors: dict[str, Any],
    sites: Mapping[SiteRef, int] | None,
) -> dict[str, Any]:
    latents, neurons, model = populations[SAE], populations.get(NEURONS), loaded.main_model
    summary: dict[str, Any] = latents.figures | {
        "floors": floors,
        "above_chance": above_chance(floors),
        "window_coherence_by_chance": median_of("null", latents.effects.window_coherence.null)["null_median"],
        "document_coherence_by_chance": median_of("null", latents.effects.document_coherence.null)["null_median"],
    }
    if neurons is not None and sites is not None:
        kind = "raw neurons" if all(".mlp_act." in f".{ref.site}" for ref in sites) else "coordinates of the site"
        summary["neurons"] = neurons.figures | {
            "kind": kind,
            "sites": [str(ref) for ref in sites],
            "width": sum(sites.values()),
            "difference": against(latents.labels.tiers, neurons.labels.tiers)
            | f1_against(latents.labels.f1, neurons.labels.f1),
        }
    return {
        "sae": loaded.saved.entry,
        "model": {"name": model.name, "revision": model.revision, "dtype": dtype_name(model.dtype)},
        "tokenizer": loaded.tokenizer_entry(),
        "corpus": {**loaded.corpus_entry(), "fingerprint": texts.fingerprint},
        "tokens": {
            "contexts": int(latents.counted.moments.tokens),
            "scores": int(latents.labels.scored.counted.sum()),
            "mining": texts.mining.n_tokens,
            "rows_left_out": texts.left_out,
            **({"by_role": by_role} if (by_role := latents.counted.roles.by_role) else {}),
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
