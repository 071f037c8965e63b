"""Where an SAE reads and predicts: references to sites of language models, and their widths."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class SiteRef(NamedTuple):
    """A site of a model. `model` is the name or path as the user wrote it; empty for activation files."""

    model: str
    site: str

    def __str__(self) -> str:
        return f"{self.model}:{self.site}" if self.model else self.site


@dataclass(frozen=True)
class Widths:
    """The sites that an SAE reads and those that it predicts, each with its width.

    An autoencoder predicts what it reads; a transcoder predicts another site; a crosscoder reads and predicts several.
    """

    read: dict[SiteRef, int]
    predicted: dict[SiteRef, int]

    @classmethod
    def autoencoder(cls, site: SiteRef, width: int) -> "Widths":
        return cls({site: width}, {site: width})

    @classmethod
    def of(cls, width: int) -> "Widths":
        """Widths of an autoencoder on activations of no particular origin, as in tests and notebooks."""
        return cls.autoencoder(SiteRef("", "activations"), width)

    @staticmethod
    def join(activations: Mapping[SiteRef, Float[Tensor, "T _"]], sites: Iterable[SiteRef]) -> Float[Tensor, "T D"]:
        """Return the activations at some sites side by side, in the order of `sites`; one site's are not copied."""
        parts = [activations[site] for site in sites]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @staticmethod
    def split(columns: Float[Tensor, "*batch D"], widths: Mapping[SiteRef, int]) -> dict[SiteRef, Tensor]:
        """Undo `join`: return each site's columns, as views.

        Example:
            >>> parts = Widths.split(torch.arange(5.0), {SiteRef("", "a"): 2, SiteRef("", "b"): 3})
            >>> {str(site): part.tolist() for site, part in parts.items()}
            {'a': [0.0, 1.0], 'b': [2.0, 3.0, 4.0]}
        """
        return dict(zip(widths, columns.split(list(widths.values()), dim=-1), strict=True))

    @property
    def d_in(self) -> int:
        return sum(self.read.values())

    @property
    def d_out(self) -> int:
        return sum(self.predicted.values())


def short_names(sites: Iterable[SiteRef]) -> dict[SiteRef, str]:
    """Return the shortest words that tell sites apart: the site, the model, or both; of a model's path its end.

    >>> list(short_names([SiteRef("org/base", "resid_post.3"), SiteRef("org/base", "resid_post.5")]).values())
    ['resid_post.3', 'resid_post.5']
    >>> list(short_names([SiteRef("org/base", "resid_post.3"), SiteRef("org/chat", "resid_post.3")]).values())
    ['base', 'chat']
    """
    distinct = list(dict.fromkeys(sites))
    models = {site.model: site.model.rstrip("/").rpartition("/")[2] for site in distinct}
    if len(set(models.values())) < len(models):
        models = {model: model for model in models}
    if len(models) == 1:
        return {site: site.site for site in distinct}
    if len({site.site for site in distinct}) == 1:
        return {site: models[site.model] for site in distinct}
    return {site: f"{models[site.model]}:{site.site}" for site in distinct}
