"""Llamascopium, OpenMOSS' library: SAEs and transcoders with ReLU, JumpReLU, TopK and BatchTopK.

Layout:  config.json (sae_type, act_fn, top_k, norm_activation, hook_point_in, hook_point_out) and
         sae_weights.safetensors: W_E (D, F), b_E, W_D (F, O), b_D, of JumpReLU
         activation_function.log_jumprelu_threshold (F,), and dataset_average_activation_norm.{hook}, which is left
         uninitialised where the norm is not used. `b_D` is not subtracted. `dataset-wise`: the tensors are for
         activations times the scale of their data set; `inference`: for raw ones. lm_config.json beside it may name the
         model.
         Latents are those of the tensors' units: of `dataset-wise` files not those that the library's own folding to
         `inference` gives, which leaves the thresholds of JumpReLU SAEs where they were.
         BatchTopK chooses k times as many latents as a batch has tokens, and no threshold is stored: read as k a token.
Source:  llamascopium/models/sae.py and sparse_dictionary.py of May 2026.
"""

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lightsae.errors import FormatError
from lightsae.formats.files import shown
from lightsae.formats.layouts.base import Layout
from lightsae.formats.layouts.description import Description
from lightsae.formats.layouts.hook_names import hub_name, site_of_hook
from lightsae.formats.layouts.openmoss import hooks_of, refuse_other_norms, scale_of, with_choice_by_decoder_norm
from lightsae.formats.layouts.portable import Activation, PortableSAE
from lightsae.formats.layouts.source import Source
from lightsae.formats.layouts.tensors import Tensors, read_safetensors, shapes_in

_SETTINGS, _WEIGHTS, _DISTRIBUTED = "config.json", "sae_weights.safetensors", "sae_weights.dcp"
_NORM = "dataset_average_activation_norm"
_ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk", "batchtopk": "topk"}
_OTHER_KINDS = {
    "crosscoder": "a crosscoder, which reads several sites",
    "clt": "a cross-layer transcoder, which reads and predicts several layers",
    "lorsa": "a sparse attention layer, whose latents are heads",
    "molt": "a mixture of linear transforms",
}


class Llamascopium(Layout):
    """config.json with sae_type, and sae_weights.safetensors."""

    name: ClassVar[str] = "llamascopium"
    label: ClassVar[str] = "Llamascopium"
    weights: ClassVar[tuple[str, ...]] = (_WEIGHTS,)

    def problem(self, path: Path) -> str | None:
        if not (path / _SETTINGS).is_file():
            return f"it has no {_SETTINGS}"
        weights = path / _WEIGHTS
        if not weights.is_file() and not (path / _DISTRIBUTED).exists():
            return f"it has no {_WEIGHTS}"
        return f"{_WEIGHTS} has encoder.weight" if "encoder.weight" in shapes_in(weights) else None

    def read(self, path: Path) -> PortableSAE:
        said = Description.read(path / _SETTINGS)
        _check_kind(said)
        refuse_other_norms(said)
        if not (path / _WEIGHTS).is_file():
            raise FormatError(
                f"{shown(path)!r} has its weights in {_DISTRIBUTED}, a checkpoint of several processes; save it again "
                f"by Llamascopium in one process, which writes {_WEIGHTS}."
            )
        tensors = read_safetensors(path / _WEIGHTS)
        source = _source(path, said)
        parts = _take(tensors, said, "D" if source.target_site is None else "O")
        read, predicted = _scales(tensors, said, len(parts["W_enc"]))
        tensors.finish()
        sae = PortableSAE(**parts, source=source)
        if said.get("act_fn", str, "relu").lower() == "batchtopk":
            sae = sae.with_note(f"a choice of {sae.k} times the tokens of a batch, as {sae.k} of each token")
        # The library's default.
        return with_choice_by_decoder_norm(sae, said, otherwise=True).with_scales(read, predicted)


def _check_kind(said: Description) -> None:
    kind = said.get("sae_type", str, "sae")
    if kind != "sae":
        what = _OTHER_KINDS.get(kind, "of a kind that is not known")
        raise FormatError(f"{said.where!r}: sae_type is {kind!r:.60}, {what}; SAEs and transcoders ('sae') are read.")
    if said.get("use_glu_encoder", bool, False):
        raise FormatError(f"{said.where!r}: use_glu_encoder is true; gated linear units are not read.")
    if (activation := said.get("act_fn", str, "relu").lower()) not in _ACTIVATIONS:
        raise FormatError(f"{said.where!r}: act_fn is {activation!r:.60}; {', '.join(_ACTIVATIONS)} are read.")


def _take(tensors: Tensors, said: Description, predicted: str) -> dict[str, Any]:
    activation = _ACTIVATIONS[said.get("act_fn", str, "relu").lower()]
    parts: dict[str, Any] = {
        "activation": activation,
        "W_enc": tensors.take("W_E", "D", "F"),
        "b_enc": tensors.take("b_E", "F"),
        "W_dec": (W_dec := tensors.take("W_D", "F", predicted)),
        "b_dec": _decoder_bias(tensors, said, W_dec, predicted),
    }
    if activation == "topk":
        parts["k"] = said.get("top_k", int, 50)
    if activation == "jumprelu":
        parts["threshold"] = tensors.take("activation_function.log_jumprelu_threshold", "F").exp()
    return parts


def _decoder_bias(tensors: Tensors, said: Description, W_dec: Tensor, predicted: str) -> Tensor:
    if said.get("use_decoder_bias", bool, True):
        return tensors.take("b_D", predicted)
    return W_dec.new_zeros(W_dec.shape[1])


def _scales(tensors: Tensors, said: Description, d: int) -> tuple[float, float]:
    """Return what activations are multiplied by, those read and those predicted; take the norms."""
    hooks, scales = hooks_of(said), [1.0, 1.0]
    if said.get("norm_activation", str, "dataset-wise") == "dataset-wise":
        norms = {hook: tensors.number(f"{_NORM}.{hook}") for hook in dict.fromkeys(hooks)}
        scales = [scale_of(norms[hook], d, f"{_NORM}.{hook}", tensors.where) for hook in hooks]
    tensors.drop(*(name for name in tensors.names if name.startswith(f"{_NORM}.")))
    return scales[0], scales[1]


def _source(path: Path, said: Description) -> Source:
    read, predicted = hooks_of(said)
    model = Description.read_if_there(path / "lm_config.json").get("model_name", str)
    return Source(
        "llamascopium",
        model=model and hub_name(model),
        site=site_of_hook(read),
        target_site=None if predicted == read else site_of_hook(predicted),
    )
