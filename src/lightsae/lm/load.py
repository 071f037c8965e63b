"""Find, truncate and load a Hugging Face model; every way in which that fails becomes one short `ModelError`."""

import copy
import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils.tqdm import enable_progress_bars
from safetensors import SafetensorError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForTextEncoding, AutoTokenizer
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from lightsae.errors import ModelError, arg
from lightsae.lm.families import ENCODERS, PARTS
from lightsae.lm.gelu import compute_in_place
from lightsae.lm.placement import Placement
from lightsae.lm.random_weights import randomise, split_name

BUILTIN = Path(__file__).parent / "builtin"
_EXAMPLES = "Write a local folder, a Hub name such as 'openai-community/gpt2', or 'builtin'."
# By one of these weights are found.
_WEIGHTS = tuple(f"{file}{end}" for file in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json"))
_MEND = "Download or save it again."
# Lists in config.json that name layers by number. Others with one entry per layer are cut with the model.
_NUMBERS_OF_LAYERS = ("mlp_only_layers", "moe_layers")

logger = logging.getLogger(__name__)


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


def _named(name: str) -> str:
    return f"{arg('name_or_path')} is {name!r}"


def load_config(name: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Read config.json; of a model of several parts (`PARTS`) that of the part which is read.

    Raises:
        ModelError: There is no such model, or its config.json cannot be used.
    """
    source, named = source_of(name), _named(name)
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
    text, named = str(error), _named(name)
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


def _loader(config: Any, with_head: bool) -> Any:
    """Return transformers' class that builds and loads the model."""
    if with_head:
        return AutoModelForCausalLM
    return AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel


def skeleton(
    name: str, config: Any, trust_remote_code: bool, with_head: bool | None = None
) -> tuple[Any, FakeTensorMode | None]:
    """Build the model without memory for its weights. Forward passes run inside the mode, on shapes alone.

    Unlike the meta device, fake tensors also pass the checks on values that transformers makes. Nothing is initialised:
    some architectures look at the values that they have drawn. What can't be built of fake tensors is built on the
    meta device, as transformers does before it reads the weights; then there is no mode. Without
    `with_head` it has a head if the model has one.

    Raises:
        ModelError: transformers cannot build what config.json describes, or lacks a library for it.
    """
    loader = _loader(config, has_next_token_head(config) if with_head is None else with_head)

    def built() -> Any:
        # bfloat16: the fused products of mixtures of experts take nothing else
        model = loader.from_config(copy.deepcopy(config), dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
        return model.eval()

    mode = FakeTensorMode()
    try:
        with no_init_weights():
            try:
                with on_shapes(mode):
                    return built(), mode
            except RuntimeError:  # a value was asked for
                with torch.device("meta"):
                    return built(), None
    except ImportError as error:
        raise _lacks_library(name, error) from None
    except Exception as error:  # whatever a modelling file raises at numbers that do not fit together
        raise ModelError(f"{_named(name)}, but its config.json cannot be used: {short(error)}") from None


@contextmanager
def on_shapes(mode: FakeTensorMode) -> Iterator[None]:
    """While open, tensors have no memory, on whatever device the caller makes its own; PyTorch logs no failures."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was, log.disabled = log.disabled, True
    try:
        with torch.device("cpu"), mode:
            yield
    finally:
        log.disabled = was


def _lacks_library(name: str, error: ImportError) -> ModelError:
    return ModelError(f"{_named(name)}, which needs something that is not installed here: {short(error)}")


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


def load_weights(
    name: str,
    config: Any,
    *,
    with_head: bool,
    dtype: torch.dtype,
    revision: str | None,
    trust_remote_code: bool,
    told: Mapping[str, Any],
) -> Any:
    """Load the model that `config` describes, frozen and in eval mode. SDPA where the architecture has it.

    Weights that `config` has no place for are never read: the head without `with_head`, the blocks of a truncated
    config. Of a name that ends with @random the weights are drawn anew.

    Args:
        name: As the user wrote it.
        config: Of what is loaded.
        with_head: Whether that has the next-token head.
        dtype: Of the weights.
        revision: On the Hub.
        trust_remote_code: Allow code from the model's repository to run.
        told: Further arguments of transformers: where the weights go, which is to the CPU without them; see `told_of`.

    Raises:
        ModelError: Weights are absent, damaged, incomplete, or of other shapes; they do not fit where they are to go;
            or a library is missing.
    """
    # Llama 4 as shipped: its model without a head does not find its weights in the whole of them.
    renamed = {r"^language_model\.model\.": ""} if config.model_type == "llama4_text" and not with_head else None
    if told:
        # At each 8-bit product it says that this is one.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        # Weights that are absent get random values before they are reported.
        with _quiet(), torch.random.fork_rng(devices=[]):
            model, info = _loader(config, with_head).from_pretrained(
                source_of(name),
                config=config,
                revision=revision,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                key_mapping=renamed,
                ignore_mismatched_sizes=True,  # reported below, in one line
                output_loading_info=True,
                **told,
            )
    except ImportError as error:  # of quantised weights: bitsandbytes, GPTQ, ...
        raise _lacks_library(name, error) from None
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{_named(name)}, which does not fit where it is to go: {short(error)}") from None
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise ModelError(f"{_named(name)}, but its weights cannot be read: {short(error)} {_MEND}") from None
    # An encoder saved with another head lacks the pooler, which no site reads.
    missing = sorted(k for k in info["missing_keys"] if not k.startswith("pooler."))
    if missing:
        raise ModelError(f"{_named(name)}, but its weights lack {_some(missing)}. {_MEND}")
    if info["mismatched_keys"]:
        wrong, shape, expected = sorted(info["mismatched_keys"])[0]
        raise ModelError(
            f"{_named(name)}, but its weights do not fit its config.json: {wrong} has shape {tuple(shape)}, "
            f"expected {tuple(expected)}. {_MEND}"
        )
    if with_head and info["unexpected_keys"]:
        unused = _some(sorted(info["unexpected_keys"]))
        logger.warning("%s: the weights also hold %s, which the model does not use.", name, unused)
    if (seed := split_name(name)[1]) is not None:
        randomise(model, seed)
    return _to_read(model)


def _to_read(model: Any) -> Any:
    # Rows are never padded. Where a pad token is known, some models look for it in each batch: a warning for rows that
    # end with it, and a wait for the device. Removed only now, since others read it while they are built.
    model.config.pad_token_id = None
    compute_in_place(model)
    for module in model.modules():
        # Where a CPU multiplies bfloat16, bitsandbytes would compute 4-bit products in it whatever the dtype, at widths
        # that 32 divides alone, and without gradients; in large passes no faster.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval().requires_grad_(False)


def told_of(
    placement: Placement,
    name: str,
    config: Any,
    whole: Any,
    *,
    with_head: bool,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """Return what `load_weights` is told of a placement, of the model that `config` describes and a part of `whole`.

    Raises:
        ModelError: As `Placement.check_model` and `Placement.told`; or the model cannot be built.
    """
    placement.check_model(name, config)
    if not placement.needs_telling(config):
        return {}
    part, _ = skeleton(name, config, trust_remote_code, with_head)
    outline, _ = skeleton(name, whole, trust_remote_code)
    return placement.told(name, dtype, part, outline)


def random_model(name: str, config: Any, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """Make the model that `config` describes, without a head, with the random weights of a training's start.

    Raises:
        ModelError: transformers cannot build it, or lacks a library for it.
    """
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            model = AutoModel.from_config(copy.deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise _lacks_library(name, error) from None
    except Exception as error:  # whatever a modelling file raises at numbers that do not fit together
        raise ModelError(f"{_named(name)}, but its config.json cannot be used: {short(error)}") from None
    return _to_read(model)


def load_tokenizer(name: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Load the tokenizer.

    Raises:
        ModelError: The model comes without one, or it cannot be read.
    """
    problem = ModelError(
        f"{_named(name)}, but its tokenizer is missing or cannot be read. "
        "Save one beside the weights (tokenizer.save_pretrained), or give data of token ids (input_ids)."
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source_of(name), revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception:  # the tokenizers library raises bare Exceptions
        raise problem from None
    # Where the files are absent some classes come up with special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise problem
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the bar over tensors and the report on keys, nothing else; downloads keep their bars."""

    def is_news(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporter = logging.getLogger("transformers.modeling_utils")
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    if had_bars:
        enable_progress_bars()
    reporter.addFilter(is_news)
    try:
        yield
    finally:
        reporter.removeFilter(is_news)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{len(keys)} tensors, such as {keys[0]}"


def short(error: BaseException | str) -> str:
    """The start of another library's error on one line, ending with a full stop."""
    line = " ".join(str(error).split()).rstrip(". ") or "unknown error"
    return (line if len(line) <= 160 else f"{line[:160]}...") + "."
