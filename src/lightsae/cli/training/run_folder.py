"""Run folders: lightning_logs/version_N with config.yaml, events, checkpoints/ and sae/."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lightsae.errors import CheckpointError
from lightsae.formats.files import write_atomically

# What tells one run from another; the rest of the configuration is in config.yaml.
_TOLD = ("data.", "model.", "seed_everything", "trainer.max_steps", "trainer.precision", "trainer.gradient_clip")
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


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration in the run folder: config.yaml, or config.resume-N.yaml for the Nth resumption."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, resuming: bool = False) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.resuming = resuming
        self.folder: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Asked for on every rank: Lightning broadcasts the answer, and `save_config` runs on rank 0 alone.
        self.folder = trainer.log_dir
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.folder is None:
            return
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = self.config_filename
        if self.resuming:
            name = f"config.resume-{len(list(folder.glob('config.resume-*.yaml'))) + 1}.yaml"
        text = self.parser.dump(self.config, skip_unset=False)
        with write_atomically(folder / name) as partial:
            partial.write_text(text)
        if isinstance(trainer.logger, TensorBoardLogger) and not self.resuming:
            _log_hparams(trainer.logger, self.config.as_dict())


def _log_hparams(logger: TensorBoardLogger, config: Mapping[str, Any]) -> None:
    """Tell TensorBoard's HPARAMS page what was set and which curves to show beside it."""
    flat = {key: value for key, value in _flatten(config) if key.startswith(_TOLD) and value != "None"}
    logger.log_hyperparams(flat)  # hparams.yaml
    writer = logger.experiment._get_file_writer()
    for summary in hparams(flat, dict.fromkeys(FINAL_FIGURES, 0.0)):
        writer.add_summary(summary)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, value if isinstance(value, bool | int | float | str) else str(value)))
    return pairs
