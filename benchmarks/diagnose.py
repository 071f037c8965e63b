"""How often `lightsae diagnose` names the mistake: SAEs of our own runs, each misread in 16 ways, and sound ones.

    python benchmarks/diagnose.py RUNS
    python benchmarks/diagnose.py RUNS --only transposed bos
    python benchmarks/diagnose.py RUNS --each 100              every SAE with every fault
    python benchmarks/diagnose.py RUNS --l0                    the user knows L0, to two digits
    python benchmarks/diagnose.py RUNS --steps 120             of SAEs that hardly learned

SAEs of every mechanism are trained on the built-in model, some to the end and some for a few steps only, once each: the
folder keeps them. Each is written in a layout and read again; then what was read is misread on purpose, as a reader
with that mistake would, and diagnosed on held-out text. A cause counts as named where it is the fault's own. Of each
fault and layout one SAE is taken (`--each`), another one for every layout and fault. Sound are the same files read
rightly, those of SAEs that hardly learned among them: any cause named there is a false alarm.

Some faults cost nothing: a threshold rounded to bfloat16. A case in which FVE moves by less than 0.005 and L0 by less
than 2%, both over the tokens that are no sinks, is counted as without effect, apart from the others. That is less than
half of the 95% interval of an evaluation on 200,000 tokens. First tokens that training left out have no effect where
they are reconstructed no worse than the others.
"""

import argparse
import contextlib
import itertools
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from lightsae.analysis.diagnose import Verdict
from lightsae.analysis.diagnose.case import Alternative, Case, Sample, Score, score
from lightsae.analysis.diagnose.hypotheses import try_all
from lightsae.analysis.diagnose.sample import read_sample
from lightsae.analysis.diagnose.sites import Neighbour, near_sites
from lightsae.analysis.diagnose.verdict import judge
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.analysis.reading.models import LanguageModels
from lightsae.cli import main as main_of_lightsae
from lightsae.formats.convert import convert
from lightsae.formats.layouts import PortableSAE, layout_of
from lightsae.formats.saved_sae import SavedSAE, is_foreign
from lightsae.lm import LanguageModel
from lightsae.progress import NullProgress
from lightsae.sae import SiteRef

RESID, NORM, MLP = "resid_post.2", "mlp_in.2", "mlp_out.3"
CONTEXT, LATENTS, POOR = 128, 384, (4, 20, 120)
BATCH = {"mechanism": {"class_path": "BatchTopK", "init_args": {"k": 16}}}
TOP = {"mechanism": {"class_path": "TopK", "init_args": {"k": 16}}}
LAYER_NORM, RESCALE = ({"refinements": {"token_norm": kind}} for kind in ("layer_norm", "rescale"))
ALL = ("native", "sae_lens", "dictionary_learning")
# By name: class, settings, what is read, the layouts it is written in.
RUNS: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    "relu": ("ReLU", {}, RESID, ALL),
    "relu_unit": ("ReLU", {"decoder_norm": "unit"}, MLP, ("native", "dictionary_learning")),
    "relu_tokens": ("ReLU", LAYER_NORM, "resid_post.3", ("native", "sae_lens")),
    "topk": ("TopK", {"k": 16}, RESID, (*ALL, "sparsify")),
    "topk_norm": ("TopK", {"k": 16}, NORM, ("native", "sae_lens")),
    "topk_tokens": ("TopK", {"k": 16, **LAYER_NORM}, RESID, ("native", "sae_lens")),
    "groups": ("GroupMax", {"k": 16}, RESID, ("native", "sparsify")),
    "batch": ("BatchTopK", {"k": 16}, "resid_post.3", (*ALL, "gemma_scope")),
    "jump": ("JumpReLU", {"target_l0": 16}, RESID, (*ALL, "gemma_scope")),
    "jump_norm": ("JumpReLU", {"target_l0": 16}, NORM, ("native", "gemma_scope")),
    "jump_tokens": ("JumpReLU", {"target_l0": 16, **RESCALE}, "resid_post.1", ("native", "sae_lens")),
    "gated": ("Gated", {}, RESID, ALL),
    "nested": ("Matryoshka", BATCH, RESID, ("native",)),
    "transcoder": ("Transcoder", BATCH, "mlp_in.3", ("native", "sae_lens", "circuit_tracer")),
    "skip": (
        "Transcoder",
        {"skip": True, "mechanism": {"class_path": "ReLU"}},
        "mlp_in.3",
        ("native", "circuit_tracer"),
    ),
    "transcoder_topk": ("Transcoder", TOP, "mlp_in.3", ("native", "sparsify")),
}
COEFFICIENTS = {"relu": {"l1": 2.2}, "gated": {"l1": 0.0135}, "relu_unit": {"l1": 0.01}, "relu_tokens": {"l1": 2.2}}
TARGETS = {"mlp_in.3": "mlp_out.3"}
BOS_RUNS = ("relu", "topk", "batch", "jump", "gated")


