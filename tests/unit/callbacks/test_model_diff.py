"""Model diffing: the classes against the published cut-offs, what is left out, what is written."""

import csv
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import ModelDiff
from lightsae.callbacks.model_diff import class_names, classify, draw, shares, site_names
from lightsae.sae import MECHANISMS, Crosscoder, SiteRef, Widths
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule

SITES = ["A", "B"]


def crosscoder(*sites: str) -> Crosscoder:
    refs = {SiteRef("toy", site): 4 for site in sites}
    return Crosscoder(Widths(refs, refs), d_sae=6, mechanism=MECHANISMS["BatchTopK"](k=2))


# -- classes -----------------------------------------------------------------------------------------------------------


def test_two_sites_are_classified_as_published() -> None:
    """Of the normalised difference d: below 0.1 only A, above 0.9 only B, 0.4 to 0.6 shared."""
    a, b = torch.rand(2, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = 0.5 * ((b - a) / torch.maximum(a, b) + 1)
    expected = torch.full_like(d, 3, dtype=torch.long)
    expected[d < 0.1], expected[d > 0.9], expected[(d >= 0.4) & (d <= 0.6)] = 0, 1, 2
    assert set(expected.tolist()) == {0, 1, 2, 3}
    assert torch.equal(classify(torch.stack([a, b], 1)), expected)


def test_more_sites_are_classified_by_the_same_two_ratios() -> None:
    norms = torch.tensor([[1, 0.9, 0.85], [0.1, 1, 0.19], [1, 0.9, 0.5], [0.3, 0.1, 1], [0, 0, 0], [0, 0, 2.0]])
    assert [class_names("abc")[number] for number in classify(norms)] == [
        "shared", "only b", "other", "other", "other", "only c",
    ]  # fmt: skip


def test_shares_are_of_the_latents_given() -> None:
    assert shares(torch.tensor([0, 0, 1, 2, 2, 2, 3, 3]), SITES) == {
        "only_A": 0.25, "only_B": 0.125, "shared": 0.375,
    }  # fmt: skip
    assert shares(torch.tensor([], dtype=torch.long), SITES) == {"only_A": 0, "only_B": 0, "shared": 0}


def test_sites_have_names_that_fit_a_tag() -> None:
    refs = {SiteRef("org/base", "resid_post.1"): 4, SiteRef("org/chat", "resid_post.2"): 4}
    sae = Crosscoder(Widths(refs, refs), d_sae=6, mechanism=MECHANISMS["BatchTopK"](k=2))
    assert site_names(sae) == ["base_resid_post.1", "chat_resid_post.2"]
    assert site_names(crosscoder("resid_post.1", "resid_post.2")) == ["resid_post.1", "resid_post.2"]


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_each_bar_of_the_histogram_is_of_one_class() -> None:
    share = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    relative = torch.stack([1 - share, share], 1)
    classes = classify(relative)
    axes = draw(relative, classes, SITES).axes[0]
    coloured = Counter(round(bar.get_x(), 6) for bar in axes.patches if bar.get_height() > 0)
    assert len(coloured) == 54
    assert set(coloured.values()) == {1}
    assert sum(bar.get_height() for bar in axes.patches) == 20_000
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    counts = torch.bincount(classes).tolist()
    assert legend[0] == f"only A: {counts[0]:,} ({counts[0] / 20_000:.1%})"
    assert legend[3] == f"only B: {counts[1]:,} ({counts[1] / 20_000:.1%})"


def test_small_peaks_beside_a_high_one_are_drawn_in_logarithms() -> None:
    def scale(shared: int) -> str:
        share = torch.tensor([0.01] * 2 + [0.5] * shared + [0.99] * 2)
        relative = torch.stack([1 - share, share], 1)
        return draw(relative, classify(relative), SITES).axes[0].get_yscale()

    assert (scale(20), scale(2000)) == ("linear", "log")


def test_more_than_two_sites_are_drawn_as_a_map() -> None:
    relative = torch.tensor([[0.0, 0.0, 1.0], [0.3, 0.3, 0.4], [1.0, 0.0, 0.0]])
    figure = draw(relative, classify(relative), ["one", "two", "three"])
    (image,) = figure.axes[0].images
    # Latents in order, from those of the first site to those of the last.
    assert torch.allclose(torch.tensor(image.get_array()), relative.flip(0).T)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][2] == "three\nonly here 33.3%"


