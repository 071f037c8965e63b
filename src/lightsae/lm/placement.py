"""Where a language model lies, and what its weights are rounded to: what transformers is told when it loads one.

bitsandbytes rounds the matrices of the blocks while they are read, to 8 bits by row (LLM.int8(), which rounds what is
multiplied with them too) or to 4 bits by 64 neighbours (NF4). Embeddings, norms, biases and the head keep their dtype.
accelerate spreads a model over devices, and brings each module its inputs, and from host or disk its weights.

Source: Dettmers et al. 2022, arXiv:2208.07339; Dettmers et al. 2023, arXiv:2305.14314.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from lightsae.errors import ConfigError, ModelError, arg, did_you_mean
from lightsae.lm.random_weights import split_name

DeviceMap = str | Mapping[str, int | str]
QUANTIZATIONS = ("8bit", "4bit")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
# Bytes of a rounded weight with its share of the scales: a float a row, which is nothing, or one for 64 weights.
BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
# Where weights wait that a device has no room for.
_STORES = ("cpu", "disk")
_ROUNDING = "bitsandbytes and accelerate: pip install 'lightsae[quantized]'"


def _can_round() -> bool:
    return None not in (find_spec("bitsandbytes"), find_spec("accelerate"))


def check_choices(quantization: str | None, device: object, device_map: DeviceMap | None) -> None:
    """Check the settings of a placement by themselves, whatever this machine has.

    Raises:
        ConfigError: One is none that is known, or two contradict each other.
    """
    if quantization not in (None, *QUANTIZATIONS):
        raise ConfigError("quantization", quantization, f"write {' or '.join(QUANTIZATIONS)}, or leave it out")
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise ConfigError(
            "device_map", device_map, f"write {', '.join(DEVICE_MAPS)}, or a mapping of modules to devices"
        )
    if device_map is not None and device is not None:
        raise ConfigError("device_map", device_map, f"but {arg('device')} is {str(device)!r}, too; give one of them")
    if device_map is not None and not device_map:
        raise ConfigError("device_map", device_map, "name modules with their devices, or leave it out")


def check_device(device: str | int | torch.device, called: str = "device") -> torch.device:
    """Return the device, if this machine has it.

    Raises:
        ModelError: It does not.
    """
    try:
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError):  # a build without CUDA asserts
        named = device if isinstance(device, int) else str(device)
        raise ModelError(f"{arg(called)} is {named!r}, which this machine or its PyTorch lacks. Write cpu.") from None


@dataclass(frozen=True)
class Placement:
    """Where a language model goes, and what its weights are rounded to.

    Attributes:
        device: Where it goes; with a device map where it begins.
        device_map: Of modules to devices, or how one is made; None: all of it goes to `device`.
        quantization: One of `QUANTIZATIONS`; None: the weights as they were saved.
    """

    device: torch.device
    device_map: DeviceMap | None = None
    quantization: str | None = None

    @classmethod
    def of(
        cls, quantization: str | None, device: str | torch.device | None, device_map: DeviceMap | None
    ) -> "Placement":
        """Check settings against each other and against this machine.

        Raises:
            ConfigError: As `check_choices`.
            ModelError: The machine lacks a device, or a package that is needed.
        """
        check_choices(quantization, device, device_map)
        if device_map is not None and find_spec("accelerate") is None:
            raise ModelError(f"{arg('device_map')} needs accelerate, which is not installed: pip install accelerate")
        if quantization is not None and not _can_round():
            raise ModelError(f"{arg('quantization')} is {quantization!r}, which needs {_ROUNDING}")
        if device_map is None:
            return cls(check_device("cpu" if device is None else device), None, quantization)
        if isinstance(device_map, str):
            first = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            return cls(first or torch.device("cpu"), device_map, quantization)
        places = {place: check_device(place, "device_map") for place in device_map.values() if place != "disk"}
        if quantization is not None and len(set(device_map.values())) > 1 and set(device_map.values()) & set(_STORES):
            raise ModelError(
                f"{arg('quantization')} is {quantization!r}, and rounded weights stay on the device that computes; "
                f"leave cpu and disk out of {arg('device_map')}."
            )
        computing = [device for place, device in places.items() if place not in _STORES]
        return cls(computing[0] if computing else torch.device("cpu"), device_map, quantization)

    def check_model(self, name: str, config: Any) -> None:
        """Check that a model's weights can be rounded, or read where they are.

        Args:
            name: Of the model, as the user wrote it.
            config: Its config.json.

        Raises:
            ModelError: They were rounded when they were saved, and are to be once more, or the package for it is
                missing; or they are to be drawn anew.
        """
        saved = saved_by(config)
        if split_name(name)[1] is not None and (self.quantization or saved):
            what = f"{saved} has rounded its weights" if saved else f"{arg('quantization')} is {self.quantization!r}"
            raise ModelError(f"{arg('name_or_path')} is {name!r}, but {what}: random weights are not rounded.")
        if self.quantization and saved:
            raise ModelError(
                f"{arg('quantization')} is {self.quantization!r}, but {name!r} was saved rounded, by {saved}, and is "
                "read as it is; leave it out, or write none for an SAE that names it."
            )
        if saved == "bitsandbytes" and not _can_round():
            missing = f"which needs something that is not installed here: {_ROUNDING}"
            raise ModelError(f"{arg('name_or_path')} is {name!r}, {missing}")

    def needs_telling(self, config: Any) -> bool:
        """Return whether transformers is to place a model: others are read on the CPU, and moved."""
        return self.device_map is not None or self.quantization is not None or saved_by(config) == "bitsandbytes"

    def told(self, name: str, dtype: torch.dtype, part: Any, whole: nn.Module) -> dict[str, Any]:
        """Return the arguments of transformers' `from_pretrained`.

        Args:
            name: Of the model.
            dtype: Of all that is not rounded; products with 4-bit weights are computed in it.
            part: A skeleton of what is loaded.
            whole: One of the model with all layers and its head, in whose names a device map may be written.

        Raises:
            ModelError: The device map does not fit the model.
        """
        told: dict[str, Any] = {}
        if self.quantization is not None:
            head = part.get_output_embeddings()
            if not rounded_matrices(part):
                raise ModelError(
                    f"{arg('quantization')} is {self.quantization!r}, but {name!r} has no matrices that bitsandbytes "
                    "rounds; leave it out."
                )
            told["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=self.quantization == "8bit",
                load_in_4bit=self.quantization == "4bit",
                # transformers would keep what comes last, which is another module where a part is loaded. And Mamba
                # multiplies with the matrix of its time steps itself.
                llm_int8_skip_modules=[path for path, module in part.named_modules() if module is head] + ["dt_proj"],
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=dtype,
            )
        if isinstance(self.device_map, str):
            told["device_map"] = self.device_map
        elif self.device_map is not None:
            told["device_map"] = _of_part(self.device_map, name, part, whole)
        else:
            told["device_map"] = {"": self.device}
        return told


def saved_by(config: Any) -> str | None:
    """Return what had rounded a model's weights when they were saved, as its config.json says; None: nothing had."""
    said = getattr(config, "quantization_config", None)
    if said is None:
        return None
    method = said.get("quant_method", "bitsandbytes") if isinstance(said, Mapping) else said.quant_method
    return str(getattr(method, "value", method))