def train(folder: Path, names: Sequence[str], steps: int, seed: int, **data: Any) -> Path:
    """Train SAEs side by side, unless the folder holds the run already; return the folder of the exports."""
    if (done := folder / "done").is_file():
        return folder / done.read_text()
    saes = {}
    for name in names:
        kind, settings, site, _ = RUNS[name]
        place = {"site": site} | ({"target_site": TARGETS[site]} if site in TARGETS else {})
        saes[name] = {**place, "sae": {"class_path": kind, "init_args": {"d_sae": LATENTS, **settings}}}
        if name in COEFFICIENTS:
            saes[name]["coefficients"] = COEFFICIENTS[name]
    config = {
        "seed_everything": seed,
        "trainer": {"max_steps": steps, "accelerator": "cpu", "enable_progress_bar": False},
        "data": {
            "model": "builtin", "dataset": "builtin", "site": RESID, "batch_tokens": 512, "buffer_tokens": 8192,
            "val_tokens": 1024, "num_workers": 0, "dtype": "float32", **data,
        },
        "model": {"saes": saes},
        "language_model_metrics": {"max_rows": 1},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipes.yaml").write_text(yaml.safe_dump(config))
    with (folder / "log").open("w") as log, contextlib.chdir(folder):
        # Here and not in a process of its own, which would take as long to start as to train.
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), contextlib.suppress(SystemExit):
            main_of_lightsae(["fit", "--config", "recipes.yaml"])
    exports = max(folder.glob("lightning_logs/*/sae"), key=lambda path: path.stat().st_mtime)
    assert all((exports / name / "sae.json").is_file() for name in names), folder / "log"
    done.write_text(str(exports.relative_to(folder)))
    return exports


@dataclass(frozen=True)
class Item:
    """An SAE as it was read from a layout.

    Attributes:
        name: Of its run.
        layout: In which it was written.
        path: Where.
        sae: As it was read.
        site, target: Where it belongs.
    """

    name: str
    layout: str
    path: Path
    sae: PortableSAE
    site: str
    target: str | None

    def __str__(self) -> str:
        return f"{self.name}/{self.layout}"


def written(export: Path, name: str, layout: str, out: Path) -> Item:
    """Write an export in a layout, unless it is there, and read it."""
    if layout == "gemma_scope":
        # As in the release, whose paths say the L0.
        path = out / "average_l0_16" / "params.npz"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_gemma_scope(PortableSAE.of(SavedSAE.open(export).sae, SavedSAE.open(export).source), path)
    else:
        path = convert(SavedSAE.open(export), layout, out).path
    saved = SavedSAE.open(path)
    sae = layout_of(path).read(path) if is_foreign(path) else PortableSAE.of(saved.sae, saved.source)
    assert isinstance(sae, PortableSAE)
    site = RUNS[name][2]
    return Item(name, layout, path, sae, site, TARGETS.get(site))


def write_gemma_scope(sae: PortableSAE, path: Path) -> None:
    """Write an SAE of thresholds as Gemma Scope's files are: b_dec is not subtracted."""
    b_enc = sae.b_enc - (sae.b_dec @ sae.W_enc if sae.subtracts_b_dec else 0)
    assert sae.threshold is not None
    np.savez(
        path,
        W_enc=sae.W_enc.numpy(),
        b_enc=b_enc.numpy(),
        W_dec=sae.W_dec.numpy(),
        b_dec=sae.b_dec.numpy(),
        threshold=sae.threshold.numpy(),
    )


