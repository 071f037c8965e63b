"""Run folders: version_N with config.yaml, what the loggers write, checkpoints/ and sae/."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lightsae.callbacks.base import WITH_FOLDERS, run_folder
from lightsae.errors import CheckpointError
from lightsae.formats.files import write_atomically
from lightsae.stored import flat

# What tells one run from another; the rest of the configuration is in config.yaml.
_TOLD = ("data.", "model.", "seed_everything", "trainer.max_steps", "trainer.precision", "trainer.gradient_clip")
# They go on where the run was; MLflow refuses a parameter that has changed, of a run that goes on by its `run_id`.
_KNOWS_THEM = (*WITH_FOLDERS, MLFlowLogger)
FINAL_FIGURES = ("val/fve", "val/fve_no_sinks", "val/ce_recovered", "val/l0", "val/dead_fraction")


def run_of_config(files: Sequence[Path]) -> Path | None:
    """Return the run folder that a config file lies in, if it lies in one."""
    for file in reversed(files):
        if (file.parent / "checkpoints").is_dir() or file.name.startswith("config.resume"):
            return file.parent
    return files[-1].parent if files and files[-1].name == "config.yaml" else None


def find_checkpoint(asked: str | None, run: Path | None) -> str | None:
    """Return the path of the checkpoint that `--ckpt_path` means.

    Raises:
        CheckpointError: There is none.
    """
    if asked is None:
        return None
    if asked == "last":
        if run is None:
            raise CheckpointError("--ckpt_path is 'last', of which run? Add --config RUN/config.yaml.")
        path = run / "checkpoints" / "last.ckpt"
        if not path.is_file():
            raise CheckpointError(f"--ckpt_path is 'last', but {path} does not exist.")
        return str(path)
    if not Path(asked).is_file():
        raise CheckpointError(f"--ckpt_path is {asked!r}, which does not exist. Write a .ckpt file, or `last`.")
    return asked


def go_on_logging(settings: Any, folder: Path) -> Any:
    """Return the settings of the loggers with which a resumed run logs where it did.

    Args:
        settings: Of one logger, or of several: a class path with settings each. Others are returned as they are.
        folder: The run's folder, which is that of the first logger with a folder for each run.
    """
    several = isinstance(settings, list)
    result = [
        entry.clone() if isinstance(entry, Namespace) else entry for entry in (settings if several else [settings])
    ]
    place: dict[str, Any] = {"save_dir": str(folder.parent.parent), "name": folder.parent.name, "version": folder.name}
    for entry in result:
        kind = entry.class_path.rpartition(".")[2] if isinstance(entry, Namespace) else None
        if kind not in [known.__name__ for known in WITH_FOLDERS]:
            continue
        for key, value in place.items():
            entry.init_args[key] = value
        if "sub_dir" in entry.init_args and "save_dir" in place:
            entry.init_args.sub_dir = None
        place = {"version": folder.name}  # of the other loggers, each in a place of its own
    return result if several else result[0]


def keep_metrics(trainer: Trainer, folder: Path) -> None:
    """Rename the metrics.csv of a run that goes on: Lightning's logger would begin a new one in its place."""
    if trainer.is_global_zero and (folder / "metrics.csv").is_file():
        number = len(list(folder.glob("metrics.until-resume-*.csv"))) + 1
        (folder / "metrics.csv").rename(folder / f"metrics.until-resume-{number}.csv")


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration in the run folder: config.yaml, or config.resume-N.yaml for the Nth resumption."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, resuming: bool = False) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.resuming = resuming
        self.folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # `save_config` runs on rank 0 alone.
        self.folder = run_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert self.folder is not None
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        name = self.config_filename
        if self.resuming:
            name = f"config.resume-{len(list(folder.glob('config.resume-*.yaml'))) + 1}.yaml"
        text = self.parser.dump(self.config, skip_unset=False)
        with write_atomically(folder / name) as partial:
            partial.write_text(text)
        told = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flat(self.config.as_dict())
            if key.startswith(_TOLD) and value not in (None, "None")
        }
        for logger in trainer.loggers:
            if self.resuming and isinstance(logger, _KNOWS_THEM):
                continue
            logger.log_hyperparams(told)
            if isinstance(logger, TensorBoardLogger):
                _show_hparams(logger, told)


def _show_hparams(logger: TensorBoardLogger, told: Mapping[str, Any]) -> None:
    """Tell TensorBoard's HPARAMS page what was set and which curves to show beside it."""
    writer = logger.experiment._get_file_writer()
    for summary in hparams(dict(told), dict.fromkeys(FINAL_FIGURES, 0.0)):
        writer.add_summary(summary)
