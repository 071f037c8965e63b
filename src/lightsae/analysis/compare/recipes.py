"""Which SAEs are of one recipe, as the user says and as their exports tell.

A recipe is everything but the seed: variant, settings, sites, and what the run's configuration says of data, loss and
length. Files of other libraries tell less, and are compared in what they tell.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from lightsae.errors import ConfigError, arg
from lightsae.formats.saved_sae import SavedSAE
from lightsae.parsing import parse_yaml
from lightsae.stored import flat

# What comes before `=` in a word; a path has slashes, an address a colon.
_NAMED = re.compile(r"([^=/:,]+)=(.+)", re.DOTALL)
# Settings of `data:` that change nothing of what is learned, or are the seed.
_OF_THE_MACHINE = (
    *("seed", "num_workers", "model_batch_tokens", "val_tokens", "streaming", "trust_remote_code"),
    *("device", "device_map"),
)
_OF_THE_TRAINER = ("max_steps", "precision", "gradient_clip_val", "accumulate_grad_batches")


@dataclass(frozen=True)
class Recipe:
    """SAEs that differ by their seed.

    Attributes:
        name: As it stands in tables.
        saes: As the user wrote them.
    """

    name: str
    saes: Sequence[str]


def read_words(words: Sequence[str]) -> list[Recipe]:
    """Return the recipes that somebody wrote, a word each: `[NAME=]SAE[,SAE...]`, with `*` for many.

    Raises:
        ConfigError: There are fewer than two, a name stands twice, or nothing is there.

    Example:
        >>> [(one.name, list(one.saes)) for one in read_words(["topk=a/sae,b/sae", "c/sae"])]
        [('topk', ['a/sae', 'b/sae']), ('B', ['c/sae'])]
    """
    if len(words) < 2:
        raise ConfigError(f"{arg('sae')} names {len(words)}; name two recipes or more: A B, or NAME=A1,A2 NAME=B1,B2.")
    if len(words) > len(ascii_uppercase):
        raise ConfigError(f"{arg('sae')} names {len(words)} recipes; {len(ascii_uppercase)} are the most.")
    recipes: list[Recipe] = []
    for letter, word in zip(ascii_uppercase, words, strict=False):
        named = _NAMED.fullmatch(word)
        # A folder may have such a name.
        if Path(word).exists():
            named = None
        name, rest = (named[1].strip(), named[2]) if named else (letter, word)
        saes = [path for part in rest.split(",") for path in _matching(part.strip(), word)]
        if name in (one.name for one in recipes):
            raise ConfigError(f"{arg('sae')} has two recipes with the name {name!r}; name each once.")
        recipes.append(Recipe(name, saes))
    return recipes


def _matching(part: str, word: str) -> list[str]:
    if not part:
        raise ConfigError("sae", word, "there is nothing between two commas; write A1,A2,A3")
    if not has_magic(part) or Path(part).exists():
        return [part]
    if not (found := sorted(glob(part))):
        raise ConfigError("sae", word, f"nothing is there that {part!r} matches")
    return found


def with_seeds(recipes: Sequence[Recipe], seeds: Sequence[str], saved: Mapping[str, SavedSAE]) -> list[Recipe]:
    """Return the recipes with further SAEs, each put where its own recipe is.

    Args:
        recipes: Those that were named.
        seeds: Further SAEs; what is in a recipe already is passed over.
        saved: All of them, opened.

    Raises:
        ConfigError: One is of none of the recipes, or of several.
    """
    members = {one.name: list(one.saes) for one in recipes}
    known = {saved[sae].sha256 for one in recipes for sae in one.saes}
    for sae in seeds:
        if saved[sae].sha256 in known:
            continue
        told = recipe_of(saved[sae])
        fitting = [one.name for one in recipes if recipe_of(saved[one.saes[0]]) == told]
        if not fitting:
            apart = "; ".join(f"from {one.name} in {first_other(saved[one.saes[0]], saved[sae])}" for one in recipes)
            raise ConfigError("seeds", sae, f"it differs in more than the seed: {apart}")
        if len(fitting) > 1:
            raise ConfigError("seeds", sae, f"{' and '.join(fitting)} are of one recipe; write them as one: A1,A2")
        members[fitting[0]].append(sae)
        known.add(saved[sae].sha256)
    return [Recipe(name, saes) for name, saes in members.items()]


def check_recipes(recipes: Sequence[Recipe], saved: Mapping[str, SavedSAE]) -> list[str]:
    """Refuse recipes whose SAEs are no reseeds, and sites that differ; return in words what else is to be known.

    Raises:
        ConfigError: An SAE stands twice in a recipe, SAEs of a recipe have other settings, or predict other sites.
    """
    notes = []
    first = recipes[0].saes[0]
    for recipe in recipes:
        for sae in recipe.saes:
            ours, theirs = _predicts(saved[sae]), _predicts(saved[first])
            if ours != theirs:
                raise ConfigError("sae", sae, f"it predicts {ours}, but {first!r} {theirs}; compare SAEs of one site")
        for one, other in combinations(recipe.saes, 2):
            if saved[one].sha256 == saved[other].sha256:
                raise ConfigError("sae", other, f"it is the same as {one!r}; copies tell nothing of the noise")
        for sae in recipe.saes[1:]:
            changed = first_other(saved[recipe.saes[0]], saved[sae])
            if changed.startswith(("variant", "settings", "read")):
                raise ConfigError("sae", sae, f"it differs from {recipe.saes[0]!r} in {changed}; a recipe has one")
            if changed:
                notes.append(f"{recipe.name}: {sae} differs from {recipe.saes[0]} in more than the seed: {changed}")
    for left, right in combinations(recipes, 2):
        if recipe_of(saved[left.saes[0]]) == recipe_of(saved[right.saes[0]]):
            notes.append(f"{left.name} and {right.name} are of one recipe, as far as their files tell")
    return notes


def recipe_of(saved: SavedSAE) -> dict[str, Any]:
    """Return what an SAE's export tells of its recipe, as flat JSON values."""
    told = {"variant": saved.variant, "settings": saved.settings, "read": saved.widths["read"]}
    return {
        name: json.dumps(value, sort_keys=True, default=str) if isinstance(value, list) else value
        for name, value in flat(told | _training(saved.provenance.values))
    }


def first_other(saved: SavedSAE, other: SavedSAE) -> str:
    """Return in words the first thing in which two recipes differ; empty where none does."""
    ours, theirs = recipe_of(saved), recipe_of(other)
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            return f"{key} ({ours.get(key)!r:.40} and {theirs.get(key)!r:.40})"
    return ""


def _predicts(saved: SavedSAE) -> str:
    return ", ".join(f"{site['model']}:{site['site']}" for site in saved.widths["predicted"])


def _training(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's configuration says of data, loss and length."""
    try:
        config = parse_yaml(told["config"]) if isinstance(told.get("config"), str) else None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        return {"tokens_seen": told.get("tokens_seen")}
    data, model, trainer = (
        dict(section) if isinstance(section := config.get(name), dict) else {} for name in ("data", "model", "trainer")
    )
    # Of several SAEs in a run the one, with the settings that it shares with the others.
    several = model.pop("saes", None)
    if isinstance(several, dict):
        model["entry"] = several.get(told.get("dictionary"))
    model.pop("grid", None)
    return {
        "data": {key: value for key, value in data.items() if key not in _OF_THE_MACHINE},
        "model": model,
        "trainer": {key: trainer[key] for key in _OF_THE_TRAINER if key in trainer},
        "tokens_seen": told.get("tokens_seen"),
    }
