"""How the figures look, and where they go: files for papers, TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
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
# x, y, and what else there is to a point.
Point = TypeVar("Point", bound=tuple[float, float, Any])


def pareto_optimal(points: Sequence[Point]) -> list[Point]:
    """Return the points of which no other has an x as small and a y as large, one of them strictly.

    >>> pareto_optimal([(8.0, 0.5, "a"), (16.0, 0.7, "b"), (16.0, 0.6, "c")])
    [(8.0, 0.5, 'a'), (16.0, 0.7, 'b')]
    """
    return [p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q[:2] != p[:2] for q in points)]


def style_pane(axes: Axes, title: str, x_label: str = "") -> None:
    """Give a pane of a training run's pictures its title, its grid and two spines."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Axes, **options: Any) -> None:
    """Give a pane a legend of what it shows; none where that is nothing, of which matplotlib would warn.

    Args:
        axes: The pane.
        options: Of `Axes.legend`.
    """
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # matplotlib warns where its own choice of the place takes a second, as on a busy machine; not where asked for.
        axes.legend(handles, labels, **{"loc": "best", **options})


def write_picture(trainer: Trainer, path: Path, tag: str, figure: Figure) -> None:
    """Write a picture to a .png file and to every TensorBoard logger of the run. Call it on rank 0."""
    with write_atomically(path) as partial:
        figure.savefig(partial, dpi=150)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, trainer.global_step, close=False)


def write_scalars(folder: Path, scalars: Mapping[str, float], figures: Mapping[str, Figure]) -> None:
    """Write figures and numbers as TensorBoard events."""
    # Imported here because it takes a second.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value)
        for name, figure in figures.items():
            writer.add_figure(name, figure, close=False)
