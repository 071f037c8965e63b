"""SAELens' cfg.json, of today and of before version 6: what an SAE computes, and where it comes from.

Layout:  one JSON object with `architecture`, sizes and switches; what the SAE was trained on stands in `metadata`,
         before version 6 beside the rest, under older names. Training runs add many settings of no interest here.
Source:  SAELens 6.54.12, its configurations and their defaults.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from lightsae.errors import FormatError, did_you_mean
from lightsae.formats.files import read_json, shown
from lightsae.formats.layouts.description import Description
from lightsae.formats.layouts.hook_names import hub_name, is_module_path, site_of_hook, site_of_module
from lightsae.formats.layouts.portable import Pursuit
from lightsae.formats.layouts.source import UNKNOWN_TARGET, Source

CONFIG = "cfg.json"
AUTOENCODERS = ("standard", "topk", "abstopk", "jumprelu", "gated", "matching_pursuit")
# Of training runs alone; their exports say jumprelu.
BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
NORMALISATIONS = ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale", "covariance_whitening")
_HEAD = re.compile(r"(.+), head (\d{1,6})")
_FIRST_NEW = Version("6.0.0rc0")


@dataclass(frozen=True)
class SAELensConfig:
    """What cfg.json says.

    Attributes:
        architecture: One of `AUTOENCODERS`, `BATCH_TOPK` and `TRANSCODERS`.
        sizes: D (d_in), F (d_sae) and O (d_out), as far as they are given.
        k: Latents per token, of those that are trained to a number of them.
        pursuit: When a matching pursuit ends; None: it is no such SAE.
        subtracts_b_dec: Whether `b_dec` is subtracted from the input.
        rescales: Whether z is multiplied by the norm of its decoder row before the choice of TopK, and f divided by it
            in decoding.
        normalisation: `normalize_activations`, one of `NORMALISATIONS`.
        finetuned: Whether the tensor `scaling_factor` multiplies the latents in decoding.
        source: Where the SAE comes from.
    """

    architecture: str
    sizes: Mapping[str, int]
    k: int | None
    pursuit: Pursuit | None
    subtracts_b_dec: bool
    rescales: bool
    normalisation: str
    finetuned: bool
    source: Source


def read_config(folder: Path) -> SAELensConfig:
    """Read cfg.json.

    Raises:
        FormatError: It is missing or damaged, or describes an SAE that cannot be read.
    """
    where = shown(folder / CONFIG)
    # Settings of a training run may hold an infinity, which Python writes; none of them is asked for.
    raw = Description(read_json(folder, CONFIG, "", "download it again", finite=False), where)
    values, metadata = _in_terms_of_today(raw)
    architecture = _architecture(values)
    transcoder = architecture in TRANSCODERS
    subtracts = values.get("apply_b_dec_to_input", bool)
    if transcoder and subtracts:
        raise FormatError(f"{where!r}: apply_b_dec_to_input is true, and no {architecture} subtracts b_dec.")
    sizes = {
        "D": _size(values, "d_in"),
        "F": _size(values, "d_sae"),
        "O": _size(values, "d_out") if transcoder else None,
    }
    rescales = values.get("rescale_acts_by_decoder_norm", bool)
    return SAELensConfig(
        architecture,
        {letter: size for letter, size in sizes.items() if size is not None},
        _latents_per_token(values, metadata, architecture),
        _pursuit(values) if architecture == "matching_pursuit" else None,
        not transcoder if subtracts is None else subtracts,
        architecture in BATCH_TOPK if rescales is None else rescales and "topk" in architecture,
        _normalisation(values),
        bool(values.get("finetuning_scaling_factor", bool)),
        _source(metadata, transcoder),
    )


def _in_terms_of_today(raw: Description) -> tuple[Description, Description]:
    """Return the configuration and its metadata as version 6 has them."""
    metadata = raw.part("metadata")
    version = _text(raw, "sae_lens_version") or _text(metadata, "sae_lens_version")
    try:
        new = version is not None and Version(version) >= _FIRST_NEW
    except InvalidVersion:
        raise FormatError(f"{raw.where!r}: sae_lens_version is {version!r:.60}, which is no version.") from None
    if new:
        return raw, metadata
    values = {_RENAMED.get(name, name): value for name, value in raw.values.items()}
    normalised = values.get("normalize_activations")
    if isinstance(normalised, bool):
        values["normalize_activations"] = "expected_average_only_in" if normalised else "none"
    values = {"architecture": "standard", "prepend_bos": True, "activation_fn": "relu", **values}
    old = Description(values, raw.where)
    activation, kwargs = _text(old, "activation_fn"), old.part("activation_fn_kwargs")
    if "k" in kwargs.values:
        values["k"] = kwargs.values["k"]
    if activation == "topk":
        values["architecture"] = "topk"
    elif activation not in ("relu", None):
        raise FormatError(f"{raw.where!r}: activation_fn is {activation!r:.60}; relu and topk are read.")
    return old, old


def _architecture(values: Description) -> str:
    name = _text(values, "architecture")
    known = (*AUTOENCODERS, *BATCH_TOPK, *TRANSCODERS)
    if name in known:
        return name
    if name == "temporal":
        raise FormatError(
            f"{values.where!r} is a temporal SAE: it attends to the tokens before, and lightsae encodes each token by "
            "itself; run it with SAELens."
        )
    found = "no architecture" if name is None else f"the architecture {name!r:.60}"
    hint = did_you_mean(name or "", known) or f" Known: {', '.join(known)}."
    raise FormatError(f"{values.where!r} has {found}, which is not one of SAELens.{hint}")


def _latents_per_token(values: Description, metadata: Description, architecture: str) -> int | None:
    if architecture in ("topk", "abstopk"):
        if k := _size(values, "k"):
            return k
        raise FormatError(f"{values.where!r} is a {architecture} SAE without k, the number of latents per token.")
    details = metadata.part("training_architecture_details")
    # A mean over the tokens of a batch, which need not be whole.
    mean = (values if architecture in BATCH_TOPK else details).get("k", float)
    return int(mean) if mean is not None and mean >= 1 and mean == int(mean) else None


def _pursuit(values: Description) -> Pursuit:
    """Return when a matching pursuit ends, with SAELens' defaults."""
    return Pursuit(
        float(values.get("residual_threshold", float, 1e-2)),
        _size(values, "max_iterations"),
        values.get("stop_on_duplicate_support", bool, True),
    )