# -- faults ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """An SAE with a fault.

    Attributes:
        causes: Names by which the fault may be called.
        sae: What a reader with the fault gives.
        site, target: Where the user says that it belongs.
        detail: Words that the verdict has to have in it.
        model, other: Of the text, and beside it.
        rows_without_bos: Whether the file says that rows begin without BOS.
    """

    causes: tuple[str, ...]
    sae: PortableSAE
    site: str
    target: str | None
    detail: str = ""
    model: str = "builtin"
    other: str | None = None
    rows_without_bos: bool = False


Fault = Callable[[Item, dict[str, float]], Iterator[Broken]]


def _same(item: Item, cause: str, sae: PortableSAE, detail: str = "") -> Broken:
    return Broken((cause,), sae, item.site, item.target, detail)


def layer(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    def moved(site: str | None, step: int) -> str | None:
        if site is None:
            return None
        kind, number = site.split(".")
        return f"{kind}.{int(number) + step}"

    for step in (-1, 1):
        detail = item.site if item.site.startswith("mlp") else ""
        yield Broken(("site",), item.sae, moved(item.site, step) or "", moved(item.target, step), detail)


def norm(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    number = int(item.site.split(".")[1])
    if item.site.startswith("resid"):
        # What leaves the block is read by the next one's norm.
        yield Broken(("norm", "site"), item.sae, f"model.layers.{number + 1}.input_layernorm.output", None)
    elif item.site.startswith("mlp_in"):
        yield Broken(("norm", "site"), item.sae, f"model.layers.{number}.post_attention_layernorm.input", item.target)


def gain(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    if item.site.startswith("mlp_in"):
        number = int(item.site.split(".")[1])
        said = f"model.layers.{number}.post_attention_layernorm.normalised"
        yield Broken(("norm", "site", "gain"), item.sae, said, item.target, item.site)


def scale_missing(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    read, predicted = scales[item.site], scales[item.target or item.site]
    if item.sae.token_norm is None:
        yield _same(item, "scale", item.sae.with_scales(1 / read, 1 / predicted), "not in the weights")


def scale_twice(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    read, predicted = scales[item.site], scales[item.target or item.site]
    if item.sae.token_norm is None:
        yield _same(item, "scale", item.sae.with_scales(read, predicted), "twice")


def b_dec(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    if item.target is None:
        yield _same(item, "b_dec", replace(item.sae, subtracts_b_dec=not item.sae.subtracts_b_dec))


def transposed(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    def wrong(matrix: Tensor) -> Tensor:
        rows, columns = matrix.shape
        return matrix.T.contiguous().reshape(rows, columns)

    yield _same(item, "transposed", replace(item.sae, W_enc=wrong(item.sae.W_enc)), "W_enc")
    yield _same(item, "transposed", replace(item.sae, W_dec=wrong(item.sae.W_dec)), "W_dec")
    if item.sae.W_skip is not None:
        yield _same(item, "transposed", replace(item.sae, W_skip=wrong(item.sae.W_skip)), "W_skip")


def threshold(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    if item.sae.activation == "jumprelu" and item.sae.token_norm is None:
        assert item.sae.threshold is not None
        for factor in (scales[item.site], 1 / scales[item.site]):
            yield _same(item, "threshold", replace(item.sae, threshold=item.sae.threshold * factor))


def logarithms(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    if item.sae.activation == "jumprelu":
        assert item.sae.threshold is not None
        yield _same(item, "threshold", replace(item.sae, threshold=item.sae.threshold.log()), "logarithms")
        yield _same(item, "threshold", replace(item.sae, threshold=item.sae.threshold.exp()), "exponentials")


def bfloat16(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    if item.sae.activation == "jumprelu":
        assert item.sae.threshold is not None
        yield _same(item, "threshold", replace(item.sae, threshold=item.sae.threshold.bfloat16().float()))


def rows(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    yield replace(_same(item, "bos", item.sae), rows_without_bos=True)


def token_norm(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    if item.target is not None:
        return
    if item.sae.token_norm is not None:
        yield _same(item, "token_norm", replace(item.sae, token_norm=None))
    else:
        yield _same(item, "token_norm", replace(item.sae, token_norm="layer_norm"))


def activation(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    sae = item.sae
    if sae.activation in ("topk", "groupmax") or (sae.activation == "jumprelu" and sae.k):
        yield _same(item, "activation", replace(sae, activation="relu", k=None, threshold=None, groups=None))
    if sae.activation == "relu":
        yield _same(item, "activation", replace(sae, activation="topk", k=4))


def decoder_norms(item: Item, scales: dict[str, float]) -> Iterator[Broken]:
    norms = torch.exp(0.5 * torch.randn(item.sae.d_sae, generator=torch.Generator().manual_seed(0)))
    sae = item.sae.with_latents_times(1 / norms / item.sae.W_dec.norm(dim=1), "")
    of_rows = sae.W_dec.norm(dim=1)
    if item.sae.activation in ("topk", "groupmax"):
        yield _same(item, "decoder_norms", sae)
    else:
        into_encoder = sae.with_latents_times(of_rows, "")
        yield _same(item, "decoder_norms", replace(into_encoder, W_dec=sae.W_dec))


FAULTS: dict[str, Fault] = {
    "layer": layer,
    "norm": norm,
    "gain": gain,
    "scale missing": scale_missing,
    "scale twice": scale_twice,
    "b_dec": b_dec,
    "transposed": transposed,
    "threshold": threshold,
    "logarithms": logarithms,
    "bfloat16": bfloat16,
    "token_norm": token_norm,
    "activation": activation,
    "decoder_norms": decoder_norms,
    "rows": rows,
}


# -- what is measured --------------------------------------------------------------------------------------------------


def scales_of(sites: Sequence[str]) -> dict[str, float]:
    """Return the factors to mean norm sqrt(D) at sites, measured on training text with its sinks, as trainers do."""
    from lightsae.activations.settings import DataSettings
    from lightsae.analysis.reading.text import CorpusRows

    model = LanguageModel.from_pretrained("builtin")
    rows = next(
        CorpusRows(
            DataSettings(dataset="builtin", num_workers=0, context_size=128), model.vocabulary, "train", 8192
        ).batches(64)
    )
    captured = model.capture(torch.from_numpy(rows.tokens.astype(np.int64)), list(sites))
    return {site: x.shape[-1] ** 0.5 / float(x.float().norm(dim=-1).mean()) for site, x in captured.items()}


class Samples:
    """Activations, read once for all cases of one place."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self._models = tokens, LanguageModels()
        self._read: dict[tuple[object, ...], Place] = {}

    def at(self, saved: SavedSAE, text: TextSettings, other: str | None) -> "Place":
        saved, told = saved.named(text.model, text.site, text.target_site), saved.provenance
        sites = tuple(map(str, (*saved.sae.widths.read, *saved.sae.widths.predicted)))
        key = (text.model, sites, other, told.skip_positions, told.skip_special_tokens, told.data.get("prepend_bos"))
        if key not in self._read:
            loaded = LoadedSAE.load(saved, text, shared=self._models)
            near = near_sites(loaded)
            beside = None if other is None else LanguageModel.from_pretrained(other, dtype="float32")
            sample = read_sample(loaded, near, self.tokens, beside, NullProgress())
            (read,), (predicted,) = loaded.sae.widths.read, loaded.sae.widths.predicted
            self._read[key] = Place(read, predicted, near, sample)
        return self._read[key]


