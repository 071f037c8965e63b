"""Interventions as tensors: what they make of the activations at a site, in one go.

Axes:    T tokens, D width of the site, n interventions that write, m latents that are needed, p projected directions.
Units:   latents and amounts in the SAE's normalised units, directions and activations raw. If every token has a unit of
         its own, an amount in the unit `norm` is a length all the same: it alone is not multiplied by that.

Arithmetic is in float32 (or wider, if the activations are). A token for which nothing is to be written keeps every bit,
in half precision too.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightsae.analysis.steering.interventions import Fires, Intervention, MinClamp, ProjectOut
from lightsae.errors import ConfigError, arg

# Two ways to work out the same latent (one token or many, its own column or all) differ by rounding: so much is equal,
# relative to the latent; `rounding` is the part that does not shrink with it.
_EQUAL = 1e-5
# Directions whose part outside the span of the others is smaller than this share are in the span.
_RANK = 1e-5

ToLatent = Callable[[float, str, int, float], float]


class Plan:
    """What some interventions do at one site.

    Args:
        interventions: In any order: they are sorted, so that the order changes no bit.
        directions: What one unit of each feature adds, by feature, (D,) in float32.
        to_latent: From an amount, its unit, the feature and its direction's norm to latent units.
        rounding: How far a latent may be off, by feature: see `latent_reader.rounding`.
        per_token: Whether each token has a unit of its own.

    Attributes:
        features: The features whose latents are needed, ascending; maybe none.
        writes: Whether anything is to be done; False with strengths of 0 alone.
    """

    def __init__(
        self,
        interventions: Sequence[Intervention],
        directions: dict[int, Tensor],
        to_latent: ToLatent,
        rounding: dict[int, float],
        per_token: bool = False,
    ) -> None:
        ordered = sorted(interventions, key=lambda one: (one.feature, one.kind, str(one)))
        writing = [one for one in ordered if not isinstance(one, ProjectOut) and not _adds_nothing(one)]
        projected = [one for one in ordered if isinstance(one, ProjectOut)]
        self.writes = bool(writing or projected)
        needed = {one.feature for one in writing if one.reads_own}
        needed |= {c.feature for one in (*writing, *projected) if (c := one.condition()) and c.feature is not None}
        self.features = sorted(needed)

        def amount(one: Intervention) -> float:
            value = one.amount()
            return 0.0 if value is None else to_latent(*value, one.feature, float(directions[one.feature].norm()))

        rows = {id(one): _direction(one, directions[one.feature]) for one in (*writing, *projected)}
        constant = [one for one in writing if not one.reads_own and one.when is None]
        in_units = [one for one in constant if per_token and not _is_length(one)]
        self._constant = _sum([amount(one) * rows[id(one)] for one in constant if one not in in_units])
        self._constant_units = _sum([amount(one) * rows[id(one)] for one in in_units])
        varying = [one for one in writing if one.reads_own or one.when is not None]
        self._rows = torch.stack([rows[id(one)] for one in varying]) if varying else None
        self._target = torch.tensor([amount(one) for one in varying])
        self._is_length = torch.tensor([_is_length(one) for one in varying])
        self._own = torch.tensor([self.features.index(one.feature) if one.reads_own else 0 for one in varying])
        self._reads_own = torch.tensor([float(one.reads_own) for one in varying])
        self._slack = torch.tensor([rounding[one.feature] if one.reads_own else 0.0 for one in varying])
        self._least = torch.tensor([0.0 if isinstance(one, MinClamp) else -torch.inf for one in varying])
        self._has_least = any(isinstance(one, MinClamp) for one in varying)
        self._all_clamp = all(one.reads_own for one in varying)
        self._conditions = _Conditions([one.condition() for one in varying], self.features, to_latent)
        self._out = torch.stack([rows[id(one)] for one in projected]) if projected else None
        self._out_conditions = _Conditions([one.condition() for one in projected], self.features, to_latent)
        self._basis = None if self._out is None else _orthonormal(self._out)

    def to(self, device: torch.device) -> "Plan":
        """Move the tensors, in place."""
        for holder in (self, self._conditions, self._out_conditions):
            for name, value in vars(holder).items():
                if isinstance(value, Tensor):
                    setattr(holder, name, value.to(device))
        return self

    @property
    def added(self) -> Float[Tensor, " D"] | None:
        """What is added to every token alike; None if anything else is done, or nothing."""
        others = (self._constant_units, self._rows, self._out)
        return self._constant if all(one is None for one in others) else None

    @property
    def width(self) -> int:
        """Width of the site, as the SAE has it."""
        rows = next(t for t in (self._constant, self._constant_units, self._rows, self._out) if t is not None)
        return int(rows.shape[-1])

    def change(
        self,
        x: Float[Tensor, "T D"],
        latents: Float[Tensor, "T m"] | None,
        inside: Bool[Tensor, " T"] | None,
        units: Float[Tensor, "T 1"] | None = None,
    ) -> Float[Tensor, "T D"]:
        """Return the activations after all interventions, in their dtype.

        Args:
            x: As they came.
            latents: Those of `features`, in that order; None if there are none.
            inside: Which tokens are in scope; None: all.
            units: Each token's own unit; needed with `per_token` alone.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        new = x
        touched = []  # by what is not done to every token: the tokens that it is done to
        if self._rows is not None:
            assert latents is not None
            coefficients = self._coefficients(latents, units).to(wide)
            new = torch.addmm(x.to(wide), coefficients, self._rows.to(wide))
            touched.append((coefficients != 0).any(1))
        if self._constant is not None:
            new = new + self._constant.to(wide)
        if self._constant_units is not None:
            assert units is not None
            new = new + (units * self._constant_units).to(wide)
        if self._out is not None:
            new = self._project(new.to(wide), latents)
            if not self._out_conditions.always:
                assert latents is not None
                touched.append(self._out_conditions.hold(latents).any(1))
        scope = [] if inside is None else [inside]
        unconditional = self._constant is not None or self._constant_units is not None
        if not unconditional and (self._out is None or not self._out_conditions.always):
            scope.append(reduce(torch.logical_or, touched))
        new = new.to(x.dtype)
        return torch.where(reduce(torch.logical_and, scope)[:, None], new, x) if scope else new

    def _coefficients(self, latents: Float[Tensor, "T m"], units: Float[Tensor, "T 1"] | None) -> Float[Tensor, "T n"]:
        """Return how much of each direction is written."""
        if self._all_clamp:
            own = latents[:, self._own] if len(self.features) > 1 or len(self._own) > 1 else latents
        else:
            own = latents[:, self._own] * self._reads_own
        target, slack = self._target, self._slack
        if units is not None:
            own, slack, target = own * units, slack * units, torch.where(self._is_length, target, target * units)
        gap = target - own
        gap = torch.where(gap.abs() > _EQUAL * own.abs() + slack, gap, 0)
        if self._has_least:
            gap = torch.maximum(gap, self._least)
        coefficients: Tensor = gap if self._conditions.always else gap * self._conditions.hold(latents)
        return coefficients

    def _project(self, x: Float[Tensor, "T D"], latents: Tensor | None) -> Float[Tensor, "T D"]:
        assert self._out is not None
        assert self._basis is not None
        if self._out_conditions.always:
            basis = self._basis.to(x.dtype)
            return x - (x @ basis.T) @ basis
        # Which directions go differs from token to token: the normal equations of those that do, and 1 for the others.
        assert latents is not None
        rows = torch.nn.functional.normalize(self._out.to(x.dtype), dim=1)
        on = self._out_conditions.hold(latents).to(x.dtype)
        gram = on[:, :, None] * on[:, None] * (rows @ rows.T) + torch.diag_embed(1 - on)
        shares = torch.linalg.pinv(gram, hermitian=True, rtol=_RANK) @ (on * (x @ rows.T))[..., None]
        left: Tensor = x - shares[..., 0] @ rows
        return left


