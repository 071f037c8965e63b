"""Thresholds of features with their tested false-positive rates, and their normal frequencies: what `calibrate` found.

Axes: n features.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightsae.errors import ConfigError, FormatError
from lightsae.formats.files import write_atomically
from lightsae.production.monitor.drift import Frequencies

_VERSION = 1


@dataclass(frozen=True)
class Tested:
    """A threshold for one feature and one rate.

    Attributes:
        threshold: Exceeding it is a firing; in normalised units.
        tokens: Calibration tokens that it comes from: those without the concept, or all.
        effective: Independent tokens that they are worth.
        held_out: Tokens of other documents that it was tested on, chosen in the same way.
        exceeded: Of them.
        realised: Share of them that exceed it.
        low, high: 95% interval of that share.
    """

    threshold: float
    tokens: int
    effective: float
    held_out: int
    exceeded: int
    realised: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibrated:
    """What is known of one feature.

    Attributes:
        kind: `concept`: a false positive is a token where the feature's rule does not hold and its threshold is
            exceeded; the rate is among tokens without the concept. `rate`: there is no rule; the rate is of all firings
            among all tokens.
        concept_share: Share of the tokens where the rule holds; None without a rule.
        recall: Share of held-out tokens with the concept that exceed the threshold, by rate; empty without a rule.
        rates: The thresholds, by the rate asked.
        frequency, alike, error: See `drift.Frequencies`; active means above 0.
    """

    kind: str
    concept_share: float | None
    recall: dict[float, float]
    rates: dict[float, Tested]
    frequency: float
    alike: float
    error: float


@dataclass(frozen=True)
class Thresholds:
    """What `calibrate` found, for one SAE and one feature dictionary.

    Attributes:
        sae: SHA-256 of the SAE.
        dictionary: Id of the feature dictionary.
        model: Name and revision of the language model.
        text: SHA-256 of the tokens.
        documents, held_out_documents: How many the thresholds come from, and how many they were tested on.
        tokens: Watched, of both.
        longest: Tokens of the longest document.
        seed: Of the split.
        features: By number.
    """

    sae: str
    dictionary: str
    model: dict[str, str | None]
    text: str
    documents: int
    held_out_documents: int
    tokens: int
    longest: int
    seed: int
    features: dict[int, Calibrated]

    def at(self, feature: int, rate: float) -> Tested:
        """Return the threshold of a feature.

        Raises:
            ConfigError: The feature, or the rate, was not calibrated.
        """
        if feature not in self.features:
            known = ", ".join(map(str, list(self.features)[:10]))
            raise ConfigError(f"feature {feature} has no calibrated threshold; there are {known}. Calibrate it too.")
        rates = self.features[feature].rates
        for known_rate, tested in rates.items():
            if math.isclose(known_rate, rate, rel_tol=1e-9):
                return tested
        raise ConfigError(f"false_positive_rate is {rate:g}; calibrated are {', '.join(f'{r:g}' for r in rates)}.")

    def frequencies(self, features: list[int]) -> Frequencies:
        """Return what is normal for some features, in their order."""
        found = [self.features[feature] for feature in features]
        return Frequencies(
            np.array([one.frequency for one in found], np.float64),
            np.array([one.alike for one in found], np.float64),
            np.array([one.error for one in found], np.float64),
            self.longest,
        )

    def save(self, path: str | Path) -> None:
        """Write it as JSON.

        Raises:
            ConfigError: The file cannot be written.
        """
        told = {"kind": "lightsae thresholds", "version": _VERSION, **asdict(self)}
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Thresholds":
        """Read what `save` wrote.

        Raises:
            FormatError: There is no such file, or it is something else.
        """
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FormatError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise FormatError(f"{str(path)!r} is no JSON; name a file that Thresholds.save wrote.") from error
        if not isinstance(told, dict) or told.pop("kind", None) != "lightsae thresholds":
            raise FormatError(f"{str(path)!r} holds no thresholds; name a file that Thresholds.save wrote.")
        if (version := told.pop("version", None)) != _VERSION:
            raise FormatError(f"{str(path)!r} has version {version}; this lightsae reads {_VERSION}. Calibrate again.")
        try:
            features = {int(number): _calibrated(one) for number, one in told.pop("features").items()}
            return cls(**told, features=features)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise FormatError(f"{str(path)!r} is damaged ({error}); calibrate again.") from error


def _calibrated(told: Mapping[str, Any]) -> Calibrated:
    rates = {float(rate): Tested(**tested) for rate, tested in told["rates"].items()}
    for tested in rates.values():
        if not 0 <= float(tested.threshold) < math.inf:
            raise ValueError(f"a threshold is {tested.threshold}")
    recall = {float(rate): float(value) for rate, value in told["recall"].items()}
    return Calibrated(**{**told, "rates": rates, "recall": recall})
