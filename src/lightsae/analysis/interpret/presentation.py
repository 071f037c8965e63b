"""What a person looks at: the dashboard, the maps before and after, the figures, written beside the tables.

Axes: F features, n tokens of a sample, D width of the site.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from lightsae.analysis.dashboard import Colouring, Map, write_dashboard
from lightsae.analysis.dashboard.figures import write_figures
from lightsae.analysis.dashboard.maps import activation_map, decoder_map
from lightsae.analysis.dashboard.tensorboard import write_tensorboard
from lightsae.analysis.effects.directions import directions
from lightsae.analysis.interpret.floors import NEURONS
from lightsae.analysis.interpret.population import SAE
from lightsae.analysis.interpret.run import Interpretation
from lightsae.analysis.labels.patterns import CLASSES, class_of
from lightsae.analysis.labels.wording import quoted
from lightsae.analysis.reading.loaded_sae import LoadedSAE
from lightsae.lm.model import vocabulary_of
from lightsae.parsing import read_json

PICTURES, TENSORBOARD = "pictures", "tensorboard"
# Tokens in the maps of activations, and colourings of a feature that they offer.
_MAP_TOKENS, _MAP_FEATURES = 2000, 3


class Presentation:
    """Writes pictures into the folder of a feature dictionary, when that is staged.

    Args:
        loaded: The SAE and its language models.
        made: What was found.
    """

    def __init__(self, loaded: LoadedSAE, made: Interpretation) -> None:
        self.loaded, self.made = loaded, made
        self.tables = made.populations[SAE].tables

    def __call__(self, staged: Path) -> None:
        tables, populations = self.tables, self.made.populations
        neurons = populations[NEURONS].tables if NEURONS in populations else None
        manifest = read_json(staged / "dictionary.json")
        maps, kind = self.maps(), self.made.manifest["summary"].get("neurons", {}).get("kind", "")
        write_dashboard(staged, tables, manifest, neurons=neurons, maps=maps)
        (staged / PICTURES).mkdir()
        write_figures(staged / PICTURES, tables, neurons=neurons, maps=maps, kind=kind)
        write_tensorboard(staged / TENSORBOARD, tables, W_dec=self._decoder(), neurons=neurons, maps=maps, kind=kind)

    def maps(self) -> list[Map]:
        """Return the map of the directions, and those of the activations before and after."""
        sae, sample, tokens = self.loaded.sae, self.made.sample, self.made.sample_tokens
        alive = np.flatnonzero(self.tables["features"]["fires"].to_numpy() > 0)
        every = max(1, len(sample) // _MAP_TOKENS)
        sample, tokens = sample[::every], tokens[::every]
        with torch.no_grad():
            latents = sae.encode(sample)
        vocabulary = vocabulary_of(self.loaded.main_model)
        colours = [Colouring("token class", [CLASSES[class_of(vocabulary[token])] for token in tokens])]
        colours += [
            Colouring(f"feature {feature}: {label}", latents[:, feature].cpu().numpy())
            for feature, label in self._telling_features(latents)
        ]
        texts = [quoted(vocabulary[token]) for token in tokens]
        both = partial(activation_map, colours=colours, texts=texts, group="Activations")
        return [
            decoder_map(self._decoder(), features=torch.from_numpy(alive)),
            both(sample.cpu(), name="Before: the site's activations"),
            both(latents.cpu(), name="After: the dictionary's latents", metric="cosine"),
        ]

    def _decoder(self) -> torch.Tensor:
        sae = self.loaded.sae
        return torch.cat([directions(sae, site) for site in sae.widths.predicted], dim=1).cpu()

    def _telling_features(self, latents: torch.Tensor) -> list[tuple[int, str]]:
        """Return the labelled features that fire most on the sample, but not everywhere."""
        features = self.tables["features"]
        labels = features["label"].to_pylist()
        fires = (latents > 0).float().mean(0)
        order = torch.where(fires < 0.2, fires, 0).argsort(descending=True).tolist()
        return [(i, labels[i]) for i in order if labels[i] is not None and fires[i] > 0][:_MAP_FEATURES]
