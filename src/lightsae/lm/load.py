"""Build and load a Hugging Face model; every way in which that fails becomes one short `ModelError`."""

import copy
import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.utils.tqdm import enable_progress_bars
from safetensors import SafetensorError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTextEncoding, AutoTokenizer
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from lightsae.errors import ModelError
from lightsae.lm.config import has_next_token_head, model_named, short, source_of
from lightsae.lm.gelu import compute_in_place
from lightsae.lm.placement import Placement
from lightsae.lm.random_weights import randomise, split_name

_MEND = "Download or save it again."

logger = logging.getLogger(__name__)


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
        raise ModelError(f"{model_named(name)}, but its config.json cannot be used: {short(error)}") from None


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
    return ModelError(f"{model_named(name)}, which needs something that is not installed here: {short(error)}")


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
        raise ModelError(f"{model_named(name)}, which does not fit where it is to go: {short(error)}") from None
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise ModelError(f"{model_named(name)}, but its weights cannot be read: {short(error)} {_MEND}") from None
    # An encoder saved with another head lacks the pooler, which no site reads.
    missing = sorted(k for k in info["missing_keys"] if not k.startswith("pooler."))
    if missing:
        raise ModelError(f"{model_named(name)}, but its weights lack {_some(missing)}. {_MEND}")
    if info["mismatched_keys"]:
        wrong, shape, expected = sorted(info["mismatched_keys"])[0]
        raise ModelError(
            f"{model_named(name)}, but its weights do not fit its config.json: {wrong} has shape {tuple(shape)}, "
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
        raise ModelError(f"{model_named(name)}, but its config.json cannot be used: {short(error)}") from None
    return _to_read(model)


def load_tokenizer(name: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Load the tokenizer.

    Raises:
        ModelError: The model comes without one, or it cannot be read.
    """
    problem = ModelError(
        f"{model_named(name)}, but its tokenizer is missing or cannot be read. "
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