@dataclass(frozen=True)
class Place:
    """What SAEs of one place are held against."""

    read: SiteRef
    predicted: SiteRef
    near: dict[SiteRef, list[Neighbour]]
    sample: Sample

    def case(self, saved: SavedSAE) -> Case:
        sae = saved.opened if isinstance(saved.opened, PortableSAE) else PortableSAE.of(saved.sae, saved.source)
        return Case.of(sae, self.read, self.predicted)


@dataclass(frozen=True)
class Found:
    """A diagnosis, with how many seconds it took."""

    said: Score
    tried: Sequence[tuple[Alternative, Score]]
    verdict: Verdict
    seconds: float


def run(item: Item, broken: Broken | None, samples: Samples, l0: float | None = None) -> Found:
    """Diagnose an item, sound or with a fault."""
    began = time.perf_counter()
    if broken is None:
        saved = SavedSAE.open(item.path)
        known = {name for name in ("site", "target_site") if name not in saved.unknown}
        text = _text("builtin", *(None if name in known else getattr(item, _OF_ITEM[name]) for name in _OF_ITEM))
        other = None
    else:
        saved = _without_names(broken.sae, item)
        if broken.rows_without_bos:
            data = {**saved.provenance.data, "prepend_bos": False}
            saved.provenance = replace(saved.provenance, data=data)
        text, other = _text(broken.model, broken.site, broken.target), broken.other
    place = samples.at(saved, text, other)
    case = place.case(saved)
    if l0 is not None:
        case = replace(case, l0=l0)
    said = score(case, place.sample)
    assert said is not None
    tried = try_all(case, said, place.sample, place.near, other, NullProgress())
    return Found(said, tried, judge(said, tried, saved.source.sees_bos), time.perf_counter() - began)


