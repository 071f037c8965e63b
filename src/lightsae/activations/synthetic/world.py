"""A world of known features: unit directions, how often they fire, and what they fire together with.

Axes:    T tokens, D width, n features, N firings in all T tokens, B features without a parent.
Order:   by how often they are to fire, feature 0 most often. Where there are trees, the roots come first, then all
         their children level by level (those of a feature side by side), then the features outside trees.
Source:  the make of SynthSAEBench, arXiv:2602.14687. There, every feature is drawn by itself, with probabilities raised
         to make up for absent parents and for exclusion, roughly, and cut at 1. Here a child is drawn where its parent
         fired, so that `probabilities` hold to the letter; the copula ties only the features without a parent.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.activations.synthetic.config import DEFAULT_ACTIVE, SyntheticConfig, resolved, tree_features
from lightsae.randomness import keyed_generator
from lightsae.sae.sparse_ops import SparseLatents, SparsePattern, decode

__all__ = ["SyntheticConfig", "SyntheticWorld"]

# Numbers in the dense tensors of one step of sampling; a GPU wants more at once.
_CHUNK = {"cpu": 1 << 21}
_CHUNK_ELSEWHERE = 1 << 26


class _Tables(NamedTuple):
    """What sampling reads, on one device, float32. See the properties of the world for what the first ones are."""

    parentless: Tensor
    rates: Tensor
    thresholds: Tensor
    factors: Tensor
    child_bounds: list[Tensor]
    magnitude_mean: Tensor
    magnitude_std: Tensor
    features: Tensor
    bias: Tensor


class SyntheticWorld:
    """Draws which features fire, how strongly, and the activations that they add up to.

    Everything follows from the settings and the generators that are passed in. What is drawn lies on the generator's
    device.

    Args:
        config: Settings; a preset in them is filled in.

    Raises:
        ConfigError: A setting cannot work.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = resolved(config)
        self._by_device: dict[torch.device, _Tables] = {}

    @property
    def width(self) -> int:
        """D. Costs nothing, unlike `features`."""
        return self.config.width

    @cached_property
    def features(self) -> Float[Tensor, "n D"]:
        """The true directions: unit rows, float32, on the CPU."""
        random = self._draw("features", self.config.features, self.config.width)
        unit = torch.nn.functional.normalize(random, dim=1)
        if not self.config.orthogonalise_steps:
            return unit
        # The product of all features with all features is too much for a CPU where there are many.
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return spread_out(unit.to(device), self.config.orthogonalise_steps, self.config.orthogonalise_target).cpu()

    @cached_property
    def levels(self) -> list[range]:
        """The features of each level of the trees, roots first; empty without a hierarchy."""
        levels, start, size = [], 0, self.config.roots
        for _ in range(self.config.depth + 1 if self.config.roots else 0):
            levels.append(range(start, start + size))
            start, size = start + size, size * self.config.branching
        return levels

    @cached_property
    def child_probabilities(self) -> list[Float[Tensor, "parents branching"]]:
        """For each level but the last: how probable each child is where its parent fires, float64.

        Children that would have to fire more often than their parent are taken down to it; exclusive ones all together,
        in proportion.
        """
        probabilities, tables = _wanted_probabilities(self.config), []
        parents = probabilities[: self.config.roots]
        for level in self.levels[1:]:
            conditional = probabilities[level.start : level.stop].view(-1, self.config.branching) / parents[:, None]
            if self.config.exclusive:
                conditional = conditional / conditional.sum(1, keepdim=True).clamp_min(1)
            tables.append(conditional.clamp_max(1))
            parents = (tables[-1] * parents[:, None]).flatten()
        return tables

    @cached_property
    def probabilities(self) -> Float[Tensor, " n"]:
        """Share of the tokens on which each feature fires, float64: what the settings say, less what trees forbid."""
        result = _wanted_probabilities(self.config)
        parents = result[: self.config.roots]
        for level, given in zip(self.levels[1:], self.child_probabilities, strict=True):
            parents = (given * parents[:, None]).flatten()
            result[level.start : level.stop] = parents
        return result

    @cached_property
    def factors(self) -> Float[Tensor, "B rank"]:
        """What each feature without a parent takes of the hidden variables; squared rows add up to the strength."""
        draws = self._draw("correlations", len(self._parentless), self.config.correlation_rank)
        factors: Tensor = torch.nn.functional.normalize(draws, dim=1) * self.config.correlation_strength**0.5
        return factors

    @cached_property
    def _parentless(self) -> Tensor:
        roots = torch.arange(self.config.roots)
        in_trees = tree_features(self.config)
        return torch.cat([roots, torch.arange(in_trees, self.config.features)])

    def sample(self, tokens: int, generator: torch.Generator) -> SparseLatents:
        """Draw what fires on each of T tokens: features in ascending order, with their magnitudes (above 0)."""
        chunk = _CHUNK.get(generator.device.type, _CHUNK_ELSEWHERE) // len(self._parentless)
        chunk = max(1, min(chunk, tokens))
        parts = [self._sample(min(chunk, tokens - start), generator) for start in range(0, tokens, chunk)]
        token_of, indices, values = (torch.cat(part) for part in zip(*parts, strict=True))
        # Tokens of a part are numbered from 0; counting them needs their place in the whole.
        sizes = torch.tensor([len(part[0]) for part in parts], device=indices.device)
        token_of += (torch.arange(len(parts), device=indices.device) * chunk).repeat_interleave(sizes)
        offsets = torch.bincount(token_of, minlength=tokens).cumsum(0)
        offsets = torch.nn.functional.pad(offsets, (1, 0))
        return SparseLatents(values, SparsePattern(indices, offsets, self.config.features))

    def activations(self, truth: SparseLatents, generator: torch.Generator) -> Float[Tensor, "T D"]:
        """Return the sum of what fires, with the bias and noise of the settings; float32."""
        tables = self._tables(truth.values.device)
        x = decode(truth, tables.features).add_(tables.bias)
        if self.config.noise:
            x += self.config.noise * torch.randn(x.shape, generator=generator, device=x.device)
        return x

    def _sample(self, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return token, feature and magnitude of each firing, ordered by token and feature."""
        tables = self._tables(generator.device)
        draw = self._correlated if self.config.correlation_rank else self._independent
        token_of, places = draw(tokens, generator, tables)
        features = tables.parentless[places]
        values = self._magnitudes(features, tables, generator)
        if not self.levels:
            return token_of, features, values
        parts = [(token_of, features, values)]
        in_level = features < self.config.roots
        parents = tuple(part[in_level] for part in parts[0])
        for number, bounds in enumerate(tables.child_bounds):
            parents = self._children(parents, number, bounds, tables, generator)
            parts.append(parents)
        token_of, features, values = (torch.cat(part) for part in zip(*parts, strict=True))
        order = torch.argsort(token_of * self.config.features + features)
        return token_of[order], features[order], values[order]

    def _independent(self, tokens: int, generator: torch.Generator, tables: _Tables) -> tuple[Tensor, Tensor]:
        """Draw without a look at every token: points fall at a rate by which at least one falls with probability p."""
        counts = torch.poisson(tables.rates * tokens, generator=generator).long()
        places = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        fallen = torch.randint(tokens, (len(places),), generator=generator, device=counts.device)
        hit = torch.unique(fallen * len(counts) + places)
        return hit // len(counts), hit % len(counts)

    def _correlated(self, tokens: int, generator: torch.Generator, tables: _Tables) -> tuple[Tensor, Tensor]:
        """Draw by a Gaussian copula: a feature fires where a normal variable passes its threshold."""
        device, strength = generator.device, self.config.correlation_strength
        hidden = torch.randn(tokens, self.config.correlation_rank, generator=generator, device=device)
        own = torch.randn(tokens, len(tables.thresholds), generator=generator, device=device)
        latent = own.addmm_(hidden, tables.factors.T, beta=(1 - strength) ** 0.5)
        token_of, places = (latent > tables.thresholds).nonzero(as_tuple=True)
        return token_of, places

    def _children(
        self, parents: tuple[Tensor, ...], number: int, bounds: Tensor, tables: _Tables, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the firings in the level below `parents`, which are firings of level `number`."""
        token_of, features, values = parents
        branching = self.config.branching
        chance = torch.rand(
            len(features), 1 if self.config.exclusive else branching, generator=generator, device=generator.device
        )
        within = features - self.levels[number].start
        if self.config.exclusive:
            # The children cut [0, 1) into stretches; where the chance falls behind the last, none fires.
            child = (chance >= bounds[within]).sum(1)
            fired = (child < branching).nonzero().squeeze(1)
            child = child[fired]
        else:
            fired, child = (chance < bounds[within]).nonzero(as_tuple=True)
        chosen_features = self.levels[number + 1].start + within[fired] * branching + child
        magnitudes = self._magnitudes(chosen_features, tables, generator)
        if self.config.scale_children:
            magnitudes *= values[fired] / tables.magnitude_mean[features[fired]]
        return token_of[fired], chosen_features, magnitudes

    def _magnitudes(self, features: Tensor, tables: _Tables, generator: torch.Generator) -> Tensor:
        draws = torch.randn(len(features), generator=generator, device=generator.device)
        folded = draws.mul_(tables.magnitude_std[features]).add_(tables.magnitude_mean[features]).abs_()
        return folded.clamp_min_(torch.finfo(torch.float32).tiny)

    def _tables(self, device: torch.device) -> _Tables:
        if device not in self._by_device:
            self._by_device[device] = self._make_tables(device)
        return self._by_device[device]

    def _make_tables(self, device: torch.device) -> _Tables:
        config, chances = self.config, self.probabilities[self._parentless]
        rank = torch.linspace(0, 1, config.features)
        last = config.magnitude_mean if config.magnitude_mean_last is None else config.magnitude_mean_last
        std = config.magnitude_std + config.magnitude_std_spread * self._draw("magnitudes", config.features)
        bias = torch.nn.functional.normalize(self._draw("bias", config.width), dim=0) * config.bias_norm
        bounds = [shares.cumsum(1) if config.exclusive else shares for shares in self.child_probabilities]
        return _Tables(
            parentless=self._parentless.to(device),
            # A feature that always fires would have an infinite rate.
            rates=-torch.log1p(-chances.clamp_max(1 - 1e-9)).to(device),
            thresholds=-torch.special.ndtri(chances).float().to(device),
            factors=self.factors.to(device),
            child_bounds=[bound.float().to(device) for bound in bounds],
            magnitude_mean=torch.lerp(torch.tensor(config.magnitude_mean), torch.tensor(last), rank).to(device),
            magnitude_std=std.abs().to(device),
            features=self.features.to(device),
            bias=bias.to(device),
        )

    def _draw(self, what: str, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=keyed_generator(self.config.seed, f"synthetic world, {what}"))


def _wanted_probabilities(config: SyntheticConfig) -> Float[Tensor, " n"]:
    """Return how often each feature is to fire by the settings, before trees have their say."""
    if config.frequencies == "uniform":
        active = DEFAULT_ACTIVE if config.active is None else config.active
        return torch.full((config.features,), active / config.features, dtype=torch.float64)
    weights = torch.arange(1, config.features + 1, dtype=torch.float64) ** -config.zipf_exponent
    # Stretched over the whole span, so that the last feature fires with min_probability.
    share = (weights - weights[-1]) / (1 - weights[-1]).clamp_min(torch.finfo(torch.float64).tiny)
    return config.min_probability + (config.max_probability - config.min_probability) * share


def spread_out(features: Float[Tensor, "n D"], steps: int, target: float, rate: float = 0.5) -> Float[Tensor, "n D"]:
    """Turn unit rows away from each other, until the mean of their largest |cosine| is `target` or the steps are over.

    Gradient descent on half the sum of squares of what passes the target; rows stay of unit length.
    """
    for _ in range(steps):
        gradient, mean_max = _overlaps(features, target)
        if mean_max <= target:
            break
        features = torch.nn.functional.normalize(features - rate * gradient, dim=1)
    return features


def _overlaps(features: Tensor, margin: float, chunk: int = 1024) -> tuple[Tensor, float]:
    """Return the gradient by which overlaps above the margin shrink, and the mean largest |cosine|."""
    gradient, largest = torch.empty_like(features), features.new_empty(len(features))
    for start in range(0, len(features), chunk):
        part = slice(start, start + chunk)
        cosines = features[part] @ features.T
        cosines.diagonal(start).zero_()
        largest[part] = cosines.abs().amax(1)
        gradient[part] = torch.nn.functional.softshrink(cosines, margin) @ features
    return gradient, largest.mean().item()
