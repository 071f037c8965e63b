"""Finds thresholds with a given false-positive rate on some documents, and tests them on others.

The rate holds on average over calibrations; with a confidence, in so many of them.

Axes:  T watched tokens, n features.

A false positive is a token where a feature exceeds its threshold and its concept is absent. Where the feature
dictionary has a detector of the feature that passed its gate, the concept is present where that holds, and the rate is
among the tokens where it does not. Otherwise nobody can tell, and the rate is of all firings among all tokens.
"""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lightsae.activations.corpus.documents import Conversation
from lightsae.activations.roles import check_roles
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.labels.patterns import PatternKeys, needs_roles, patterns_of
from lightsae.analysis.reading.text import TextRows
from lightsae.errors import ConfigError, arg
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm import LanguageModel
from lightsae.lm.model import name_of, revision_of, vocabulary_of
from lightsae.metrics.intervals import share_of
from lightsae.production.monitor.calibration_text import CalibrationText
from lightsae.production.monitor.conformal import Documents, Values, least_effective, threshold_for
from lightsae.production.monitor.drift_watch import TextCounts
from lightsae.production.monitor.thresholds import Calibrated, Tested, Thresholds
from lightsae.production.monitor.watched_features import WatchedFeatures
from lightsae.production.monitor.watcher import Pass, Watcher, inner_model, tokenizer_of
from lightsae.randomness import keyed_generator
from lightsae.sae import SparseAutoencoder

Mask = NDArray[np.bool_]
_DEFAULT_COLUMNS = 1024


def calibrate(
    model: Any,
    dictionary: FeatureDictionary | str | Path,
    *,
    sae: SavedSAE | SparseAutoencoder | str | Path,
    texts: TextRows | Sequence[str] | Sequence[Sequence[int]] | Sequence[Conversation],
    features: Sequence[int] | None = None,
    rates: Sequence[float] = (0.01,),
    confidence: float | None = None,
    held_out_share: float = 0.5,
    roles: Sequence[str] | None = None,
    seed: int = 0,
    rows_at_once: int = 16,
    tokenizer: Any = None,
    any_model: bool = False,
) -> Thresholds:
    """Return thresholds for a monitor, tested on documents that they do not come from.

    Args:
        model: A LanguageModel, or a transformers model.
        dictionary: The feature dictionary, or its folder.
        sae: The SAE, or its folder.
        texts: Documents that nothing was trained on, of the kind that will be watched: rows of a corpus, strings,
            token ids, or conversations, lists of messages. Of their length too: nothing is known about longer ones.
        features: By number; None: all labelled ones of the tier `high`.
        rates: False-positive rates, above 0 and below 1.
        confidence: None: a threshold's rate is the asked one on average over calibrations, and about half of them end
            up above it. 0.9: in 90% of calibrations the rate is at most the asked one; the threshold is higher, and
            takes more documents.
        held_out_share: Share of the documents on which the thresholds are tested.
        roles: Of conversations, the roles whose tokens count: [assistant], or more of `activations.roles`. A monitor
            with these thresholds watches the same. None: all tokens.
        seed: Of the split.
        rows_at_once: In a forward pass.
        tokenizer: Of a transformers model; a LanguageModel brings its own.
        any_model: Take a model of another name or revision: a fine-tuned copy.

    Raises:
        ModelError, SiteError, FormatError: As `monitor`.
        ConfigError: A feature, a rate or a role does not exist, or there is too little text for a rate: tokens of a
            document are alike, so that it can take many more than 1 / rate.
        CorpusError: The tokenizer's chat template does not take a conversation.

    Source:
        See `conformal`. On average (marginal validity) and with a confidence (training-conditional): Vovk 2012.
    """
    for rate in rates:
        if not 0 < rate < 1:
            raise ConfigError(
                f"{arg('rates')} holds {rate:g}; a false-positive rate lies above 0 and below 1, such as 0.01."
            )
    if not rates:
        raise ConfigError(f"{arg('rates')} is empty; write false-positive rates, such as [0.01].")
    if confidence is not None and not 0.5 < confidence < 1:
        raise ConfigError("confidence", confidence, "it lies above 0.5 and below 1, such as 0.9; or write None")
    if not 0 < held_out_share < 1:
        raise ConfigError("held_out_share", held_out_share, "it lies above 0 and below 1")
    check_roles(roles)
    chosen = WatchedFeatures.of(model, dictionary, sae, features, any_model=any_model)
    tokenizer = tokenizer or tokenizer_of(model)
    limit = getattr(inner_model(model).config.get_text_config(), "max_position_embeddings", None)
    text = CalibrationText.of(texts, tokenizer, limit or _DEFAULT_COLUMNS, roles)
    latents, watched = _read(chosen, text, tokenizer, rows_at_once)
    documents = text.documents[watched]
    concepts = _concepts(chosen, text, watched)
    numbers = np.unique(documents)
    if len(numbers) < 4:
        raise ConfigError(f"{arg('texts')} holds {len(numbers)} documents; thresholds and their test take at least 4.")
    drawn = torch.randperm(len(numbers), generator=keyed_generator(seed, "documents to calibrate on")).numpy()
    n_tested = min(len(numbers) - 2, max(2, round(held_out_share * len(numbers))))
    tested = np.isin(documents, numbers[drawn[:n_tested]])
    active = pd.DataFrame(latents > 0).groupby(documents).sum().to_numpy(np.int64)
    normal = TextCounts(active, np.unique(documents, return_counts=True)[1])
    frequencies = normal.mean
    calibrated = {}
    for column, feature in enumerate(chosen.numbers):
        values, concept = latents[:, column], concepts.get(feature)
        kept = np.ones(len(values), bool) if concept is None else ~concept
        by_rate = {
            float(rate): _tested(feature, values, documents, kept & ~tested, kept & tested, rate, confidence)
            for rate in rates
        }
        recall = {}
        if concept is not None and (with_concept := concept & tested).any():
            recall = {rate: float((values[with_concept] > one.threshold).mean()) for rate, one in by_rate.items()}
        calibrated[feature] = Calibrated(
            kind="rate" if concept is None else "concept",
            concept_share=None if concept is None else float(concept.mean()),
            recall=recall,
            rates=by_rate,
            frequency=float(frequencies[column]),
            active={text: int(active[text, column]) for text in np.flatnonzero(active[:, column]).tolist()},
        )
    return Thresholds(
        sae=chosen.sae_sha256,
        dictionary=chosen.dictionary.id,
        model={"name": name_of(model), "revision": revision_of(model)},
        text=text.sha256(),
        documents=len(numbers) - n_tested,
        held_out_documents=n_tested,
        tokens=len(documents),
        longest=normal.longest,
        seed=seed,
        confidence=confidence,
        sizes=normal.sizes.tolist(),
        roles=None if roles is None else list(roles),
        features=calibrated,
    )


