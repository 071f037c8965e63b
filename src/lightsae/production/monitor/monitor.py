"""Watching features while a language model runs: firings and drift as events; the model's output is not touched.

Axes:  B rows, S columns of a pass, n features.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightsae.activations.corpus.documents import Conversation, SpokenIds
from lightsae.activations.roles import ROLES, among
from lightsae.production.monitor.conversations import PromptWriter, roles_of
from lightsae.production.monitor.drift_watch import DriftWatch, OpenTexts
from lightsae.production.monitor.events import Alarm, Event, Firing
from lightsae.production.monitor.sinks import EventWriter
from lightsae.production.monitor.summary import FeatureSummary, Summary
from lightsae.production.monitor.watched_features import WatchedFeatures
from lightsae.production.monitor.watcher import Pass, Watcher

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
