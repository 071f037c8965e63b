"""Where the raw neurons of the blocks lie that an SAE reads."""

from collections.abc import Mapping

from lightsae.errors import SiteError
from lightsae.lm import LanguageModel
from lightsae.sae import SiteRef, SparseAutoencoder


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
