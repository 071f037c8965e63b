"""`lightsae fit` and `lightsae validate`: LightningCLI with this project's classes, defaults and run folders."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import (
    ExportSAE,
    FinalValidation,
    GroundTruth,
    LanguageModelMetrics,
    ModelDiff,
    ReconstructionMetrics,
    RunCheckpoint,
    SweepSummary,
    Throughput,
    TrainingCurves,
    TrainingProgressBar,
)
from lightsae.callbacks.base import WITH_FOLDERS, run_folder
from lightsae.cli.settings.parser import Parser
from lightsae.cli.settings.trusted import (
    ALLOW,
    ALLOW_HELP,
    TRUST,
    check_allowed,
    check_trusted,
    check_variants,
    restrict_classes,
    to_type_again,
)
from lightsae.cli.settings.typed import check_typed_options, config_files, options_of
from lightsae.cli.training.failures import explain_classes, explain_trainer, tidy_end
from lightsae.cli.training.opening import announce
from lightsae.cli.training.preflight import check_settings, preflight
from lightsae.cli.training.processes import ending_together
from lightsae.cli.training.report import report
from lightsae.cli.training.run_folder import (
    SaveRunConfig,
    find_checkpoint,
    go_on_logging,
    keep_metrics,
    run_of_config,
)
from lightsae.cli.training.run_lock import RunLock
from lightsae.compat import is_dry_run
from lightsae.errors import ConfigError
from lightsae.sae import SparseAutoencoder
from lightsae.tracking import ClearMLLogger
from lightsae.training.checkpoint_io import AtomicCheckpointIO
from lightsae.training.module import SAEModule

DESCRIPTIONS = {
    "fit": "Train a sparse autoencoder on the activations of a language model. "
    "Settings come from --config FILE.yaml and from options; the later one wins.",
    "validate": "Measure a trained sparse autoencoder on held-out text: a table, TensorBoard, and validation.json "
    "in a run folder of its own.",
}
CALLBACKS: dict[str, type] = {
    "checkpoint": RunCheckpoint,
    "export": ExportSAE,
    "metrics": ReconstructionMetrics,
    "language_model_metrics": LanguageModelMetrics,
    "throughput": Throughput,
}
# They have no settings, and what they write depends on the run alone.
_ALWAYS: tuple[Callable[[], Callback], ...] = (TrainingCurves, SweepSummary, ModelDiff, GroundTruth, FinalValidation)
TRAINER_DEFAULTS = {
    # An endless stream has no epochs; validation is asked for in steps, and comes once more at the end.
    "check_val_every_n_epoch": None,
    "val_check_interval": 1000,
    # Scale and thresholds do not exist before training starts.
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
}
# What Lightning tells in every run, and advertisements.
_NO_NEWS = (
    "Seed set to",
    "GPU available: False",
    "TPU available: False",
    "Restoring states from",
    "\N{ELECTRIC LIGHT BULB} Tip:",
)


class TrainingCLI(LightningCLI):
    """LightningCLI for one of the two commands.

    Attributes:
        descriptions: What each command does.
        trainer_kind: Class of the Trainer; commands are methods of it.
    """

    descriptions: ClassVar[dict[str, str]] = DESCRIPTIONS
    trainer_kind: ClassVar[type[Trainer]] = Trainer

    def __init__(self, command: str, args: Sequence[str]) -> None:
        self.typed, self._options = list(args), dict(options_of(args))
        restrict_classes(self._options.get(ALLOW))
        self.run_folder: Path | None = None
        self._lock, self._parent = RunLock(), os.getppid()
        super().__init__(
            SAEModule,
            ActivationDataModule,
            trainer_class=self.trainer_kind,
            save_config_callback=SaveRunConfig,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=Parser,
            parser_kwargs={
                name: {"command": name, "description": text, "usage": f"lightsae {name} [--config FILE.yaml] [OPTIONS]"}
                for name, text in self.descriptions.items()
            },
            args=[command, *args],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        every = LightningCLI.subcommands()
        return {name: every[name] | {"weights_only", "verbose"} for name in DESCRIPTIONS}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings that people change first, the Trainer's hundreds last."""
        parser.add_lightning_class_args(ActivationDataModule, "data")
        parser.add_lightning_class_args(SAEModule, "model")
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.add_argument(f"--{ALLOW}", type=str | None, help=ALLOW_HELP)
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})

    def _set_seed(self) -> None:
        # Lightning would warn, and take another.
        seed = self.config[self.subcommand].seed_everything
        if not 0 <= seed < 2**32:
            raise ConfigError("seed_everything", seed, "write 0 or more, below 2**32")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Leave the checkpoint alone: the base class looks for hyperparameters in it, and lightsae's hold none."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        check_trusted(config.data[TRUST], f"data.{TRUST}", self._options)
        check_allowed(config.pop(ALLOW), self._options)
        check_variants(config.model, SparseAutoencoder)
        check_typed_options(self.typed, config)
        check_settings(str(self.subcommand), config)
        run = run_of_config(config_files(self.typed))
        if self.subcommand == "fit" and config.ckpt_path == "last":
            self.run_folder = run
        config.ckpt_path = find_checkpoint(config.ckpt_path, run)
        if self.subcommand == "validate" and config.ckpt_path is None:
            raise ConfigError(
                "--ckpt_path is missing; name a checkpoint, or write `last` with --config RUN/config.yaml."
            )
        self.save_config_kwargs = {"resuming": self.run_folder is not None}

    def instantiate_classes(self) -> None:
        trainer = self.config[self.subcommand].trainer
        given = trainer.logger
        if self.run_folder is not None:
            trainer.logger = go_on_logging(given, self.run_folder)
        with explain_classes(CALLBACKS):
            super().instantiate_classes()
        trainer.logger = given  # what is saved is what was set

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand]["trainer"]
        own = self._logger(config.default_root_dir)
        if config.logger in (None, True):
            config.logger = own
        elif not any(isinstance(logger, WITH_FOLDERS) for logger in _listed(config.logger)):
            # The run has its folder all the same; `run_folder` looks here.
            config.default_root_dir = own.log_dir
        if config.plugins is None:
            config.plugins = [AtomicCheckpointIO()]
        bar = [TrainingProgressBar()] if config.enable_progress_bar is not False else []
        with explain_trainer():
            return super().instantiate_trainer(
                callbacks=[self._lock, *_listed(config.callbacks), *(kind() for kind in _ALWAYS), *bar], **kwargs
            )

    def _logger(self, root: str | None) -> TensorBoardLogger:
        """Log into lightning_logs/version_N; a resumed run goes on in its own folder."""
        if self.run_folder is not None:
            folder = self.run_folder
            return TensorBoardLogger(folder.parent.parent, folder.parent.name, folder.name, default_hp_metric=False)
        return TensorBoardLogger(root or os.getcwd(), default_hp_metric=False)

    def after_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        saes, stored = preflight(str(self.subcommand), self.trainer, self.model, self.datamodule, config.ckpt_path)
        # What is only measured is measured as is best here.
        state = stored if self.subcommand == "fit" else None
        dtype = self.datamodule.dtype_on(self.trainer.strategy.root_device, state)
        announce(str(self.subcommand), config, self.trainer, saes, dtype)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        # `report` prints the table.
        return kwargs | {"verbose": False} if subcommand == "validate" else kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        with (
            ending_together(self.trainer, self._parent),
            tidy_end(self.trainer, self._parent, to_type_again(self._options)),
            self._lock.held(self.trainer),
        ):
            if self.run_folder is not None:
                keep_metrics(self.trainer, self.run_folder)
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        self._end("fit")

    def after_validate(self) -> None:
        self._end("validate")

    def _end(self, command: str) -> None:
        """Print and write the figures, then let the loggers have what the run left."""
        report(self.trainer, self.datamodule, command, to_type_again(self._options))
        for logger in self.trainer.loggers:
            if isinstance(logger, ClearMLLogger) and not is_dry_run(self.trainer):
                logger.log_run(run_folder(self.trainer))


