"""What a version has to reach before it is promoted: thresholds in a YAML file, and what falls short of them."""

import hashlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lightsae.errors import ConfigError, did_you_mean
from lightsae.production.registry.evidence import REPORTS, Figures

_WORDS = {"min_": "at least", "max_": "at most"}


@dataclass(frozen=True)
class ValidationRules:
    """Of the SAE, on held-out text: validation.json."""

    min_fve_no_sinks: float | None = None
    min_ce_recovered: float | None = None
    max_dead: float | None = None


@dataclass(frozen=True)
class LabelRules:
    """Of the labels: the feature dictionary. Precision and recall are medians; the floor: shuffled labels that pass."""

    min_share_labelled: float | None = None
    min_precision: float | None = None
    min_recall: float | None = None
    max_shuffled_floor: float | None = None


@dataclass(frozen=True)
class PanelRules:
    """Of steering: the panel report. above_random_floor: the intervals of usefulness and random floor are apart."""

    min_reliable_share: float | None = None
    max_harmful_share: float | None = None
    above_random_floor: bool = False


@dataclass(frozen=True)
class DriftRules:
    """Of the comparison with another dictionary: the drift report."""

    min_kept_share: float | None = None


@dataclass(frozen=True)
class Policy:
    """Thresholds; what is not set is not asked.

    Attributes:
        requires_staging: Production takes only versions that are in staging, or were.
    """

    requires_staging: bool = False
    validation: ValidationRules = field(default_factory=ValidationRules)
    labels: LabelRules = field(default_factory=LabelRules)
    panel: PanelRules = field(default_factory=PanelRules)
    drift: DriftRules = field(default_factory=DriftRules)

    def shortfalls(self, figures: Figures) -> list[str]:
        """Return every figure that falls short, a line each: what was found, and what is needed."""
        lines = []
        for group in _GROUPS:
            for rule, needed in asdict(getattr(self, group)).items():
                if needed is None or needed is False:
                    continue
                name = rule.removeprefix("min_").removeprefix("max_")
                found = figures.get(group, {}).get(name)
                asked = "intervals apart" if needed is True else f"{_WORDS[rule[:4]]} {needed:g}"
                if found is None:
                    lines.append(
                        f"{group}.{name}: not measured: {REPORTS[group][0]} ({REPORTS[group][1]}); needed {asked}"
                    )
                elif needed is True:
                    lines += [] if found else [f"{group}.{name}: found intervals that overlap; needed {asked}"]
                elif found > needed if rule.startswith("max_") else found < needed:
                    lines.append(f"{group}.{name}: found {found:.4g}; needed {asked}")
        return lines

    def entry(self, path: str | Path) -> dict[str, Any]:
        """Return what the log says of the policy that a version was held against."""
        content = Path(path).read_bytes()
        return {"file": Path(path).name, "sha256": hashlib.sha256(content).hexdigest(), **asdict(self)}


_GROUPS: dict[str, type[Any]] = {
    "validation": ValidationRules,
    "labels": LabelRules,
    "panel": PanelRules,
    "drift": DriftRules,
}


class PolicyRefusal(ConfigError):
    """A version falls short of a policy.

    Attributes:
        lines: What falls short, a line each.
    """

    def __init__(self, message: str, lines: list[str]) -> None:
        super().__init__(f"{message} {'; '.join(lines)}.")
        self.head, self.lines = message, lines


def read_policy(path: str | Path) -> Policy:
    """Read a policy file.

    Raises:
        ConfigError: It is missing, or says something that a policy does not have.
    """
    file = Path(path)
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        near = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigError(f"policy is {str(path)!r}, which {what}.{did_you_mean(file.name, near)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"policy {str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(told, dict) or not told:
        raise ConfigError(f"policy {str(path)!r} sets nothing; write thresholds, e.g. labels: {{min_precision: 0.8}}.")
    _check_keys(told, [f.name for f in fields(Policy)], "", path)
    values: dict[str, Any] = {}
    if "requires_staging" in told:
        values["requires_staging"] = _switch(told["requires_staging"], "requires_staging", path)
    for group, kind in _GROUPS.items():
        if (rules := told.get(group)) is None:
            continue
        if not isinstance(rules, dict):
            raise ConfigError(f"policy {str(path)!r}: {group} is {rules!r}; write thresholds under it, `name: number`.")
        _check_keys(rules, [f.name for f in fields(kind)], f"{group}.", path)
        checked = {rule: _threshold(kind, rule, value, f"{group}.{rule}", path) for rule, value in rules.items()}
        values[group] = kind(**checked)
    return Policy(**values)


def _check_keys(told: dict[Any, Any], known: list[str], section: str, path: str | Path) -> None:
    for key in told:
        if key not in known:
            raise ConfigError(
                f"policy {str(path)!r}: {section}{key} is not known; there are {', '.join(known)}."
                f"{did_you_mean(str(key), known)}"
            )


def _threshold(kind: type[Any], rule: str, value: Any, key: str, path: str | Path) -> float | bool | None:
    if rule == "above_random_floor":
        return _switch(value, key, path)
    if value is None:
        return None
    # All of them are shares, and an 80 that was meant as a percentage would refuse, or let pass, everything.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"policy {str(path)!r}: {key} is {value!r}; write a number from 0 to 1.")
    return float(value)


def _switch(value: Any, key: str, path: str | Path) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"policy {str(path)!r}: {key} is {value!r}; write true or false.")
    return value
