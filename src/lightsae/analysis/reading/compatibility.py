"""Whether an SAE belongs to the language model in use: its name, its revision, its site."""

from pathlib import Path
from typing import Any

from lightsae.errors import ModelError, SiteError
from lightsae.lm.config import source_of
from lightsae.lm.model import name_of, revision_of
from lightsae.lm.random_weights import split_name
from lightsae.sae import SiteRef, SparseAutoencoder

_OVERRIDE = "For a copy of that model, fine-tuned or under another name, say any_model=True."


def check_model(model: Any, name: str, revision: str | None) -> None:
    """Refuse any model but the one that an SAE was made for.

    Weights are not compared: a model that was changed in memory, under its old name, passes.

    Args:
        model: A LanguageModel, or a transformers model.
        name: The model's name, as the SAE has it.
        revision: Its revision, as the SAE has it; None: any.

    Raises:
        ModelError: It is another model, or another revision, or one of them does not say which it is.
    """
    in_use, revision_in_use = name_of(model), revision_of(model)
    if not name:
        raise ModelError(
            f"the SAE was trained on activations without a language model; {in_use!r} may be another. {_OVERRIDE}"
        )
    if not in_use:
        raise ModelError(f"the SAE was made for {name!r}, and the model in use has no name. {_OVERRIDE}")
    if _place(name) != _place(in_use):
        raise ModelError(f"the SAE was made for {name!r}, and the model in use is {in_use!r}. {_OVERRIDE}")
    if revision and revision_in_use and revision != revision_in_use:
        raise ModelError(
            f"the SAE was made for {name!r} at revision {revision!r}, and the model in use is at "
            f"{revision_in_use!r}; load that revision. {_OVERRIDE}"
        )


def choose_site(sae: SparseAutoencoder, site: str | None) -> SiteRef:
    """Return where an SAE writes.

    Raises:
        SiteError: It does not predict `site`; or it predicts several, and none was named.
    """
    predicted = list(sae.widths.predicted)
    known = ", ".join(repr(ref.site) for ref in predicted)
    if site is None and len(predicted) > 1:
        raise SiteError(f"the SAE writes at {known}; name one of them: site={predicted[0].site!r}.")
    matching = [ref for ref in predicted if site is None or ref.site == site]
    if not matching:
        raise SiteError(f"site is {site!r}, but the SAE belongs to {known}; it has no meaning elsewhere.")
    if len(matching) > 1:
        raise SiteError(f"site is {site!r}, which the SAE predicts of several models; a pass runs only one.")
    return matching[0]


def check_reads(sae: SparseAutoencoder, written: SiteRef, why: str) -> None:
    """Refuse to work out latents of an SAE that reads another model than the one that runs."""
    if other := next((ref for ref in sae.widths.read if ref.model != written.model), None):
        raise SiteError(
            f"{why} needs the latents, which the SAE reads from '{other}' too, a model that does not run here; "
            "Add and ProjectOut without a condition need none."
        )


def _place(name: str) -> tuple[str, int | None]:
    """Return the same for the same model: a Hub name or a folder, and the seed if its weights are random."""
    source = source_of(name)
    return str(Path(source).resolve()) if Path(source).exists() else source, split_name(name)[1]