def _without_names(sae: PortableSAE, item: Item) -> SavedSAE:
    """Take an SAE as if its file said neither model nor sites: the user does."""
    target = sae.source.target_site and "predicted activations"
    source = replace(sae.source, site=None, target_site=target, model=None)
    return SavedSAE.of_portable(replace(sae, source=source), item.path)


_OF_ITEM = {"site": "site", "target_site": "target"}


def _text(model: str, site: str | None, target: str | None) -> TextSettings:
    return TextSettings(model, site, target, dataset="builtin", num_workers=0, context_size=CONTEXT, dtype="float32")


def without_effect(sound: Score, broken: Score) -> bool:
    """Return whether a fault moves neither FVE nor L0; see the head of this file."""
    same_l0 = abs(broken.l0 - sound.l0) < 0.02 * sound.l0
    return same_l0 and abs(broken.fve_no_sinks - sound.fve_no_sinks) < 0.005


def unchanged(fault: str, item: Item, broken: Score, samples: Samples) -> bool:
    """Return whether a fault has no effect; see the head of this file."""
    if fault == "bos":
        return broken.fve_of_sinks >= broken.fve_no_sinks
    return without_effect(sound_score(item, samples), broken)


def noisy_model(folder: Path) -> str:
    """Write the built-in model with noise in its weights, as a further training leaves them, unless it is there."""
    if not folder.exists():
        model = LanguageModel.from_pretrained("builtin", dtype="float32")
        generator = torch.Generator().manual_seed(0)
        for parameter in model.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.3 * parameter.data.std() * noise)
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    return str(folder)


def broken_items(
    folder: Path, items: Sequence[Item], options: argparse.Namespace
) -> Iterator[tuple[str, Item, Broken]]:
    scales = scales_of(sorted({site for item in items for site in (item.site, item.target) if site}))
    others: dict[str, Fault] = {}
    if not options.only or "bos" in options.only:
        below = folder / f"no_bos_{options.steps}"
        without = train(below, BOS_RUNS, options.steps, options.seed, skip_positions=1)
        others["bos"] = lambda item, _: first_tokens_left_out(below / "files", without, item)
    if not options.only or "model" in options.only:
        noisy = noisy_model(folder / "noisy")
        others["model"] = lambda item, _: iter(
            [Broken(("model",), item.sae, item.site, item.target, model=noisy, other="builtin")]
        )
    for number, (name, fault) in enumerate((FAULTS | others).items()):
        if options.only and name not in options.only:
            continue
        for turn, layout in enumerate(sorted({item.layout for item in items})):
            made = [(item, list(fault(item, scales))) for item in items if item.layout == layout]
            made = [(item, cases) for item, cases in made if cases]
            for place in range(min(options.each, len(made))):
                item, cases = made[(number + turn + place) % len(made)]
                for broken in cases:
                    yield name, item, broken


def first_tokens_left_out(folder: Path, exports: Path, item: Item) -> Iterator[Broken]:
    if item.name in BOS_RUNS and item.layout != "gemma_scope":  # whose readers know that they were
        sae = written(exports / item.name, item.name, item.layout, folder / f"{item.name}-{item.layout}").sae
        yield Broken(("bos",), replace(sae, source=replace(sae.source, sees_bos=None)), item.site, item.target)


def sound_items(folder: Path, trained: int, seed: int) -> Iterator[Item]:
    for turn, steps in enumerate((*POOR, trained)):
        exports = train(folder / f"steps_{steps}", list(RUNS), steps, seed)
        for name, (_, _, _, layouts) in RUNS.items():
            # One layout of each that hardly learned, in turn.
            for layout in layouts if turn == len(POOR) else (layouts[turn % len(layouts)],):
                yield written(exports / name, name, layout, folder / "files" / f"{steps}" / f"{name}-{layout}")


