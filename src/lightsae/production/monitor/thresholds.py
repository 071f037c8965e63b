"""Above which activation each feature fires: calibrated, with a tested false-positive rate, or given.

Axes: n features.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightsae.activations.roles import check_roles
from lightsae.errors import ConfigError, FormatError, ModelError, arg
from lightsae.formats.checks import check_types
from lightsae.formats.files import write_json
from lightsae.lm.model import revision_of
from lightsae.metrics.conventions import FIRES_ABOVE
from lightsae.parsing import MOST_BYTES_OF_TABLES, read_json
from lightsae.production.monitor.drift_watch import TextCounts
from lightsae.production.monitor.watched_features import WatchedFeatures

_VERSION = 3
# 2 knows no roles, 1 no counts by text either; of Calibrated it had other figures of them.
_READS, _FORMER = (1, 2, _VERSION), ("alike", "error")
# The rate of `monitor`, if none is asked for.
_RATE = 0.01


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
        frequency: Share of all tokens on which it is active, above 0.
        active: Those tokens by text, of the texts that have some; texts are numbered as in `Thresholds.sizes`.
    """

    kind: str
    concept_share: float | None
    recall: dict[float, float]
    rates: dict[float, Tested]
    frequency: float
    active: dict[int, int]


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
        confidence: Share of the calibrations that keep the rates; None: they hold on average.
        sizes: Watched tokens of each text, of both; empty in files of former versions, which know no counts by text.
        roles: Those of conversations whose tokens counted; None: all tokens.
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
    confidence: float | None = None
    sizes: list[int] = field(default_factory=list)
    roles: list[str] | None = None

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
        raise ConfigError("false_positive_rate", rate, f"calibrated are {', '.join(f'{r:g}' for r in rates)}")

    def counts(self, features: list[int]) -> TextCounts | None:
        """Return what is normal for some features, in their order; None if the file is too old to say it."""
        if not self.sizes:
            return None
        active = np.zeros((len(self.sizes), len(features)), np.int64)
        for column, feature in enumerate(features):
            for text, tokens in self.features[feature].active.items():
                active[text, column] = tokens
        return TextCounts(active, np.array(self.sizes, np.int64))

    def save(self, path: str | Path) -> None:
        """Write it as JSON.

        Raises:
            ConfigError: The file cannot be written.
        """
        values = {"kind": "lightsae thresholds", "version": _VERSION, **asdict(self)}
        write_json(path, values, indent=1, ascii_only=True)

    @classmethod
    def load(cls, path: str | Path) -> "Thresholds":
        """Read what `save` wrote.

        Raises:
            FormatError: There is no such file, or it is something else.
        """
        try:
            values = read_json(Path(path), most=MOST_BYTES_OF_TABLES)
        except OSError as error:
            raise FormatError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise FormatError(f"{str(path)!r} is no JSON ({error}); name a file that Thresholds.save wrote.") from error
        if not isinstance(values, dict) or values.pop("kind", None) != "lightsae thresholds":
            raise FormatError(f"{str(path)!r} holds no thresholds; name a file that Thresholds.save wrote.")
        if (version := values.pop("version", None)) not in _READS:
            raise FormatError(f"{str(path)!r} has version {version}; this lightsae reads {_VERSION}. Calibrate again.")
        try:
            features = {int(number): _calibrated(one) for number, one in values.pop("features").items()}
            check_types(values, cls)
            thresholds = cls(**values, features=features)
            thresholds._check_ranges()
            return thresholds
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise FormatError(f"{str(path)!r} is damaged ({error!s:.200}); calibrate again.") from error

    def _check_ranges(self) -> None:
        """Raise a ValueError where a figure is one that none can be."""
        counts = [self.documents, self.held_out_documents, self.tokens, self.longest, *self.features, *self.sizes]
        if min(counts) < 0:
            raise ValueError(f"a count is {min(counts)}")
        check_roles(self.roles)
        for feature, one in self.features.items():
            # Of former versions there are no sizes, and no counts by text.
            if any(not 0 <= text < len(self.sizes) or not 0 <= n <= self.sizes[text] for text, n in one.active.items()):
                raise ValueError(f"feature {feature} is active in texts that there are not")
            shares = [one.concept_share or 0.0, one.frequency, *one.recall.values()]
            for rate, tested in one.rates.items():
                if not 0 <= tested.threshold < math.inf:
                    raise ValueError(f"a threshold is {tested.threshold}")
                if not 0 < rate < 1 or not 0 <= tested.exceeded <= tested.held_out or tested.tokens < 0:
                    raise ValueError(f"feature {feature} has no such test at the rate {rate:g}")
                if tested.low > tested.high:
                    raise ValueError(f"feature {feature} has an interval from {tested.low:g} to {tested.high:g}")
                shares += [tested.low, tested.realised, tested.high]
            if not all(0 <= share <= 1 for share in shares):
                raise ValueError(f"a share of feature {feature} is not between 0 and 1")


