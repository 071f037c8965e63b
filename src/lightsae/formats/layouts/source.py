"""Where an SAE of somebody's comes from, as far as its file or the list of releases tells."""

from dataclasses import asdict, dataclass
from typing import Any

from lightsae.sae import SiteRef, Widths

UNKNOWN_SITE = "activations"
# A reader gives this to a transcoder whose file does not say what it predicts.
UNKNOWN_TARGET = "predicted activations"


def one_of_several(site: str | None, number: int, of: int) -> str:
    """Return what one of several sites is called that the file does not tell apart; None: it does not say the place."""
    return f"{site or UNKNOWN_SITE} ({number} of {of})"


def is_unknown(site: str) -> bool:
    """Return whether a site's name stands for one that the file does not say."""
    return site.partition(" (")[0] in (UNKNOWN_SITE, UNKNOWN_TARGET)


@dataclass(frozen=True)
class Source:
    """What is known of an SAE beside its tensors; None is not known.

    Attributes:
        layout: Name of the layout that it was read from.
        model: Hub name of the language model.
        model_revision: Its revision.
        site: What is read, a portable name or a module path; see `lightsae.lm.sites`.
        target_site: What is predicted, of a transcoder; None: the SAE predicts what it reads.
        context_size: Tokens per row in training.
        sees_bos: Whether the first token of a row was trained on; with False it is left out when the SAE is read.
        dataset: Hub name of the text.
        published: Figures that the publisher gives, by the names of ours: `l0`, `fve`, `ce_recovered`.
        address: Repository, revision and path, where it was fetched.
    """

    layout: str | None = None
    model: str | None = None
    model_revision: str | None = None
    site: str | None = None
    target_site: str | None = None
    context_size: int | None = None
    sees_bos: bool | None = None
    dataset: str | None = None
    published: tuple[tuple[str, float], ...] = ()
    address: str | None = None

    def widths(self, d_in: int, d_out: int) -> Widths:
        """Return the sites with their widths; activations of no particular origin, where none is known."""
        read = SiteRef(self.model or "", self.site or UNKNOWN_SITE)
        if self.target_site is None and d_in == d_out:
            return Widths.autoencoder(read, d_in)
        return Widths({read: d_in}, {SiteRef(read.model, self.target_site or UNKNOWN_TARGET): d_out})

    def provenance(self, folded: tuple[str, ...]) -> dict[str, Any]:
        """Return what the export of such an SAE says of it, as `SavedSAE.provenance` reads it."""
        told = {name: value for name, value in asdict(self).items() if value is not None and name != "published"}
        skip = {} if self.sees_bos is not False else {"skip_positions": 1}
        return {
            **told,
            **skip,
            "normalisation": "none",
            "published": dict(self.published),
            "folded": list(folded),
        }
