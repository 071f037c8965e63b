"""An evaluation in TensorBoard: its figures, its page of tables, and pictures of where it is good and where not."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from lightsae.analysis.evaluate.markdown import firing_rate, group_columns, to_markdown
from lightsae.analysis.evaluate.report import Band, Evaluation
from lightsae.formats.files import explain_os_errors
from lightsae.plotting import STYLE, style_pane

# Of which an earlier evaluation's events are known.
_SUFFIX = ".evaluation"


def write_tensorboard(folder: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write evaluations as events into a folder, in the place of those of an earlier evaluation there.

    Tags are `evaluation/fve`, ..., and `evaluation/fve/assistant`, ... of roles and datasets; of several SAEs their
    short names stand before it.

    Args:
        folder: A run's own, whose TensorBoard then shows them beside its training, or another.
        evaluations: What to show.

    Raises:
        ConfigError: The folder cannot be written.
    """
    # Imported here because it takes a second.
    from torch.utils.tensorboard import SummaryWriter

    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        earlier = [path for path in folder.iterdir() if path.name.endswith(_SUFFIX) and "tfevents" in path.name]
        with SummaryWriter(str(folder), filename_suffix=_SUFFIX) as writer:
            for one, name in zip(evaluations, short_names([one.name for one in evaluations]), strict=True):
                tag = f"{name}/evaluation" if len(evaluations) > 1 else "evaluation"
                for key, figure in one.figures.items():
                    writer.add_scalar(f"{tag}/{key}", figure.value)
                for group, figures in one.groups.items():
                    for key in group_columns(one.groups):
                        if key in figures:
                            writer.add_scalar(f"{tag}/{key}/{group}", figures[key].value)
                writer.add_text(tag, to_markdown([one]))
                writer.add_figure(tag, draw_evaluation(one))
        for path in earlier:
            path.unlink(missing_ok=True)


def draw_evaluation(one: Evaluation) -> Picture:
    """Draw what is reconstructed by position and by the token's frequency, and how often latents fire."""
    with matplotlib.rc_context(STYLE):
        picture = Picture(figsize=(11, 3.4), layout="constrained")
        positions, frequencies, firing = picture.subplots(1, 3)
        _draw_bands(positions, one.positions, "Variance explained by position in the row")
        _draw_bands(frequencies, one.frequencies, "... by the token's share of the text")
        _draw_histogram(firing, one.firing_histogram)
    return picture


def _draw_bands(axes: Axes, bands: Sequence[Band], title: str) -> None:
    for place, band in enumerate(bands):
        fve = band.fve
        axes.plot(place, fve.value, "o", color="C0")
        if fve.low is not None and fve.high is not None:
            axes.plot([place, place], [fve.low, fve.high], color="C0")
    axes.set_xticks(range(len(bands)), [band.name for band in bands], rotation=25, ha="right", rotation_mode="anchor")
    style_pane(axes, title)


def _draw_histogram(axes: Axes, counts: Mapping[str, int]) -> None:
    axes.bar(range(len(counts)), list(counts.values()), color="C0")
    names = [firing_rate(name) for name in counts]
    axes.set_xticks(range(len(counts)), names, rotation=25, ha="right", rotation_mode="anchor")
    style_pane(axes, "Latents, by the share of tokens that they fire on")


def short_names(names: Sequence[str]) -> list[str]:
    """Return the parts of paths in which they differ, without those that begin or end all of them.

    >>> short_names(["runs/a/sae", "runs/b/sae"]), short_names(["a", "a"]), short_names(["x/sae"])
    (['a', 'b'], ['a', 'a'], ['sae'])
    """
    parts = [Path(name).parts for name in names]
    shortest = min(len(one) for one in parts)
    begin = next((i for i in range(shortest) if len({one[i] for one in parts}) > 1), shortest - 1)
    end = next((i for i in range(shortest - begin) if len({one[-1 - i] for one in parts}) > 1), 0)
    return ["_".join(one[begin : len(one) - end]) for one in parts]
