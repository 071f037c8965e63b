"""Does `lightsae compare` keep its word? On a synthetic world, where many SAEs are cheap and the truth is known.

    python benchmarks/compare.py --folder runs

Trains six recipes with each of 12 seeds (a seed is other weights and other tokens of the same world), and reads all of
them on one long text of 1,000 documents. A document is tokens with the same strongest feature, so that they are alike.
A comparison is then three SAEs of each recipe and one of eight texts of 100 documents drawn from these. It prints

- A/A: how often anything is found between SAEs of one recipe, of 200 pairs;
- power: how often a difference is found that measures what was printed as the smallest visible one;
- pairs of recipes: how often their true difference is found, by its size, and how often the wrong way round;
- two single SAEs: how often a verdict on these two contradicts the whole text;
- order: Kendall's tau between the order that verdicts on all six recipes give, and the true one.

The truth is the mean over all seeds on the whole text. F1 is that of latents as detectors of the true features.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer, seed_everything
from numpy.typing import NDArray
from scipy import sparse, stats

from lightsae import ActivationDataModule, Matryoshka, Refinements, SAEModule, TopK, load_sae, save_sae
from lightsae.activations.batch import ActivationBatch
from lightsae.activations.synthetic.fills import SITE
from lightsae.activations.synthetic.world import SyntheticConfig, SyntheticWorld
from lightsae.analysis.compare.noise import Readings, difference
from lightsae.analysis.compare.run import readings_of
from lightsae.analysis.compare.verdicts import Verdict, verdicts
from lightsae.analysis.evaluate.document_sums import draws
from lightsae.analysis.evaluate.figures import Better, reconstruction
from lightsae.analysis.evaluate.measure import measure
from lightsae.analysis.evaluate.spread import Spread, dead_spread, spreads
from lightsae.callbacks.ground_truth import firings
from lightsae.metrics.ground_truth import match
from lightsae.sae import SparseAutoencoder, Widths, mechanisms
from lightsae.training.entries import Entry

WORLD = SyntheticConfig(features=128, width=32, active=4.0)
K, STEPS, BATCH = 4, 250, 256
DOCUMENTS, SIZES, TEXTS = 1000, (16, 80), 8
JUDGED: dict[str, Better] = {"fve": "higher", "f1": "higher", "cosine": "higher", "dead_fraction": "lower"}
# What orders recipes; several of them have no dead latents.
ORDERED = ("fve", "f1")
Table = NDArray[np.float64]


def recipes() -> dict[str, Entry]:
    """Return recipes of one L0 that differ a little and a lot: width, mechanism, learning rate, refinements."""

    def entry(make: Any, lr: float | None = None) -> Entry:
        return Entry(make, lr=lr)

    aligned = Refinements(aligned=True)
    return {
        "topk_96": entry(lambda w: TopK(w, d_sae=96, k=K)),
        "topk_128": entry(lambda w: TopK(w, d_sae=128, k=K)),
        "topk_256": entry(lambda w: TopK(w, d_sae=256, k=K)),
        "topk_256_slow": entry(lambda w: TopK(w, d_sae=256, k=K), 1e-3),
        "topk_256_aligned": entry(lambda w: TopK(w, d_sae=256, k=K, refinements=aligned)),
        "matryoshka_256": entry(lambda w: Matryoshka(w, d_sae=256, mechanism=mechanisms.TopK(K))),
    }


def train(seed: int, folder: Path) -> dict[str, SparseAutoencoder]:
    """Return the SAEs of all recipes with a seed, from the folder where they lie already."""
    if not all((folder / name / "sae.json").is_file() for name in recipes()):
        seed_everything(seed, verbose=False)
        data = ActivationDataModule(
            dataset="synthetic",
            synthetic=WORLD,
            batch_tokens=BATCH,
            buffer_tokens=32 * BATCH,
            val_tokens=BATCH,
            seed=seed,
        )
        module = SAEModule(saes=recipes())
        trainer = Trainer(
            accelerator="cpu", max_steps=STEPS, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, data)
        for name, sae in module.each_sae().items():
            save_sae(sae, folder / name)
    return {name: load_sae(folder / name) for name in recipes()}


@dataclass(frozen=True)
class Read:
    """An SAE over documents: what every figure of it follows from."""

    tables: Mapping[str, Table]
    fires: sparse.csr_array
    both: Table
    latent: Table

    def on(self, documents: NDArray[np.int64]) -> "Read":
        """Return the same over some of the documents."""
        tables = {name: table[documents] for name, table in self.tables.items()}
        return Read(tables, self.fires[documents], self.both[documents], self.latent[documents])


class Text:
    """Documents of the world, and which true features fire in them."""

    def __init__(self) -> None:
        generator, rng = torch.Generator().manual_seed(2**31), np.random.default_rng(0)
        self.world = SyntheticWorld(WORLD)
        sizes = rng.integers(*SIZES, DOCUMENTS)
        truth = self.world.sample(int(sizes.sum()), generator)
        values = self.world.activations(truth, generator)
        token_of, features = firings(truth)
        strengths = np.zeros((len(values), WORLD.features), np.float32)
        strengths[token_of, features] = truth.values.numpy()
        order = np.argsort(strengths.argmax(1), kind="stable")
        self.values = values[torch.from_numpy(order)]
        self.fires = strengths[order] > 0
        # Equal documents in a row share their strongest feature; which ones are drawn later is left to chance.
        self.documents = np.repeat(np.arange(DOCUMENTS), sizes)
        self.feature = self._summed(self.fires)

    def _summed(self, values: NDArray[Any]) -> Table:
        starts = np.flatnonzero(np.diff(self.documents, prepend=-1))
        return np.add.reduceat(values.astype(np.float32), starts, axis=0)

    def batches(self, size: int = 8192) -> Iterator[ActivationBatch]:
        for start in range(0, len(self.values), size):
            part = slice(start, start + size)
            batch = ActivationBatch.without_text(SITE, self.values[part], torch.arange(len(self.values[part])))
            yield replace(batch, documents=torch.from_numpy(self.documents[part]))

    @torch.no_grad()
    def read(self, sae: SparseAutoencoder) -> Read:
        sae.widths = Widths.autoencoder(SITE, WORLD.width)
        batches = ((batch, np.ones((1, len(batch)), np.bool_)) for batch in self.batches())
        measured = measure({"sae": sae}, batches, self.values.mean(0), np.zeros(1), DOCUMENTS)["sae"]
        pairs = match(sae.W_dec, self.world.features)
        fires = (sae.encode(self.values) > 0).numpy()
        # (T, n) whether the latent of each true feature fires; features without a latent have none.
        detected = np.zeros_like(self.fires)
        detected[:, pairs.features.numpy()] = fires[:, pairs.latents.numpy()]
        return Read(measured.tables, measured.fires_table, self._summed(detected & self.fires), self._summed(detected))


def figures(read: Read, feature: Table, times: Table) -> dict[str, NDArray[np.float64]]:
    """Return figures for every draw of the documents."""
    values = reconstruction(read.tables, times)
    hits, found, there = (times @ one for one in (read.both, read.latent, feature))
    f1 = 2 * hits / np.maximum(found + there, 1)
    return {name: values[name] for name in ("fve", "cosine", "l0")} | {"f1": f1.mean(1)}


def noted(read: Read, feature: Table, documents: NDArray[np.int64]) -> tuple[dict[str, float], dict[str, Spread]]:
    """Return the figures on some documents, and how they vary with these: what an evaluation gives `compare`."""
    read = read.on(documents)
    values, sizes = figures(read, feature[documents], draws(len(documents))), read.tables["tokens"]
    known = spreads(values, sizes)
    if (spread := dead_spread(read.fires, sizes)) is not None:
        known["dead_fraction"] = spread
    dead = float((read.fires.sum(0) == 0).mean())
    return {name: float(value[0]) for name, value in values.items()} | {"dead_fraction": dead}, known


class Worlds:
    """All SAEs read on the whole text, and comparisons that are drawn from them."""

    def __init__(self, folder: Path, seeds: int, documents: int) -> None:
        self.text, self.rng = Text(), np.random.default_rng(1)
        self.reads: dict[str, list[Read]] = {name: [] for name in recipes()}
        for seed in range(seeds):
            for name, sae in train(seed, folder / str(seed)).items():
                self.reads[name].append(self.text.read(sae))
            print(f"\rseed {seed + 1} of {seeds}", end="", flush=True)
        print()
        everything = np.ones((1, DOCUMENTS))
        self.single = {
            name: [
                {key: float(v[0]) for key, v in figures(one, self.text.feature, everything).items()}
                | {"dead_fraction": float((one.fires.sum(0) == 0).mean())}
                for one in of_recipe
            ]
            for name, of_recipe in self.reads.items()
        }
        self.truth = {
            name: {key: float(np.mean([one[key] for one in of_recipe])) for key in of_recipe[0]}
            for name, of_recipe in self.single.items()
        }

        self.texts = [np.sort(self.rng.choice(DOCUMENTS, documents, replace=False)) for _ in range(TEXTS)]
        self._noted: dict[tuple[str, int, int], tuple[dict[str, float], dict[str, Spread]]] = {}

    def any_text(self) -> int:
        return int(self.rng.integers(TEXTS))

    def readings(self, name: str, saes: Sequence[int], text: int) -> dict[str, Readings]:
        """Return what `compare` knows of some SAEs of a recipe on a text."""
        for sae in saes:
            if (name, sae, text) not in self._noted:
                self._noted[name, sae, text] = noted(self.reads[name][sae], self.text.feature, self.texts[text])
        found = [self._noted[name, sae, text] for sae in saes]
        return {
            key: readings_of([v[key] for v, _ in found], [known.get(key) for _, known in found]) for key in found[0][0]
        }

    def drawn(self, name: str, count: int) -> list[int]:
        return [int(one) for one in self.rng.choice(len(self.reads[name]), count, replace=False)]


def same_recipe(worlds: Worlds, pairs: int, seeds: int) -> None:
    """A/A pairs, and the same pairs with a difference that measures what they print as visible."""
    names = list(worlds.reads)
    found, printed = 0, {name: {key: [] for key in JUDGED} for name in names}  # type: ignore[var-annotated]
    better, sides = 0, {name: {key: [] for key in JUDGED} for name in names}  # type: ignore[var-annotated]
    for number in range(pairs):
        name, text = names[number % len(names)], worlds.any_text()
        saes = worlds.drawn(name, 2 * seeds)
        groups = [worlds.readings(name, part, text) for part in (saes[:seeds], saes[seeds:])]
        words = {one.word for one in verdicts(dict(zip("ab", groups, strict=True)), JUDGED)}
        found += words != {"cannot tell"}
        better += "better" in words
        apart = {key: difference(groups[0][key], groups[1][key]) for key in JUDGED}
        apart = {key: one for key, one in apart.items() if one.error is not None}
        for key, one in apart.items():
            level = 0.05 / len(apart)
            smallest = one.smallest(level)
            assert smallest is not None
            printed[name][key].append(smallest)
            sides[name][key].append((one, level))
    print(f"\nA/A, {pairs} pairs, {seeds} seeds each: a verdict in {found} ({found / pairs:.1%}), better in {better}")
    print(f"{'':16}{'smallest, median':>18}{'found at it':>14}{'found at own':>14}")
    for key in JUDGED:
        seen, at_own, all_printed = [], [], []
        for name in names:
            if not printed[name][key]:
                continue
            shift = float(np.median(printed[name][key]))
            for (one, level), own in zip(sides[name][key], printed[name][key], strict=True):
                seen.append(replace(one, value=one.value + shift).p <= level)
                at_own.append(replace(one, value=one.value + own).p <= level)
            all_printed.append(shift)
        if seen:
            print(
                f"{key:16}{np.median(all_printed):18.2g}{np.mean(seen):14.1%}{np.mean(at_own):14.1%}   n = {len(seen)}"
            )


def other_recipes(worlds: Worlds, rounds: int, seeds: int) -> None:
    """Pairs of recipes: what is found of a true difference, by how large it is beside the smallest visible one."""
    bins: dict[str, list[tuple[float, str]]] = {key: [] for key in ORDERED}
    for _ in range(rounds):
        text = worlds.any_text()
        read = {name: worlds.readings(name, worlds.drawn(name, seeds), text) for name in worlds.reads}
        for first, second in combinations(read, 2):
            for one in verdicts({first: read[first], second: read[second]}, {key: JUDGED[key] for key in ORDERED}):
                true = worlds.truth[first][one.figure] - worlds.truth[second][one.figure]
                if one.smallest is not None:
                    bins[one.figure].append((abs(true) / one.smallest, _right(one, true)))
    print(f"\npairs of different recipes, {seeds} seeds each: true difference / smallest visible one")
    for key, seen in bins.items():
        for low, high in ((0, 0.5), (0.5, 1), (1, 2), (2, np.inf)):
            here = [what for ratio, what in seen if low <= ratio < high]
            if here:
                counts = ", ".join(f"{what} {here.count(what) / len(here):.1%}" for what in ("right", "wrong", "none"))
                print(f"{key:10}{low:>5} to {high:<5}{len(here):6} pairs: {counts}")


def single_saes(worlds: Worlds, pairs: int) -> None:
    """Two SAEs each: verdicts on them against what the whole text says of the same two."""
    names, right = list(worlds.reads), {"right": 0, "wrong": 0, "none": 0}
    for number in range(pairs):
        first, second = (names[number % len(names)], names[int(worlds.rng.integers(len(names)))])
        (a,), (b,) = worlds.drawn(first, 1), worlds.drawn(second, 1)
        if (first, a) == (second, b):
            continue
        text = worlds.any_text()
        groups = {"a": worlds.readings(first, [a], text), "b": worlds.readings(second, [b], text)}
        for one in verdicts(groups, {key: JUDGED[key] for key in ORDERED}):
            right[_right(one, worlds.single[first][a][one.figure] - worlds.single[second][b][one.figure])] += 1
    print(f"\ntwo single SAEs, verdicts against the whole text: {right}")


def order(worlds: Worlds, rounds: int, seeds: int) -> None:
    """All recipes at once: the order that the verdicts give against the true one."""
    taus: dict[str, list[float]] = {key: [] for key in ORDERED}
    decided, wrong, number = 0, 0, 0
    for _ in range(rounds):
        text = worlds.any_text()
        read = {name: worlds.readings(name, worlds.drawn(name, seeds), text) for name in worlds.reads}
        found = verdicts(read, {key: JUDGED[key] for key in ORDERED})
        for key in ORDERED:
            wins = dict.fromkeys(read, 0)
            for one in found:
                if one.figure == key and one.word != "cannot tell":
                    up = 1 if one.word == "better" else -1
                    wins[one.first] += up
                    wins[one.second] -= up
            taus[key].append(
                float(stats.kendalltau([wins[name] for name in read], [worlds.truth[n][key] for n in read]).statistic)
            )
        for one in found:
            what = _right(one, worlds.truth[one.first][one.figure] - worlds.truth[one.second][one.figure])
            decided, wrong, number = decided + (what != "none"), wrong + (what == "wrong"), number + 1
    words = ", ".join(f"{key} {np.mean(tau):.3f} (least {np.min(tau):.3f})" for key, tau in taus.items())
    print(f"\norder of {len(worlds.reads)} recipes, {seeds} seeds each, {rounds} rounds: Kendall's tau {words}")
    print(f"of {number} verdicts {decided / number:.1%} were given, {wrong} of them wrong")


def _right(one: Verdict, true: float) -> str:
    if one.word == "cannot tell":
        return "none"
    return "right" if (one.difference > 0) == (true > 0) else "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the SAEs here; those that are here already are not repeated")
    parser.add_argument("--seeds", type=int, default=12, help="SAEs of each recipe, of which comparisons are drawn")
    parser.add_argument("--each", type=int, default=3, help="SAEs of each recipe in a comparison")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--documents", type=int, default=100, help="of a text")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        worlds = Worlds(given.folder or Path(temporary), given.seeds, given.documents)
    print(f"{'':18}" + "".join(f"{key:>16}" for key in ("l0", *JUDGED)))
    for name, of_recipe in worlds.single.items():
        cells = [[one[key] for one in of_recipe] for key in ("l0", *JUDGED)]
        print(f"{name:18}" + "".join(f"{f'{np.mean(v):.4f} ± {np.std(v, ddof=1):.4f}':>18}" for v in cells))
    same_recipe(worlds, given.pairs, given.each)
    other_recipes(worlds, given.rounds, given.each)
    single_saes(worlds, given.pairs)
    order(worlds, given.rounds, given.each)


if __name__ == "__main__":
    main()
