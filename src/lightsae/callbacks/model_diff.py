"""Which latents of a crosscoder belong to all its sites, and which to one: model diffing, from the decoder norms.

Axes:    F latents, S sites.
Sources: Relative norms and their histogram: Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model
         Diffing". Classes of two sites: Minder et al. 2025, arXiv:2504.02922.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from lightning import LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from lightsae.callbacks.base import SAECallback, add_histogram
from lightsae.compat import writes_files
from lightsae.formats.files import write_atomically
from lightsae.plotting import write_picture
from lightsae.sae import Crosscoder
from lightsae.sae.sites import short_names
from lightsae.training.module import SAEModule

# The smallest decoder norm of a shared latent, and the largest at the other sites of a latent that is one site's own,
# as shares of its largest norm. With d = 1/2 + (n_B - n_A) / (2 max(n_A, n_B)), these are the paper's cuts for two
# sites: d < 0.1 only A, 0.4 to 0.6 shared, d > 0.9 only B.
SHARED, OTHERS = 0.8, 0.2
# The bounds of the classes, 1/6, 4/9, 5/9 and 5/6 of the relative norm, fall between bars.
BINS = 54
MAP_LATENTS = 2000
# Only the first site, only the second, shared, other.
COLOURS = ("C0", "C3", "C2", "0.75")


class ModelDiff(SAECallback):
    """Tell, for each crosscoder of a run, which latents its sites share. Observes only.

    A latent is `shared` where its decoder norms differ by a fifth at most, `only SITE` where all others are below a
    fifth of the norm at this one, and `other` in between. In validation, as shares of the latents that are alive by the
    run's definition (`model.dead_after`): `val/share_shared` and `val/share_only_SITE`; and a histogram of the relative
    norms in TensorBoard. At the end of training RUN/model_diff_NAME.csv lists every latent, and a picture of the same
    name shows the relative norms of those alive.

    Norms are in normalised units, each site by its own scale. Sites are called by what tells them apart: the site's
    name, or the model's. A run without a crosscoder gets nothing.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        for name, sae in crosscoders(self.module).items():
            relative = sae.relative_norms().float()[~self.module.latent_usage(name).dead]
            sites = site_names(sae)
            by_class = shares(classify(relative), sites)
            self.log_pooled(name, {f"share_{key}": share for key, share in by_class.items()})
            for place, site in enumerate(sites):
                # Of two sites, one tells both.
                if len(sites) > 2 or place == 1:
                    add_histogram(trainer, self.module.tag(name, f"histogram/relative_norm_{site}"), relative[:, place])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not writes_files(trainer):
            return
        for name, sae in crosscoders(self.module).items():
            dead = self.module.latent_usage(name).dead.cpu()
            with write_atomically(self.folder / f"model_diff_{name}.csv") as path:
                write_table(path, sae, dead)
            alive = sae.relative_norms().float().cpu()[~dead]
            if len(alive):
                figure = draw(alive, classify(alive), site_names(sae))
                tag = self.module.tag(name, "pictures/model_diff")
                write_picture(trainer, self.folder / f"model_diff_{name}.png", tag, figure)


def crosscoders(module: SAEModule) -> dict[str, Crosscoder]:
    """Return a run's crosscoders by name."""
    return {name: sae for name, sae in module.each_sae().items() if isinstance(sae, Crosscoder)}


def site_names(sae: Crosscoder) -> list[str]:
    """Return what to call each site: short, different, and fit for a tag."""
    short = short_names(sae.widths.predicted)
    return [re.sub(r"[^\w.-]+", "_", short[site]) for site in sae.widths.predicted]


def classify(norms: Float[Tensor, "F S"]) -> Int[Tensor, " F"]:
    """Return each latent's class, as a place in `class_names`, from its decoder norms or their shares of the sum."""
    sites = norms.shape[1]
    largest, place = norms.max(1)
    others = norms.scatter(1, place[:, None], 0.0).max(1).values
    shared = (norms.min(1).values >= SHARED * largest) & (largest > 0)
    return torch.where(shared, sites, torch.where(others < OTHERS * largest, place, sites + 1))


