"""The summary of a sweep: what its file tells, which points are best, what is drawn and where."""

import json
from dataclasses import replace

import pytest
import torch
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightsae.callbacks import ReconstructionMetrics, SweepSummary
from lightsae.callbacks.sweep.entries import SweepEntry, layer_of, place_names
from lightsae.callbacks.sweep.pictures import BY_LAYER, QUALITY, Point, draw_layers, draw_pareto
from lightsae.plotting import pareto_optimal
from lightsae.sae import SiteRef
from lightsae.sae.sites import short_names

SITE = SiteRef("toy", "resid_post.2")


def entry(name, *, variant="TopK", d_sae=64, site=SITE, predicted=None, l1=None, fve=0.5, l0=8.0, ce=0.7, **settings):
    coefficients = {} if l1 is None else {"l1": {"value": l1, "warm_up": 0.05, "decay": 0.0}}
    figures = {"fve_no_sinks": fve, "l0": float(l0), "ce_recovered": ce, "dead_fraction": 0.02}
    return SweepEntry(
        name, variant, {"d_sae": d_sae, **settings}, [site], [predicted or site], coefficients, 1e-3, 1000, figures
    )


def axes_of(figure, title):
    return next((axes for axes in figure.axes if axes.get_title(loc="left") == title), None)


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


class CrossEntropy(Callback):
    """Logs what a language model would be needed for."""

    def on_validation_epoch_end(self, trainer, pl_module):
        for name in pl_module.saes:
            pl_module.log(pl_module.tag(name, "val/ce_recovered"), 0.75)
            pl_module.log(pl_module.tag(name, "val/broken"), float("nan"))


# -- the callback ------------------------------------------------------------------------------------------------------


