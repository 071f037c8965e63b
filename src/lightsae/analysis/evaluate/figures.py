"""What each figure of an evaluation is, and how it follows from sums over documents.

Axes:    N documents, B draws (the first is the text itself), D width, F latents, V different counts.
Units:   raw activations; nats per token.
Sources: as in `lightsae.metrics`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from lightsae.analysis.concepts import figures as concepts
from lightsae.metrics.reconstruction import ReconstructionSums

Better = Literal["higher", "lower"]
Values = NDArray[np.float64]
Table = NDArray[np.float64]
# Shares of tokens above which a latent is dense.
DENSE = {"dense_fraction": 0.1, "dense_fraction_1pct": 0.01}
L0_QUANTILES = (5, 50, 95)
# Latents whose draws are in memory at once.
_LATENTS = 4096


@dataclass(frozen=True)
class Definition:
    """What a figure is: in words, and which of two values is the better one, where one is."""

    text: str
    better: Better | None = None


def _both(name: str, text: str, better: Better | None = None) -> dict[str, Definition]:
    """Return the definition for all tokens, and for those that are no attention sinks."""
    return {
        name: Definition(text, better),
        f"{name}_no_sinks": Definition(f"{name} over the tokens that are no attention sinks", better),
    }


DEFINITIONS: dict[str, Definition] = {
    **_both("fve", "1 - sum |x - x_hat|^2 / sum |x - mean|^2, the mean over the same tokens", "higher"),
    **_both("mse", "mean of (x - x_hat)^2 over tokens and dimensions, in the activations' unit squared", "lower"),
    **_both("cosine", "mean over tokens of the cosine between x and x_hat", "higher"),
    **_both("relative_reconstruction_bias", "E |x_hat|^2 / E <x, x_hat>: 1 is unbiased, below 1 shrunk"),
    **_both("l2_ratio", "mean over tokens of |x_hat| / |x|"),
    # No merit by itself: it is what the others are bought with.
    "l0": Definition("latents that fire on a token, on average"),
    **{f"l0_p{q}": Definition(f"{q}% of the tokens have at most so many latents that fire") for q in L0_QUANTILES},
    "dead_fraction": Definition(
        "share of the latents that fire on none of these tokens; more text finds fewer", "lower"
    ),
    "dense_fraction": Definition("share of the latents that fire on more than 10% of the tokens", "lower"),
    "dense_fraction_1pct": Definition("share of the latents that fire on more than 1% of the tokens"),
    "ce_clean": Definition("cross-entropy of the untouched model"),
    "ce_spliced": Definition("cross-entropy with x_hat in the place of x at all positions", "lower"),
    "ce_zero": Definition("cross-entropy with zeros there"),
    "ce_mean": Definition("cross-entropy with the mean activation there"),
    "ce_recovered": Definition("(ce_zero - ce_spliced) / (ce_zero - ce_clean)", "higher"),
    "ce_recovered_mean": Definition("(ce_mean - ce_spliced) / (ce_mean - ce_clean)", "higher"),
    "kl": Definition("KL(untouched || spliced) of the next token's distribution", "lower"),
    "top1_agreement": Definition("share of positions whose likeliest next token is the same when spliced", "higher"),
    "ce_spliced_no_sinks": Definition("ce_spliced where the activations of attention sinks stay as they are", "lower"),
    "ce_zero_no_sinks": Definition("ce_zero where the activations of attention sinks stay as they are"),
    "ce_recovered_no_sinks": Definition("ce_recovered where the activations of attention sinks stay", "higher"),
    "kl_no_sinks": Definition("kl where the activations of attention sinks stay as they are", "lower"),
    **{name: Definition(text, concepts.BETTER.get(name)) for name, text in (concepts.WORDS | concepts.PROBES).items()},
}


def reconstruction(tables: Mapping[str, Table], times: NDArray[np.float64]) -> dict[str, Values]:
    """Return the figures of reconstruction and the mean L0 for every draw.

    Args:
        tables: By name, for all tokens and with `_no_sinks`: `tokens`, `error`, `square` and `offset` (of x less a
            fixed vector), `predicted`, `product`, `cosine`, `ratio`, `fired`.
        times: How often each document is in each draw.
    """
    figures: dict[str, Values] = {}
    for suffix in ("", "_no_sinks"):
        names = ("tokens", "error", "square", "predicted", "product", "cosine", "fired", "ratio")
        tokens, error, square, predicted, product, cosine, fired, ratio = (
            times @ tables[name + suffix] for name in names
        )
        offset = times @ tables["offset" + suffix]
        # Around the text's own mean in every draw: around a draw's, which is nearer to what was drawn, the spread
        # would be too small in all of them, and the interval beside the figure.
        with np.errstate(divide="ignore", invalid="ignore"):
            mean, of_lengths = offset[0] / tokens[0], ratio / tokens
        spread = square - 2 * offset @ mean + tokens * (mean @ mean)
        parts = map(torch.from_numpy, (tokens, error, spread, predicted, product, cosine, fired))
        sums = ReconstructionSums._make([*parts, torch.from_numpy(mean).expand(len(times), -1)])
        figures |= {
            f"fve{suffix}": sums.fve.numpy(),
            f"mse{suffix}": sums.mse.numpy(),
            f"cosine{suffix}": sums.mean_cosine.numpy(),
            f"relative_reconstruction_bias{suffix}": sums.relative_reconstruction_bias.numpy(),
            f"l2_ratio{suffix}": of_lengths,
        }
        if not suffix:
            figures["l0"] = sums.l0.numpy()
    return figures


def l0_quantiles(
    counts: NDArray[np.float64], values: NDArray[np.int64], times: NDArray[np.float64]
) -> dict[str, Values]:
    """Return the quantiles of L0 for every draw.

    Args:
        counts: How many tokens of each document have each of the values of L0.
        values: (V,) those values, ascending.
        times: As in `reconstruction`.
    """
    below = (times @ counts).cumsum(1)
    shares = below / below[:, -1:]
    return {f"l0_p{q}": values[(shares < q / 100 - 1e-12).sum(1)].astype(np.float64) for q in L0_QUANTILES}


def dense_fractions(
    fires: sparse.csr_array, tokens: NDArray[np.float64], times: NDArray[np.float64]
) -> dict[str, Values]:
    """Return the shares of latents that fire often, for every draw.

    Args:
        fires: (N, F) on how many tokens of each document each latent fires.
        tokens: Of each document.
        times: As in `reconstruction`.
    """
    total, width = times @ tokens, fires.shape[1]
    dense = {name: np.zeros(len(times)) for name in DENSE}
    columns = fires.tocsc()
    for start in range(0, width, _LATENTS):
        rates = (columns[:, start : start + _LATENTS].T @ times.T) / total
        for name, limit in DENSE.items():
            dense[name] += (rates > limit).sum(0)
    return {name: count / width for name, count in dense.items()}


def faithfulness(tables: Mapping[str, Table], times: NDArray[np.float64]) -> dict[str, Values]:
    """Return what splicing costs the language model, for every draw.

    Args:
        tables: `predictions`, and sums over them of `ce_clean`, `ce_spliced`, `ce_zero`, `ce_mean`, `kl`, `top1`, and
            of `ce_spliced_no_sinks`, `ce_zero_no_sinks`, `kl_no_sinks`.
        times: As in `reconstruction`.
    """
    predictions = times @ tables["predictions"]
    means = {name: (times @ table) / predictions for name, table in tables.items() if name != "predictions"}
    figures = {name: mean for name, mean in means.items() if name != "top1"}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, ablated, spliced in (
            ("ce_recovered", "ce_zero", "ce_spliced"),
            ("ce_recovered_mean", "ce_mean", "ce_spliced"),
            ("ce_recovered_no_sinks", "ce_zero_no_sinks", "ce_spliced_no_sinks"),
        ):
            figures[name] = (means[ablated] - means[spliced]) / (means[ablated] - means["ce_clean"])
    return figures | {"top1_agreement": means["top1"]}
