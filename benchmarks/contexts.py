"""The streaming pass of `lightsae interpret` against a plain pass of the language model and the encoder.

    python benchmarks/contexts.py SAE --tokens 500000
    python benchmarks/contexts.py gpt2-shape --tokens 32768

`gpt2-shape` is a GPT-2 of the small one's shape with random weights, with a TopK of 12,288 latents (k 32) at
resid_post.6, random too. Runs both in turn over the same rows and prints the seconds and the ratio plain / with
everything counted and kept; the target is 0.8. Counting runs in a thread beside the model: a machine with a free
core hides some of it.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from lightsae.analysis.contexts.stage import SavedPass, gather_contexts
from lightsae.analysis.contexts.statistics import ContextSettings, ContextStatistics
from lightsae.analysis.reading.features import SAEFeatures
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.analysis.reading.reader import ActivationReader
from lightsae.analysis.reading.text import TextRows, Texts
from lightsae.formats.native import save_sae
from lightsae.lm import LanguageModel
from lightsae.lm.model import vocabulary_of
from lightsae.progress import NullProgress
from lightsae.sae import SiteRef, TopK, Widths
from sweep import language_model


def plain(source: SAEFeatures, reader: ActivationReader, rows: TextRows) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        for batch, _ in reader.batches(rows):
            source.encode(batch.activations)
    return time.perf_counter() - start


def counted(source: SAEFeatures, reader: ActivationReader, rows: TextRows, vocabulary: int) -> float:
    gathered = ContextStatistics(source, vocabulary, rows.tokens.size, ContextSettings(), together=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        gather_contexts({"features": gathered}, reader, rows, SavedPass(Path(folder, "x"), {}), NullProgress())
    return time.perf_counter() - start


def random_sae(folder: Path) -> str:
    model, site, _ = language_model("gpt2-shape", folder / "model")
    lm = LanguageModel.from_pretrained(model, sites=[site])
    x = lm.capture(torch.randint(0, 4000, (8, 128)), [site])[site].flatten(0, 1).clone()
    sae = TopK(Widths.autoencoder(SiteRef(model, site), x.shape[1]), d_sae=12288, k=32)
    sae.start_from({SiteRef(model, site): x}, "sqrt_d")
    save_sae(sae, folder / "sae", {"dataset": "builtin", "context_size": 128})
    return str(folder / "sae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae")
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if given.sae == "gpt2-shape":
            given.sae = random_sae(Path(temporary))
        loaded = LoadedSAE.load(given.sae, TextSettings(), whole_model=False)
        # Training text: there is more of it, and what is timed is the same.
        vocabulary = loaded.main_model.vocabulary
        rows = Texts.read(loaded.corpus, vocabulary, tokens=1, score_tokens=1, mining_tokens=given.tokens).mining
        reader, source = loaded.reader(), SAEFeatures(loaded.sae)
        n_words = len(vocabulary_of(loaded.main_model))
        ratios = []
        for _ in range(given.rounds):
            alone, whole = plain(source, reader, rows), counted(source, reader, rows, n_words)
            ratios.append(alone / whole)
            speed = rows.tokens.size / whole
            print(f"plain {alone:.1f} s, counted {whole:.1f} s ({speed:,.0f} tokens/s), ratio {ratios[-1]:.3f}")
        print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
