"""Where a monitor begins: what belongs together is checked, and the hooks are held while the context is open."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.errors import ConfigError, arg
from lightsae.formats.saved_sae import SavedSAE
from lightsae.production.monitor.conversations import watched_roles
from lightsae.production.monitor.drift_watch import DriftWatch
from lightsae.production.monitor.events import Event
from lightsae.production.monitor.monitor import Monitor
from lightsae.production.monitor.sinks import EventWriter, Sink
from lightsae.production.monitor.thresholds import Thresholds, firing_thresholds
from lightsae.production.monitor.watched_features import WatchedFeatures
from lightsae.production.monitor.watcher import tokenizer_of
from lightsae.production.registry import Promoted, load_channel
from lightsae.sae import SparseAutoencoder

_log = logging.getLogger(__name__)


@contextmanager
def monitor(
    model: Any,
    dictionary: FeatureDictionary | str | Path | None = None,
    *,
    sae: Promoted | SavedSAE | SparseAutoencoder | str | Path | None = None,
    channel: str | None = None,
    registry: str | Path = "registry",
    features: Sequence[int] | None = None,
    thresholds: Thresholds | Mapping[int, float] | str | Path | None = None,
    false_positive_rate: float | None = None,
    sinks: Sink | Callable[[Event], object] | Sequence[Sink | Callable[[Event], object]] = (),
    drift_window: int | None = 50_000,
    drift_level: float = 0.01,
    drift_horizon: int = 100,
    roles: Sequence[str] | None = None,
    tokenizer: Any = None,
    any_model: bool = False,
) -> Iterator[Monitor]:
    """While open, features are watched in every forward pass of a language model, whoever runs it.

    Holds for forward and `generate` (KV cache, batches padded on the left, beams). No bit of the output changes.
    Watched are all tokens that run through the model but padding, special tokens and position 0, an attention sink. Of
    nested contexts, the inner one sees what the outer one left: a monitor inside `steer` sees the steered activations.
    Several threads may run the model; sinks are called by one at a time.

    A sink that fails does not stop the model; its first error is raised when the monitor closes, with how many there
    were, or added as a note to the error that closes it.

    Drift is watched where `thresholds` are calibrated: over the last texts with `drift_window` tokens together, whose
    shares of active tokens (above 0, as the feature dictionary counts) must lie in their bands. A text is a row, from
    its first token to its last, or all that runs inside `request`.

    Args:
        model: A LanguageModel, or a transformers model.
        dictionary: The feature dictionary, or its folder.
        sae: The SAE that it was made for, or its folder; or what `load_channel` returns, which brings both.
        channel: In place of both: what is promoted to `staging` or `production` of a registry, after its hashes, the
            model and the site were checked.
        registry: The registry: a folder, or `hub:org/name`.
        features: By number; None: all labelled ones of the tier `high`.
        thresholds: Above which a feature fires: from `calibrate`, or the file they were saved in; or activations by
            feature; None: a tenth of the feature's maximum, as where labels are tested.
        false_positive_rate: Which of the calibrated rates; None: 0.01. Only with thresholds from `calibrate`.
        sinks: Where events go: `JsonLines(path)`, `Prometheus()`, any function of an event; one, or several.
        drift_window: Tokens; None: no drift alarms.
        drift_level: Probability of any false alarm, of any feature, while `drift_horizon` windows pass.
        drift_horizon: See `drift_level`.
        roles: Watch the tokens of these roles of conversations alone, which `request` is given; None: of those that the
            thresholds were calibrated on, if they were, else all tokens.
        tokenizer: Of a transformers model, for the texts of tokens and for conversations; a LanguageModel brings its
            own.
        any_model: Watch a model of another name or revision: a fine-tuned copy.

    Raises:
        ModelError: The SAE was trained on another model or revision.
        SiteError: It reads a site that the model lacks.
        FormatError: The feature dictionary, or the thresholds, belong to another SAE.
        ConfigError: A feature, a threshold or a setting does not fit; or, at the end, a sink failed.

    Example:
        with lightsae.monitor(model, "dictionaries/topk", sae="sae/topk", sinks=JsonLines("events.jsonl")) as watch:
            with watch.request("4711"):
                model.generate(**inputs)
        print(watch)
    """
    if channel is not None:
        if sae is not None or dictionary is not None:
            raise ConfigError(
                f"{arg('channel')} is {channel!r}, and sae or dictionary is given too; keep one of the two."
            )
        sae = load_channel(registry, channel, None if any_model else model)
    if isinstance(sae, Promoted):
        if dictionary is not None:
            raise ConfigError(f"{arg('dictionary')} is given, but {arg('sae')} brings its own; leave one of them out.")
        dictionary, sae = sae.dictionary, sae.sae
    if sae is None:
        raise ConfigError(f"{arg('sae')} is missing: give the SAE, its folder, or what load_channel returns.")
    if dictionary is None:
        raise ConfigError(
            f"{arg('dictionary')} is missing: a monitor needs the feature dictionary of the SAE, or a channel."
        )
    watched = WatchedFeatures.of(model, dictionary, sae, features, any_model=any_model)
    if isinstance(thresholds, str | Path):
        thresholds = Thresholds.load(thresholds)
    firing = firing_thresholds(watched, thresholds, false_positive_rate)
    roles = watched_roles(roles, thresholds)
    writer = EventWriter([sinks] if isinstance(sinks, Sink) or callable(sinks) else list(sinks))
    if drift_window is not None and drift_window < 1:
        raise ConfigError("drift_window", drift_window, "write tokens, 1 or more, or None for no drift alarms")
    if not 0 < drift_level < 1:
        raise ConfigError("drift_level", drift_level, "a probability lies above 0 and below 1, such as 0.01")
    if drift_horizon < 1:
        raise ConfigError("drift_horizon", drift_horizon, "write how many windows, 1 or more")
    drift = None
    if drift_window is not None and isinstance(thresholds, Thresholds):
        names = [(feature.number, feature.label) for feature in watched.features]
        if (expected := thresholds.counts(watched.numbers)) is None:
            _log.warning("No drift alarms: a former version made these thresholds; calibrate again.")
        else:
            drift = DriftWatch(names, expected, drift_window, drift_level, drift_horizon, roles)
    with writer, Monitor(watched, firing, writer, drift, tokenizer or tokenizer_of(model), roles).open() as opened:
        yield opened
