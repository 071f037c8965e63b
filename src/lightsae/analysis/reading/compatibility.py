"""Whether a dictionary belongs to the language model in use: its name, its revision, its site."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightsae.errors import ModelError, SiteError
from lightsae.lm.load import source_of
from lightsae.lm.model import name_of, revision_of
from lightsae.sae import SiteRef, SparseAutoencoder

_OVERRIDE = "For a copy of that model, fine-tuned or under another name, say any_model=True."


def check_model(model: Any, told: str, revision: str | None) -> None:
    """Refuse any model but the one that a dictionary was made for.

    Weights are not compared: a model that was changed in memory, under its old name, passes.

    Args:
        model: A LanguageModel, or a transformers model.
        told: The model's name, as the dictionary has it.
        revision: Its revision, as the dictionary has it; None: any.

    Raises:
        ModelError: It is another model, or another revision, or one of them does not say which it is.
    """
    found, found_revision = name_of(model), revision_of(model)
    if not told:
        raise ModelError(
            f"the dictionary was trained on activations without a language model; {found!r} may be another. {_OVERRIDE}"
        )
    if not found:
        raise ModelError(f"the dictionary was made for {told!r}, and the model in use has no name. {_OVERRIDE}")
    if _place(told) != _place(found):
        raise ModelError(f"the dictionary was made for {told!r}, and the model in use is {found!r}. {_OVERRIDE}")
    if revision and found_revision and revision != found_revision:
        raise ModelError(
            f"the dictionary was made for {told!r} at revision {revision!r}, and the model in use is at "
            f"{found_revision!r}; load that revision. {_OVERRIDE}"
        )


def choose_site(sae: SparseAutoencoder, site: str | None) -> SiteRef:
    """Return where a dictionary writes.

    Raises:
        SiteError: It does not predict `site`; or it predicts several, and none was named.
    """
    predicted = list(sae.widths.predicted)
    known = ", ".join(repr(ref.site) for ref in predicted)
    if site is None and len(predicted) > 1:
        raise SiteError(f"the dictionary writes at {known}; name one of them: site={predicted[0].site!r}.")
    matching = [ref for ref in predicted if site is None or ref.site == site]
    if not matching:
        raise SiteError(f"site is {site!r}, but the dictionary belongs to {known}; it has no meaning elsewhere.")
    if len(matching) > 1:
        raise SiteError(f"site is {site!r}, which the dictionary predicts of several models; a pass runs only one.")
    return matching[0]


def check_reads(sae: SparseAutoencoder, written: SiteRef, why: str) -> None:
    """Refuse to work out latents of a dictionary that reads another model than the one that runs."""
    if other := _first(ref for ref in sae.widths.read if ref.model != written.model):
        raise SiteError(
            f"{why} needs the latents, which the dictionary reads from '{other}' too, a model that does not run here; "
            "Add and ProjectOut without a condition need none."
        )


def _place(name: str) -> str:
    """Return the same text for the same model: a Hub name, or the folder that a path or `builtin` stands for."""
    source = source_of(name)
    return str(Path(source).resolve()) if Path(source).exists() else source


def _first(refs: Iterable[SiteRef]) -> SiteRef | None:
    return next(iter(refs), None)