def count_alarms(folder: Path, options: argparse.Namespace, samples: Samples) -> list[float]:
    """Diagnose sound SAEs, print which ones raise an alarm, and return the seconds of each."""
    seconds, alarms = [], 0
    for item in itertools.islice(sound_items(folder, options.steps, options.seed), 0, None, options.every):
        found = run(item, None, samples, told_l0(item, samples) if options.l0 else None)
        seconds.append(found.seconds)
        alarms += found.verdict.cause is not None
        mark = "sound" if found.verdict.cause is None else "ALARM"
        print(f"{mark} {item.path.relative_to(folder)}: {_said(found)}", flush=True)
    print(f"false alarms: {alarms} of {len(seconds)} sound ones")
    return seconds


def count_named(folder: Path, options: argparse.Namespace, samples: Samples) -> list[float]:
    """Diagnose SAEs with faults, print a table of those named, and return the seconds of each."""
    exports = train(folder / f"steps_{options.steps}", list(RUNS), options.steps, options.seed)
    items = [
        written(exports / name, name, layout, folder / "files" / f"{options.steps}" / f"{name}-{layout}")
        for name, (_, _, _, layouts) in RUNS.items()
        for layout in layouts
    ]
    seconds: list[float] = []
    named: dict[str, Counter[bool | None]] = defaultdict(Counter)
    layouts: dict[str, set[str]] = defaultdict(set)
    for fault, item, broken in itertools.islice(broken_items(folder, items, options), 0, None, options.every):
        found = run(item, broken, samples, told_l0(item, samples) if options.l0 else None)
        seconds.append(found.seconds)
        right: bool | None = found.verdict.cause in broken.causes and broken.detail in found.verdict.what
        if unchanged(fault, item, found.said, samples):
            right = None
        named[fault][right] += 1
        layouts[fault].add(item.layout)
        mark = {True: "named", False: "MISSED", None: "no effect"}[right]
        print(f"{mark} {fault} {broken.detail!r} of {item}: {_said(found)}", flush=True)
    print("| fault | named | of | without effect | layouts |\n|---|---|---|---|---|")
    for fault, counts in named.items():
        with_effect = counts[True] + counts[False]
        print(f"| {fault} | {counts[True]} | {with_effect} | {counts[None]} | {len(layouts[fault])} |")
    right_ones, wrong, none = (sum(counts[key] for counts in named.values()) for key in (True, False, None))
    print(f"named: {right_ones} of {right_ones + wrong} ({right_ones / (right_ones + wrong):.1%}); no effect: {none}")
    return seconds


def sound_score(item: Item, samples: Samples) -> Score:
    """Return the score of an item read rightly."""
    saved = _without_names(item.sae, item)
    place = samples.at(saved, _text("builtin", item.site, item.target), None)
    found = score(place.case(saved), place.sample)
    assert found is not None
    return found


def told_l0(item: Item, samples: Samples) -> float:
    """Return what a publisher would say of an item: the latents per token of it read rightly, to two digits."""
    return float(f"{sound_score(item, samples).l0:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="faults, by name")
    parser.add_argument("--sound", action="store_true", help="sound ones alone")
    parser.add_argument("--faults", action="store_true", help="faults alone")
    parser.add_argument("--every", type=int, default=1, help="only one of so many")
    parser.add_argument("--each", type=int, default=1, help="SAEs of each layout that have a fault")
    parser.add_argument("--l0", action="store_true", help="the user gives the latents per token that were published")
    parser.add_argument("--seed", type=int, default=0, help="of training; another one wants another folder")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    samples = Samples(options.tokens)
    seconds = [] if options.faults else count_alarms(options.folder, options, samples)
    seconds += [] if options.sound else count_named(options.folder, options, samples)
    print(f"seconds: {np.mean(seconds):.1f} on average, {max(seconds):.1f} at most")


def _said(found: Found) -> str:
    said, verdict = found.said, found.verdict
    best = " | ".join(f"{one.cause}: {one.what[:50]} {_of(its)}" for one, its in found.tried[:3])
    return f"{_of(said)} sinks {said.fve_of_sinks:.3f}; verdict {verdict.cause}: {verdict.what}; {best}"


def _of(score: Score) -> str:
    return f"error {score.error:.3f}+{score.bias:.4f} fve {score.fve_no_sinks:.3f} l0 {score.l0:.1f}"


if __name__ == "__main__":
    main()
