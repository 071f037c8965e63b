"""`lightsae estimate`: what a run of `fit` with these settings will take, before anything of it is begun."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningCLI

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import GroundTruth, ReconstructionMetrics, TrainingCurves
from lightsae.cli.settings.command import Bars
from lightsae.cli.tables import console, print_paths, table
from lightsae.cli.training.failures import explain_classes
from lightsae.cli.training.training_cli import CALLBACKS, TrainingCLI, quiet_third_parties
from lightsae.errors import ConfigError, arg, section
from lightsae.estimate import Forecast, Machine, RunPlan, Seconds, forecast, language_model_costs, probe
from lightsae.estimate.forecast import seconds_of
from lightsae.formats.files import write_json
from lightsae.lm.dtypes import DTYPES
from lightsae.training.kl import KL
from lightsae.training.latent_parallel import NAME
from lightsae.training.module import SAEModule

_PARTS = {
    "language_model": "language model",
    "data": "activations",
    "sae_steps": "steps of the SAEs",
    "validation": "validations",
    "saving": "checkpoints and exports",
    "start_and_end": "scales before, pictures after",
}
_MEMORY = {
    "language_model": "language model",
    "language_model_elsewhere": "language model, on devices of its own",
    "sae_weights": "SAE weights",
    "sae_gradients": "their gradients",
    "sae_adam": "Adam's moments",
    "activation_buffer": "activation buffer",
    "libraries": "Python and its libraries",
    "language_model_pass": "while the language model runs",
    "sae_step": "while the SAE learns",
    "peak": "at most, all at once",
}


class EstimatingTrainer(Trainer):
    """A Trainer that says what a run takes in place of running it.

    Attributes:
        config: The settings of the command, parsed.
    """

    config: Any

    def estimate(
        self,
        model: SAEModule,
        datamodule: ActivationDataModule,
        tokens: int | None = None,
        price_per_hour: float | None = None,
        flops: float | None = None,
        bandwidth: float | None = None,
        out: Path | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Say what the run will take.

        Args:
            model: What it trains.
            datamodule: Its data.
            tokens: Length of the run in tokens over all devices, in place of the settings' own: 1_000_000_000.
            price_per_hour: Of one device; gives the cost.
            flops: For another machine: FLOPs per second that one device reaches in large products, say half of its
                data sheet's: 4e14. Nothing is measured here then.
            bandwidth: For another machine: bytes per second of the device's memory: 3e12.
            out: A JSON file for the figures.
            ckpt_path: Not looked at: the estimate is of the whole run.
        """
        machine = _machine(flops, bandwidth)
        for name, value in (("tokens", tokens), ("price_per_hour", price_per_hour)):
            if value is not None and not value > 0:
                raise ConfigError(name, value, "it must be above 0")
        device = torch.device("cpu") if machine is not None else _device(str(self.config.trainer.accelerator))
        plan = plan_of(self.config, model, datamodule, tokens)
        whole = self.config.language_model_metrics is not None
        costs = language_model_costs(plan, whole)
        if machine is None:
            with section("data"):
                dtype = datamodule.dtype_on(device)
            seconds = self._measured(plan, model, costs, device, dtype)
        else:
            seconds = seconds_of(machine, plan, costs)
            dtype = DTYPES.get(datamodule.dtype, torch.bfloat16)
        device = torch.device("meta") if machine is not None else device
        result = forecast(plan, costs, seconds, device=device, dtype=dtype, price_per_hour=price_per_hour)
        show(result, seconds, "another machine" if machine is not None else f"this machine's {device.type}")
        if self.config.data.roles:
            # How many these are is in the text alone, which is not read here.
            print(
                "note      data.roles: the language model reads the tokens of other roles too, which are not counted "
                "here: of text with a share s of tokens to train on, its part takes 1 / s as long"
            )
        if datamodule.quantization is not None and machine is None:
            print("note      data.quantization: the language model was timed with weights that are not rounded")
        if out is not None:
            write_json(out, result.as_dict(), finite=False, ascii_only=True)
            print_paths(("figures", out))

    def _measured(
        self, plan: RunPlan, model: SAEModule, costs: Any, device: torch.device, dtype: torch.dtype
    ) -> Seconds:
        precision, progress = self.config.trainer.precision, Bars()
        return probe(
            plan, model, costs, device=device, dtype=dtype, precision=precision, callbacks=watching(), progress=progress
        )