def _listed(setting: Any) -> list[Any]:
    """Return a setting of which there may be none, one or several as a list."""
    return setting if isinstance(setting, list) else [setting] if setting else []


def run_training(command: str, args: list[str]) -> int:
    """Run fit or validate with command-line arguments."""
    with quiet_third_parties():
        TrainingCLI(command, args)
    return 0


@contextmanager
def quiet_third_parties() -> Iterator[None]:
    """While open, silence warnings that a user of this command can do nothing about, each by name."""
    with warnings.catch_warnings():
        _silence()
        yield


def _silence() -> None:
    # Lightning 2.6 calls jsonargparse by names that it will drop.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # Lightning 2.6 calls a function that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # The data module's loaders make batches themselves; there are no DataLoader workers to add.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`train_dataloader` you passed.*")
    # What is parsed is what was typed; sys.argv stays as it is, for DDP starts its other processes with it.
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    # A run that goes on does so in its own folder, and keeps the log files of before under another name.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*Previous log files in this directory will be deleted.*")
    # `validate` has a run folder of its own.
    warnings.filterwarnings("ignore", message=".*The dirpath has changed.*")
    # The run's length is checked here; and short runs are fine.
    warnings.filterwarnings("ignore", message=".*`max_epochs` was not set.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(lambda record: not any(text in record.getMessage() for text in _NO_NEWS))