def class_names(sites: Sequence[str]) -> list[str]:
    """Return the classes: `only SITE` of each site, `shared`, `other`."""
    return [*(f"only {site}" for site in sites), "shared", "other"]


def shares(classes: Int[Tensor, " F"], sites: Sequence[str]) -> dict[str, float]:
    """Return which share of latents is `shared`, and which `only_SITE`; 0 where there are none at all."""
    counts = torch.bincount(classes, minlength=len(sites) + 2).tolist()
    named = zip(class_names(sites), counts, strict=True)
    return {name.replace(" ", "_"): count / max(1, len(classes)) for name, count in named if name != "other"}


def write_table(path: Path, sae: Crosscoder, dead: Bool[Tensor, " F"]) -> None:
    """Write a line of values separated by commas for each latent: its class, whether it is dead, and its norms."""
    sites, relative = site_names(sae), sae.relative_norms().float().cpu()
    norms = {"norm": sae.site_norms().detach().float().cpu(), "relative_norm": relative}
    names = class_names(sites)
    columns: dict[str, Any] = {
        "class": [names[number] for number in classify(relative).tolist()],
        "dead": [str(is_dead).lower() for is_dead in dead.tolist()],
    }
    columns |= {f"{key}_{site}": values[:, i].numpy() for key, values in norms.items() for i, site in enumerate(sites)}
    pd.DataFrame(columns).to_csv(path, index_label="latent", float_format="%.6g", lineterminator="\n")


# -- pictures ----------------------------------------------------------------------------------------------------------


def draw(relative: Float[Tensor, "F S"], classes: Int[Tensor, " F"], sites: Sequence[str]) -> Figure:
    """Draw relative norms: of two sites the histogram of the second one's share, of more a map of latents by sites.

    Args:
        relative: Each site's share of a latent's decoder norm; at least one latent.
        classes: Class of each of these latents, as a place in `class_names`.
        sites: What to call the sites.
    """
    figure = Figure(figsize=(7.2, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    (_draw_two if len(sites) == 2 else _draw_many)(axes, relative, classes, sites)
    return figure


def _draw_two(axes: Axes, relative: Tensor, classes: Tensor, sites: Sequence[str]) -> None:
    ratios = relative[:, 1]
    counts = torch.bincount(classes, minlength=4).tolist()
    labels = [f"{name}: {n:,} ({n / len(classes):.1%})" for name, n in zip(class_names(sites), counts, strict=True)]
    for number in (0, 3, 2, 1):  # in the order of the axis
        part = ratios[classes == number].numpy()
        axes.hist(part, bins=BINS, range=(0, 1), color=COLOURS[number], label=labels[number], zorder=2)
    heights = torch.histc(ratios, BINS, 0, 1)
    if heights.max() > 50 * heights[heights > 0].min():
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlim(0, 1)
    axes.set_title("Latents alive, by relative decoder norm", loc="left", fontsize=11)
    axes.set_xlabel(f"Norm at {sites[1]}, as a share of both norms\n0: only {sites[0]}, 1: only {sites[1]}")
    axes.grid(axis="y", alpha=0.25)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _draw_many(axes: Axes, relative: Tensor, classes: Tensor, sites: Sequence[str]) -> None:
    centre = (relative * torch.arange(len(sites))).sum(1)
    ordered = relative[centre.argsort()]
    ordered = ordered[:: max(1, len(ordered) // MAP_LATENTS)]
    image = axes.imshow(
        ordered.T.numpy(), aspect="auto", origin="lower", interpolation="nearest", vmin=0, vmax=1, cmap="viridis",
        extent=(0, 1, -0.5, len(sites) - 0.5),
    )  # fmt: skip
    share = shares(classes, sites)
    axes.set_yticks(range(len(sites)), [f"{site}\nonly here {share[f'only_{site}']:.1%}" for site in sites], fontsize=9)
    axes.set_xticks([])
    axes.set_xlabel(f"{len(classes):,} latents, ordered from the first site to the last")
    axes.set_title(f"Latents alive, by relative decoder norm; shared {share['shared']:.1%}", loc="left", fontsize=11)
    colours = axes.figure.colorbar(image, ax=axes, pad=0.02)
    colours.outline.set_visible(False)
    colours.set_label("share of the latent's decoder norm")
