"""The settings of a synthetic world: what the user writes under `data.synthetic`.

Source: SynthSAEBench, Chanin et al. 2026, arXiv:2602.14687, for the two presets and what they are made of.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from lightsae.errors import ConfigError, arg, did_you_mean

DEFAULT_ACTIVE = 5.0


@dataclass(frozen=True)
class SyntheticConfig:
    """A world of known features, in the order of how often they are to fire; trees may lower that for some.

    Args:
        preset: `synthsaebench-16k`: 16,384 features in 768 dimensions, about 35 of them active on a token.
            `synthsaebench-2k`: a smaller one of the same make, 2,048 features in 128 dimensions, about 6 active.
            Settings that differ from their defaults replace the preset's.
        features: Number of true features.
        width: Dimensions of the activations.
        active: Features that fire on a token, on average, where frequencies are uniform; None: 5.
        frequencies: `uniform`: all features fire equally often; `zipf`: by rank, from max_probability down to
            min_probability.
        zipf_exponent: How fast the frequencies fall with the rank.
        max_probability: Share of the tokens on which the first feature fires, where frequencies are zipf.
        min_probability: Share of the tokens on which the last feature fires, where frequencies are zipf.
        roots: Trees in the hierarchy, made of the most frequent features; a feature in a tree fires only where its
            parent does. 0: no hierarchy.
        branching: Children of a feature in a tree.
        depth: Levels below a root.
        exclusive: At most one of the children of a feature fires on a token.
        scale_children: A child's magnitude is multiplied by its parent's relative to the parent's mean.
        correlation_rank: Hidden normal variables that tie the features outside trees, and the roots, together. 0: these
            features are independent.
        correlation_strength: Share of a feature's latent variance that these hidden variables explain, 0 to 1.
        orthogonalise_steps: Steps of gradient descent, at most, that turn the features away from each other.
        orthogonalise_target: Where to stop: mean over the features of their largest |cosine| with another one.
        magnitude_mean: Mean magnitude of the first feature where it fires. Magnitudes are folded normal: |a draw|, so
            that what fires is never 0 and never points backwards.
        magnitude_mean_last: Mean magnitude of the last feature, linear in the rank in between; None: the first's.
        magnitude_std: Standard deviation of the magnitudes.
        magnitude_std_spread: Each feature has its own standard deviation, |a draw| around magnitude_std with this one.
        noise: Standard deviation of Gaussian noise, in each dimension.
        bias_norm: Norm of a vector that is added to every activation.
        seed: Of the world: features, correlations, bias. What is drawn from it follows data.seed.
    """

    preset: Literal["synthsaebench-16k", "synthsaebench-2k"] | None = None
    features: int = 256
    width: int = 64
    active: float | None = None
    frequencies: Literal["uniform", "zipf"] = "uniform"
    zipf_exponent: float = 0.5
    max_probability: float = 0.4
    min_probability: float = 5e-4
    roots: int = 0
    branching: int = 4
    depth: int = 3
    exclusive: bool = True
    scale_children: bool = False
    correlation_rank: int = 0
    correlation_strength: float = 0.25
    orthogonalise_steps: int = 0
    orthogonalise_target: float = 0.15
    magnitude_mean: float = 1.0
    magnitude_mean_last: float | None = None
    magnitude_std: float = 0.25
    magnitude_std_spread: float = 0.0
    noise: float = 0.0
    bias_norm: float = 0.0
    seed: int = 0


# Checked against the public generator: frequencies, trees of the most frequent features, mean magnitudes from 5 down to
# 4, their deviations, a bias of norm 0.5, factors of 25 draws of deviation 0.1 each (a variance of 0.25).
_SYNTHSAEBENCH: dict[str, Any] = {
    "frequencies": "zipf",
    "branching": 4,
    "depth": 3,
    "exclusive": True,
    "scale_children": True,
    "correlation_rank": 25,
    "correlation_strength": 0.25,
    "orthogonalise_steps": 100,
    "magnitude_mean": 5.0,
    "magnitude_mean_last": 4.0,
    "magnitude_std": 0.5,
    "magnitude_std_spread": 0.5,
    "bias_norm": 0.5,
}
PRESETS: dict[str, dict[str, Any]] = {
    "synthsaebench-16k": {"features": 16_384, "width": 768, "roots": 128, **_SYNTHSAEBENCH},
    # Half the largest frequency: as many active features a dimension, and so as much interference, as in the large one.
    # Random features overlap more in fewer dimensions; the target is what is as light a touch as there.
    "synthsaebench-2k": {
        "features": 2_048,
        "width": 128,
        "roots": 16,
        "max_probability": 0.2,
        **_SYNTHSAEBENCH,
        "orthogonalise_target": 0.3,
    },
}


def resolved(config: SyntheticConfig) -> SyntheticConfig:
    """Return the settings with the preset's filled in, checked.

    Raises:
        ConfigError: A setting cannot work.
    """
    if config.preset is not None:
        check_known("preset", config.preset, PRESETS)
        own = {f.name: value for f in fields(config) if (value := getattr(config, f.name)) != f.default}
        config = replace(config, **{**PRESETS[config.preset], **own})
    _check(config)
    return config


def check_known(name: str, value: str, known: Collection[str]) -> None:
    """Raise a ConfigError if the value of a setting is none of the known names."""
    if value not in known:
        raise ConfigError(f"{arg(name)} is {value!r}; known are {', '.join(known)}.{did_you_mean(str(value), known)}")


def tree_features(config: SyntheticConfig) -> int:
    """Return how many features stand in trees."""
    return sum(config.roots * config.branching**level for level in range(config.depth + 1))


def _check(config: SyntheticConfig) -> None:
    at_least: dict[str, float] = {
        "features": 2, "width": 2, "roots": 0, "branching": 1, "depth": 1, "correlation_rank": 0,
        "orthogonalise_steps": 0, "magnitude_std": 0, "magnitude_std_spread": 0, "noise": 0,
        "bias_norm": 0,
    }  # fmt: skip
    for key, least in at_least.items():
        # Written so that a NaN fails too.
        if not least <= (value := getattr(config, key)) < float("inf"):
            raise ConfigError(key, value, f"write {least} or more")
    for key in ("zipf_exponent", "magnitude_mean", "magnitude_mean_last"):
        value = getattr(config, key)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(key, value, "write a number above 0")
    if not 0 <= config.correlation_strength < 1:
        raise ConfigError("correlation_strength", config.correlation_strength, "write 0 or more, below 1")
    if not 0 < config.orthogonalise_target < 1:
        raise ConfigError("orthogonalise_target", config.orthogonalise_target, "write a cosine between 0 and 1")
    _check_frequencies(config)
    if config.roots and (needed := tree_features(config)) > config.features:
        raise ConfigError(
            "roots", config.roots,
            f"with branching {config.branching} and depth {config.depth} these trees hold {needed} features, more than "
            f"{arg('features')} ({config.features})",
        )  # fmt: skip


def _check_frequencies(config: SyntheticConfig) -> None:
    check_known("frequencies", config.frequencies, ("uniform", "zipf"))
    if config.frequencies == "uniform":
        if config.active is not None and not 0 < config.active <= config.features:
            raise ConfigError("active", config.active, f"write more than 0 and at most features ({config.features})")
        if config.active is None and config.features < DEFAULT_ACTIVE:
            raise ConfigError(
                "features", config.features, f"write {DEFAULT_ACTIVE:.0f} or more, or {arg('active')} too"
            )
        return
    if config.active is not None:
        raise ConfigError("active", config.active, "zipf frequencies follow from max_probability; leave active out")
    if not 0 < config.max_probability <= 1:
        raise ConfigError("max_probability", config.max_probability, "write a share of tokens above 0, at most 1")
    if not 0 < config.min_probability <= config.max_probability:
        raise ConfigError(
            "min_probability",
            config.min_probability,
            f"write a share above 0, at most max_probability ({config.max_probability})",
        )
