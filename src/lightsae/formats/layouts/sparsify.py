"""sparsify (EleutherAI): TopK and GroupMax SAEs, transcoders, and transcoders with a linear skip connection.

Layout:  `HOOKPOINT/cfg.json` and `HOOKPOINT/sae.safetensors` with encoder.weight (F, D), encoder.bias, W_dec (F, D),
         b_dec (D), and W_skip (D, D), by which x W_skip^T is added to the prediction. A hookpoint is the path of a
         module below the model without its head; an SAE reads and predicts its output, a transcoder predicts it from
         its input. `b_dec` is subtracted before encoding, not by transcoders. In a run's folder `config.json` names
         the model. Weights are for raw activations.
Axes:    D width, F latents.
Source:  the library of that name, version 1.3.3, and its files.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from lightsae.errors import FormatError
from lightsae.formats.files import natural_order
from lightsae.formats.layouts.base import WritableLayout, the_only_one
from lightsae.formats.layouts.description import Description
from lightsae.formats.layouts.portable import PortableSAE
from lightsae.formats.layouts.source import UNKNOWN_TARGET, Source
from lightsae.formats.layouts.sparsify_hookpoints import hookpoint_of, is_hookpoint, site_of
from lightsae.formats.layouts.tensors import Tensors, read_safetensors
from lightsae.formats.tensor_files import save_tensors

_CONFIG, _TENSORS, _RUN = "cfg.json", "sae.safetensors", "config.json"
_ACTIVATIONS: dict[str, Literal["topk", "groupmax"]] = {"topk": "topk", "groupmax": "groupmax"}
# Of a fork that trains one SAE over several layers.
_CROSS_LAYER = ("cross_layer", "train_post_encoder", "post_encoder_scale", "coalesce_topk")


class Sparsify(WritableLayout):
    """The folder of a hookpoint, or of a run with one hookpoint."""

    name: ClassVar[str] = "sparsify"
    label: ClassVar[str] = "sparsify"

    def problem(self, path: Path) -> str | None:
        if not path.is_dir():
            return None if path.name == _TENSORS and (path.parent / _CONFIG).is_file() else f"it is no {_TENSORS}"
        missing = [name for name in (_CONFIG, _TENSORS) if not (path / name).is_file()]
        return None if not missing or _hookpoints(path) else f"it has no {' and no '.join(missing)}"

    def read(self, path: Path) -> PortableSAE:
        folder = _one_of(path)
        config = Description.read(folder / _CONFIG)
        _refuse_others(config)
        transcode, skip = config.get("transcode", bool, False), config.get("skip_connection", bool, False)
        activation = config.get("activation", str, "topk")
        if activation not in _ACTIVATIONS:
            raise FormatError(f"{config.where!r}: activation is {activation!r:.60}; sparsify has topk and groupmax.")
        if skip and not transcode:
            raise FormatError(
                f"{config.where!r}: skip_connection is true and transcode is not: of an SAE that is given its target "
                "nothing is left to explain, and there is no form for it."
            )
        tensors = read_safetensors(folder / _TENSORS)
        W_enc, b_enc = tensors.take("encoder.weight", "F", "D").T, tensors.take("encoder.bias", "F")
        W_dec, b_dec = tensors.take("W_dec", "F", "D"), tensors.take("b_dec", "D")
        W_skip = tensors.take("W_skip", "D", "D").T if skip else None
        tensors.finish()
        _check_sizes(config, tensors)
        return PortableSAE(
            _ACTIVATIONS[activation],
            W_enc,
            b_enc,
            W_dec,
            b_dec,
            subtracts_b_dec=not transcode,
            k=config.need("k", int),
            W_skip=W_skip,
            source=_source(folder, transcode=transcode),
        )

    def write(self, sae: PortableSAE, folder: Path) -> None:
        config, tensors = _in_their_terms(sae)
        hookpoint = hookpoint_of(sae.source)
        below = folder if hookpoint is None else folder / hookpoint
        below.mkdir(exist_ok=True)
        save_tensors({name: value.float().clone() for name, value in tensors.items()}, below / _TENSORS)
        (below / _CONFIG).write_text(json.dumps(config) + "\n", encoding="utf-8")
        if hookpoint is not None:
            run = {"model": sae.source.model, "dataset": sae.source.dataset, "ctx_len": sae.source.context_size}
            text = json.dumps({"sae": config, **run, "hookpoints": [hookpoint]}, ensure_ascii=False)
            (folder / _RUN).write_text(text + "\n", encoding="utf-8")


def _hookpoints(folder: Path) -> list[Path]:
    """Return the folders of a run's hookpoints, in the order of their numbers."""
    folders = (one.parent for one in folder.glob(f"*/{_TENSORS}") if (one.parent / _CONFIG).is_file())
    return sorted(folders, key=natural_order)