def watching() -> list[Callback]:
    """Return those callbacks of every run that cost time."""
    return [ReconstructionMetrics(), GroundTruth(), TrainingCurves()]


class EstimateCLI(TrainingCLI):
    """The settings of `fit`, from which nothing is made that would leave a trace."""

    descriptions: ClassVar[dict[str, str]] = {
        "estimate": "Say what `lightsae fit` with the same settings will take: tokens per second, hours, memory, cost. "
        "Nothing is downloaded but the model's config.json; a random model of its shape is timed for some seconds.",
    }
    trainer_kind: ClassVar[type[Trainer]] = EstimatingTrainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"estimate": {"model", "datamodule"}}

    def instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        # They would open files and services, or belong to hardware that is elsewhere.
        for name in ("logger", "callbacks", "plugins", "profiler"):
            config.trainer[name] = None
        with explain_classes(CALLBACKS):
            LightningCLI.instantiate_classes(self)

    def instantiate_trainer(self, **kwargs: Any) -> EstimatingTrainer:
        trainer = EstimatingTrainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        trainer.config = self.config[self.subcommand]
        return trainer

    def after_instantiate_classes(self) -> None:
        """Nothing is announced, and no folder looked for."""

    def _run_subcommand(self, subcommand: str) -> None:
        assert isinstance(self.trainer, EstimatingTrainer)
        self.trainer.estimate(**self._prepare_subcommand_kwargs(subcommand))


def run_estimate(args: list[str]) -> int:
    """Run estimate with command-line arguments."""
    with quiet_third_parties():
        EstimateCLI("estimate", args)
    return 0


