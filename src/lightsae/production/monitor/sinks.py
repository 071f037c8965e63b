"""Where events go: a file of JSON lines, Prometheus, or any function.

A sink that fails does not stop the model. See `EventWriter` for what happens with its error.
"""

import json
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lightsae.errors import ConfigError
from lightsae.formats.files import explain_os_errors
from lightsae.production.monitor.events import Alarm, Event, as_json

# A registry takes each name once; several monitors share the metrics.
_metrics: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
# How every line of JSON begins.
_BEGINS = b'{"event": "'
_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0)


class Sink:
    """Takes what a monitor tells. Subclasses overwrite what they need."""

    def write(self, events: Sequence[Event]) -> None:
        """Take the events of one forward pass; at least one."""

    def count(self, tokens: int, frequencies: dict[int, float], labels: dict[int, str | None]) -> None:
        """Take how many tokens were watched since the last call, and how often each feature is active so far."""

    def close(self) -> None:
        """Release what is held; the monitor closed."""


class Call(Sink):
    """Calls a function with each event."""

    def __init__(self, function: Callable[[Event], object]) -> None:
        self.function = function

    def write(self, events: Sequence[Event]) -> None:
        for event in events:
            self.function(event)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


class JsonLines(Sink):
    """Appends each event to a file, one line of JSON each; the lines of a forward pass are written at once.

    Lines are whole, also after a crash: half a line, which a kill or a full disk can leave at the end, is cut off when
    the file is opened again, or at once where writing goes on. One process writes a file at a time.

    Args:
        path: The file; missing parents are made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: int | None = None

    def write(self, events: Sequence[Event]) -> None:
        if self._file is None:
            self._file = self._open()
        # As ASCII: halves of a character, which some tokens are, cannot be written but escaped.
        lines = b"".join(json.dumps(as_json(event), allow_nan=False).encode() + b"\n" for event in events)
        before = os.fstat(self._file).st_size
        try:
            with explain_os_errors(self.path):
                while lines:
                    lines = lines[os.write(self._file, lines) :]
        except BaseException:
            os.ftruncate(self._file, before)
            raise

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        with explain_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._cut_half_line(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def _cut_half_line(self, file: int) -> None:
        if os.fstat(file).st_size == 0:
            return
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1
            rest = content[end : end + len(_BEGINS)]
        # An empty rest, too, is how an event begins.
        if not _BEGINS.startswith(rest):
            raise ConfigError(f"{str(self.path)!r} holds something else than events; choose another file.")
        os.ftruncate(file, end)

    def __repr__(self) -> str:
        return f"JsonLines({str(self.path)!r})"


class Prometheus(Sink):
    """Counts in a registry; serving it (`prometheus_client.start_http_server`) is the program's own business.

    Metrics: `lightsae_tokens_total`, tokens watched; of each feature and label `lightsae_firings_total`, events;
    `lightsae_frequency`, share of the monitor's tokens on which it is active; `lightsae_drift`, 1 above the band, -1
    below, 0 inside; `lightsae_firing_of_max`, a histogram of values in units of the maximum.

    Args:
        registry: A `prometheus_client.CollectorRegistry`; None: the process's own.

    Raises:
        ConfigError: `prometheus_client` is not installed.
    """

    def __init__(self, registry: Any = None) -> None:
        try:
            client: Any = import_module("prometheus_client")
        except ImportError as error:
            raise ConfigError(
                "Prometheus needs the package prometheus_client; install it: pip install 'lightsae[prometheus]'."
            ) from error
        registry = client.REGISTRY if registry is None else registry
        if registry not in _metrics:
            by_feature: dict[str, Any] = {"labelnames": ("feature", "label"), "registry": registry}
            _metrics[registry] = {
                "tokens": client.Counter("lightsae_tokens", "Tokens watched.", registry=registry),
                "firings": client.Counter("lightsae_firings", "Firings above the threshold.", **by_feature),
                "frequency": client.Gauge(
                    "lightsae_frequency", "Share of tokens with the feature active.", **by_feature
                ),
                "drift": client.Gauge("lightsae_drift", "1 above the band, -1 below, 0 inside.", **by_feature),
                "values": client.Histogram(
                    "lightsae_firing_of_max", "Firings, of the maximum.", buckets=_BUCKETS, **by_feature
                ),
            }
        self._of = _metrics[registry]

    def write(self, events: Sequence[Event]) -> None:
        for event in events:
            names = (str(event.feature), event.label or "")
            if isinstance(event, Alarm):
                side = {"above": 1, "below": -1}[event.side] if event.state == "left" else 0
                self._of["drift"].labels(*names).set(side)
                continue
            self._of["firings"].labels(*names).inc()
            if event.of_max is not None:
                self._of["values"].labels(*names).observe(event.of_max)

    def count(self, tokens: int, frequencies: dict[int, float], labels: dict[int, str | None]) -> None:
        self._of["tokens"].inc(tokens)
        for feature, frequency in frequencies.items():
            self._of["frequency"].labels(str(feature), labels[feature] or "").set(frequency)

    def __repr__(self) -> str:
        return "Prometheus()"


class EventWriter:
    """All sinks of a monitor; a context, whose end closes them.

    A sink that raises does not stop the model, and the others get their events. It is called again with the next
    events. The first error of all is raised at the end of the context, with how many there were; or it is added as a
    note to the error that ended it.
    """

    def __init__(self, sinks: Sequence[Sink | Callable[[Event], object]]) -> None:
        for sink in sinks:
            if not isinstance(sink, Sink) and not callable(sink):
                raise ConfigError(
                    f"sinks holds {sink!r}; write JsonLines(path), Prometheus() or a function that takes an event."
                )
        self._sinks = [sink if isinstance(sink, Sink) else Call(sink) for sink in sinks]
        self.failures = 0
        self._first: tuple[Sink, Exception] | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.tell(lambda sink: sink.close())
        if self._first is None:
            return
        sink, cause = self._first
        times = f"{self.failures} times" if self.failures > 1 else "once"
        failure = ConfigError(
            f"Sinks of the monitor failed {times}, and events were lost; the first was {sink!r}: "
            f"{type(cause).__name__}: {cause}"
        )
        if error is None:
            raise failure from cause
        error.add_note(str(failure))

    def tell(self, action: Callable[[Sink], None]) -> None:
        """Do something with every sink."""
        for sink in self._sinks:
            try:
                action(sink)
            except Exception as error:
                self.failures += 1
                self._first = self._first or (sink, error)
