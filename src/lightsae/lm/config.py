"""What is known of a Hugging Face model from its name and its config.json, before anything is built or loaded."""

import copy
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from lightsae.errors import ModelError, arg
from lightsae.lm.families import ENCODERS, PARTS
from lightsae.lm.random_weights import split_name

BUILTIN = Path(__file__).parent / "builtin"
_EXAMPLES = "Write a local folder, a Hub name such as 'openai-community/gpt2', or 'builtin'."
# By one of these weights are found.
_WEIGHTS = tuple(f"{file}{end}" for file in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json"))
# Lists in config.json that name layers by number. Others with one entry per layer are cut with the model.
_NUMBERS_OF_LAYERS = ("mlp_only_layers", "moe_layers")


def source_of(name: str) -> str:
    """Where transformers finds the model that a user calls `name`: a folder, or a Hub name."""
    name, _ = split_name(name)
    if name == "builtin":
        return str(BUILTIN)
    folder = Path(name).expanduser()
    return str(folder) if folder.exists() else name


def is_at_hand(name: str, revision: str | None = None) -> bool:
    """Return whether a model is on this machine: `builtin`, a folder, or in the Hub's cache."""
    source = source_of(name)
    if not name or Path(source).exists():
        return bool(name)

    def cached(file: str) -> bool:
        return isinstance(try_to_load_from_cache(source, file, revision=revision), str)

    try:
        return cached("config.json") and any(map(cached, _WEIGHTS))
    except HFValidationError:
        return False


def model_named(name: str) -> str:
    """Return how a message begins about the model that a user calls `name`."""
    return f"{arg('name_or_path')} is {name!r}"


def load_config(name: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Read config.json; of a model of several parts (`PARTS`) that of the part which is read.

    Raises:
        ModelError: There is no such model, or its config.json cannot be used.
    """
    source, named = source_of(name), model_named(name)
    folder = Path(source)
    if folder.exists() and not (folder / "config.json").is_file():
        what = "a folder without config.json" if folder.is_dir() else "a file, not a model's folder"
        raise ModelError(f"{named}, {what}. `save_pretrained` writes such a folder. {_EXAMPLES}")
    if not folder.exists() and (name.startswith((".", "~")) or folder.is_absolute() or name.count("/") > 1):
        raise ModelError(f"{named}, and there is no such folder. {_EXAMPLES}")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # OSError, ValueError, KeyError, and those of the config's own validators
        raise ModelError(_config_problem(name, revision, error, folder.exists())) from None
    if config.is_encoder_decoder and config.model_type not in ENCODERS:
        raise ModelError(
            f"{named}, an encoder-decoder. Causal language models and encoders are supported, that of "
            f"{', '.join(ENCODERS)} too."
        )
    config = _read_part(config)
    # The chunks would hide the whole MLP from a hook; they save memory only.
    if getattr(config, "chunk_size_feed_forward", 0):
        config.chunk_size_feed_forward = 0
    return config


def _read_part(config: Any) -> Any:
    name = PARTS.get(config.model_type)
    if name is None:
        return config
    part = getattr(config, name)
    for setting in ("_commit_hash", "quantization_config"):
        if (value := getattr(config, setting, None)) is not None:
            setattr(part, setting, value)
    return part


def _config_problem(name: str, revision: str | None, error: Exception, is_local: bool) -> str:
    text, named = str(error), model_named(name)
    if "trust_remote_code" in text:
        return (
            f"{named}, which runs Python code from its repository. "
            f"Read that code first, then allow it with {arg('trust_remote_code')}: true."
        )
    if is_local or not isinstance(error, OSError):  # an OSError from the Hub: it was not found there
        return f"{named}, but its config.json cannot be used: {short(error)}"
    if "gated" in text or "401" in text:
        return f"{named}, gated or private on the Hub: accept its licence there and log in (hf auth login)."
    if "git identifier" in text:
        return f"{arg('revision')} is {revision!r}, which {name!r} does not have on the Hub."
    return (
        f"{named}: there is no such folder, and the Hugging Face Hub has no such model or cannot be reached. "
        f"{_EXAMPLES}"
    )


def has_next_token_head(config: Any) -> bool:
    """Whether the model predicts the next token: a causal model, saved with its head, and not an encoder (BERT)."""
    kind = config.model_type
    if "AutoModelForCausalLM" in getattr(config, "auto_map", {}):
        return True
    saved_without_head = config.architectures is not None and MODEL_MAPPING_NAMES.get(kind) in config.architectures
    is_encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder and not saved_without_head


def truncated(config: Any, n_layers: int) -> Any:
    """Return the config of the same model with its first `n_layers` blocks only."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    full = text.num_hidden_layers
    text.num_hidden_layers = n_layers
    for name, value in list(vars(text).items()):
        # One entry a layer: layer_types, attention_layers, ...
        if "layer" in name and name not in _NUMBERS_OF_LAYERS and isinstance(value, list) and len(value) == full:
            setattr(text, name, value[:n_layers])
    return config


def short(error: BaseException | str) -> str:
    """The start of another library's error on one line, ending with a full stop."""
    line = " ".join(str(error).split()).rstrip(". ") or "unknown error"
    return (line if len(line) <= 160 else f"{line[:160]}...") + "."