def quantization_of(chosen: str | None, trained: str | None) -> str | None:
    """Return what a model is rounded to for an SAE: what was chosen, where `none` is nothing, or as in its training."""
    return trained if chosen is None else None if chosen == "none" else chosen


def loading_arguments(
    quantization: str | None, device_map: DeviceMap | None, run: Any, own: str | None = None
) -> dict[str, Any]:
    """Return the arguments of `LanguageModel.from_pretrained` that say where a model goes, and rounded to what.

    Args:
        quantization: See there.
        device_map: See there.
        run: The device where activations are needed.
        own: That of the model by itself; None: `run`.
    """
    device = None if device_map is not None else own or run
    elsewhere = None if device is run else run
    return {"quantization": quantization, "device_map": device_map, "device": device, "output_device": elsewhere}


def rounded_to(quantization: str | None, config: Any) -> str | None:
    """Return what bitsandbytes has rounded a model to when it is in memory: by a setting, or when it was saved."""
    if quantization is not None or saved_by(config) != "bitsandbytes":
        return quantization
    said = config.quantization_config
    eight = said.get("load_in_8bit") if isinstance(said, Mapping) else said.load_in_8bit
    return "8bit" if eight else "4bit"


def rounded_matrices(model: Any) -> list[Tensor]:
    """Return the weights of a skeleton that bitsandbytes rounds: of linear modules, but for the head."""
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if type(module) is nn.Linear or isinstance(module, Conv1D)]
    return [module.weight for module in linear if module is not head]


def _of_part(device_map: Mapping[str, int | str], name: str, part: nn.Module, whole: Any) -> dict[str, int | str]:
    """Return a device map in the names of the part of a model that is loaded: without its head it has no prefix.

    Entries of modules that are not loaded are left out.
    """
    # Llama 4's model with a head does not find its body by its name.
    prefix = f"{whole.base_model_prefix}." if whole.base_model is not whole else "model."
    there, known = ({path for path, _ in model.named_modules()} for model in (part, whole))
    placed: dict[str, int | str] = {}
    for path, device in device_map.items():
        names = (path, f"{path}.".removeprefix(prefix).removesuffix("."), f"{prefix}{path}")
        if (inside := next((one for one in names if one in there), None)) is not None:
            placed[inside] = device
        elif not known.intersection(names):
            hint = did_you_mean(path, known)
            raise ModelError(f"{arg('device_map')} names {path!r}, which {name!r} does not have.{hint}")
    for tensor in part.state_dict(keep_vars=True):
        if not any(f"{tensor}.".startswith(f"{path}." if path else "") for path in placed):
            raise ModelError(
                f"{arg('device_map')} has no device for {tensor!r}, which is loaded; name it, or '' for all others."
            )
    return _apart(placed, part)


def _apart(placed: Mapping[str, int | str], part: nn.Module) -> dict[str, int | str]:
    """Return a device map in which no entry lies inside another, as accelerate takes it."""
    apart: dict[str, int | str] = {}
    for path, device in placed.items():
        left = [path]
        while left:
            here = left.pop()
            inside = f"{here}." if here else ""
            if here != path and here in placed:
                continue
            if not any(other != here and other.startswith(inside) for other in placed):
                apart[here] = device
                continue
            module = part.get_submodule(here)
            apart |= {f"{inside}{name}": device for name, _ in module.named_parameters(recurse=False)}
            left += [f"{inside}{name}" for name, _ in module.named_children()]
    return apart
