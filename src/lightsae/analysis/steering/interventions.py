"""What steering does to a feature: add it, clamp it, keep it up, ablate it, project it out; always or on a condition.

Axes:    T tokens, D width of the site.
Formulas, with f_i(x) the latent, d_i what one unit of it adds to the raw activations (decoder row / output_scale, with
`token_norm` times the token's own unit):

    Add         x + alpha d_i
    Clamp       x + (c - f_i(x)) d_i           keeps the SAE's error x - x_hat as it is
    MinClamp    x + max(c - f_i(x), 0) d_i     never lowers
    Ablate      x - f_i(x) d_i                 Clamp to 0
    ProjectOut  x - d_i <d_i, x> / |d_i|^2

Several at once: the activations are encoded once, as they came; what the first four write is summed; then the span of
all directions that are projected out is removed. So their order never matters, and nothing is left of what was
projected out. A feature may be added to and clamped (it ends at c + alpha), but is clamped only once.

A latent that did not fire has a pre-activation below 0: clamped to c and measured again, it lies below c by that much.

Units of an amount, written into every report:

    norm    the length of what is written is that many mean activation norms of the site, at every token
    max     that many times the feature's largest activation in the feature dictionary's text
    latent  latents as the SAE gives them: normalised units
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lightsae.errors import ConfigError, arg

Unit = str  # a key of UNITS
UNITS = {"norm": "x mean norm", "max": "x own maximum", "latent": "latent units"}


@dataclass(frozen=True)
class Fires:
    """A condition: a feature exceeds a threshold on this very token, in the activations as they came.

    Attributes:
        feature: Which; None: the one that is intervened on.
        above: Threshold; a latent equal to it does not fire.
        unit: Unit of the threshold, `latent` or `max`.
    """

    feature: int | None = None
    above: float = 0.0
    unit: Unit = "latent"

    def __post_init__(self) -> None:
        if self.feature is not None:
            _check_feature("Fires", self.feature)
        _check_amount("Fires", "above", self.above)
        if self.unit not in ("latent", "max"):
            raise ConfigError(f"Fires: {arg('unit')} is {self.unit!r}; a threshold is in units of 'latent' or 'max'.")

    def __str__(self) -> str:
        subject = "it" if self.feature is None else f"feature {self.feature}"
        return f"{subject} fires above {self.above:g} {UNITS[self.unit]}"


@dataclass(frozen=True)
class Intervention:
    """Base of the five. `along` takes the place of the feature's direction, at the same norm: for random baselines."""

    feature: int
    when: Fires | None = field(default=None, kw_only=True)
    along: Float[Tensor, " D"] | None = field(default=None, kw_only=True, compare=False, repr=False)
    kind: ClassVar[str] = ""
    reads_own: ClassVar[bool] = False  # whether the formula holds f_i(x)
    amount_name: ClassVar[str] = ""  # the field that holds its amount; empty: it has none

    def amount(self) -> tuple[float, Unit] | None:
        """Return the amount with its unit; None for an intervention without one."""
        return (getattr(self, self.amount_name), vars(self)["unit"]) if self.amount_name else None

    def condition(self) -> Fires | None:
        """Return the condition with its feature filled in."""
        if self.when is None or self.when.feature is not None:
            return self.when
        return Fires(self.feature, self.when.above, self.when.unit)

    def report(self) -> dict[str, Any]:
        """Return what is done, with the unit, as JSON values."""
        amount, unit = self.amount() or (None, None)
        return {
            "kind": self.kind,
            "feature": self.feature,
            "amount": amount,
            "unit": unit,
            "when": None if self.when is None else str(self.when),
            "direction": "the feature's own" if self.along is None else "given, at the feature's norm",
        }

    def __str__(self) -> str:
        words = f"{self.kind} feature {self.feature}"
        if amount := self.amount():
            words += f": {amount[0]:+g} {UNITS[amount[1]]}"
        return words if self.when is None else f"{words}, where {self.when}"

    def __post_init__(self) -> None:
        name = type(self).__name__
        _check_feature(name, self.feature)
        if amount := self.amount():
            _check_amount(name, self.amount_name, amount[0])
            if amount[1] not in UNITS:
                raise ConfigError(f"{name}: {arg('unit')} is {amount[1]!r}; write one of {', '.join(UNITS)}.")


@dataclass(frozen=True)
class Add(Intervention):
    """x + alpha d_i. A strength of 0 changes no bit."""

    strength: float
    unit: Unit = "norm"
    kind: ClassVar[str] = "add"
    amount_name: ClassVar[str] = "strength"


@dataclass(frozen=True)
class Clamp(Intervention):
    """x + (c - f_i(x)) d_i. If f_i(x) is c already, but for rounding (see `plan`), no bit changes."""

    value: float
    unit: Unit = "latent"
    kind: ClassVar[str] = "clamp"
    reads_own: ClassVar[bool] = True
    amount_name: ClassVar[str] = "value"


@dataclass(frozen=True)
class MinClamp(Intervention):
    """x + max(c - f_i(x), 0) d_i: the feature is at least c."""

    value: float
    unit: Unit = "latent"
    kind: ClassVar[str] = "min-clamp"
    reads_own: ClassVar[bool] = True
    amount_name: ClassVar[str] = "value"


@dataclass(frozen=True)
class Ablate(Intervention):
    """x - f_i(x) d_i. If the feature does not fire, no bit changes."""

    kind: ClassVar[str] = "ablate"
    reads_own: ClassVar[bool] = True


@dataclass(frozen=True)
class ProjectOut(Intervention):
    """Remove what x has along d_i, whether the feature fires or not; after all that is written."""

    kind: ClassVar[str] = "project out"


def check_together(interventions: list[Intervention]) -> None:
    """Raise a ConfigError if two interventions contradict each other."""
    if not interventions:
        raise ConfigError(f"{arg('interventions')} is empty; write at least one, such as Add(12, 4.0).")
    first: dict[int, Intervention] = {}
    for one in interventions:
        if one.reads_own and (other := first.setdefault(one.feature, one)) is not one:
            raise ConfigError(f"feature {one.feature} gets {other.kind} and {one.kind} at once; keep one of the two.")


def _check_feature(where: str, feature: Any) -> None:
    if not isinstance(feature, int) or isinstance(feature, bool) or feature < 0:
        raise ConfigError(f"{where}: {arg('feature')} is {feature!r}; write its number, from 0.")


def _check_amount(where: str, key: str, amount: Any) -> None:
    if not isinstance(amount, int | float) or isinstance(amount, bool) or not math.isfinite(amount):
        raise ConfigError(f"{where}: {arg(key)} is {amount!r}; write a finite number.")
