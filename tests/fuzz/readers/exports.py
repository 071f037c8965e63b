"""What lightsae writes and somebody may send: SAEs, feature dictionaries, thresholds, checkpoints."""

import hashlib
import json
from functools import cache
from pathlib import Path

import lightning
import torch

from fuzz.readers.base import Reader
from helpers.fake_dictionary import SITE, fake_manifest, fake_tables
from lightsae.analysis.dictionary import FeatureDictionary, write_dictionary
from lightsae.analysis.dictionary.schema import TABLES, file_of
from lightsae.analysis.dictionary.writer import manifest_id
from lightsae.analysis.labels.llm.cache import AnswerCache
from lightsae.analysis.labels.llm.judge import Answer
from lightsae.errors import LightsaeError
from lightsae.formats.files import hash_file
from lightsae.formats.native import load_sae, save_sae, settings_hash
from lightsae.formats.saved_sae import SavedSAE
from lightsae.production.monitor.thresholds import Calibrated, Tested, Thresholds
from lightsae.sae import VARIANTS, SiteRef, SparseAutoencoder, Widths
from lightsae.training.checkpoint_io import AtomicCheckpointIO

FEATURES = 16


@cache
def sae() -> SparseAutoencoder:
    torch.manual_seed(0)
    width = Widths.autoencoder(SiteRef(SITE["model"], SITE["site"]), SITE["width"])
    return VARIANTS["BatchTopK"](width, d_sae=FEATURES, k=2).eval()


def _make_sae(folder: Path) -> None:
    config = "data: {model: builtin, normalisation: sqrt_d, skip_positions: 1}\nmodel: {lr: 1e-4}\n"
    save_sae(sae(), folder / "sae", {"config": config, "tokens_seen": 5, "model_revision": None})


def _read_whole_sae(folder: Path) -> None:
    """Whatever is taken has every bit of what was saved."""
    for name, tensor in load_sae(folder / "sae").state_dict().items():
        assert torch.equal(tensor, sae().state_dict()[name]), name


def _read_sae(folder: Path) -> None:
    saved = SavedSAE.open(folder / "sae")
    read = saved.sae
    assert all(isinstance(value, str | None) for value in (saved.provenance.model, saved.provenance.revision))
    assert isinstance(saved.provenance.skip_positions, int)
    assert all(tensor.isfinite().all() for tensor in read.state_dict().values())
    assert {tensor.dtype for tensor in read.parameters()} == {read.W_dec.dtype}
    json.dumps(saved.entry, allow_nan=False)
    x = torch.ones(3, read.d_in, dtype=read.W_dec.dtype)
    assert read(x).x_hat.shape == (3, read.d_out)


def _sign_sae(folder: Path) -> None:
    path = folder / "sae" / "sae.json"
    description = json.loads(path.read_bytes())
    description["sha256"] = hash_file(folder / "sae" / "sae.safetensors")
    description["settings_sha256"] = settings_hash(description)
    path.write_text(json.dumps(description))


def _make_dictionary(folder: Path) -> None:
    write_dictionary(folder / "dictionary", fake_tables(FEATURES), fake_manifest(FEATURES))


def _read_dictionary(folder: Path) -> None:
    dictionary = FeatureDictionary.open(folder / "dictionary")
    for name, table in TABLES.items():
        assert set(table.names) <= set(dictionary.to_pandas(name).columns)
    for index in (0, FEATURES - 1):
        assert dictionary.feature(index).row["feature"] == index
    dictionary.search("return", limit=3)
    dictionary.filter(min_frequency=0.001, order_by="frequency", limit=2)
    assert dictionary.label_limit > 0
    assert repr(dictionary)


def _sign_dictionary(folder: Path) -> None:
    path = folder / "dictionary" / "dictionary.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"] = {file_of(name): hash_file(folder / "dictionary" / file_of(name)) for name in TABLES}
    try:
        manifest["id"] = manifest_id(manifest)
    except LightsaeError:
        manifest["id"] = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def _make_thresholds(folder: Path) -> None:
    tested = Tested(0.5, 1000, 800.0, 900, 9, 0.01, 0.005, 0.02)
    one = Calibrated("concept", 0.1, {0.01: 0.8}, {0.01: tested}, 0.2, {0: 3, 1: 4})
    other = Calibrated("rate", None, {}, {0.01: tested}, 0.2, {1: 7})
    revision = {"name": "builtin", "revision": None}
    made = Thresholds("a" * 64, "b" * 64, revision, "c" * 64, 5, 5, 1900, 100, 0, {3: one, 7: other}, None, [900, 1000])
    made.save(folder / "thresholds.json")


def _read_thresholds(folder: Path) -> None:
    thresholds = Thresholds.load(folder / "thresholds.json")
    for feature in thresholds.features:
        for rate, tested in thresholds.features[feature].rates.items():
            assert 0 < rate < 1
            assert 0 <= thresholds.at(feature, rate).threshold < float("inf")
            assert 0 <= tested.low <= tested.high <= 1
    counts = thresholds.counts(list(thresholds.features))
    if counts is not None:
        assert (counts.active >= 0).all()
    thresholds.save(folder / "again.json")


def _make_checkpoint(folder: Path) -> None:
    weights = {"W": torch.arange(60.0).reshape(6, 10), "b": torch.zeros(10, dtype=torch.bfloat16)}
    checkpoint = {"state_dict": weights, "global_step": 7, "loops": {"a": [1, 2, {"b": None}]}}
    checkpoint |= {"pytorch-lightning_version": lightning.__version__}
    torch.save(checkpoint, folder / "last.ckpt")


def _read_checkpoint(folder: Path) -> None:
    """The check sums of the archive hold: what is taken is what was written."""
    weights = AtomicCheckpointIO().load_checkpoint(folder / "last.ckpt")["state_dict"]
    if set(weights) == {"W", "b"}:
        assert torch.equal(weights["W"], torch.arange(60.0).reshape(6, 10))


def _make_answers(folder: Path) -> None:
    cache = AnswerCache(folder / "answers.sqlite")
    for number in range(5):
        cache.put(str(number), Answer(f"answer {number}", 10, 20))
    cache.close()


def _read_answers(folder: Path) -> None:
    cache = AnswerCache(folder / "answers.sqlite")
    try:
        for number in range(5):
            answer = cache.get(str(number))
            assert answer is None or isinstance(answer.text, str)
        cache.put("new", Answer("x", 1, 1))
        assert len(cache) > 0
    finally:
        cache.close()


EXPORTS = {
    "sae": Reader(_make_sae, _read_whole_sae),
    "sae_signed": Reader(_make_sae, _read_sae, sign=_sign_sae),
    "dictionary": Reader(_make_dictionary, _read_dictionary, mutates=lambda name: not name.endswith(".md")),
    "dictionary_signed": Reader(
        _make_dictionary, _read_dictionary, sign=_sign_dictionary, mutates=lambda name: not name.endswith(".md")
    ),
    "thresholds": Reader(_make_thresholds, _read_thresholds),
    "checkpoint": Reader(_make_checkpoint, _read_checkpoint),
    "answers": Reader(_make_answers, _read_answers),
}
