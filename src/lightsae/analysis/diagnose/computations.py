"""How an SAE's tensors could be meant: with b_dec subtracted or not, in the other order, another choice of latents.

Axes:    D width read, O width predicted, F latents.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.analysis.diagnose.case import Alternative, Case, Sample

# Numbers of latents per token that are tried, and on how many tokens their common threshold is measured.
_FEWEST_K, _MOST_K, _TOKENS = 2, 512, 512


def b_dec(case: Case, sample: Sample) -> Iterator[Alternative]:
    """Give an autoencoder's case with b_dec subtracted from the input where it is not, and the other way round."""
    # A matching pursuit that does not subtract b_dec has no use for it.
    if not case.is_autoencoder or not bool(case.sae.b_dec.any()) or case.sae.pursuit is not None:
        return
    subtracts = not case.sae.subtracts_b_dec
    was = "was" if subtracts else "was not"
    flag = "true" if subtracts else "false"
    yield Alternative(
        "b_dec",
        f"b_dec {was} subtracted from the input in training",
        f"say so in the file: apply_b_dec_to_input {flag} in SAELens' cfg.json",
        case.with_sae(subtracts_b_dec=subtracts),
    )


def transposed(case: Case, sample: Sample) -> Iterator[Alternative]:
    """Give the case with matrices read in the other order of their axes, which their shape does not tell."""
    sae = case.sae
    W_enc, W_dec = _other_order(sae.W_enc), _other_order(sae.W_dec)
    matrices: list[tuple[str, dict[str, Tensor]]] = [
        ("W_enc", {"W_enc": W_enc}),
        ("W_dec", {"W_dec": W_dec}),
        ("W_enc and W_dec", {"W_enc": W_enc, "W_dec": W_dec}),
    ]
    if sae.pursuit is not None:
        # One matrix in both roles.
        matrices = [("W_dec", {"W_enc": W_dec.T, "W_dec": W_dec})]
    if sae.W_skip is not None:
        matrices.append(("W_skip", {"W_skip": _other_order(sae.W_skip)}))
    for name, changes in matrices:
        verb, whose = ("were", "their") if " and " in name else ("was", "its")
        yield Alternative(
            "transposed",
            f"{name} {verb} read in the other order of {whose} axes",
            f"transpose {name} where the file is read or was written",
            case.with_sae(**changes),
        )


def _other_order(matrix: Tensor) -> Tensor:
    """Return the matrix whose numbers lie in memory as if its axes were swapped; of a square one its transpose."""
    rows, columns = matrix.shape
    return matrix.contiguous().reshape(columns, rows).T


def activations(case: Case, sample: Sample) -> Iterator[Alternative]:
    """Give the case with its latents chosen in another way."""
    sae = case.sae
    bare = case.with_sae(threshold=None, k=None, groups=None, r_mag=None, b_mag=None, pursuit=None)
    positive = bare.with_sae(activation="relu")
    if sae.activation in ("topk", "groupmax"):
        yield Alternative(
            "activation",
            "every positive latent fires (ReLU)",
            "read it as ReLU",
            positive,
            # Training with k would have used them.
            likely=sae.k is not None and _l0(positive, sample, sae.k) < sae.k / 2,
        )
    numbers = _numbers(case)
    limits = _common_thresholds(positive, sample, numbers) if sae.activation in ("relu", "jumprelu") else {}
    for k in numbers:
        if sae.activation != "topk" or k != sae.k:
            yield Alternative(
                "activation",
                f"each token keeps its {k} largest latents (TopK)",
                f"read it as TopK with k {k}",
                bare.with_sae(activation="topk", k=k),
                searched=True,
            )
        if k in limits:
            yield Alternative(
                "activation",
                f"latents fire above one threshold, {k} a token on average (BatchTopK)",
                f"read it as JumpReLU with the threshold {limits[k]:.4g} for all latents",
                bare.with_sae(activation="jumprelu", threshold=torch.full_like(sae.b_enc, limits[k])),
                searched=True,
            )


def _numbers(case: Case) -> list[int]:
    """Return the numbers of latents per token that are tried: what the file says, and powers of two."""
    sae = case.sae
    told = [sae.k, None if case.l0 is None else round(case.l0)]
    powers = [_FEWEST_K << step for step in range(16) if _FEWEST_K << step <= min(_MOST_K, sae.d_sae // 4)]
    return list(dict.fromkeys(k for k in [*told, *powers] if k is not None and 0 < k <= sae.d_sae))


def _l0(case: Case, sample: Sample, most: int) -> float:
    """Return the latents that fire on a token, at most so many of each counted."""
    return float((_latents(case, sample) > 0).sum(1).clamp_max(most).double().mean())


@torch.no_grad()
def _latents(case: Case, sample: Sample) -> Float[Tensor, "T F"]:
    """Return the latents of the first tokens that are no sinks."""
    x = case.activations(sample)[0][case.ordinary(sample)][:_TOKENS]
    return case.sae.to_sae().to(x.device).encode(x)


def _common_thresholds(case: Case, sample: Sample, numbers: Sequence[int]) -> dict[int, float]:
    """Return the threshold above which so many latents of a token lie on average, where it is above 0."""
    latents = _latents(case, sample)
    tokens = len(latents)
    most = min(latents.numel(), max(numbers, default=0) * tokens)
    largest = latents.flatten().topk(most, sorted=True).values
    limits = {k: float(largest[k * tokens - 1]) for k in numbers if k * tokens <= most}
    return {k: limit for k, limit in limits.items() if limit > 0}
