"""Features of a dictionary watched while the language model runs."""

from lightsae.analysis.monitor.calibrate import calibrate
from lightsae.analysis.monitor.events import Alarm, Event, Firing, as_json
from lightsae.analysis.monitor.monitor import Monitor, monitor
from lightsae.analysis.monitor.prometheus import Prometheus
from lightsae.analysis.monitor.sinks import JsonLines, Sink
from lightsae.analysis.monitor.summary import FeatureSummary, Summary
from lightsae.analysis.monitor.thresholds import Calibrated, Tested, Thresholds

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
