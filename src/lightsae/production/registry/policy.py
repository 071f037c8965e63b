"""What a version has to reach before it is promoted: thresholds in a YAML file, and what falls short of them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightsae.errors import ConfigError, arg, did_you_mean
from lightsae.parsing import read_yaml
from lightsae.production.registry.evidence import LEVEL, REPORTS, Figures

Rules = dict[str, dict[str, float | bool | None]]
# By group, all that a policy may ask, with what stands for a rule that is not set. Thresholds are shares, 0 to 1.
_NOTHING: Rules = {
    # The SAE on held-out text: validation.json.
    "validation": {"min_fve_no_sinks": None, "min_ce_recovered": None, "max_dead": None},
    # The feature dictionary, over all features tested, those without a label included. lower: the median of the lower
    # of precision and recall. above_floors: the share labelled lies above every floor, its interval included.
    "labels": {"min_share_labelled": None, "min_lower": None, "max_shuffled_floor": None, "above_floors": False},
    # The panel report. above_random_floor: the intervals of usefulness and random floor are apart;
    # above_other_features: the exact paired test of usefulness against other labelled features.
    "panel": {
        "min_reliable_share": None,
        "max_harmful_share": None,
        "above_random_floor": False,
        "above_other_features": False,
    },
    # The comparison with another SAE.
    "drift": {"min_kept_share": None},
}
# Of a rule that is a switch: what falls short of it, and what is needed.
_SWITCHES = {
    "above_floors": ("intervals that overlap", "intervals apart"),
    "above_random_floor": ("intervals that overlap", "intervals apart"),
    "above_other_features": (f"p above {LEVEL:g} in the paired test", f"p of at most {LEVEL:g}"),
}
# Rules of older policies: medians over labels that had passed at 0.7, which could hardly be missed.
_BEFORE = {("labels", "min_precision"): "min_lower", ("labels", "min_recall"): "min_lower"}


@dataclass(frozen=True)
class Policy:
    """Thresholds; what is not set is not asked.

    Attributes:
        requires_staging: Production takes only versions that are in staging, or were.
        rules: By group (`validation`, `labels`, `panel`, `drift`) and name; see configs/policies/default.yaml.
    """

    requires_staging: bool = False
    rules: Rules = field(default_factory=lambda: _NOTHING)

    def shortfalls(self, figures: Figures) -> list[str]:
        """Return every figure that falls short, a line each: what was found, and what is needed."""
        lines = []
        for group, rules in self.rules.items():
            for rule, needed in rules.items():
                if needed is None or needed is False:
                    continue
                name, at_most = rule.removeprefix("min_").removeprefix("max_"), rule.startswith("max_")
                figure = figures.get(group, {}).get(name)
                asked = f"needed at {'most' if at_most else 'least'} {needed:g}"
                asked = f"needed {_SWITCHES[rule][1]}" if needed is True else asked
                if figure is None:
                    report, command, _ = REPORTS[group]
                    lines.append(f"{group}.{name}: not measured: {report} ({command}); {asked}")
                elif needed is True and not figure:
                    lines.append(f"{group}.{name}: found {_SWITCHES[rule][0]}; {asked}")
                elif needed is not True and (figure > needed if at_most else figure < needed):
                    lines.append(f"{group}.{name}: found {figure:.4g}; {asked}")
        return lines

    def entry(self, path: str | Path) -> dict[str, Any]:
        """Return what the log says of the policy that a version was held against."""
        sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return {"file": Path(path).name, "sha256": sha256, "requires_staging": self.requires_staging, **self.rules}


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
    file, problem = Path(path), f"policy {str(path)!r}"
    try:
        settings = read_yaml(file)
    except OSError as error:
        near = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigError(f"{arg('policy')} is {str(path)!r}, which {what}.{did_you_mean(file.name, near)}") from error
    except ValueError as error:
        raise ConfigError(f"{problem}: {error}.") from error
    if not isinstance(settings, dict) or not settings:
        raise ConfigError(f"{problem} sets nothing; write thresholds, e.g. labels: {{min_share_labelled: 0.2}}.")
    _check_keys(settings, ["requires_staging", *_NOTHING], problem)
    rules = {}
    for group, unset in _NOTHING.items():
        thresholds = {} if settings.get(group) is None else settings[group]
        if not isinstance(thresholds, dict):
            raise ConfigError(f"{problem}: {group} is {thresholds!r}; write thresholds under it, `name: number`.")
        for old in thresholds:
            if (new := _BEFORE.get((group, old))) is not None:
                raise ConfigError(
                    f"{problem}: {group}.{old} was a median over labels that had passed; write {group}.{new}: the "
                    "median, over all features tested, of the lower of precision and recall."
                )
        _check_keys(thresholds, list(unset), problem, f"{group}.")
        for rule, value in thresholds.items():
            if isinstance(unset[rule], bool):
                _check_switch(value, f"{group}.{rule}", problem)
            # An 80 that was meant as a percentage would refuse, or let pass, everything.
            elif value is not None and (type(value) not in (int, float) or not 0 <= value <= 1):
                raise ConfigError(f"{problem}: {group}.{rule} is {value!r}; write a number from 0 to 1.")
        rules[group] = {**unset, **thresholds}
    _check_switch(settings.get("requires_staging", False), "requires_staging", problem)
    return Policy(settings.get("requires_staging", False), rules)


def _check_keys(settings: dict[Any, Any], known: list[str], problem: str, section: str = "") -> None:
    for key in settings:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ConfigError(f"{problem}: {section}{key} is not known; there are {', '.join(known)}.{near}")


def _check_switch(value: Any, key: str, problem: str) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{problem}: {key} is {value!r}; write true or false.")
