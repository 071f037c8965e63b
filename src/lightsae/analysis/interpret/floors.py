"""What an SAE's features are compared with: raw neurons, random directions, the same SAE with shuffled weights.

All fire as often as the latents do, see `reading.calibrated`. Shuffled labels are a floor too, a trivial one: any rule
about tokens clears it, whatever the features are.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from lightsae.analysis.dictionary.figures import above_chance, against, against_counts, f1_against
from lightsae.analysis.dictionary.schema import tested_and_shown
from lightsae.analysis.effects.directions import Neighbours, aligned_neurons, neuron_directions
from lightsae.analysis.labels.gate import withheld
from lightsae.analysis.labels.stage import OfflineLabels
from lightsae.analysis.reading.calibrated import (
    CalibratedFeatures,
    NeuronFeatures,
    RandomDirections,
    ShuffledEncoder,
    calibrate,
    firings_in,
    spread_of,
)
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import TextRows
from lightsae.lm import LanguageModel
from lightsae.progress import Progress
from lightsae.randomness import keyed_generator
from lightsae.sae import SiteRef, SparseAutoencoder

NEURONS, RANDOM, SHUFFLED = "neurons", "random directions", "the SAE with shuffled weights"
# The floors: nothing in them was learned as a feature.
FLOORS = (RANDOM, SHUFFLED)
# Features of each floor; tokens that thresholds are set on.
_FEATURES, _TOKENS = 512, 65_536


def neurons_near(
    sae: SparseAutoencoder, neurons: Mapping[SiteRef, int], models: Mapping[str, LanguageModel], k: int
) -> Neighbours | None:
    """Return the neurons that write nearest to each latent's direction.

    None where the neurons are the coordinates of the site, or lie in several blocks, or write elsewhere than the SAE.
    """
    (site, *others), (written, *further) = neurons, sae.widths.predicted
    if others or further or site in sae.widths.read or written.model != site.model:
        return None
    directions = neuron_directions(models[site.model], site.site)
    if directions is None or directions.shape[1] != sae.d_out:
        return None
    return aligned_neurons(sae.W_dec.detach(), k, directions)


def comparisons(
    sae: SparseAutoencoder,
    neurons: Mapping[SiteRef, int] | None,
    reader: ActivationReader,
    rows: TextRows,
    seed: int,
    progress: Progress,
) -> dict[str, CalibratedFeatures]:
    """Return the populations beside the latents, by name, that fire as often as these.

    Args:
        sae: The SAE.
        neurons: Sites of raw neurons, with their widths; None: leave them out.
        reader: Reads all sites.
        rows: Thresholds are set on rows from all over this text.
        seed: Of all that is drawn.
        progress: Receives the tokens read.
    """
    read = sae.widths.read
    shuffled = ShuffledEncoder(sae, _FEATURES, keyed_generator(seed, "shuffled encoder"))
    populations: dict[str, CalibratedFeatures] = {NEURONS: NeuronFeatures(neurons)} if neurons is not None else {}
    populations[RANDOM] = RandomDirections(read, _FEATURES, keyed_generator(seed, "random directions"))
    populations[SHUFFLED] = shuffled
    sample = rows.spread(max(1, _TOKENS // rows.tokens.shape[1]))
    fires = firings_in(SAEFeatures(sae), reader, sample, progress)
    if not fires.any():  # a dead SAE: floors that never fire
        return populations
    counts = {
        name: spread_of(fires, population.n_features, keyed_generator(seed, f"frequencies/{name}"))
        for name, population in populations.items()
    }
    batch, counted = next(reader.batches(sample.spread(reader.reading.rows_at_once)))
    kept = torch.from_numpy(counted.ravel()).to(batch.tokens.device)
    shuffled.balance({site: batch.activations[site][kept] for site in read}, counts[SHUFFLED] / sample.n_tokens)
    calibrate(populations, counts, reader, sample, progress)
    return populations


def held_against(latents: OfflineLabels, floors: Mapping[str, OfflineLabels]) -> tuple[OfflineLabels, dict[str, Any]]:
    """Compare the latents' labels with those of the floors, and with their own when these are shuffled.

    Returns:
        The latents' labels, their tiers withheld unless more pass than of every floor; of each floor the share that
        passes, that by the most patterns of a rule, and the latents' share minus it with its interval.
    """
    tested, passed = tested_and_shown(latents.tiers)
    compared: dict[str, dict[str, Any]] = {
        name: {
            **against(latents.tiers, floor.tiers),
            **f1_against(latents.f1, floor.f1),
            "by_patterns": floor.by_patterns,
        }
        for name, floor in floors.items()
    }
    compared["shuffled labels"] = against_counts(passed, tested, sum(latents.shuffled), len(latents.shuffled))
    if above_chance(compared) is False:
        latents = replace(latents, tiers=[withheld(tier) for tier in latents.tiers])
    return latents, compared
