"""Features that were not learned as such and fire as often as learned ones: raw neurons, and the floors of labels.

Each scores every token, and fires where its score exceeds a threshold; the thresholds are set on a sample of the text,
so that feature i fires on as many of its tokens as a learned feature does. Frequent features are easier to describe:
without that, a comparison would measure frequencies.

Axes: T tokens, D width of what is read, F features, n of them kept together.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lightsae.analysis.reading.features import FeatureSource
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import TextRows
from lightsae.errors import SiteError
from lightsae.lm import LanguageModel
from lightsae.metrics.conventions import FIRES_ABOVE
from lightsae.progress import Progress
from lightsae.sae import SiteRef, SparseAutoencoder, Widths
from lightsae.sae.mechanisms import TopK
from lightsae.sae.sparse_ops import SparseLatents
from lightsae.sae.token_norm import TokenFrame


class CalibratedFeatures(ABC):
    """Features that fire where a score exceeds their threshold; the value is measured from the score's mean.

    Args:
        n_features: How many.
    """

    def __init__(self, n_features: int) -> None:
        self.n_features = n_features
        self.thresholds, self.means = torch.full((n_features,), torch.inf), torch.zeros(n_features)

    @abstractmethod
    def scores(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"]:
        """Return how strongly each token speaks for each feature."""

    @torch.no_grad()
    def values(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"]:
        """Return the activations; 0 where a feature does not fire."""
        scores = self.scores(activations)
        thresholds, zeros = self._levels(scores.device)
        return torch.where(scores > thresholds, scores - zeros, 0)

    def _levels(self, device: torch.device) -> tuple[Float[Tensor, " F"], Float[Tensor, " F"]]:
        """Return the scores above which features fire, and those from which their activations are measured."""
        thresholds, means = self.thresholds.to(device), self.means.to(device)
        return thresholds, torch.minimum(means, thresholds)

    def encode(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> SparseLatents:
        return SparseLatents.from_dense(self.values(activations))

    def above(
        self, activations: Mapping[SiteRef, Float[Tensor, "T _"]], least: Float[Tensor, " F"]
    ) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"]]:
        # Few fire: what is not above a threshold is not looked at twice.
        scores = self.scores(activations)
        thresholds, zeros = self._levels(scores.device)
        tokens, features = (scores > thresholds).nonzero(as_tuple=True)
        values = scores[tokens, features] - zeros[features]
        kept = values > least[features]
        return tokens[kept], features[kept], values[kept]

    def nearly(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"] | None:
        return None


class NeuronFeatures(CalibratedFeatures):
    """Coordinates of some sites, of both signs: D features that fire where one is high, then D where it is low.

    Args:
        sites: With their widths, which add up to D.
    """

    def __init__(self, sites: Mapping[SiteRef, int]) -> None:
        super().__init__(2 * sum(sites.values()))
        self.sites = dict(sites)

    def scores(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"]:
        high = Widths.join(activations, self.sites).float()
        return torch.cat([high, -high], dim=1)


class RandomDirections(CalibratedFeatures):
    """Projections on directions drawn at random, all alike likely.

    Args:
        sites: As an SAE reads them.
        n_features: How many.
        generator: Draws the directions.
    """

    def __init__(self, sites: Mapping[SiteRef, int], n_features: int, generator: torch.Generator) -> None:
        super().__init__(n_features)
        self.sites = dict(sites)
        self.directions = torch.nn.functional.normalize(
            torch.randn(n_features, sum(sites.values()), generator=generator)
        )

    def scores(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"]:
        read = Widths.join(activations, self.sites).float()
        return read @ self.directions.T.to(read.device)


class ShuffledEncoder(CalibratedFeatures):
    """The latents of an SAE whose encoder's weights were shuffled: each input coordinate keeps its own, dealt anew.

    Where latents compete (TopK), they still do: a token's score is how far the pre-activation lies above the largest
    that TopK would drop, with k in proportion to the latents that are kept. Biases are such that no latent
    wins by its mean: `balance` sets them.

    Args:
        sae: Whose encoder is copied; its refinements that need a decoder are left out.
        n_features: Latents that are kept; more than the SAE has are shuffled several times.
        generator: Shuffles.
    """

    def __init__(self, sae: SparseAutoencoder, n_features: int, generator: torch.Generator) -> None:
        super().__init__(n_features)
        self.widths = sae.widths.read
        weights = sae.W_enc.detach().float().cpu()
        copies = -(-n_features // sae.d_sae)
        orders = (torch.rand(weights.shape, generator=generator).argsort(dim=1) for _ in range(copies))
        self.columns = torch.cat([weights.gather(1, order) for order in orders], dim=1)[:, :n_features]
        self.scale = torch.cat(
            [scale.expand(width) for scale, width in zip(sae.input_scale.cpu(), self.widths.values(), strict=True)]
        )
        self.token_norm = sae.refinements.token_norm
        self.biases = torch.zeros(self.n_features)
        mechanism = sae.mechanism
        self.k: int | None = None
        if isinstance(mechanism, TopK) and not mechanism.two_modes:
            self.k = max(1, round(mechanism.k * self.n_features / sae.d_sae))

    def scores(self, activations: Mapping[SiteRef, Float[Tensor, "T _"]]) -> Float[Tensor, "T F"]:
        read = Widths.join(activations, self.widths).float()
        if self.token_norm is not None:
            read = TokenFrame.of(read, self.token_norm).into(read)
        scale, columns, biases = (t.to(read.device) for t in (self.scale, self.columns, self.biases))
        pre = torch.addmm(biases, read * scale, columns)
        if self.k is None:
            return pre
        return pre - pre.topk(min(self.k + 1, self.n_features), dim=1).values[:, -1:]

    def balance(self, sample: Mapping[SiteRef, Float[Tensor, "T _"]], shares: Float[Tensor, " F"]) -> None:
        """Set the biases so that latent i would fire on the share `shares[i]` of a sample if none competed."""
        k, self.k = self.k, None
        ordered = self.scores(sample).sort(dim=0).values
        place = ((1 - shares.to(ordered.device)) * (len(ordered) - 1)).long()
        self.biases = self.biases - ordered.gather(0, place[None])[0].cpu()
        self.k = k


def firings_in(
    source: FeatureSource, reader: ActivationReader, rows: TextRows, progress: Progress
) -> NDArray[np.int64]:
    """Return on how many tokens of a text each feature fires above a tenth of its maximum there, (F,)."""
    features, values = [], []
    for batch, counted in reader.read(rows, "frequencies", progress):
        latents = source.encode(batch.activations)
        kept = (latents.values > 0) & torch.from_numpy(counted.ravel()).to(latents.values.device)[
            latents.pattern.token_of
        ]
        features.append(latents.indices[kept].cpu().numpy())
        values.append(latents.values[kept].cpu().numpy())
    of, value = np.concatenate(features), np.concatenate(values)
    maximum = np.zeros(source.n_features, value.dtype)
    np.maximum.at(maximum, of, value)
    return np.bincount(of[value > FIRES_ABOVE * maximum[of]], minlength=source.n_features)


def spread_of(counts: NDArray[np.int64], n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return n of the counts that are above 0, evenly over their quantiles, in random order.

    >>> sorted(spread_of(np.array([0, 5, 1, 3, 2, 4]), 3, torch.Generator()).tolist())
    [1, 3, 5]
    """
    alive = torch.from_numpy(np.sort(counts[counts > 0]))
    places = torch.linspace(0, len(alive) - 1, n).round().long()
    return alive[places][torch.randperm(n, generator=generator)]


