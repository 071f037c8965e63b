"""How the figures look: for papers, and for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from lightsae.formats.files import write_atomically

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    # Labels, tokens and prompts are no mathematics, whatever dollar signs they hold.
    "text.parse_math": False,
}


def write_picture(trainer: Trainer, path: Path, tag: str, figure: Figure) -> None:
    """Write a picture to a .png file and to every TensorBoard logger of the run. Call it on rank 0."""
    with write_atomically(path) as partial:
        figure.savefig(partial, dpi=150)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, trainer.global_step, close=False)


def write_scalars(folder: Path, scalars: Mapping[str, float], figures: Mapping[str, Figure]) -> None:
    """Write figures and numbers as TensorBoard events."""
    # Here and not above: it takes a second, and a library user may never need it.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value)
        for name, figure in figures.items():
            writer.add_figure(name, figure, close=False)
