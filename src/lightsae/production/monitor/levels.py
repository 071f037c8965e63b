"""Above which activation each watched feature fires, and where that comes from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightsae.errors import ConfigError, FormatError, ModelError
from lightsae.metrics.conventions import FIRES_ABOVE
from lightsae.production.monitor.subject import Subject
from lightsae.production.monitor.thresholds import Thresholds


@dataclass(frozen=True)
class Levels:
    """Thresholds in use.

    Attributes:
        values: By feature, in normalised units; exceeding it is a firing.
        kinds: Where each comes from, in words.
        calibrated: What they were taken from, where they were calibrated.
    """

    values: dict[int, float]
    kinds: dict[int, str]
    calibrated: Thresholds | None


_RATE = 0.01


def choose_levels(
    subject: Subject, thresholds: Thresholds | Mapping[int, float] | str | Path | None, rate: float | None
) -> Levels:
    """Return the thresholds of the watched features.

    Raises:
        FormatError: They were made for another SAE, or the file is none.
        ModelError: They were calibrated on another model.
        ConfigError: A feature or the rate is missing, a value is no activation, or a rate goes with no calibration.
    """
    if isinstance(thresholds, str | Path):
        thresholds = Thresholds.load(thresholds)
    if rate is not None and not isinstance(thresholds, Thresholds):
        raise ConfigError(
            f"false_positive_rate is {rate:g}, but no calibrated thresholds are given; make them with "
            "lightsae.production.monitor.calibrate, or leave it out."
        )
    if thresholds is None:
        values = {feature: FIRES_ABOVE * (largest or 0.0) for feature, largest in subject.maxima.items()}
        return Levels(values, dict.fromkeys(values, f"{FIRES_ABOVE:.0%} of the maximum"), None)
    if isinstance(thresholds, Thresholds):
        rate = _RATE if rate is None else rate
        _check(subject, thresholds)
        found = {feature: thresholds.at(feature, rate) for feature in subject.features}
        words = {"concept": f"{rate:g} without concept", "rate": f"{rate:g} of all"}
        kinds = {feature: words[thresholds.features[feature].kind] for feature in found}
        return Levels({feature: one.threshold for feature, one in found.items()}, kinds, thresholds)
    for feature in subject.features:
        if feature not in thresholds:
            raise ConfigError(f"thresholds has no entry for feature {feature}, which is watched; add one.")
        value = float(thresholds[feature])
        if not 0 <= value < math.inf:
            raise ConfigError(f"thresholds[{feature}] is {value:g}; write an activation, 0 or more.")
    values = {feature: float(thresholds[feature]) for feature in subject.features}
    return Levels(values, dict.fromkeys(values, "given"), None)


def _check(subject: Subject, thresholds: Thresholds) -> None:
    if thresholds.sae != subject.sae_sha256:
        raise FormatError(
            f"the thresholds were calibrated for the SAE with SHA-256 {thresholds.sae[:12]}, and this one has "
            f"{subject.sae_sha256[:12]}: they mean nothing here. Calibrate this one."
        )
    here, there = subject.model_identity()["revision"], thresholds.model.get("revision")
    if here and there and here != there:
        raise ModelError(
            f"the thresholds were calibrated on the model at revision {there!r}, and the one in use is at {here!r}; "
            "calibrate on this one."
        )