def test_a_sweep_ends_with_its_file_and_picture(small_run):
    run = small_run(
        SweepSummary(), ReconstructionMetrics(), CrossEntropy(), steps=3, names=("a", "oval"), validate_every=3
    )
    text = (run.folder / "sweep.json").read_text()
    first, second = json.loads(text)["dictionaries"]
    assert (first["name"], second["name"]) == ("a", "oval")
    assert first["variant"] == "ReLU"
    assert first["settings"]["d_sae"] == 16
    assert first["read"] == first["predicted"] == ["toy:resid_post.0"]
    assert first["coefficients"]["l1"]["value"] == run.module.coefficients["a"]["l1"].value
    assert first["lr"] == 0.01
    assert first["tokens"] == run.module.tokens_seen == 96
    for summary in (first, second):
        logged = float(run.trainer.callback_metrics[f"{summary['name']}/val/fve"])
        assert summary["figures"]["fve"] == pytest.approx(logged)
        assert summary["figures"]["ce_recovered"] == 0.75
        assert summary["figures"]["broken"] is None
        assert not any("/" in key for key in summary["figures"])
    assert "NaN" not in text
    assert (run.folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    # Both read the same site.
    assert not (run.folder / "layers.png").exists()
    events = EventAccumulator(str(run.folder))
    events.Reload()
    assert events.Tags()["images"] == ["pictures/sweep"]


def test_validate_sums_up_too(small_run):
    run = small_run(SweepSummary(), ReconstructionMetrics(), steps=3, names=("a", "b"), validate_every=3)
    (run.folder / "sweep.json").unlink()
    run.trainer.validate(run.module, run.data, verbose=False)
    summaries = json.loads((run.folder / "sweep.json").read_text())["dictionaries"]
    assert [one["figures"]["tokens"] for one in summaries] == [96, 96]


def test_validation_in_training_writes_nothing_yet(small_run):
    class Look(Callback):
        seen = ()

        def on_validation_end(self, trainer, pl_module):
            Look.seen += (list(run_files(trainer)),)

    def run_files(trainer):
        from pathlib import Path

        return Path(trainer.log_dir).glob("sweep*")

    small_run(SweepSummary(), Look(), steps=3, names=("a", "b"), validate_every=3)
    assert Look.seen == ([],)


def test_one_dictionary_is_no_sweep(small_run):
    run = small_run(SweepSummary(), ReconstructionMetrics(), steps=2, validate_every=2)
    assert not list(run.folder.glob("sweep*"))


def test_without_validation_there_are_settings_and_no_picture(small_run):
    run = small_run(SweepSummary(), steps=2, names=("a", "b"))
    assert json.loads((run.folder / "sweep.json").read_text())["dictionaries"][1]["figures"] == {}
    assert not (run.folder / "sweep.png").exists()


def test_it_changes_no_weight(small_run):
    with_it = small_run(SweepSummary(), ReconstructionMetrics(), steps=4, names=("a", "b"), validate_every=2)
    without = small_run(steps=4, names=("a", "b"), folder="other")
    for name in ("a", "b"):
        assert torch.equal(with_it.module.saes[name].W_enc, without.module.saes[name].W_enc)


# -- quality against sparsity ------------------------------------------------------------------------------------------


def test_pareto_optimal_points():
    points = [
        Point(float(x), y, entry(name)) for x, y, name in ((8, 0.5, "a"), (8, 0.6, "b"), (16, 0.6, "c"), (16, 0.7, "d"))
    ]
    assert [p.entry.name for p in pareto_optimal(points)] == ["b", "d"]
    # Of equals, each is as good as the other.
    assert len(pareto_optimal([points[0], points[0]])) == 2


def test_a_family_has_a_line_in_order_of_l0_and_its_points_say_what_differs():
    entries = [entry(f"x{k}", l0=k, fve=k / 100, ce=k / 90, k=k) for k in (32, 8, 16)]
    entries += [entry("r", variant="ReLU", l1=2.0, l0=20.0, fve=0.1)]
    figure = draw_pareto(entries)
    axes = axes_of(figure, QUALITY["fve_no_sinks"])
    assert list(axes.lines[0].get_xdata()) == [8, 16, 32]
    assert list(axes.lines[0].get_ydata()) == [0.08, 0.16, 0.32]
    # A dictionary that is alone in its family is called by its name.
    assert sorted(texts_of(axes)) == ["k=16", "k=32", "k=8", "r"]
    assert legend_of(figure) == ["TopK 64", "ReLU 64", "Pareto-optimal"]
    assert axes_of(figure, QUALITY["ce_recovered"]) is not None


def test_points_that_settings_do_not_tell_apart_are_called_by_name():
    figure = draw_pareto([entry("first", l0=8), entry("second", l0=9)])
    assert texts_of(figure.axes[0]) == ["first", "second"]


def test_loss_weights_tell_dictionaries_apart():
    figure = draw_pareto([entry(f"r{l1}", variant="ReLU", l1=l1, l0=40 / l1) for l1 in (1.0, 4.0)])
    assert texts_of(figure.axes[0]) == ["l1=4", "l1=1"][::-1]


def test_a_structure_is_of_its_mechanism_s_family():
    mechanism = {"name": "BatchTopK", "k": 8}
    assert entry("m", variant="Matryoshka", mechanism=mechanism).family == "Matryoshka BatchTopK 64"


def test_without_cross_entropy_there_is_one_panel():
    assert [a.get_title(loc="left") for a in draw_pareto([entry("a", ce=None)]).axes] == [QUALITY["fve_no_sinks"]]
    assert draw_pareto([entry("a", ce=None, fve=None)]) is None


@pytest.mark.parametrize(("l0", "scale"), [((8, 64), "log"), ((14, 18), "linear"), ((0, 64), "linear")])
def test_a_wide_range_of_l0_is_drawn_in_logarithms(l0, scale):
    assert draw_pareto([entry(str(x), l0=x) for x in l0]).axes[0].get_xscale() == scale


def test_only_dictionaries_that_predict_the_same_site_are_rivals():
    other = SiteRef("toy", "mlp_out.2")
    entries = [entry("a", l0=8, fve=0.9), entry("b", l0=16, fve=0.8), entry("c", l0=16, fve=0.5, site=other)]
    entries.append(entry("d", l0=8, fve=0.6, site=other))

    def ringed(entries):
        lines = draw_pareto(entries).axes[0].lines
        return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines if line.get_markeredgecolor() == "black"]

    assert ringed(entries) == [(8, 0.9), (8, 0.6)]
    assert ringed([replace(e, predicted=[SITE]) for e in entries]) == [(8, 0.9)]
    # Who has no rival is not said to be the best.
    assert ringed(entries[:3]) == [(8, 0.9)]
    note = draw_pareto(entries).legends[0].get_title().get_text()
    assert "predict the same site" in note


def test_what_is_far_below_zero_is_told_and_not_drawn():
    figure = draw_pareto([entry("good", fve=0.8), entry("bad", fve=-30.0, ce=0.1)])
    axes = axes_of(figure, QUALITY["fve_no_sinks"])
    assert texts_of(axes) == ["good"]
    assert axes.get_ylim()[0] > 0
    assert "fve_no_sinks: bad -30" in figure.legends[0].get_title().get_text()


def test_labels_do_not_cover_one_another():
    entries = [
        entry(f"{d}_{k}", d_sae=d, k=k, l0=k, fve=0.3 + 0.1 * i + 0.02 * j)
        for j, d in enumerate((512, 1024, 2048, 4096))
        for i, k in enumerate((8, 16, 32, 64))
    ]
    figure = draw_pareto(entries)
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 16
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_of_very_many_points_the_best_are_labelled():
    entries = [entry(f"{d}_{k}", d_sae=d, k=k, l0=k, fve=k / 100 + d / 1e4) for d in range(1, 5) for k in range(1, 11)]
    assert len(draw_pareto(entries).axes[0].texts) == 10