class _Conditions:
    """Which of some interventions hold on which tokens. `always`: none has a condition."""

    def __init__(self, conditions: Sequence[Fires | None], features: list[int], to_latent: ToLatent) -> None:
        self.always = all(condition is None for condition in conditions)
        # A threshold that every latent exceeds stands for no condition.
        places, above = [0] * len(conditions), [-torch.inf] * len(conditions)
        for number, condition in enumerate(conditions):
            if condition is not None and condition.feature is not None:
                places[number] = features.index(condition.feature)
                above[number] = to_latent(condition.above, condition.unit, condition.feature, 1.0)
        self._places, self._above = torch.tensor(places), torch.tensor(above)

    def hold(self, latents: Float[Tensor, "T m"]) -> Bool[Tensor, "T n"]:
        return latents[:, self._places] > self._above


def _is_length(one: Intervention) -> bool:
    amount = one.amount()
    return amount is not None and amount[1] == "norm"


def _sum(rows: list[Tensor]) -> Tensor | None:
    return reduce(torch.add, rows) if rows else None


def _adds_nothing(one: Intervention) -> bool:
    amount = one.amount()
    return not one.reads_own and amount is not None and amount[0] == 0


def _direction(one: Intervention, own: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """Return the direction that is written along."""
    if one.along is None:
        return own
    along = one.along.detach().to(own)
    if along.shape != own.shape or not bool(along.isfinite().all()) or not bool(along.any()):
        raise ConfigError(
            f"{type(one).__name__}: {arg('along')} has shape {tuple(along.shape)}; write {len(own)} finite numbers, "
            "not all 0."
        )
    scaled: Tensor = along * (own.norm() / along.norm())
    return scaled


def _orthonormal(rows: Float[Tensor, "p D"]) -> Float[Tensor, "r D"]:
    """Return an orthonormal basis of the span of some directions."""
    normalised = torch.nn.functional.normalize(rows.double(), dim=1)
    _, sizes, basis = torch.linalg.svd(normalised, full_matrices=False)
    kept: Tensor = basis[sizes > _RANK].float()
    return kept
