"""What the three layouts of OpenMOSS share: the scale of a data set, and a choice that counts the decoder's norms.

Their SAEs read activations times s = sqrt(D) / (mean norm over a data set), one for what is read and one for what is
predicted. With `sparsity_include_decoder_norm` the activation function sees z times the norm n of each decoder row, and
the latents are divided by it again: f = act(z n) / n.

Axes:    D width read, O width predicted, F latents.
Source:  the code of OpenMOSS' Language-Model-SAEs (lm_saes/sae.py of early 2025; llamascopium/models/sae.py, May 2026).
"""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from lightsae.errors import FormatError
from lightsae.formats.layouts.description import Description
from lightsae.formats.layouts.portable import PortableSAE

_WITHOUT_A_SCALE = ("token-wise", "batch-wise")


def hooks_of(said: Description) -> tuple[str, str]:
    """Return the names of the hooks that are read and predicted.

    Raises:
        FormatError: The first is missing, or one is no name.
    """
    read = said.need("hook_point_in", str)
    hooks = read, said.get("hook_point_out", str, read)
    for hook in hooks:
        if not hook.isprintable():
            raise FormatError(f"{said.where!r}: {hook!r:.60} is no hook's name; copy it again.")
    return hooks


def scale_of(norm: float, d: int, what: str, where: str) -> float:
    """Return sqrt(D) / norm.

    Args:
        norm: Mean norm of the activations.
        d: Their width.
        what: The norm's name, for the message.
        where: The file as the user would write it.

    Raises:
        FormatError: The norm is not above 0, or so small that no scale is left.
    """
    scale = d**0.5 / norm if norm > 0 else 0.0
    if not 0 < scale < 1e12:
        raise FormatError(f"{where!r}: {what} is {norm!r}, and a mean norm is above 0; copy it again.")
    return scale


def refuse_other_norms(said: Description) -> None:
    """Refuse a normalisation that has no scale of its own: by each token's norm, or each batch's.

    Raises:
        FormatError: It is one.
    """
    kind = said.get("norm_activation", str, "dataset-wise")
    if kind in _WITHOUT_A_SCALE:
        raise FormatError(
            f"{said.where!r}: norm_activation is {kind!r}, which scales by what is read at the moment; SAEs with one "
            "scale for a data set ('dataset-wise', 'inference') are read."
        )
    if kind not in ("dataset-wise", "inference"):
        raise FormatError(f"{said.where!r}: norm_activation is {kind!r:.60}, which is not known.")


def with_choice_by_decoder_norm(sae: PortableSAE, said: Description, otherwise: bool) -> PortableSAE:
    """Return the SAE whose activation function sees z times the decoder's norms, where the description says so.

    A ReLU does not feel them. A threshold theta for z n is theta / n for z. TopK of z n is a TopK whose latents are
    f n, with decoder rows of norm 1.

    Args:
        sae: The tensors as they are.
        said: The description.
        otherwise: What holds where it does not say.

    Raises:
        FormatError: A decoder row is zero.
    """
    if sae.activation == "relu" or not said.get("sparsity_include_decoder_norm", bool, otherwise):
        return sae
    norms: Float[Tensor, " F"] = sae.W_dec.norm(dim=1)
    if not bool((norms > 0).all()):
        raise FormatError(f"{said.where!r}: latents are divided by the norms of their decoder rows, and one row is 0.")
    if sae.activation == "topk":
        return sae.with_latents_times(norms, "the decoder's norms, by which latents are chosen, into the latents")
    assert sae.threshold is not None
    note = "the decoder's norms into the thresholds"
    return replace(sae, threshold=sae.threshold / norms, folded=(*sae.folded, note))
