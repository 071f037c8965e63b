"""Text, models and sites of a configuration file of `fit`, for commands that have them under the same names."""

from typing import Any

import yaml
from jsonargparse import set_loader

from lightsae.activations.cache.manifest import OPTIONAL_SETTINGS, TEXT_SETTINGS, refuse_groups
from lightsae.activations.settings import DataSettings
from lightsae.cli.settings.grid import expand_grid
from lightsae.cli.settings.trusted import TRUST, load_yaml
from lightsae.cli.training.training_cli import CALLBACKS
from lightsae.errors import section

LOADER = "lightsae-text-of-fit"
# Settings under `data` that say what is read, where, and how.
_READING = ("site", "target_site", "val_tokens", "dtype", "model_batch_tokens", "num_workers", "device_map", TRUST)
READ = (*TEXT_SETTINGS, *OPTIONAL_SETTINGS, *_READING)
# The others say what is trained on it, and how.
OTHERS = tuple(name for name in DataSettings.__dataclass_fields__ if name not in READ)
_OTHER_SECTIONS = ("model", "trainer", "seed_everything", "ckpt_path", "weights_only", "verbose", *CALLBACKS)


def text_of_fit(settings: Any) -> Any:
    """Return what a file of `fit` says of the text and its sites; what it says of training is left out.

    The site is every site that one of its SAEs reads or predicts.

    Raises:
        ConfigError: It is about a mixture of datasets, or about roles.

    Example:
        >>> text_of_fit({"data": {"model": "gpt2", "site": "resid_post.6", "seed": 1}, "trainer": {"max_steps": 9}})
        {'data': {'model': 'gpt2', 'site': ['resid_post.6']}}
    """
    if not isinstance(settings, dict):
        return settings
    settings = expand_grid(settings)
    data, model = (dict(settings.get(name) or {}) for name in ("data", "model"))
    with section("data"):
        refuse_groups(data)
    rest = {key: value for key, value in settings.items() if key not in ("data", *_OTHER_SECTIONS)}
    read = {key: value for key, value in data.items() if key not in OTHERS and not key.endswith("site")}
    if sites := _sites(data, [entry for entry in (model.get("saes") or {}).values() if isinstance(entry, dict)]):
        read["site"] = sites
    return rest | ({"data": read} if read else {})


def _sites(data: dict[str, Any], entries: list[dict[str, Any]]) -> list[str]:
    """Return every site that is named by an entry, and those of the data where an entry leaves its own out."""
    own = [] if entries and all(entry.get("site") for entry in entries) else [data]
    named = [one.get(key) for one in (*own, *entries) for key in ("site", "target_site")]
    sites = [site for names in named for site in (names if isinstance(names, list) else [names])]
    return [site for site in dict.fromkeys(sites) if site is not None]


set_loader(LOADER, lambda text: text_of_fit(load_yaml(text)), exceptions=(yaml.YAMLError,))
