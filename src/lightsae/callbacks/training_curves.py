"""A run's course as one picture: loss, FVE, L0 and dead latents against tokens."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, PercentFormatter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from lightsae.callbacks.base import SAECallback
from lightsae.formats.files import write_atomically
from lightsae.plotting import add_legend, style_pane

PANELS = {
    "loss": "Loss",
    "fve": "Variance explained (FVE)",
    "l0": "Active latents per token (L0)",
    "dead_fraction": "Dead latents",
}
Curve = tuple[list[float], list[float]]


class TrainingCurves(SAECallback):
    """Draw RUN/training_curves.png at the end of a run, from its TensorBoard events. Observes only.

    The events of a resumed run go back to its start, and so does the picture. Nothing is drawn where TensorBoard does
    not log.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if logger is None or not trainer.is_global_zero or trainer.global_step == 0:
            return
        logger.experiment.flush()
        tokens_per_step = self.module.tokens_seen / trainer.global_step
        by_sae: dict[str, dict[str, Curve]] = {name: {} for name in self.module.saes}
        keys = [f"{part}/{key}" for part in ("train", "val") for key in PANELS]
        tags = {self.module.tag(name, key): (name, key) for name in by_sae for key in keys}
        curves = read_curves(Path(logger.log_dir), tags, tokens_per_step)
        for tag, curve in curves.items():
            name, key = tags[tag]
            by_sae[name][key] = curve
        if curves:
            with write_atomically(self.folder / "training_curves.png") as path:
                draw(by_sae).savefig(path, dpi=150)


def read_curves(folder: Path, tags: Iterable[str], tokens_per_step: float) -> dict[str, Curve]:
    """Read curves from a folder of TensorBoard events.

    Args:
        folder: The run's folder, with the events of all its sessions.
        tags: Scalars to read; those that are not there are left out.
        tokens_per_step: Turns steps into tokens.

    Returns:
        Tokens and values, by tag.
    """
    # Histograms are parsed all the same; keep one of each.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 1}, purge_orphaned_data=False)
    events.Reload()
    curves = {}
    for tag in set(events.Tags()["scalars"]).intersection(tags):
        kept = latest(events.Scalars(tag))
        # Lightning counts steps from 0, and logs step n after it.
        curves[tag] = [(event.step + 1) * tokens_per_step for event in kept], [event.value for event in kept]
    return curves


def latest(events: Iterable[ScalarEvent]) -> list[ScalarEvent]:
    """Drop what was logged before a resume at steps that were then trained again."""
    kept: list[ScalarEvent] = []
    for event in sorted(events, key=lambda event: event.wall_time):
        while kept and kept[-1].step >= event.step:
            kept.pop()
        kept.append(event)
    return kept


def draw(saes: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Draw four panels; a colour for each SAE, a line for training and points for validation.

    Args:
        saes: By name, the curves "train/loss", "train/fve", "val/fve" ...; any may be missing.
    """
    figure = Figure(figsize=(10, 6.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (key, title) in zip(panels.flat, PANELS.items(), strict=True):
        for place, (name, curves) in enumerate(saes.items()):
            _draw_one(axes, curves, key, f"C{place % 10}", name if len(saes) > 1 else "")
        style_pane(axes, title)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if key == "dead_fraction":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if key in ("l0", "dead_fraction"):
            axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        if key == "fve":
            # A start far below 0 would flatten all that matters.
            axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    for axes in panels[1]:
        axes.set_xlabel("Training tokens")
    add_legend(panels[0, 1], frameon=False, fontsize=9, loc="lower right")
    return figure


def _draw_one(axes: Axes, curves: Mapping[str, Curve], key: str, colour: str, name: str) -> None:
    prefix = f"{name}, " if name else ""
    # What lies at 0 is drawn over the axis, not cut in half by it.
    over: dict[str, Any] = {"clip_on": key == "fve", "zorder": 3}
    if line := curves.get(f"train/{key}"):
        axes.plot(*line, color=colour, linewidth=1.4, label=f"{prefix}training", **over)
    if points := curves.get(f"val/{key}"):
        axes.plot(
            *points, "o", color=colour, markersize=5, markeredgecolor="white", label=f"{prefix}validation", **over
        )
