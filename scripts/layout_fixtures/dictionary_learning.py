"""Fixtures of dictionary_learning by its own trainers and classes; with `--check` both ways are compared instead.

    PYTHONPATH=src:scripts python -P scripts/layout_fixtures/dictionary_learning.py [--check]

Needs dictionary-learning 0.1.0 beside lightsae's own requirements.
"""

import json
from pathlib import Path
from typing import Any

import torch
from dictionary_learning import dictionary as classes  # type: ignore[import-not-found]
from dictionary_learning.trainers import (  # type: ignore[import-not-found]
    batch_top_k,
    gdm,
    jumprelu,
    matryoshka_batch_top_k,
    standard,
    top_k,
)

from layout_fixtures._comparing import MODEL, D, F, Fixtures, Function, K, randomise, run

LAYOUT = "dictionary_learning"
# As an ActivationBuffer describes itself.
BUFFER = {"d_submodule": D, "io": "out", "n_ctxs": 30000, "ctx_len": 128, "refresh_batch_size": 512, "device": "cpu"}
COMMON = {"steps": 100_000, "activation_dim": D, "dict_size": F, "layer": 1, "lm_name": MODEL, "device": "cpu"}
COMMON |= {"submodule_name": "resid_post_layer_1", "seed": 0}
CLASSES = {kind: getattr(classes, kind) for kind in ("AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder")}
WITH_K = {
    "AutoEncoderTopK": top_k.AutoEncoderTopK,
    "BatchTopKSAE": batch_top_k.BatchTopKSAE,
    "MatryoshkaBatchTopKSAE": matryoshka_batch_top_k.MatryoshkaBatchTopKSAE,
}


def trainers() -> dict[str, Any]:
    nested = matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer
    return {
        "auto_encoder": standard.StandardTrainer(**COMMON),
        "auto_encoder_new": standard.StandardTrainer(**COMMON, dict_class=classes.AutoEncoderNew),
        "gated": gdm.GatedSAETrainer(**COMMON),
        "jump_relu": jumprelu.JumpReluTrainer(**COMMON),
        "topk": top_k.TopKTrainer(**COMMON, k=K),
        "batch_topk": batch_top_k.BatchTopKTrainer(**COMMON, k=K),
        "matryoshka": nested(**COMMON, k=K, group_fractions=[0.25, 0.25, 0.5]),
    }


def function_of(dictionary: Any) -> Function:
    return lambda x: (dictionary.encode(x), dictionary(x))


def make() -> None:
    fixtures = Fixtures(LAYOUT)
    for name, trainer in trainers().items():
        randomise(trainer.ae)
        if hasattr(trainer.ae, "k"):
            trainer.ae.threshold.fill_(1.25)

        def write(folder: Path, trainer: Any = trainer) -> None:
            torch.save(trainer.ae.state_dict(), folder / "ae.pt")
            (folder / "config.json").write_text(json.dumps({"trainer": trainer.config, "buffer": BUFFER}, indent=4))

        fixtures.add(name, write, function_of(trainer.ae))


def opened_by_them(folder: Path) -> Function:
    trainer, path = json.loads((folder / "config.json").read_text())["trainer"], folder / "ae.pt"
    kind = trainer["dict_class"]
    if kind == "AutoEncoder":
        return function_of(classes.AutoEncoder.from_pretrained(path, normalize_decoder=False))
    if kind in CLASSES:
        return function_of(CLASSES[kind].from_pretrained(path))
    return function_of(WITH_K[kind].from_pretrained(path, k=trainer["k"]))


if __name__ == "__main__":
    run(LAYOUT, make, opened_by_them)