def _calibrated(values: Mapping[str, Any]) -> Calibrated:
    for tested in values["rates"].values():
        check_types(tested, Tested)
    rates = {float(rate): Tested(**tested) for rate, tested in values["rates"].items()}
    recall = {float(rate): float(value) for rate, value in values["recall"].items()}
    active = {int(text): int(tokens) for text, tokens in values.get("active", {}).items()}
    kept = {name: value for name, value in values.items() if name not in _FORMER}
    plain = {name: value for name, value in kept.items() if name not in ("rates", "recall", "active")}
    check_types(plain, Calibrated)
    if kept["kind"] not in ("concept", "rate"):
        raise ValueError(f"a kind is {kept['kind']!r}")
    return Calibrated(**{**plain, "rates": rates, "recall": recall, "active": active})


def firing_thresholds(
    watched: WatchedFeatures, thresholds: Thresholds | Mapping[int, float] | None, rate: float | None
) -> list[tuple[float, str]]:
    """Return for each watched feature the activation above which it fires, and in words where that comes from.

    Raises:
        FormatError: They were made for another SAE.
        ModelError: They were calibrated on another model.
        ConfigError: A feature or the rate is missing, a value is no activation, or a rate goes with no calibration.
    """
    if isinstance(thresholds, Thresholds):
        rate = _RATE if rate is None else rate
        _check_calibrated_for(thresholds, watched)
        words = {"concept": f"{rate:g} without concept", "rate": f"{rate:g} of all"}
        return [(thresholds.at(f, rate).threshold, words[thresholds.features[f].kind]) for f in watched.numbers]
    if rate is not None:
        raise ConfigError(
            f"{arg('false_positive_rate')} is {rate:g}, but no calibrated thresholds are given; make them with "
            "lightsae.production.monitor.calibrate, or leave it out."
        )
    if thresholds is None:
        kind = f"{FIRES_ABOVE:.0%} of the maximum"
        return [(FIRES_ABOVE * (feature.maximum or 0.0), kind) for feature in watched.features]
    for feature in watched.numbers:
        if feature not in thresholds:
            raise ConfigError(f"{arg('thresholds')} has no entry for feature {feature}, which is watched; add one.")
        if not 0 <= (value := float(thresholds[feature])) < math.inf:
            raise ConfigError(f"{arg('thresholds')}[{feature}] is {value:g}; write an activation, 0 or more.")
    return [(float(thresholds[feature]), "given") for feature in watched.numbers]


def _check_calibrated_for(thresholds: Thresholds, watched: WatchedFeatures) -> None:
    if thresholds.sae != watched.sae_sha256:
        raise FormatError(
            f"the thresholds were calibrated for the SAE with SHA-256 {thresholds.sae[:12]}, and this one has "
            f"{watched.sae_sha256[:12]}: they mean nothing here. Calibrate this one."
        )
    ours, theirs = revision_of(watched.model), thresholds.model.get("revision")
    if ours and theirs and ours != theirs:
        raise ModelError(
            f"the thresholds were calibrated on the model at revision {theirs!r}, and the one in use is at {ours!r}; "
            "calibrate on this one."
        )
