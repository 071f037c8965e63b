"""The sample on which hypotheses are held against each other: one text, run through the model once for all sites."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightsae.activations.roles import among
from lightsae.analysis.diagnose.case import OTHER_BOS, OTHER_MODEL, SAID, Sample, Text
from lightsae.analysis.diagnose.sites import Neighbour
from lightsae.analysis.reading.loaded_sae import LoadedSAE
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.errors import ConfigError, CorpusError, arg
from lightsae.lm import LanguageModel
from lightsae.progress import Progress
from lightsae.sae import SiteRef


def read_sample(
    loaded: LoadedSAE,
    near: Mapping[SiteRef, Sequence[Neighbour]],
    tokens: int,
    other_model: LanguageModel | None,
    progress: Progress,
) -> Sample:
    """Read the sample: the text as the SAE's file has it, with BOS the other way, and through another model.

    Args:
        loaded: The SAE with its model and text.
        near: Where it is read beside the SAE's own sites, on the text as the file has it.
        tokens: About how many.
        other_model: Read at the SAE's sites, under the name of the first.
        progress: Who is told.

    Raises:
        CorpusError: The text has no held-out rows.
        ConfigError: The other model's tokens or widths are others.
    """
    own = tuple(dict.fromkeys((*loaded.sae.widths.read, *loaded.sae.widths.predicted)))
    sites = (SiteRef(site.model, one.name) for site, found in near.items() for one in found)
    sample = {SAID: _read(loaded, loaded.models, (*own, *sites), tokens, progress, "activations")}
    if loaded.main_model.bos_token_id is not None:
        flipped = replace(loaded, corpus=replace(loaded.corpus, prepend_bos=loaded.corpus.prepend_bos is False))
        sample[OTHER_BOS] = _read(flipped, loaded.models, own, tokens, progress, "rows with BOS the other way")
    if other_model is not None:
        _check_other(loaded.main_model, other_model, own)
        models = {loaded.main_model.name: other_model}
        sample[OTHER_MODEL] = _read(loaded, models, own, tokens, progress, "the other model")
    return sample


def _check_other(model: LanguageModel, other: LanguageModel, own: Sequence[SiteRef]) -> None:
    sizes = [one.model.get_input_embeddings().num_embeddings for one in (model, other)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"{arg('other_model')} is {other.name!r}, whose vocabulary has {sizes[1]:,} tokens and not {sizes[0]:,}; "
            f"give a model that shares the tokens of {model.name!r}."
        )
    for site in own:
        if (width := other.width(site.site)) != model.width(site.site):
            raise ConfigError(
                f"{arg('other_model')} is {other.name!r}, where {site.site} has width {width} and not "
                f"{model.width(site.site)}; give a model of the same shape."
            )


def _read(
    loaded: LoadedSAE,
    models: dict[str, LanguageModel],
    sites: Sequence[SiteRef],
    tokens: int,
    progress: Progress,
    stage: str,
) -> Text:
    rows = loaded.held_out_rows(tokens)
    if not len(rows):
        raise CorpusError("dataset", loaded.corpus_entry()["dataset"], "it has no held-out text: name one that has")
    reader = ActivationReader(models, loaded.reading, tuple(sites))
    values: dict[SiteRef, list[Tensor]] = {site: [] for site in sites}
    sinks: dict[SiteRef, list[Tensor]] = {site: [] for site in sites}
    seen: list[Tensor] = []
    with progress.stage(stage, rows.n_tokens) as report:
        for batch, _ in reader.batches(rows):
            for site in values:
                values[site].append(batch.activations[site].float().clone())
                sinks[site].append(batch.sinks[site])
            skipped = batch.positions < loaded.reading.skip_positions
            if loaded.reading.skip_special:
                skipped |= batch.special
            if batch.roles is not None:
                skipped |= ~among(batch.roles, loaded.reading.roles)
            seen.append(~skipped)
            report(sum(map(len, seen)))
    joined = {site: torch.cat(parts) for site, parts in values.items()}
    return Text(joined, {site: torch.cat(parts) for site, parts in sinks.items()}, torch.cat(seen))