# -- figures by layer --------------------------------------------------------------------------------------------------


def at(layer, kind="resid_post"):
    return SiteRef("toy", f"{kind}.{layer}")


@pytest.mark.parametrize(
    ("site", "layer"),
    [("resid_post.6", 6), ("transformer.h.11.mlp.act.output", 11), ("activations", None), ("gpt2.wte.output", None)],
)
def test_a_site_tells_its_layer(site, layer):
    assert layer_of(site) == layer


def test_a_family_is_one_line_through_the_layers():
    entries = [entry(f"t{n}", site=at(n), k=8, fve=n / 20, l0=8) for n in (10, 2, 6)]
    figure = draw_layers(entries)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(BY_LAYER.values())
    (line,) = axes_of(figure, BY_LAYER["fve_no_sinks"]).lines
    assert list(line.get_xdata()) == [2, 6, 10]
    assert list(line.get_ydata()) == [0.1, 0.3, 0.5]
    assert legend_of(figure) == ["TopK 64"]


def test_a_family_with_several_dictionaries_a_layer_has_a_line_for_each_setting():
    figure = draw_layers([entry(f"t{n}_{k}", site=at(n), k=k) for n in (2, 6) for k in (8, 16)])
    assert legend_of(figure) == ["TopK 64, k=8", "TopK 64, k=16"]


def test_what_is_at_one_layer_alone_is_left_out_beside_what_is_not():
    alone, through = entry("r", variant="ReLU", site=at(2), l1=2.0), [entry(f"t{n}", site=at(n)) for n in (1, 2)]
    assert legend_of(draw_layers([alone, *through])) == ["TopK 64"]
    assert legend_of(draw_layers([alone, through[0]])) == ["ReLU 64", "TopK 64"]


def test_kinds_of_site_and_models_have_lines_of_their_own():
    entries = [entry(f"{kind}{n}", site=at(n, kind)) for kind in ("mlp_out", "resid_post") for n in (1, 2)]
    assert legend_of(draw_layers(entries)) == ["TopK 64, mlp_out", "TopK 64, resid_post"]
    entries = [entry(f"{m}{n}", site=SiteRef(m, f"resid_post.{n}")) for m in ("org/base", "org/chat") for n in (1, 2)]
    assert legend_of(draw_layers(entries)) == ["TopK 64, base:resid_post", "TopK 64, chat:resid_post"]


def test_sites_without_layers_stand_side_by_side_by_name():
    entries = [entry(name, site=SiteRef("", name)) for name in ("before", "after")]
    axes = draw_layers(entries).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["before", "after"]
    # So do sites of one layer.
    entries = [entry(kind, site=at(3, kind)) for kind in ("mlp_out", "resid_post")]
    axes = draw_layers(entries).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["mlp_out.3", "resid_post.3"]


def test_there_is_no_picture_of_one_site_or_of_crosscoders():
    assert draw_layers([entry("a", k=8), entry("b", k=16)]) is None
    several = replace(entry("c"), read=[at(1), at(2)], predicted=[at(1), at(2)])
    assert draw_layers([entry("a", k=8), several]) is None


def test_transcoders_stand_at_the_layer_that_they_read():
    entries = [entry(f"t{n}", site=at(n, "mlp_in"), predicted=at(n, "mlp_out")) for n in (1, 2)]
    assert place_names(entries) == {"t1": "mlp_in.1 → mlp_out.1", "t2": "mlp_in.2 → mlp_out.2"}
    figure = draw_layers(entries)
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2]


def test_a_dictionary_without_dead_latents_or_with_l0_zero_is_drawn():
    entries = [entry(f"t{n}", site=at(n), l0=0.0, fve=None, ce=None) for n in (1, 2)]
    assert [a.get_title(loc="left") for a in draw_layers(entries).axes] == [BY_LAYER["l0"], BY_LAYER["dead_fraction"]]


def test_sites_are_called_by_what_tells_them_apart():
    base, chat = SiteRef("org/base", "resid_post.1"), SiteRef("org/chat", "resid_post.1")
    assert list(short_names([base, SiteRef("org/base", "mlp_out.1")]).values()) == ["resid_post.1", "mlp_out.1"]
    assert short_names([base, chat]) == {base: "base", chat: "chat"}
    deep = SiteRef("org/chat", "resid_post.5")
    assert short_names([base, deep]) == {base: "base:resid_post.1", deep: "chat:resid_post.5"}
    twin = SiteRef("mine/base", "resid_post.1")
    assert short_names([base, twin]) == {base: "org/base", twin: "mine/base"}