@torch.no_grad()
def calibrate(
    populations: Mapping[str, CalibratedFeatures],
    counts: Mapping[str, Int[Tensor, " F"]],
    reader: ActivationReader,
    rows: TextRows,
    progress: Progress,
) -> None:
    """Set the thresholds: feature i fires on `counts[name][i]` tokens of a text, or fewer if scores are equal.

    Args:
        populations: By name.
        counts: As many as each has features, 1 or more each.
        reader: Reads the text, in one pass for all.
        rows: The text.
        progress: Receives the tokens read.
    """
    largest = {name: _Largest(counts[name] + 1) for name in populations}
    totals: dict[str, Tensor] = {}
    tokens = 0
    for batch, counted in reader.read(rows, "thresholds of the floors", progress):
        kept = torch.from_numpy(counted.ravel())
        tokens += int(kept.sum())
        for name, population in populations.items():
            scores = population.scores(batch.activations)
            scores = scores[kept.to(scores.device)].T.contiguous()
            largest[name].update(scores)
            totals[name] = totals.get(name, torch.zeros((), device=scores.device)) + scores.double().sum(1)
    for name, population in populations.items():
        population.thresholds = largest[name].last().cpu()
        population.means = (totals[name] / max(tokens, 1)).float().cpu()


class _Largest:
    """The `counts[i]`-th largest score of each feature, as batches go by.

    Features are kept together by the next power of four above their counts: memory is at most four times the need.
    """

    def __init__(self, counts: Int[Tensor, " F"]) -> None:
        self.counts = counts
        powers = torch.ceil(counts.double().log() / np.log(4) - 1e-9).long()
        self.groups = [(4 ** int(power), (powers == power).nonzero()[:, 0]) for power in powers.unique()]
        self.kept: list[Float[Tensor, "n _"] | None] = [None] * len(self.groups)

    def update(self, scores: Float[Tensor, "F T"]) -> None:
        for number, (size, members) in enumerate(self.groups):
            new, old = scores[members.to(scores.device)], self.kept[number]
            together = new if old is None else torch.cat([old, new], dim=1)
            self.kept[number] = together.topk(min(size, together.shape[1]), dim=1).values

    def last(self) -> Float[Tensor, " F"]:
        """Return the scores; the smallest there is where there were fewer."""
        thresholds = torch.empty(len(self.counts))
        for (_, members), kept in zip(self.groups, self.kept, strict=True):
            assert kept is not None, "a text has tokens"
            places = (self.counts[members] - 1).clamp_max(kept.shape[1] - 1).to(kept.device)
            thresholds[members] = kept.gather(1, places[:, None])[:, 0].cpu()
        return thresholds


def neuron_sites(sae: SparseAutoencoder, models: Mapping[str, LanguageModel]) -> dict[SiteRef, int]:
    """Return where the neurons of the blocks lie that an SAE reads, with their widths: `mlp_act` of each.

    What enters a block was written by the one before. For an architecture whose blocks are not known: the sites that
    the SAE reads, whose coordinates take the neurons' place.
    """
    sites: dict[SiteRef, int] = {}
    for read in sae.widths.read:
        model = models[read.model]
        layer = model.site(read.site).layer
        if layer is None:
            return dict(sae.widths.read)
        written_before = read.site.startswith("resid_pre.") and layer > 0
        name = f"mlp_act.{layer - written_before}"
        try:
            sites[SiteRef(read.model, name)] = model.width(name)
        except SiteError:
            return dict(sae.widths.read)
    return sites
