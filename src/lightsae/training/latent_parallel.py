"""`trainer.strategy: model_parallel`: each SAE's latents dealt out to devices, with data parallel on top.

The devices form a grid, (data_parallel, tensor_parallel). Those of a row have the same batch and a share of the latents
each: columns of `W_enc`, rows of `W_dec`, entries of what has a number per latent, with their Adam moments and counts.
Those of a column have the same latents, and batches of their own. Parameters are DTensors of the whole shape, so that a
checkpoint is assembled to the one that a run without sharding writes, and goes on at any number of devices.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.optim import Optimizer

from lightsae.compat import grid_of, swapped_tensors
from lightsae.errors import ConfigError, arg
from lightsae.sae import LatentUsage, SparseAutoencoder
from lightsae.sae.mechanisms import BatchTopK, JumpReLU, ReLU, TopK
from lightsae.sae.output import SAEOutput
from lightsae.sae.ranks import from_shards, over_ranks, over_shards, set_groups, shard, shards
from lightsae.sae.refinements import NO_REFINEMENTS
from lightsae.sae.sparse_ops import SparseLatents, SparsePattern
from lightsae.training.kl import KL

NAME = "model_parallel"
# Whose sums over latents know of other devices' latents.
_SUPPORTED = (TopK, BatchTopK, ReLU, JumpReLU)


class LatentParallelStrategy(ModelParallelStrategy):
    """Lightning's strategy for models that are too large for a device, with checkpoints as all other runs have them.

    Args:
        data_parallel_size: Devices with the same latents and batches of their own; `auto`: the number of machines.
        tensor_parallel_size: Devices that latents are dealt to; `auto`: those of one machine.
    """

    def __init__(self, data_parallel_size: int | str = "auto", tensor_parallel_size: int | str = "auto") -> None:
        super().__init__(data_parallel_size, tensor_parallel_size, save_distributed_checkpoint=False)  # type: ignore[arg-type]

    def setup_environment(self) -> None:
        super().setup_environment()
        mesh = self.device_mesh
        set_groups(data=mesh["data_parallel"].get_group(), latents=mesh["tensor_parallel"].get_group())

    def teardown(self) -> None:
        set_groups(None, None)
        super().teardown()

    # A checkpoint goes through the run's own CheckpointIO, whole, as without sharding.

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return {name: _whole(value) for name, value in self.lightning_module.state_dict().items()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        present = self.lightning_module.state_dict()
        state = {name: _like(value, present.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        of_each = {
            number: {name: _whole(value) for name, value in own.items()} for number, own in state["state"].items()
        }
        return {**state, "state": of_each}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            dealt = {
                number: {
                    name: _like(value, parameters[number]) if value.shape == parameters[number].shape else value
                    for name, value in own.items()
                }
                for number, own in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": dealt})


StrategyRegistry.register(
    NAME, LatentParallelStrategy, description="Deal the latents of SAEs out to devices, data parallel on top"
)


def check_supported(name: str, sae: SparseAutoencoder, shards: int) -> None:
    """Raise where an SAE's latents cannot be dealt out.

    Raises:
        ConfigError: Its structure, mechanism or refinements concern latents of other devices in ways that are not
            worked out here, or its latents are not a multiple of the devices.
    """
    strategy = f"{arg('strategy', 'trainer')} is {NAME!r}"
    kind, mechanism = type(sae).__name__, type(sae.mechanism)
    if mechanism not in _SUPPORTED or not issubclass(type(sae), SparseAutoencoder) or hasattr(sae, "groups"):
        raise ConfigError(f"{strategy}, which takes ReLU, TopK, BatchTopK and JumpReLU, and not {kind}; write ddp.")
    if sae.predicts_another_site or len(sae.widths.read) > 1:
        raise ConfigError(f"{strategy}, which takes SAEs of one site that predict what they read, not {kind}.")
    if sae.refinements != NO_REFINEMENTS:
        raise ConfigError(f"{strategy}, which takes no refinements; leave {arg('refinements')} of {name!r} out.")
    if sae.d_sae % shards:
        raise ConfigError(
            f"{arg('d_sae')} of {name!r} is {sae.d_sae}, which cannot be dealt to {shards} devices; write a multiple."
        )


def deal_out(sae: SparseAutoencoder, usage: LatentUsage, mesh: DeviceMesh) -> None:
    """Keep this device's share of an SAE's latents, in place: tensors with an axis of latents become DTensors.

    Args:
        sae: Whole; every device of the mesh has the same.
        usage: Its counts.
        mesh: Of the devices that latents are dealt to.
    """
    for module in (*sae.modules(), usage):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module.register_parameter(name, nn.Parameter(_dealt(parameter.detach(), name, mesh)))
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.ndim == 1 and len(buffer) == sae.d_sae:
                module.register_buffer(name, _dealt(buffer, name, mesh))


def _dealt(tensor: Tensor, name: str, mesh: DeviceMesh) -> DTensor:
    placement: Placement = Replicate() if name == "b_dec" else Shard(1 if name == "W_enc" else 0)
    return distribute_tensor(tensor, mesh, [placement], src_data_rank=None)


@contextmanager
def own_share(*modules: nn.Module) -> Iterator[None]:
    """While open, parameters and buffers of the modules are this device's share, as plain tensors.

    With gradients enabled a gradient reaches the DTensors. Without, the share has its gradient as `grad`, and what is
    written into it is written into the DTensor. Where nothing is dealt out, nothing changes.
    """
    with ExitStack() as stack:
        for module in modules:
            tensors = dict(module.named_parameters()) | dict(module.named_buffers())
            shares = {name: _share(tensor) for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
            if shares:
                stack.enter_context(swapped_tensors(module, shares))
        yield


def _share(tensor: DTensor) -> Tensor:
    share = tensor.to_local()
    if torch.is_grad_enabled():
        return share
    share = share.detach()
    if isinstance(tensor.grad, DTensor):
        share.grad = tensor.grad.to_local()
    return share


def latent_mesh(trainer: Trainer) -> DeviceMesh | None:
    """Return the devices that latents are dealt to; None where they are not."""
    strategy = trainer.strategy
    return strategy.device_mesh["tensor_parallel"] if isinstance(strategy, LatentParallelStrategy) else None


def check_run(
    trainer: Trainer, saes: Mapping[str, SparseAutoencoder], data: Any, terms: Mapping[str, Collection[str]]
) -> None:
    """Raise where the strategy deals latents out, and the run has what it cannot do; see `check_supported`.

    Args:
        trainer: Of the run.
        saes: By name.
        data: The data module.
        terms: Of the loss, by the SAE's name.

    Raises:
        ConfigError: It has.
    """
    if not isinstance(trainer.strategy, LatentParallelStrategy):
        return
    devices, (rows, columns) = trainer.num_devices * trainer.num_nodes, grid_of(trainer)
    if rows * columns != devices:
        raise ConfigError(
            f"{arg('strategy', 'trainer')}: data_parallel_size {rows} times tensor_parallel_size {columns} is not the "
            f"number of devices, {devices}."
        )
    for name, sae in saes.items():
        check_supported(name, sae, columns)
    refused = {
        arg("gradient_clip_val", "trainer"): bool(trainer.gradient_clip_val),
        f"{arg('dataset', 'data')} synthetic": getattr(data, "synthetic_world", None) is not None,
        arg(f"coefficients.{KL}", "model"): any(KL in of_sae for of_sae in terms.values()),
    }
    for what, is_there in refused.items():
        if is_there:
            raise ConfigError(f"{arg('strategy', 'trainer')} is {NAME!r}, which does not go with {what}; leave it out.")


@torch.no_grad()
def mean_gradients(sae: SparseAutoencoder) -> None:
    """Take the mean of the gradients of ranks with the same latents, as DDP does for whole models."""
    for parameter in sae.parameters():
        if isinstance(parameter.grad, DTensor):
            over_ranks(parameter.grad.to_local(), "mean")


def share_start(sae: SparseAutoencoder, whole: SparseAutoencoder, trainer: Trainer) -> None:
    """Give an SAE its share of a start, that of the first of the ranks with the same latents."""
    take_share(sae, whole)
    strategy = trainer.strategy
    assert isinstance(strategy, LatentParallelStrategy)
    group = strategy.device_mesh["data_parallel"].get_group()
    for tensor in sae.state_dict().values():
        share = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        torch.distributed.broadcast(share, group_src=0, group=group)


def whole_output(sae: SparseAutoencoder, output: SAEOutput) -> SAEOutput:
    """Return an output with the latents of all devices; every device has to ask for it."""
    if not is_dealt_out(sae):
        return output
    latents = output.latents
    if isinstance(latents, Tensor):
        return replace(output, latents=torch.cat(from_shards(latents), dim=1))
    return replace(output, latents=_joined(latents, sae.d_sae))


def _joined(latents: SparseLatents, width: int) -> SparseLatents:
    """Return the latents of all shards, token by token."""
    tokens, number = latents.pattern.tokens, len(latents.values)
    counts = torch.zeros(shards(), dtype=torch.long, device=latents.values.device)
    counts[shard()] = number
    padding = (0, int(over_shards(counts, "sum").max()) - number)
    own = latents.values, latents.indices + shard() * latents.pattern.width, latents.pattern.token_of
    numbers = counts.tolist()
    values, indices, token_of = (
        torch.cat([part[:n] for part, n in zip(from_shards(nn.functional.pad(t, padding)), numbers, strict=True)])
        for t in own
    )
    order = token_of.argsort(stable=True)
    starts = torch.searchsorted(token_of[order], torch.arange(tokens + 1, device=token_of.device))
    return SparseLatents(values[order], SparsePattern(indices[order], starts, width))


def is_dealt_out(sae: SparseAutoencoder) -> bool:
    """Return whether the latents of an SAE lie on several devices."""
    return isinstance(sae.W_dec, DTensor)


@torch.no_grad()
def whole_sae(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Return an SAE with all its latents, on the CPU, where they are dealt out; every device has to ask for it."""
    if not is_dealt_out(sae):
        return sae
    whole = type(sae)(sae.widths, **sae.settings)
    whole.load_state_dict({name: _whole(value).cpu() for name, value in sae.state_dict().items()})
    return whole.train(sae.training)


@torch.no_grad()
def take_share(sae: SparseAutoencoder, whole: SparseAutoencoder) -> None:
    """Give an SAE that is dealt out this device's share of another one's tensors."""
    source = whole.state_dict()
    for name, tensor in sae.state_dict().items():
        tensor.copy_(_like(source[name], tensor))


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor with what all devices have of it; every device has to ask for it."""
    whole: Tensor = _whole(tensor)
    return whole


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(value: Any, present: Any) -> Any:
    """Return a whole tensor dealt out as another one is."""
    if not isinstance(present, DTensor) or not isinstance(value, Tensor) or isinstance(value, DTensor):
        return value
    moved = value.to(present.device, present.dtype)
    return distribute_tensor(moved, present.device_mesh, present.placements, src_data_rank=None)
