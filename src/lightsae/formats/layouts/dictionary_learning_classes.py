"""The classes of dictionary_learning: what each makes of its tensors, and which of them an SAE of ours fits.

Axes:    D width, F latents, G groups.
Classes: AutoEncoder             bias (D), encoder.weight (F, D), encoder.bias, decoder.weight (D, F): ReLU; `bias` is
                                 subtracted from what is read, and added to what is predicted
         AutoEncoderNew          encoder.weight, encoder.bias, decoder.weight, decoder.bias: ReLU
         GatedAutoEncoder        decoder_bias, encoder.weight, gate_bias, r_mag, mag_bias, decoder.weight
         JumpReluAutoEncoder     W_enc (D, F), b_enc, W_dec (F, D), b_dec, threshold (F): z where z > threshold
         AutoEncoderTopK         k, threshold (not used), encoder.weight, encoder.bias, decoder.weight, b_dec
         BatchTopKSAE            the same; what is above the one threshold fires, and -1 is one that was never set
         MatryoshkaBatchTopKSAE  k, threshold, group_sizes (G), W_enc (D, F), b_enc, W_dec, b_dec; as BatchTopKSAE
Source:  the library of that name, version 0.1.0, and its files.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightsae.errors import FormatError
from lightsae.formats.layouts.description import Description
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.tensors import Tensors

# The trainer of each class, by which other tools know what an SAE is.
TRAINERS = {
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderNew": "StandardTrainerAprilUpdate",
    "GatedAutoEncoder": "GatedSAETrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
}
_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
_PLAIN = {"W_enc", "b_enc", "W_dec", "b_dec"}
# What each always has, and what files of early versions leave to config.json.
_HAS: dict[str, tuple[set[str], set[str]]] = {
    "AutoEncoder": (_LINEAR | {"bias"}, set()),
    "AutoEncoderNew": (_LINEAR | {"decoder.bias"}, set()),
    "GatedAutoEncoder": ({"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"}, set()),
    "JumpReluAutoEncoder": (_PLAIN | {"threshold"}, set()),
    "AutoEncoderTopK": (_LINEAR | {"b_dec"}, {"k", "threshold"}),
    "BatchTopKSAE": (_LINEAR | {"b_dec", "threshold"}, {"k"}),
    "MatryoshkaBatchTopKSAE": (_PLAIN | {"threshold", "group_sizes"}, {"k"}),
}


def class_of(tensors: Tensors, config: str) -> str:
    """Return the class that has such tensors, where config.json does not say it.

    Raises:
        FormatError: None has, or two have, between which the tensors leave open what fires.
    """
    names = set(tensors.names)
    fitting = [kind for kind, (needs, may) in _HAS.items() if needs <= names <= needs | may]
    if not fitting:
        raise FormatError(
            f"{tensors.where!r} holds {', '.join(tensors.names) or 'no tensors'}: no class of dictionary_learning has "
            "these tensors."
        )
    if len(fitting) > 1 and tensors.peek("threshold") >= 0:
        raise FormatError(
            f"{tensors.where!r} is of the class {' or '.join(fitting)}, which differ in what fires; copy {config!r}, "
            "which says it, too."
        )
    return fitting[0]


def read_class(kind: str, tensors: Tensors, trainer: Description) -> PortableSAE:
    """Return what the tensors of a class stand for.

    Args:
        kind: Name of the class.
        tensors: All of ae.pt; what is taken is left out of them.
        trainer: What config.json says of the training.

    Raises:
        FormatError: A tensor is missing or damaged, or there is no such class.
    """
    if kind == "AutoEncoder" and "bias" not in tensors and "decoder.bias" in tensors:
        # Trainers that were given the other class write this name all the same.
        kind = "AutoEncoderNew"
    if kind not in _READERS:
        raise FormatError(f"{trainer.where!r}: dict_class is {kind!r}; those that are read: {', '.join(_READERS)}.")
    return _READERS[kind](tensors, trainer)


def _auto_encoder(tensors: Tensors, trainer: Description) -> PortableSAE:
    W_enc, b_enc, W_dec = _linear(tensors)
    bias, folded = tensors.take("bias", "D"), ()
    norms = W_dec.norm(dim=1)
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-4):
        why = "nothing of the decoder's norms, by which AutoEncoder.from_pretrained (normalize_decoder) scales latents"
        folded = (why,)
    return PortableSAE("relu", W_enc, b_enc, W_dec, bias, subtracts_b_dec=True, folded=folded)


def _auto_encoder_new(tensors: Tensors, trainer: Description) -> PortableSAE:
    return PortableSAE("relu", *_linear(tensors), tensors.take("decoder.bias", "D"))


def _gated(tensors: Tensors, trainer: Description) -> PortableSAE:
    W_enc, W_dec = tensors.take("encoder.weight", "F", "D").T, tensors.take("decoder.weight", "D", "F").T
    own = {name: tensors.take(theirs, "F") for name, theirs in (("r_mag", "r_mag"), ("b_mag", "mag_bias"))}
    b_enc, b_dec = tensors.take("gate_bias", "F"), tensors.take("decoder_bias", "D")
    return PortableSAE("gated", W_enc, b_enc, W_dec, b_dec, subtracts_b_dec=True, **own)


def _jump_relu(tensors: Tensors, trainer: Description) -> PortableSAE:
    plain, threshold = _plain(tensors), tensors.take("threshold", "F")
    subtracts = trainer.get("apply_b_dec_to_input", bool, False)
    return PortableSAE("jumprelu", *plain, subtracts_b_dec=subtracts, threshold=threshold)


def _topk(tensors: Tensors, trainer: Description) -> PortableSAE:
    tensors.drop("threshold")
    k = _k(tensors, trainer)
    return PortableSAE("topk", *_linear(tensors), tensors.take("b_dec", "D"), subtracts_b_dec=True, k=k)


def _batch_topk(tensors: Tensors, trainer: Description) -> PortableSAE:
    k, threshold = _k(tensors, trainer), tensors.number("threshold")
    W_enc, b_enc, W_dec = _linear(tensors)
    return _above(threshold, k, (W_enc, b_enc, W_dec, tensors.take("b_dec", "D")), None)


def _matryoshka(tensors: Tensors, trainer: Description) -> PortableSAE:
    k, threshold, plain = _k(tensors, trainer), tensors.number("threshold"), _plain(tensors)
    return _above(threshold, k, plain, tensors.whole_numbers("group_sizes"))


def _above(
    threshold: float, k: int, tensors: tuple[Tensor, Tensor, Tensor, Tensor], groups: tuple[int, ...] | None
) -> PortableSAE:
    """Return the SAE of a BatchTopK training, in which what is above the threshold fires."""
    W_enc, b_enc, W_dec, b_dec = tensors
    if threshold < 0:
        why = "k latents of each token in place of a threshold, which was never set"
        return PortableSAE("topk", W_enc, b_enc, W_dec, b_dec, subtracts_b_dec=True, k=k, groups=groups, folded=(why,))
    one = torch.full((len(W_dec),), threshold)
    return PortableSAE("jumprelu", W_enc, b_enc, W_dec, b_dec, subtracts_b_dec=True, k=k, threshold=one, groups=groups)


def _k(tensors: Tensors, trainer: Description) -> int:
    return tensors.whole_numbers("k")[0] if "k" in tensors else int(trainer.need("k", int))


def _linear(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    W_enc, b_enc = tensors.take("encoder.weight", "F", "D").T, tensors.take("encoder.bias", "F")
    return W_enc, b_enc, tensors.take("decoder.weight", "D", "F").T


def _plain(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W_enc, b_enc = tensors.take("W_enc", "D", "F"), tensors.take("b_enc", "F")
    return W_enc, b_enc, tensors.take("W_dec", "F", "D"), tensors.take("b_dec", "D")


_READERS: dict[str, Callable[[Tensors, Description], PortableSAE]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump_relu,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}


def in_their_terms(sae: PortableSAE) -> tuple[str, dict[str, Tensor]]:
    """Return the class that computes what an SAE does, with its tensors.

    All classes but AutoEncoderNew and JumpReluAutoEncoder subtract the decoder's bias from what is read; these two do
    not. Where the SAE does otherwise, the encoder's biases take up the difference. The groups of a Matryoshka SAE over
    TopK have no class; it becomes an AutoEncoderTopK.

    Raises:
        FormatError: There is no such class.
    """
    if sae.W_skip is not None or sae.source.target_site is not None or sae.W_enc.shape[0] != sae.W_dec.shape[1]:
        raise FormatError(
            "dictionary_learning has no class for a transcoder, which predicts another site than it reads."
        )
    if sae.token_norm is not None:
        raise FormatError(
            f"dictionary_learning normalises no token by itself, as this SAE does (token_norm {sae.token_norm})."
        )
    shift = (sae.b_dec.double() @ sae.W_enc.double()).float()
    # What the encoder's bias is where b_dec is subtracted from the input, and where it is not.
    inside, outside = (sae.b_enc, sae.b_enc - shift) if sae.subtracts_b_dec else (sae.b_enc + shift, sae.b_enc)
    linear = {"encoder.weight": sae.W_enc.T, "decoder.weight": sae.W_dec.T}
    plain = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if sae.activation == "relu":
        if sae.subtracts_b_dec:
            return "AutoEncoder", {**linear, "bias": sae.b_dec, "encoder.bias": inside}
        return "AutoEncoderNew", {**linear, "encoder.bias": outside, "decoder.bias": sae.b_dec}
    if sae.activation == "gated":
        assert sae.r_mag is not None
        assert sae.b_mag is not None
        b_mag = sae.b_mag if sae.subtracts_b_dec else sae.b_mag + sae.r_mag.exp() * shift
        biases = {"decoder_bias": sae.b_dec, "gate_bias": inside, "r_mag": sae.r_mag, "mag_bias": b_mag}
        return "GatedAutoEncoder", {**linear, **biases}
    if sae.activation == "topk":
        counts = {"k": torch.tensor(sae.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
        return "AutoEncoderTopK", {**linear, **counts, "encoder.bias": inside, "b_dec": sae.b_dec}
    if sae.activation != "jumprelu":
        raise FormatError(f"dictionary_learning has no class with the activation {sae.activation}.")
    assert sae.threshold is not None
    if sae.k is None or not bool((sae.threshold == sae.threshold[0]).all()):
        return "JumpReluAutoEncoder", {**plain, "b_enc": outside, "threshold": sae.threshold}
    # Below 0 it would be one that was never set; what is above 0 alone fires in any case.
    counts = {"k": torch.tensor(sae.k, dtype=torch.int), "threshold": sae.threshold[0].clamp_min(0)}
    if sae.groups is None:
        return "BatchTopKSAE", {**linear, **counts, "encoder.bias": inside, "b_dec": sae.b_dec}
    return "MatryoshkaBatchTopKSAE", {**plain, **counts, "b_enc": inside, "group_sizes": torch.tensor(sae.groups)}
