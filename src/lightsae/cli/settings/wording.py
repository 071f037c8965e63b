"""jsonargparse's messages in one line: what is wrong with a key or a value, and what to write; others as they are."""

import re
from collections.abc import Collection, Mapping
from typing import Any, get_args

from lightsae.errors import did_you_mean

# Stands before and after what the parser of a class says of a setting, inside what the parser of the command says.
SETTING = "\N{SECTION SIGN}"
_LONGEST_VALUE, _LONGEST_LINE = 80, 400
_MANY = 10
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true, false",
    "str": "text",
    "list": "a list",
    "dict": "`name: value` pairs",
    "NoneType": "null",
}


def in_short(message: str, keys: Collection[str], classes: Mapping[str, list[str]], owner: str = "") -> str:
    """Return what is wrong, in one line.

    Args:
        message: Of jsonargparse.
        keys: All settings of the command, or of the class, for near names.
        classes: For a setting that takes a class, the names of those that are known.
        owner: The class whose settings are parsed; what is said of them then stands between two marks, so that the
            parser of the command finds it inside its own message.
    """
    message = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
    if owner and SETTING in message:
        return message
    words = _words(message, keys, classes, owner)
    if owner:
        return message if words is None else f"{SETTING}{words}{SETTING}"
    return _one_line(message) if words is None else words


def names_of_classes(hint: Any) -> list[str]:
    """Return the names of the known subclasses of every class in a type hint."""
    if isinstance(hint, type) and not get_args(hint):
        if hint.__module__ in ("builtins", "collections.abc", "typing"):
            return []
        below: list[type] = hint.__subclasses__()
        return sorted({name for kind in below for name in [kind.__name__, *names_of_classes(kind)]})
    inner = hint if isinstance(hint, list) else get_args(hint)
    return list(dict.fromkeys(name for part in inner for name in names_of_classes(part)))


def _words(message: str, keys: Collection[str], classes: Mapping[str, list[str]], owner: str) -> str | None:
    unknown = re.search(
        r"(?:does not accept option|Option) '([^']+)'|unrecognized arguments: --([^\s=]+)", message, re.I
    )
    if unknown:
        key, dashes = unknown[1] or unknown[2], "" if unknown[1] else "--"
        if owner == "SparseAutoencoder":
            return f"{key} is set, but no variant is chosen before it; write --model.sae TopK (class_path: TopK) first."
        if owner:
            has = f"it has {', '.join(keys)}" if keys else "it has none"
            return f"{key}: {owner} has no such setting; {has}.{did_you_mean(key, keys)}"
        return f"{dashes}{key} is not {'an option' if dashes else 'a setting'}.{_near_key(key, keys, dashes)}"
    if missing := re.match(r"the following arguments are required: ([^,]+)", message):
        # The command's own name comes first: fit.model.lr.
        key = re.sub(r"^(fit|validate)\.", "", missing[1])
        return f"{key} is missing{f'; {owner} needs it' if owner else ''}."
    if of_key := re.match(r'Parser key "([^"]+)":?\s*(.*)', message, re.DOTALL):
        key, problem = of_key.groups()
        if SETTING in problem:
            return f"{key}.{problem.split(SETTING)[1]}"
        return _wrong_class(key, problem, classes) or _wrong_value(key, problem) or f"{key}: {_one_line(problem)}"
    return None


def _wrong_class(key: str, problem: str, classes: Mapping[str, list[str]]) -> str | None:
    if denied := re.search(r"Importing '([^']+)' is not allowed", problem):
        return (
            f"{key} names {denied[1]!r}, a class of neither lightsae nor Lightning. If you trust it: "
            f"--allow_classes {denied[1]}"
        )
    wrong = re.search(r"import path string: (\S+)|Import path (\S+) does not", problem)
    if not wrong or key not in classes:
        return None
    name, known = wrong[1] or wrong[2], classes[key]
    near = did_you_mean(name, known)
    # Of many, the known ones would be a page.
    listing = f" Known: {', '.join(known)}." if len(known) <= _MANY else ""
    return f"{key} is {name!r}, which is not known.{near}{listing or ('' if near else ' Write its import path.')}"


def _wrong_value(key: str, problem: str) -> str | None:
    values = re.findall(r"(?:Given value|Got value): (.*)", problem)
    kinds = re.findall(r"Expected (?:an? )?(?:typing\.)?(?:Literal\[(.+?)\](?:\.|\n|$)|<class '(\w+)'>)", problem)
    words = dict.fromkeys(word for choices, kind in kinds for word in _expected(choices, kind))
    if not values or not words:
        return None
    value = values[-1]
    if part := re.match(r"NestedArg\(key='([^']+)', val=(.*)\)$", value):
        key, value = f"{key}.{part[1]}", part[2]
        words = {word: None for word in words if word != "null" or len(words) == 1}
    if not re.match(r"""[-+.\d\[{'"]|\w+\(""", value):
        value = repr(value)
    value = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}..."
    return f"{key} is {value}; write {' or '.join(', '.join(words).rsplit(', ', 1))}."


def _expected(choices: str, kind: str) -> list[str]:
    return choices.replace("'", "").split(", ") if choices else _TYPES.get(kind, kind).split(", ")


def _near_key(wrong: str, keys: Collection[str], dashes: str) -> str:
    """Suggest a key: one of the same section, or else one that is called so elsewhere, or else any that is near."""
    section, dot, name = wrong.rpartition(".")
    siblings = [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == section]
    if near := did_you_mean(name, siblings):
        return near.replace("mean '", f"mean '{dashes}{section}{dot}")
    alike = [key for key in keys if key.rpartition(".")[2] == name]
    near = f" Did you mean {alike[0]!r}?" if alike else "" if siblings else did_you_mean(wrong, keys)
    return near.replace("mean '", f"mean '{dashes}")


def _one_line(message: str) -> str:
    line = " ".join(part.strip(" -") for part in message.splitlines() if part.strip(" -"))
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
