"""A map: points in the plane, with what colours them, what they say and what they open."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Colouring:
    """One way to colour the points of a map.

    Attributes:
        name: Such as `token class`, or `feature 12: digits`.
        values: One a point: numbers (a scale), or texts (classes).
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
        texts: What hovering shows, one a point; with `links`, the feature's label is shown too.
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
