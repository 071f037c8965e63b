"""A language model that is in memory, and its devices: where it begins, what stays where it is, weights that wait.

accelerate hangs a hook on each module of a model that it has spread. The hook brings inputs to the module's device, and
weights that wait on the host or the disk for the time of the forward pass.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# What a model returns beside its predictions: each layer's part stays on the layer's device.
_CACHE = "past_key_values"


def device_of(module: nn.Module, default: torch.device | None = None) -> torch.device:
    """Return where a module computes; `default`, or the CPU, where it has nothing that says so."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if device is None:
        device = next((parameter.device for parameter in module.parameters()), default or torch.device("cpu"))
    return torch.device(device)


def is_fixed(model: nn.Module) -> bool:
    """Return whether a model has to stay where it was loaded: spread over devices, or with rounded weights."""
    return hasattr(model, "_hf_hook") or getattr(model, "quantization_method", None) is not None


def weights_at_hand(module: nn.Module) -> AbstractContextManager[None]:
    """While open, the weights of one module are in memory, also where accelerate keeps them elsewhere."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device  # optional; who spread the model has it

    waiting: AbstractContextManager[None] = align_module_device(module)
    return waiting


def exchange_on(model: nn.Module, device: torch.device) -> None:
    """Have a model take its inputs from any device, and return what it predicts on `device`."""
    entry = device_of(model)

    def bring(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(_on(value, entry) for value in args), {name: _on(value, entry) for name, value in kwargs.items()}

    def hand_over(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Mapping):
            for name in [name for name in output if name != _CACHE]:
                output[name] = _on(output[name], device)  # type: ignore[index]
        return output

    model.register_forward_pre_hook(bring, with_kwargs=True)
    model.register_forward_hook(hand_over)


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