def plan_of(config: Any, module: SAEModule, data: ActivationDataModule, tokens: int | None = None) -> RunPlan:
    """Return what a run with some settings of `fit` does.

    Args:
        config: The settings, parsed.
        module: Made of them.
        data: Made of them.
        tokens: Another length.
    """
    trainer = config.trainer
    if trainer.strategy == NAME:
        raise ConfigError(
            f"trainer.strategy is {NAME!r}, and an estimate knows devices with whole SAEs alone; for a dictionary of "
            "which each device has a share, estimate one of that share (--model.sae.d_sae)."
        )
    with section("data"):
        if data.cache is not None:
            raise ConfigError(f"{arg('cache')}: an estimate knows runs that make their activations; leave it out.")
        if data.reads_text:
            data.each_dataset()
    with torch.device("meta"):
        saes = module.build(data)
    if any(KL in terms for terms in module.coefficients.values()):
        named = arg(f"coefficients.{KL}", "model")
        raise ConfigError(f"{named}: what that term takes is not in an estimate; leave it out.")
    devices = _devices(trainer.devices, str(trainer.accelerator)) * trainer.num_nodes
    per_batch, accumulated = data.batch_tokens * devices, trainer.accumulate_grad_batches
    if tokens is not None:
        batches = max(1, tokens // per_batch)
    elif trainer.max_steps > 0:
        batches = trainer.max_steps * accumulated
    elif data.training_tokens is not None:
        batches = max(1, data.training_tokens // per_batch)
    else:
        batches = max(1, trainer.max_epochs * (data.source.epoch_tokens() or 0) // per_batch)
    steps = max(1, batches // accumulated)
    interval = trainer.val_check_interval
    if isinstance(interval, float):
        interval = max(1, round(interval * steps * accumulated))
    every = config.checkpoint.every_n_train_steps
    metrics = config.language_model_metrics
    held_out_rows = max(1, data.val_tokens // devices // data.context_size)
    return RunPlan(
        data=data,
        saes=saes,
        steps=steps,
        devices=devices,
        accumulated=accumulated,
        validations=0 if trainer.limit_val_batches == 0 else -(-steps * accumulated // interval),
        saves=-(-steps // every),
        log_every=trainer.log_every_n_steps,
        spliced_rows=min(metrics.max_rows or held_out_rows, held_out_rows) if data.reads_text else 0,
        spliced_batch_rows=metrics.batch_rows,
    )


def _devices(setting: Any, accelerator: str) -> int:
    if isinstance(setting, list):
        return len(setting)
    text = str(setting)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    if text in ("auto", "-1"):
        return max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu", "cuda") else 1
    return int(text)


def _device(accelerator: str) -> torch.device:
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return torch.device("cuda", 0)
    if torch.backends.mps.is_available() and accelerator in ("auto", "gpu", "mps"):
        return torch.device("mps")
    if accelerator not in ("auto", "cpu"):
        raise ConfigError(
            f"trainer.accelerator is {accelerator!r}, which is not at hand to be measured; say how fast it is: "
            "--flops 4e14 --bandwidth 3e12."
        )
    return torch.device("cpu")


def _machine(flops: float | None, bandwidth: float | None) -> Machine | None:
    for name, value in (("flops", flops), ("bandwidth", bandwidth)):
        if value is not None and not value > 0:
            raise ConfigError(name, value, "it must be above 0")
    if flops is None and bandwidth is None:
        return None
    if flops is None or bandwidth is None:
        missing = "flops" if flops is None else "bandwidth"
        raise ConfigError(f"{missing} is missing: another machine is told by --flops and --bandwidth together.")
    return Machine(flops, bandwidth)


def show(result: Forecast, seconds: Seconds, where: str) -> None:
    """Print a forecast as tables."""
    out = console()
    flops = result.flops_per_token
    numbers = table("what", "")
    numbers.add_row("training tokens", f"{result.tokens:,}")
    numbers.add_row("optimiser steps", f"{result.steps:,}")
    numbers.add_row("devices", f"{result.devices:,}")
    numbers.add_row("parameters of the SAEs", f"{result.sae_parameters:,}")
    if result.model_parameters:
        numbers.add_row("parameters of the language model, as loaded", f"{result.model_parameters:,}")
        numbers.add_row("FLOPs per token: language model to its site", f"{flops['language_model']:,}")
    numbers.add_row("FLOPs per token: SAE steps, whole matrices", f"{flops['sae_dense']:,}")
    numbers.add_row("FLOPs per token: SAE steps, rows that fire", f"{flops['sae_sparse']:,}")
    out.print(numbers)
    memory = table("memory of a device", "")
    for name, meaning in _MEMORY.items():
        if result.memory.get(name):
            memory.add_row(meaning, in_bytes(result.memory[name]))
    out.print("", memory)
    times = table("time", "", "")
    for name, meaning in _PARTS.items():
        if name in result.seconds:
            part = result.seconds[name]
            times.add_row(meaning, in_hours(part), f"{part / result.total_seconds:.0%}")
    times.add_row("the run", in_hours(result.total_seconds), "")
    out.print("", times)
    out.print("")
    rows = [("tokens per second", f"{result.tokens_per_second:,.0f}")]
    if result.cost is not None:
        rows.append(("cost", f"{result.cost:,.2f}"))
    rows.append(("by", f"{where}, {seconds.matrix_flops / 1e9:,.0f} GFLOP/s in products of matrices"))
    print_paths(*rows)


def in_bytes(number: int | float) -> str:
    """Return bytes in words.

    >>> in_bytes(512), in_bytes(3 << 20), in_bytes(80_000_000_000)
    ('0.0 MiB', '3.0 MiB', '74.5 GiB')
    """
    return f"{number / (1 << 30):,.1f} GiB" if number >= 1 << 30 else f"{number / (1 << 20):,.1f} MiB"


def in_hours(seconds: int | float) -> str:
    """Return a length of time in words.

    >>> in_hours(12.34), in_hours(600), in_hours(40_000)
    ('12.3 s', '10.0 min', '11.1 h')
    """
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
