"""Features of an SAE watched while the language model runs."""

from lightsae.production.monitor.calibrate import calibrate
from lightsae.production.monitor.events import Alarm, Event, Firing, as_json
from lightsae.production.monitor.monitor import Monitor
from lightsae.production.monitor.sinks import JsonLines, Prometheus, Sink
from lightsae.production.monitor.start import monitor
from lightsae.production.monitor.summary import FeatureSummary, Summary
from lightsae.production.monitor.thresholds import Calibrated, Tested, Thresholds

__all__ = [
    "Alarm",
    "Calibrated",
    "Event",
    "FeatureSummary",
    "Firing",
    "JsonLines",
    "Monitor",
    "Prometheus",
    "Sink",
    "Summary",
    "Tested",
    "Thresholds",
    "as_json",
    "calibrate",
    "monitor",
]