def _read(chosen: WatchedFeatures, text: CalibrationText, tokenizer: Any, rows_at_once: int) -> tuple[Values, Mask]:
    """Return the latents of the watched tokens that count, (T, n), and which of the text's tokens these are."""
    latents: list[Values] = []
    masks: list[Mask] = []

    def take(one: Pass) -> None:
        latents.append(one.latents[one.watched].float().cpu().numpy())
        masks.append(one.watched.cpu().numpy())

    watcher = Watcher(chosen, tokenizer, lambda: None, take)
    inner = inner_model(chosen.model)
    body, device = inner.base_model, inner.device
    with torch.no_grad(), watcher.open():
        for start in range(0, len(text.tokens), rows_at_once):
            part = slice(start, start + rows_at_once)
            mask = torch.from_numpy(text.real[part]).long().to(device)
            body(input_ids=torch.from_numpy(text.tokens[part]).to(device), attention_mask=mask, use_cache=False)
    watched = np.concatenate(masks)
    return np.concatenate(latents)[text.counted[watched]], watched & text.counted


def _concepts(chosen: WatchedFeatures, text: CalibrationText, watched: Mask) -> dict[int, Mask]:
    """Return, of each feature with a detector that passed, or else a label, on which watched tokens it holds."""
    table = chosen.dictionary.sql(
        "SELECT feature, rule FROM labels WHERE rule IS NOT NULL AND passed AND list_contains($features, feature) "
        "ORDER BY source = 'detector'",
        {"features": chosen.numbers},
    )
    rules = {row["feature"]: p for row in table.to_pylist() if (p := patterns_of(row["rule"]))}
    if text.roles is None:  # nobody says whose words a token is
        rules = {feature: patterns for feature, patterns in rules.items() if not needs_roles(patterns)}
    if not rules or not isinstance(chosen.model, LanguageModel):
        return {}
    of_text = PatternKeys(text.tokens.astype(np.int32), vocabulary_of(chosen.model), roles=text.roles)
    kinds = {kind for patterns in rules.values() for kind, _ in patterns}
    keys = {kind: of_text.of(kind)[watched.ravel()] for kind in kinds}
    return {f: reduce(np.logical_or, [keys[kind] == key for kind, key in patterns]) for f, patterns in rules.items()}


def _tested(
    feature: int,
    values: Values,
    documents: Documents,
    used: Mask,
    tested: Mask,
    rate: float,
    confidence: float | None,
) -> Tested:
    threshold, effective = threshold_for(values[used], documents[used], rate, confidence)
    if not np.isfinite(threshold):
        sure = "" if confidence is None else f" with a confidence of {confidence:g}"
        raise ConfigError(
            f"feature {feature}: {int(used.sum())} tokens of {len(np.unique(documents[used]))} documents, worth "
            f"{effective:.0f} independent ones, are too few for a rate of {rate:g}{sure}, "
            f"which takes {least_effective(rate, confidence):.0f}; give more documents, or ask for a higher rate."
        )
    share = share_of(values[tested] > threshold, documents[tested])
    low, high = share.interval()
    return Tested(
        threshold=threshold,
        tokens=int(used.sum()),
        effective=effective,
        held_out=int(share.tokens),
        exceeded=int(share.times),
        realised=share.rate,
        low=float(low),
        high=float(high),
    )
