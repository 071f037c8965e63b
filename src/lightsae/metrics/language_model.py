"""What splicing costs the language model: cross-entropy, CE recovered, KL divergence.

Axes:    B rows, S positions, V vocabulary.
Units:   nats a token.
Memory:  one row at a time becomes float32; whole rows of logits of a large vocabulary would not fit.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def counted_targets(special: Bool[Tensor, "B S"]) -> Bool[Tensor, "B S-1"]:
    """Return at which positions the prediction counts: where there is a next token, and it is no special token.

    How well the end of a document, a separator or padding is predicted says nothing about the text. Figures that are
    compared are means over the same positions.

    >>> counted_targets(torch.tensor([[True, False, False, True]]))
    tensor([[ True,  True, False]])
    """
    return ~special[:, 1:]


def token_cross_entropy(logits: Float[Tensor, "B S V"], tokens: Int[Tensor, "B S"]) -> Float[Tensor, "B S-1"]:
    """Return -log p(next token) at every position but a row's last, in float32."""
    return torch.stack(
        [
            F.cross_entropy(row[:-1].float(), targets[1:], reduction="none")
            for row, targets in zip(logits, tokens, strict=True)
        ]
    )


def token_kl_divergence(clean: Float[Tensor, "B S V"], spliced: Float[Tensor, "B S V"]) -> Float[Tensor, "B S-1"]:
    """Return KL(clean || spliced) of the next-token distributions at every position but a row's last, in float32."""
    return torch.stack([_kl_divergence(p[:-1], q[:-1]) for p, q in zip(clean, spliced, strict=True)])


def _kl_divergence(p: Float[Tensor, "S V"], q: Float[Tensor, "S V"]) -> Float[Tensor, " S"]:
    log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def cross_entropy_recovered(
    clean: Float[Tensor, ""], spliced: Float[Tensor, ""], ablated: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """(ablated - spliced) / (ablated - clean): 1 as good as the untouched model, 0 as bad as the ablation.

    >>> cross_entropy_recovered(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(10.0))
    tensor(0.8750)
    """
    return (ablated - spliced) / (ablated - clean)