# -- the callback ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_text: Any, quiet: dict[str, Any], tmp_path: Any) -> Any:
    """Train two crosscoders and a plain dictionary for four steps."""

    def train(*callbacks: Any, steps: int = 4, folder: str = "run", single: bool = False) -> Any:
        seed_everything(0, verbose=False)
        sites = ["resid_post.0", "resid_post.1"]
        data = ActivationDataModule(
            model=tiny_text.model, dataset=tiny_text.corpus, site=sites, context_size=8, batch_tokens=32,
            buffer_tokens=256, val_tokens=64, num_workers=0,
        )  # fmt: skip

        def diff(widths: Widths) -> Crosscoder:
            return Crosscoder(widths, d_sae=20, mechanism=MECHANISMS["BatchTopK"](k=2))

        def plain(widths: Widths) -> Any:
            from lightsae.sae import TopK

            return TopK(widths, d_sae=20, k=2)

        saes = {"wide": Entry(diff, [*sites, "mlp_out.0"]), "c": Entry(diff), "t": Entry(plain, "resid_post.1")}
        module = SAEModule(sae=diff, dead_after=64) if single else SAEModule(saes=saes, dead_after=64)
        options = quiet | {
            "limit_val_batches": 2,
            "log_every_n_steps": 1,
            "logger": TensorBoardLogger(tmp_path, name="", version=folder),
        }
        trainer = Trainer(
            max_steps=steps, callbacks=list(callbacks), val_check_interval=steps, check_val_every_n_epoch=None,
            **options,
        )  # fmt: skip
        trainer.fit(module, data)
        return SimpleNamespace(module=module, trainer=trainer, folder=tmp_path / folder)

    return train


def test_every_latent_is_listed_and_the_dead_are_left_out_of_shares(run: Any) -> None:
    done = run(ModelDiff(), steps=6)
    sae, dead = done.module.saes["c"], done.module.latent_usage("c").dead
    assert 0 < dead.sum() < 20
    with (done.folder / "model_diff_c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["latent"]) for row in rows] == list(range(20))
    assert [row["dead"] for row in rows] == [str(bool(flag)).lower() for flag in dead]
    norms = torch.tensor([[float(row[f"norm_resid_post.{i}"]) for i in (0, 1)] for row in rows])
    assert torch.allclose(norms, sae.site_norms(), rtol=1e-5)
    relative = torch.tensor([[float(row[f"relative_norm_resid_post.{i}"]) for i in (0, 1)] for row in rows])
    assert torch.allclose(relative, sae.relative_norms(), rtol=1e-5)
    names = class_names(["resid_post.0", "resid_post.1"])
    assert [row["class"] for row in rows] == [names[number] for number in classify(sae.relative_norms())]
    alive = [row["class"] for row in rows if row["dead"] == "false"]
    figures = done.trainer.callback_metrics
    assert float(figures["c/val/share_shared"]) == pytest.approx(alive.count("shared") / len(alive))
    events = EventAccumulator(str(done.folder))
    events.Reload()
    assert events.Histograms("c/histogram/relative_norm_resid_post.1")[-1].histogram_value.num == len(alive)
    assert {key.partition("share_")[2] for key in figures if key.startswith("wide/val/share")} == {
        "shared", "only_resid_post.0", "only_resid_post.1", "only_mlp_out.0",
    }  # fmt: skip


def test_crosscoders_alone_get_files_and_pictures(run: Any) -> None:
    done = run(ModelDiff())
    assert sorted(path.name for path in done.folder.glob("model_diff*")) == [
        "model_diff_c.csv", "model_diff_c.png", "model_diff_wide.csv", "model_diff_wide.png",
    ]  # fmt: skip
    events = EventAccumulator(str(done.folder))
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["c/pictures/model_diff", "wide/pictures/model_diff"]
    assert sorted(events.Tags()["histograms"]) == [
        "c/histogram/relative_norm_resid_post.1",
        *(f"wide/histogram/relative_norm_{site}" for site in ("mlp_out.0", "resid_post.0", "resid_post.1")),
    ]


def test_a_single_crosscoder_has_plain_tags(run: Any) -> None:
    done = run(ModelDiff(), single=True)
    assert "val/share_shared" in done.trainer.callback_metrics
    assert (done.folder / "model_diff_sae.csv").is_file()


def test_where_all_latents_are_dead_there_is_no_picture(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightsae.sae import LatentUsage

    monkeypatch.setattr(LatentUsage, "dead", property(lambda usage: torch.ones(20, dtype=torch.bool)))
    done = run(ModelDiff(), single=True)
    assert float(done.trainer.callback_metrics["val/share_shared"]) == 0
    assert [path.name for path in done.folder.glob("model_diff*")] == ["model_diff_sae.csv"]


def test_it_changes_no_weight(run: Any) -> None:
    with_it, without = run(ModelDiff()), run(folder="other")
    for name in ("wide", "c", "t"):
        for key, value in with_it.module.saes[name].state_dict().items():
            assert torch.equal(value, without.module.saes[name].state_dict()[key]), (name, key)
