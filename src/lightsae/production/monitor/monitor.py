"""Watching features while a language model runs: firings and drift as events; the model's output is not touched.

Axes:  B rows, S columns of a pass, n features.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightsae.activations.corpus.documents import Conversation, SpokenIds
from lightsae.activations.roles import ROLES, among
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.errors import ConfigError, arg
from lightsae.formats.saved_sae import SavedSAE
from lightsae.production.monitor.conversations import PromptWriter, roles_of, watched_roles
from lightsae.production.monitor.drift_watch import DriftWatch, OpenTexts
from lightsae.production.monitor.events import Alarm, Event, Firing
from lightsae.production.monitor.sinks import EventWriter, Sink
from lightsae.production.monitor.summary import FeatureSummary, Summary
from lightsae.production.monitor.thresholds import Thresholds, firing_thresholds
from lightsae.production.monitor.watched_features import WatchedFeatures
from lightsae.production.monitor.watcher import Pass, Watcher, tokenizer_of
from lightsae.production.registry import Promoted, load_channel
from lightsae.sae import SparseAutoencoder

_log = logging.getLogger(__name__)
# How many `alarms` remembers; the sinks get all.
_ALARMS_KEPT = 1000


class _Request(threading.local):
    """The request that a thread answers."""

    name: str | None = None
    conversations: Sequence[SpokenIds] = ()


class Monitor:
    """What a model is watched with; returned by `monitor`.

    Several threads may run the model, each with texts of its own.

    Attributes:
        features: The features that are watched.
        tokens: How many tokens were watched so far.
        alarms: The latest alarms.
    """

    def __init__(
        self,
        watched: WatchedFeatures,
        thresholds: Sequence[tuple[float, str]],
        writer: EventWriter,
        drift: DriftWatch | None,
        tokenizer: Any,
        roles: list[str] | None = None,
    ) -> None:
        self.features, self.alarms = watched.numbers, deque[Alarm](maxlen=_ALARMS_KEPT)
        self._watched, self._thresholds, self._writer, self._drift = watched.features, thresholds, writer, drift
        self._text_of = cache(lambda token: None if tokenizer is None or token < 0 else tokenizer.decode([token]))
        n = len(self.features)
        # Active, and firing: one comparison tells both.
        self._limits = torch.tensor([[0.0] * n, [threshold for threshold, _ in thresholds]])[:, None, None]
        # Held while anything below is read or changed, and while sinks are told.
        self._lock = threading.RLock()
        self._texts: dict[threading.Thread, OpenTexts] = {}
        self._next_text = 0
        self._watcher = Watcher(watched, tokenizer, self._end_rows, self._take)
        self._requests, self._roles = _Request(), roles
        self._prompts = PromptWriter(tokenizer, roles, "conversation")
        self.tokens, self._tokens_counted = 0, 0
        self._active, self._fired = np.zeros((2, n), np.int64)

    @contextmanager
    def request(self, name: str, conversation: Conversation | Sequence[Conversation] | None = None) -> Iterator[None]:
        """While open, events carry this id, and all that this thread runs counts as one text of the drift window.

        Args:
            name: Id of the request: whatever was asked together, and is therefore alike.
            conversation: The messages that `apply_chat_template` makes the prompt of; of a batch, those of each row.
                They say whose words a token is. What is generated is the assistant's, what follows them is markup.

        Raises:
            ConfigError: It is no list of messages; or, while the model runs, it is not what the model reads.
            CorpusError: The tokenizer's chat template does not take it.
        """
        now = self._requests
        outer = now.name, now.conversations
        now.name, now.conversations = name, self._prompts.write_all(conversation)
        with self._lock:
            texts = self._texts_here()
            texts.end_rows()
            texts.begin_request()
        try:
            yield
        finally:
            now.name, now.conversations = outer
            with self._lock:
                texts.end_request()

    def summary(self) -> Summary:
        """Return what was seen so far, text that is under way with it."""
        with self._lock:
            return self._summary()

    def _summary(self) -> Summary:
        rows = []
        for i, (feature, (threshold, kind)) in enumerate(zip(self._watched, self._thresholds, strict=True)):
            rows.append(
                FeatureSummary(
                    feature=feature.number,
                    label=feature.label,
                    threshold=threshold,
                    kind=kind,
                    firings=int(self._fired[i]),
                    frequency=int(self._active[i]) / self.tokens if self.tokens else None,
                    dictionary_frequency=feature.frequency,
                    alarms=sum(alarm.feature == feature.number for alarm in self.alarms if alarm.state == "left"),
                    **({} if self._drift is None else self._drift.last_look(i)),
                )
            )
        return Summary(self.tokens, rows, self._writer.failures, self._roles)

    def __str__(self) -> str:
        return str(self.summary())

    @contextmanager
    def open(self) -> Iterator["Monitor"]:
        """Hold the hooks."""
        try:
            with self._watcher.open():
                yield self
        finally:
            with self._lock:
                for texts in self._texts.values():
                    texts.end_rows()

    def _texts_here(self) -> OpenTexts:
        """Return the texts of the calling thread; those of threads that are gone are over."""
        here = threading.current_thread()
        if here not in self._texts:
            for gone in [thread for thread in self._texts if not thread.is_alive()]:
                self._texts.pop(gone).end_rows()
            longest = None if self._drift is None else self._drift.expected.longest
            self._texts[here] = OpenTexts(len(self.features), longest, self._number, self._finished)
        return self._texts[here]

    def _number(self, texts: int) -> int:
        first = self._next_text
        self._next_text += texts
        return first

    def _end_rows(self) -> None:
        with self._lock:
            self._texts_here().end_rows()

    def _take(self, one: Pass) -> None:
        if self._roles is not None or self._requests.conversations:
            roles = roles_of(one, self._watcher.places(one), self._requests.conversations, self._roles)
            one = replace(one, roles=roles, watched=one.watched & among(roles, self._roles))
        self._limits = self._limits.to(one.latents.device)
        above = (one.latents > self._limits) & one.watched[..., None]
        # Read once: everything waits for the device here.
        counts = torch.cat([*above.sum(2), one.watched.sum(1, keepdim=True)], 1).cpu().numpy()
        n = len(self.features)
        active, fired, sizes = np.split(counts, [n, 2 * n], axis=1)
        with self._lock:
            texts = self._texts_here()
            first = texts.first_of(len(counts))
            if fired.any():
                self._tell(self._firings(one, above[1], first))
            self._fired += fired.sum(0)
            self._active += active.sum(0)
            self.tokens += int(sizes.sum())
            texts.add(sizes[:, 0], active)

    def _firings(self, one: Pass, fired: Tensor, first: int) -> list[Firing]:
        row, column, feature = (places := fired.nonzero()).unbind(1)
        positions = self._watcher.places(one)
        roles = torch.full_like(one.tokens, -1) if one.roles is None else one.roles.long()
        more = [one.tokens[row, column], positions[row, column], one.generated[column].long(), roles[row, column]]
        columns = torch.cat([places, torch.stack(more, 1)], 1).cpu().tolist()
        values = one.latents[row, column, feature].float().cpu().tolist()
        now = time.time()
        return [
            Firing(
                time=now,
                feature=self.features[i],
                label=self._watched[i].label,
                value=value,
                of_max=None if (maximum := self._watched[i].maximum) is None else value / maximum,
                threshold=self._thresholds[i][0],
                token=token,
                token_text=self._text_of(token),
                row=r,
                position=position,
                phase="generated" if generated else "prompt",
                text=first + r,
                request=self._requests.name,
                role=None if role < 0 else ROLES[role],
            )
            for (r, _, i, token, position, generated, role), value in zip(columns, values, strict=True)
        ]

    def _finished(self, tokens: int, active: NDArray[np.int64]) -> None:
        """A text is over: the window moves on."""
        if self._drift is not None and (alarms := self._drift.add(tokens, active)):
            self.alarms.extend(alarms)
            self._tell(alarms)
        if new := self.tokens - self._tokens_counted:
            self._tokens_counted = self.tokens
            shares = dict(zip(self.features, (self._active / self.tokens).tolist(), strict=True))
            labels = {feature.number: feature.label for feature in self._watched}
            self._writer.tell(lambda sink: sink.count(new, shares, labels))

    def _tell(self, events: Sequence[Event]) -> None:
        self._writer.tell(lambda sink: sink.write(events))


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
