"""`model.grid` in a configuration file: entries with lists of values become one entry of `model.saes` each.

    model:
      grid:
        topk: {sae: {class_path: TopK, init_args: {d_sae: [2048, 8192], k: [16, 32]}}}

stands for topk_d_sae2048_k16, topk_d_sae2048_k32, topk_d_sae8192_k16 and topk_d_sae8192_k32. A value that is a list
itself is written as a list in a list.
"""

import copy
import itertools
import re
from collections.abc import Iterator
from typing import Any

from lightsae.errors import ConfigError

Path = tuple[str, ...]


def expand_grid(settings: Any) -> Any:
    """Return the settings of a file with its grid written out; anything else as it is.

    Raises:
        ConfigError: The grid is not `name: entry` pairs, a list in it is empty, or two entries get one name.
    """
    model = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(model, dict) or "grid" not in model:
        return settings
    grid, saes = model["grid"], dict(model.get("saes") or {})
    if not isinstance(grid, dict) or not all(isinstance(entry, dict) for entry in grid.values()):
        raise ConfigError("model.grid: write entries by name, as in model.saes, with lists of values in them.")
    for family, entry in grid.items():
        for name, one in _combinations(str(family), entry):
            if name in saes:
                raise ConfigError(f"model.grid.{family}: two SAEs would be called {name!r}; rename one.")
            saes[name] = one
    rest = {key: value for key, value in model.items() if key != "grid"}
    return settings | {"model": rest | {"saes": saes}}


def _combinations(family: str, entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return each combination of the listed values, with its name."""
    axes = list(_lists(entry))
    for path, values in axes:
        if not values:
            raise ConfigError(f"model.grid.{family}.{'.'.join(path)} is an empty list; write the values to try.")
    for chosen in itertools.product(*(range(len(values)) for _, values in axes)):
        one, parts = copy.deepcopy(entry), [family]
        for (path, values), place in zip(axes, chosen, strict=True):
            holder = one
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = values[place]
            if len(values) > 1:
                parts.append(_name(path[-1], values[place], place))
        yield "_".join(parts), one


def _lists(value: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, list[Any]]]:
    for key, inner in value.items():
        if isinstance(inner, list):
            yield (*path, key), inner
        elif isinstance(inner, dict):
            yield from _lists(inner, (*path, key))


def _name(key: str, value: Any, place: int) -> str:
    """Return what tells one value of a setting from the others, as part of a name."""
    if isinstance(value, dict):
        value = value.get("class_path", place)
    if isinstance(value, list):
        value = place
    text = re.sub(r"[^A-Za-z0-9-]+", "_", str(value)).strip("_")
    return text if isinstance(value, str) else f"{key}{text}"
