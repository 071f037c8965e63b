"""A monitor's figures as Prometheus metrics, through the official client `prometheus_client` (an optional package)."""

import weakref
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lightsae.errors import ConfigError
from lightsae.production.monitor.events import Alarm, Event, Firing
from lightsae.production.monitor.sinks import Sink

# A registry takes each name once; several monitors share the metrics.
_metrics: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0)


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
            assert isinstance(event, Firing)
            self._of["firings"].labels(*names).inc()
            if event.of_max is not None:
                self._of["values"].labels(*names).observe(event.of_max)

    def count(self, tokens: int, frequencies: dict[int, float], labels: dict[int, str | None]) -> None:
        self._of["tokens"].inc(tokens)
        for feature, frequency in frequencies.items():
            self._of["frequency"].labels(str(feature), labels[feature] or "").set(frequency)

    def __repr__(self) -> str:
        return "Prometheus()"
