"""How long it takes to score every latent on every concept of Python text.

    python benchmarks/concepts.py --tokens 500000 --latents 3072 --l0 20

The text is the standard library's; firings are drawn at random, and as many latents as there are concepts, at most a
quarter, fire on four fifths of a concept's tokens. Seconds are of the processor: a busy machine changes them little.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lightsae.activations.settings import DataSettings
from lightsae.analysis.concepts.detection import Detection
from lightsae.analysis.concepts.figures import concept_figures
from lightsae.analysis.concepts.hierarchy import absorption, sets_of
from lightsae.analysis.concepts.read import read_truth, said_by
from lightsae.analysis.concepts.task import Task
from lightsae.analysis.evaluate.document_sums import draws
from lightsae.analysis.reading.firing_lists import FiringLists
from lightsae.analysis.reading.text import CorpusRows, TextRows
from lightsae.lm import LanguageModel

CONTEXT = 256
Made = TypeVar("Made")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--latents", type=int, default=3072)
    parser.add_argument("--l0", type=int, default=20)
    asked = parser.parse_args()
    model = LanguageModel.from_pretrained("builtin", sites=["resid_post.0"])
    corpus = DataSettings(dataset="builtin", context_size=CONTEXT, num_workers=0)
    rows = next(CorpusRows(corpus, model.vocabulary, "train", asked.tokens).batches(asked.tokens // CONTEXT))
    texts = said_by(model)
    truth = timed("truth", lambda: read_truth(rows, texts, lambda done: None))
    documents, everything = rows.documents.ravel(), np.ones(rows.n_tokens, np.bool_)
    task = timed("halves", lambda: Task.of(truth, documents, everything))
    assert task is not None, "the text is too short"
    firings = planted(task, rows, asked.latents, asked.l0)
    detection = timed("detection", lambda: Detection.of(task, firings))
    sets = timed("splitting", lambda: sets_of(detection))
    absorbed = timed("absorption", lambda: absorption(detection, sets))
    times = draws(len(task.test_documents))
    timed("figures", lambda: concept_figures(detection, sets, absorbed, times))
    print(f"{rows.n_tokens:,} tokens, {len(task.names)} of {len(truth)} concepts, {len(firings.tokens):,} firings")


def timed(what: str, make: Callable[[], Made]) -> Made:
    begin = time.process_time()
    made = make()
    print(f"{what}: {time.process_time() - begin:.1f} s", flush=True)
    return made


def planted(task: Task, rows: TextRows, width: int, l0: int) -> FiringLists:
    rng = np.random.default_rng(0)
    tokens: list[NDArray[np.int32]] = [np.repeat(np.arange(rows.n_tokens, dtype=np.int32), l0)]
    # A few latents fire often, as they do.
    latents = [(width * rng.random(len(tokens[0])) ** 2).astype(np.int32)]
    for concept in range(min(len(task.names), width // 4)):
        holds = task.tokens_of(concept, task.choosing | task.testing).astype(np.int32)
        tokens.append(holds[rng.random(len(holds)) < 0.8])
        latents.append(np.full(len(tokens[-1]), width - 1 - concept, np.int32))
    of, at = np.concatenate(latents), np.concatenate(tokens)
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(width + 1))
    values = rng.random(len(of), np.float32)
    everything = np.ones(rows.n_tokens, np.bool_)
    return FiringLists(at[order], starts, everything, rows.n_tokens, values, rows.documents.ravel())


if __name__ == "__main__":
    main()
