"""What a feature writes at a site, in the site's own units.

Axes: F features, D width of the site.
"""

from jaxtyping import Float
from torch import Tensor

from lightsae.errors import SiteError
from lightsae.sae import SiteRef, SparseAutoencoder, Widths


def directions(sae: SparseAutoencoder, site: SiteRef) -> Float[Tensor, "F D"]:
    """Return what one unit of each latent adds to the raw activations at a site: d_i / output_scale.

    Args:
        sae: Dictionary; of a crosscoder's rows, the columns of `site`.
        site: One that the dictionary predicts.

    Returns:
        Float32, detached. A latent's unit is that of the dictionary: normalised activations.

    Raises:
        SiteError: The dictionary does not predict the site.
    """
    predicted = sae.widths.predicted
    if site not in predicted:
        raise SiteError(f"site is '{site}', but the dictionary predicts {', '.join(map(str, predicted))}; write that.")
    place = list(predicted).index(site)
    return Widths.split(sae.W_dec.detach(), predicted)[site].float() / sae.output_scale[place]
