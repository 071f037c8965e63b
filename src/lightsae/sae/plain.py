"""The plain structure under the names that users write: `--model.sae TopK`."""

from typing import ClassVar

from lightsae.sae import mechanisms
from lightsae.sae.base import SparseAutoencoder
from lightsae.sae.mechanisms.jumprelu import Penalty
from lightsae.sae.mechanisms.relu import DecoderNorm
from lightsae.sae.refinements import NO_REFINEMENTS, Refinements
from lightsae.sae.sites import Widths


class ReLU(SparseAutoencoder):
    """ReLU and L1. Loss terms: `mse`, `l1`. Raise the coefficient of `l1` for fewer latents a token.

    Args:
        widths: Given by the data.
        d_sae: Number of latents.
        decoder_norm: `free`: decoder rows of any norm, the norm in the penalty (Anthropic, April 2024). `unit`: rows of
            norm 1 (Bricken et al. 2023).
        p_end: With less than 1, the penalty becomes sum f^p, and p falls from 1 to this. Published: 0.2.
        p_begin: Where that fall begins, a share of the run.
        refinements: Options beside the mechanism.
    """

    def __init__(
        self,
        widths: Widths,
        d_sae: int,
        decoder_norm: DecoderNorm = "free",
        p_end: float = 1.0,
        p_begin: float = 0.2,
        refinements: Refinements = NO_REFINEMENTS,
    ) -> None:
        self.decoder_norm, self.p_end, self.p_begin = decoder_norm, p_end, p_begin
        super().__init__(widths, d_sae, mechanisms.ReLU(decoder_norm, p_end, p_begin), refinements)


class TopK(SparseAutoencoder):
    """Each token keeps its k largest latents (Gao et al. 2024). Loss terms: `mse`, `auxk`; with `multi_k`, `multi`.

    Args:
        widths: Given by the data.
        d_sae: Number of latents.
        k: Latents kept for each token.
        k_aux: Dead latents that learn from the error of a token; null: the power of two nearest to half the width.
        k_start: Begin with this many latents a token and fall linearly to k; null: k from the start.
        k_fall: Length of that fall, a share of the run.
        multi_k: Latents a token in the term `multi`, which keeps reconstructions from more latents good; null: none.
        refinements: Options beside the mechanism.
    """

    kind: ClassVar[type[mechanisms.TopK]] = mechanisms.TopK

    def __init__(
        self,
        widths: Widths,
        d_sae: int,
        k: int,
        k_aux: int | None = None,
        k_start: int | None = None,
        k_fall: float = 0.5,
        multi_k: int | None = None,
        refinements: Refinements = NO_REFINEMENTS,
    ) -> None:
        self.k, self.k_aux, self.k_start, self.k_fall, self.multi_k = k, k_aux, k_start, k_fall, multi_k
        super().__init__(widths, d_sae, self.kind(k, k_aux, k_start, k_fall, multi_k), refinements)


class BatchTopK(TopK):
    """The batch keeps its T * k largest latents; at inference those above a threshold. Loss terms as TopK's."""

    kind = mechanisms.BatchTopK


class JumpReLU(SparseAutoencoder):
    """A latent fires above a threshold of its own. Loss terms: `mse`, `l0_penalty` (or `tanh`), `pre_act`.

    Args:
        widths: Given by the data.
        d_sae: Number of latents.
        penalty: `step`: the number of latents that fire (Rajamanoharan et al. 2024). `tanh`: a smooth count (Anthropic,
            January 2025).
        target_l0: Latents a token to aim at, with the step penalty; null: raise the coefficient of `l0_penalty` for
            fewer.
        start_l0: Latents a token at the start: thresholds begin where each latent fires on its share of the tokens.
        bandwidth: Of the kernel through which thresholds learn, in units of the normalised activations; with
            data.normalisation unit, divide it by sqrt(width).
        refinements: Options beside the mechanism.
    """

    def __init__(
        self,
        widths: Widths,
        d_sae: int,
        penalty: Penalty = "step",
        target_l0: float | None = None,
        start_l0: float = 32.0,
        bandwidth: float = 2.0,
        refinements: Refinements = NO_REFINEMENTS,
    ) -> None:
        self.penalty, self.target_l0, self.start_l0, self.bandwidth = penalty, target_l0, start_l0, bandwidth
        mechanism = mechanisms.JumpReLU(penalty, target_l0, start_l0, bandwidth)
        super().__init__(widths, d_sae, mechanism, refinements)


class Gated(SparseAutoencoder):
    """One path decides what fires, another how strongly (Rajamanoharan et al. 2024). Loss terms: `mse`, `l1`, `aux`.

    Args:
        widths: Given by the data.
        d_sae: Number of latents.
        start_l0: Latents a token at the start: gates begin where each latent fires on its share of the tokens.
        refinements: Options beside the mechanism.
    """

    def __init__(
        self, widths: Widths, d_sae: int, start_l0: float = 32.0, refinements: Refinements = NO_REFINEMENTS
    ) -> None:
        self.start_l0 = start_l0
        super().__init__(widths, d_sae, mechanisms.Gated(start_l0), refinements)
