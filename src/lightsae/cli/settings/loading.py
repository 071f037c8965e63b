"""YAML as jsonargparse reads it, from files and from what is typed: within the bounds of `parsing`."""

import jsonargparse._loaders_dumpers as _jsonargparse
from jsonargparse import get_loader

from lightsae.parsing import BoundedLoader

# Beside the loader that a parser is given, jsonargparse reads single values by one of its own, which nothing public
# replaces. tests/unit/cli/settings/test_loading.py tells whether a later version still takes this one.
_jsonargparse.yaml_default_loader = BoundedLoader  # type: ignore[assignment]
load_yaml = get_loader("yaml")
