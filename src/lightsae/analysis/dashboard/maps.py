"""Maps: points in the plane, placed by UMAP if umap-learn is installed, else by the two largest principal components.

Axes: n points, D width, F features.
Source: McInnes et al. 2018, arXiv:1802.03426, for UMAP.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.errors import ConfigError

Method = Literal["auto", "umap", "pca"]
# Fewer points have no neighbourhoods worth speaking of.
_FEWEST = 30
# Wider points go through this many principal components first: UMAP's time is in the distances.
_COMPONENTS = 64
_EPOCHS = 200
# Of UMAP, and of the sample where there are too many points; directions that are drawn at the most.
_SEED, _DIRECTIONS = 0, 30_000


@dataclass(frozen=True)
class Colouring:
    """One way to colour the points of a map.

    Attributes:
        name: Such as `token class`, or `feature 12: digits`.
        values: One per point: numbers (a scale), or texts (classes).
        log: Show numbers on a logarithmic scale.
    """

    name: str
    values: Sequence[str] | Float[np.ndarray, " n"]
    log: bool = False


@dataclass(frozen=True)
class Map:
    """Points in the plane.

    Attributes:
        name: What the points are, as a heading.
        method: How they came into the plane: method, settings, seed, how many of how many points.
        coordinates: (n, 2).
        colours: Ways to colour them. Points with `links` can be coloured by what is known of their features as well.
        texts: What hovering shows, one per point; with `links`, the feature's label is shown too.
        links: The feature that each point is of, and opens.
        group: Maps of one group stand side by side, as before and after; by default each stands alone.
    """

    name: str
    method: str
    coordinates: Float[np.ndarray, "n 2"]
    colours: Sequence[Colouring] = ()
    texts: Sequence[str] | None = None
    links: Int[np.ndarray, " n"] | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        n = len(self.coordinates)
        for what, column in (
            ("texts", self.texts),
            ("links", self.links),
            *((f"colour {c.name!r}", c.values) for c in self.colours),
        ):
            assert column is None or len(column) == n, f"{what} of a map with {n} points: {len(column)}"


def decoder_map(
    W_dec: Float[Tensor, "F O"],
    *,
    features: Int[Tensor, " n"] | None = None,
    method: Method = "auto",
) -> Map:
    """Return a map of an SAE's directions, each of which opens its feature.

    Args:
        W_dec: Decoder rows; their lengths play no part.
        features: Which of them, such as the live ones; None: all. Of very many a sample is drawn, as the map then says.
        method: auto takes UMAP if it is installed.

    Raises:
        ConfigError: UMAP is asked for, but not installed.
    """
    chosen = torch.arange(len(W_dec)) if features is None else features.cpu()
    drawn, sampled = _sample(len(chosen), _DIRECTIONS, "features")
    chosen = chosen[drawn]
    rows = W_dec.detach().cpu().float()[chosen]
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    coordinates, how = place(rows, method=method, metric="cosine")
    return Map("Decoder directions", f"{how}{sampled}", coordinates, links=chosen.numpy())


def activation_map(
    x: Float[Tensor, "n D"],
    *,
    name: str,
    colours: Sequence[Colouring] = (),
    texts: Sequence[str] | None = None,
    group: str | None = None,
    method: Method = "auto",
    metric: Literal["euclidean", "cosine"] = "euclidean",
    max_points: int = 10_000,
) -> Map:
    """Return a map of activations, one point per token: raw ones (before), or latents (after).

    Args:
        x: Activations, without attention sinks: their norms would leave nothing else to see.
        name: Heading of the map.
        colours: Such as token classes, or the activation of a feature; one value per row of `x`.
        texts: What hovering shows, such as the token in its context.
        group: Maps of one group stand side by side.
        method: auto takes UMAP if it is installed.
        metric: Distance that UMAP keeps; cosine suits latents.
        max_points: More are sampled, which the map then says.

    Raises:
        ConfigError: UMAP is asked for, but not installed.
    """
    drawn, sampled = _sample(len(x), max_points, "tokens")
    coordinates, how = place(x.detach().cpu()[drawn].float(), method=method, metric=metric)
    places = drawn.tolist()

    def drawn_of(values: Any) -> Any:
        return values[places] if isinstance(values, np.ndarray) else [values[i] for i in places]

    kept = [replace(colouring, values=drawn_of(colouring.values)) for colouring in colours]
    return Map(name, f"{how}{sampled}", coordinates, kept, None if texts is None else drawn_of(texts), group=group)


def place(
    points: Float[Tensor, "n D"],
    *,
    method: Method = "auto",
    metric: Literal["euclidean", "cosine"] = "euclidean",
) -> tuple[Float[np.ndarray, "n 2"], str]:
    """Return coordinates in the plane, and in words how they were found.

    Raises:
        ConfigError: UMAP is asked for, but not installed.
    """
    if not torch.isfinite(points).all():
        raise ConfigError("The points of a map hold a NaN or an infinity; map activations that are finite.")
    umap = None if method == "pca" or len(points) < _FEWEST else _umap()
    if umap is None and method == "umap" and len(points) >= _FEWEST:
        raise ConfigError("method is 'umap', but umap-learn is not installed: pip install umap-learn; or write 'pca'.")
    if umap is None:
        components, explained = principal_components(points, 2)
        return components, f"PCA: the two largest components, {100 * explained:.0f}% of the variance"
    reduced = points.numpy()
    before = ""
    if points.shape[1] > _COMPONENTS:
        reduced, _ = principal_components(points, _COMPONENTS)
        before = f" of the {_COMPONENTS} largest principal components"
    neighbours = min(15, len(points) - 1)
    start = reduced[:, :2] if before else principal_components(points, 2)[0]
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba's and scikit-learn's own making
        placed = umap.UMAP(
            n_neighbors=neighbours,
            min_dist=0.1,
            metric=metric,
            n_epochs=_EPOCHS,
            # A start that shows the large structure, at no cost; UMAP's own takes eigenvectors of a large graph.
            init=(10 * start / max(float(np.abs(start).max()), 1e-12)).astype(np.float32),
            precomputed_knn=_nearest(reduced, neighbours, metric),
            random_state=_SEED,
            n_jobs=1,  # a fixed seed allows no more
        ).fit_transform(reduced)
    torch.set_num_threads(threads)  # numba sets it for the whole process
    settings = f"{neighbours} neighbours, minimum distance 0.1, {metric}, {_EPOCHS} epochs, seed {_SEED}"
    return np.asarray(placed, dtype=np.float32), f"UMAP{before} ({settings})"


def principal_components(points: Float[Tensor, "n D"], k: int) -> tuple[Float[np.ndarray, "n k"], float]:
    """Return the points' k largest principal components, and their share of the variance.

    Signs are fixed: the largest entry of each direction is positive. Missing components are 0. Of many wide points the
    components are found by random projections, always the same ones.
    """
    from sklearn.decomposition import PCA

    components = np.zeros((len(points), k), np.float32)
    varied = points.double().numpy()
    if not len(points) or not np.ptp(varied, axis=0).any():
        return components, 0.0
    found = PCA(min(k, *points.shape), random_state=0).fit(varied)
    largest = np.abs(found.components_).argmax(1, keepdims=True)
    signs = np.sign(np.take_along_axis(found.components_, largest, 1))[:, 0]
    components[:, : len(signs)] = found.transform(varied) * signs
    return components, float(found.explained_variance_ratio_.sum())


def _sample(n: int, most: int, what: str) -> tuple[Int[Tensor, " kept"], str]:
    if n <= most:
        return torch.arange(n), f"; {n:,} {what}"
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(_SEED))[:most].sort().values
    return drawn, f"; {most:,} of {n:,} {what}, drawn with seed {_SEED}"


def _nearest(points: Float[np.ndarray, "n D"], k: int, metric: str) -> tuple[Any, Any]:
    """Return each point's nearest ones, itself first, and their distances. Exact, and faster than UMAP's own search."""
    from sklearn.neighbors import NearestNeighbors

    distances, nearest = NearestNeighbors(n_neighbors=k, metric=metric).fit(points).kneighbors(points)
    return nearest, distances.astype(np.float32)


def _umap() -> Any:
    """Return the module umap, or None. Importing it compiles, and takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import umap
        except ImportError:
            return None
    return umap
