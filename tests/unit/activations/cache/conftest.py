"""A small cache, written once for a module's tests, and what it takes to write another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightsae.activations.cache.manifest import Manifest
from lightsae.activations.cache.plan import plan_cache
from lightsae.activations.cache.writer import write_cache
from lightsae.activations.settings import DataSettings

CONTEXT, TOKENS, SHARD, HELD_OUT = 8, 1600, 320, 96
SITES = ("resid_post.0", "mlp_out.1")


@pytest.fixture(scope="session")
def cached_text(tiny_text: Any) -> dict[str, Any]:
    """The settings of a text and of what is read of it."""
    return {
        "model": tiny_text.model,
        "site": list(SITES),
        "dataset": tiny_text.corpus,
        "context_size": CONTEXT,
        "val_tokens": HELD_OUT,
        "validation_fraction": 0.2,
        "num_workers": 0,
        "model_batch_tokens": 64,
    }


@pytest.fixture(scope="session")
def write(cached_text: dict[str, Any]) -> Callable[..., Manifest]:
    """Write a cache to a folder: 5 shards of 40 rows of 8 tokens, and one of 12 held-out rows."""

    def make(
        folder: Path,
        tokens: int = TOKENS,
        shard_tokens: int = SHARD,
        store_dtype: Any = "auto",
        progress: Any = None,
        **settings: Any,
    ) -> Manifest:
        asked = DataSettings(**(cached_text | settings))
        plan = plan_cache(asked, folder, tokens, store_dtype=store_dtype, shard_tokens=shard_tokens)
        return write_cache(plan, progress)

    return make


@pytest.fixture(scope="session")
def cached(write: Callable[..., Manifest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    write(folder)
    return folder