def _text(values: Description, name: str) -> str | None:
    return values.get(name, str) or None


def _size(values: Description, name: str) -> int | None:
    value: int | None = values.get(name, int)
    if value is not None and value < 1:
        raise FormatError(f"{values.where!r}: {name} is {value}; it is 1 or more.")
    return value


def _normalisation(values: Description) -> str:
    name = _text(values, "normalize_activations") or "none"
    if name not in NORMALISATIONS:
        known = ", ".join(NORMALISATIONS)
        raise FormatError(f"{values.where!r}: normalize_activations is {name!r:.60}; known: {known}.")
    return name


def _source(metadata: Description, transcoder: bool) -> Source:
    name = _text(metadata, "model_name")
    model = None if name is None else hub_name(name)
    site, target = (_site(metadata, model, end) for end in ("", "_out"))
    if transcoder:
        target = target if target not in (None, site) else UNKNOWN_TARGET
    return Source(
        "sae_lens",
        model=model,
        site=site,
        target_site=target if transcoder else None,
        context_size=_size(metadata, "context_size"),
        sees_bos=_sees_bos(metadata),
        dataset=_text(metadata, "dataset_path"),
    )


def _site(metadata: Description, model: str | None, end: str) -> str | None:
    """Return the site that is read, or with `_out` predicted; a head's share of a hook has no name of ours."""
    hook, module = _text(metadata, f"hook_name{end}"), _text(metadata, f"hf_hook_name{end}")
    head = metadata.get(f"hook_head_index{end}", int)
    if hook is not None and head is not None:
        return f"{hook}, head {head}"  # see `split_head`
    if module is not None and is_module_path(module):
        return site_of_module(module, model)
    # Of models that are not TransformerLens' own, a hook is named by its module.
    if hook is not None and "hook_" not in hook and is_module_path(hook):
        return site_of_module(hook, model)
    return None if hook is None else site_of_hook(hook)


def split_head(site: str) -> tuple[str, int | None]:
    """Return the hook of a site and the head whose share of it is meant, where one is.

    >>> split_head("blocks.3.attn.hook_z, head 2"), split_head("resid_post.3")
    (('blocks.3.attn.hook_z', 2), ('resid_post.3', None))
    """
    found = _HEAD.fullmatch(site)
    return (found[1], int(found[2])) if found else (site, None)


def _sees_bos(metadata: Description) -> bool | None:
    prepended = metadata.get("prepend_bos", bool)
    positions, excluded = metadata.values.get("seqpos_slice"), metadata.values.get("exclude_special_tokens")
    begins_later = isinstance(positions, list) and len(positions) > 1 and positions[0] not in (None, 0)
    return None if prepended is None else prepended and not excluded and not begins_later
