"""Fixtures of sparsify by its own class; with `--check` both ways are compared instead.

    PYTHONPATH=src:scripts python -P scripts/layout_fixtures/sparsify.py [--check]

Needs eai-sparsify 1.3.3 beside lightsae's own requirements.
"""

import json
from pathlib import Path
from typing import Any

import sparsify  # type: ignore[import-not-found]
import torch

from layout_fixtures._comparing import MODEL, D, F, Fixtures, Function, K, randomise, run

LAYOUT = "sparsify"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("layers.1", {}),
    "groupmax": ("layers.1", {"activation": "groupmax"}),
    "transcoder": ("layers.1.mlp", {"transcode": True}),
    "transcoder_groupmax": ("layers.1.mlp", {"transcode": True, "activation": "groupmax"}),
    "skip_transcoder": ("layers.1.mlp", {"transcode": True, "skip_connection": True}),
}


def function_of(coder: Any) -> Function:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given = coder(x)
        latents = torch.zeros(len(x), coder.num_latents)
        return latents.scatter_(1, given.latent_indices, given.latent_acts), given.sae_out

    return function


def make() -> None:
    fixtures = Fixtures(LAYOUT)
    for name, (hookpoint, options) in CASES.items():
        config = sparsify.SparseCoderConfig(num_latents=F, k=K, **options)
        coder = sparsify.SparseCoder(D, config)
        randomise(coder)

        def write(folder: Path, coder: Any = coder, config: Any = config, hookpoint: str = hookpoint) -> None:
            coder.save_to_disk(folder / hookpoint)
            run = {"sae": config.to_dict(), "model": MODEL, "dataset": "roneneldan/TinyStories", "ctx_len": 2048}
            (folder / "config.json").write_text(json.dumps(run))

        fixtures.add(name, write, function_of(coder))


def opened_by_them(folder: Path) -> Function:
    (coder,) = sparsify.SparseCoder.load_many(str(folder), local=True).values()
    return function_of(coder)


if __name__ == "__main__":
    run(LAYOUT, make, opened_by_them)