def _one_of(path: Path) -> Path:
    if not path.is_dir():
        return path.parent
    return path if (path / _TENSORS).is_file() else the_only_one(_hookpoints(path), path, "the folder of one")


def _refuse_others(config: Description) -> None:
    for name in _CROSS_LAYER:
        if name in config.values:
            raise FormatError(
                f"{config.where!r} has {name}: a cross-layer transcoder of sparsify's fork, which is not read."
            )
    if config.get("signed", bool, False):
        raise FormatError(f"{config.where!r}: signed is true: latents may be negative, for which there is no form.")


def _check_sizes(config: Description, tensors: Tensors) -> None:
    width, expansion = config.need("d_in", int), config.get("expansion_factor", int, 32)
    latents = config.get("num_latents", int, 0) or width * expansion
    for name, said, letter in (("d_in", width, "D"), ("the number of latents", latents, "F")):
        if said != tensors.sizes[letter]:
            raise FormatError(
                f"{config.where!r}: {name} is {said}, and the tensors have {tensors.sizes[letter]}; copy both again."
            )


def _source(folder: Path, *, transcode: bool) -> Source:
    """Read the site off the folder's name, and the model off the run that it lies in."""
    folder = folder.absolute()
    run = Description.read_if_there(folder.parent / _RUN)
    if "sae" not in run.values:
        # Somebody else's.
        run = Description({}, run.where)
    model, dataset = run.get("model", str), run.get("dataset", str)
    hookpoint = folder.name if is_hookpoint(folder.name) else None
    site = target = None
    if hookpoint is not None:
        site = site_of(hookpoint, "input" if transcode else "output", model)
        target = site_of(hookpoint, "output", model) if transcode else None
    return Source(
        "sparsify",
        model=model,
        site=site,
        target_site=(target or UNKNOWN_TARGET) if transcode else None,
        context_size=run.get("ctx_len", int),
        dataset=dataset,
    )


def _in_their_terms(sae: PortableSAE) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return cfg.json and the tensors.

    Raises:
        FormatError: The SAE has another activation, or predicts another width than it reads.
    """
    if sae.activation not in _ACTIVATIONS:
        raise FormatError(f"sparsify holds TopK and GroupMax SAEs, and this one's activation is {sae.activation}.")
    if sae.token_norm is not None:
        raise FormatError(f"sparsify normalises no token by itself, as this SAE does (token_norm {sae.token_norm}).")
    transcode = sae.W_skip is not None or sae.source.target_site is not None
    d_in, d_out = sae.W_enc.shape[0], sae.W_dec.shape[1]
    if d_in != d_out:
        raise FormatError(f"sparsify holds one width, and this transcoder reads {d_in} and predicts {d_out}.")
    b_enc = sae.b_enc
    if not transcode and not sae.subtracts_b_dec:
        # Theirs subtracts b_dec from what is read.
        b_enc = b_enc + (sae.b_dec.double() @ sae.W_enc.double()).float()
    config = {
        "activation": sae.activation,
        "expansion_factor": -(-sae.d_sae // d_in),
        "normalize_decoder": False,
        "num_latents": sae.d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": sae.W_skip is not None,
        "transcode": transcode,
        "d_in": d_in,
    }
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    return config, tensors if sae.W_skip is None else {**tensors, "W_skip": sae.W_skip.T}
