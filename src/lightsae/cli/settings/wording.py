"""jsonargparse's messages, put into one line of the user's own terms: key, value found, what to write."""

import re
from collections.abc import Collection, Mapping
from typing import Any, get_args

from lightsae.errors import did_you_mean

# Stands before and after what the parser of a class says of a setting, inside what the parser of the command says.
SETTING = "\N{SECTION SIGN}"
_LONGEST_VALUE = 80
MANY = 10
IMPORT_PATH = " Write its name, or its import path."
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true, false",
    "str": "text",
    "list": "a list",
    "Sequence": "a list",
    "Iterable": "a list",
    "dict": "`name: value` pairs",
    "Mapping": "`name: value` pairs",
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


def _words(message: str, keys: Collection[str], classes: Mapping[str, list[str]], owner: str) -> str | None:
    unknown = re.search(r"(?:does not accept option|Option) '([^']+)'|unrecognized arguments: (\S+)", message, re.I)
    if unknown:
        key = unknown[1] or unknown[2].partition("=")[0]
        if owner:
            key = key.lstrip("-")
            has = f"it has {', '.join(keys)}" if keys else "it has none"
            return f"{key}: {owner} has no such setting; {has}.{did_you_mean(key, keys)}"
        if unknown[1]:
            return f"{key} is not a setting.{_near_key(key, keys)}"
        if not key.startswith("-"):
            return f"{key!r} stands where an option is expected; options are written --key value."
        return f"{key} is not an option.{_near_key(key.lstrip('-'), keys, '--')}"
    if missing := re.match(r"the following arguments are required: ([^,]+)", message):
        # The command's own name comes first: fit.model.lr.
        key = re.sub(r"^(fit|validate)\.", "", missing[1])
        return f"{key} is missing; {owner} needs it." if owner else f"{key} is missing."
    if bare := re.match(r"argument (\S+): expected", message):
        return f"{bare[1].rpartition('/')[2]} stands without a value; write one after it."
    if of_key := re.match(r'Parser key "([^"]+)":?\s*(.*)', message, re.DOTALL):
        return _of_key(of_key[1], of_key[2], classes)
    return None


def names_of_classes(hint: Any) -> list[str]:
    """Return the names of the known subclasses of every class in a type hint."""
    if isinstance(hint, type) and not get_args(hint):
        if hint.__module__ in ("builtins", "collections.abc", "typing"):
            return []
        below: list[type] = hint.__subclasses__()
        return sorted({name for kind in below for name in [kind.__name__, *names_of_classes(kind)]})
    inner = hint if isinstance(hint, list) else get_args(hint)
    return list(dict.fromkeys(name for part in inner for name in names_of_classes(part)))


def _of_key(key: str, problem: str, classes: Mapping[str, list[str]]) -> str:
    """Word a problem with the value of a key that exists."""
    if SETTING in problem:
        words = problem.split(SETTING)[1]
        if "SparseAutoencoder" not in words:
            return f"{key}.{words}"
        name = re.split(r"[\s:]", words)[0]
        return (
            f"{key}: {name} is set, but no variant is chosen; write --{key} TopK before it "
            "(in a file: class_path: TopK, and the settings under init_args)."
        )
    if file := re.match(r"Unable to load config '(.*?)'", problem):
        return f"{key} is {file[1]!r}, and there is no such file; write settings as --{key}.NAME VALUE."
    wrong_class = re.search(r"import path string: (\S+)|Import path (\S+) does not|'([^']+)' to be a subclass", problem)
    if wrong_class and key in classes:
        name, known = next(filter(None, wrong_class.groups())), classes[key]
        listing = f" Known: {', '.join(known)}." if len(known) <= MANY else ""
        near = did_you_mean(name, known)
        return f"{key} is {name!r}, which is not known.{near}{listing}{'' if near or listing else IMPORT_PATH}"
    values = re.findall(r"(?:Given value|Got value): (.*)", problem)
    value = values[-1] if values else ""
    if nested := re.match(r"NestedArg\(key='([^']+)', val=(.*)\)$", value):
        key, value = f"{key}.{nested[1]}", nested[2]
    expected = _expected(problem, part=bool(nested))
    if not expected or not values:
        return f"{key}: {_one_line(problem)}"
    if not re.match(r"""[-+.\d\[{'"]|\w+\(""", value):
        value = repr(value)
    value = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}..."
    return f"{key} is {value}; write {', '.join(expected[:-1])}{' or ' if expected[1:] else ''}{expected[-1]}."


def _expected(problem: str, part: bool) -> list[str]:
    """Return the kinds of value that would do; null is for the whole of a value, not for a `part` of it."""
    kinds = r"Expected an? (?:(?:typing\.)?Literal\[(.+?)\](?:\.|\n|$)|<class '(?:[\w.]*\.)?(\w+)'>)"
    expected: dict[str, None] = {}
    for choices, kind in re.findall(kinds, problem):
        words = choices.replace("'", "") if choices else _TYPES.get(kind, "")
        expected |= dict.fromkeys(words.split(", ") if words else [])
    if "a number" in expected:
        expected.pop("a whole number", None)
    if part and len(expected) > 1:
        expected.pop("null", None)
    return list(expected)


def _near_key(wrong: str, keys: Collection[str], before: str = "") -> str:
    """Suggest a key: one of the same section, or else one that is called so elsewhere, or else any that is near."""
    section, _, name = wrong.rpartition(".")
    siblings = [key for key in keys if key.rpartition(".")[0] == section]
    alike = [key for key in keys if key.rpartition(".")[2] == name]
    near = did_you_mean(name, [key.rpartition(".")[2] for key in siblings])
    near = near.replace("mean '", f"mean '{section}." if section else "mean '")
    if not near:
        near = f" Did you mean {alike[0]!r}?" if alike else "" if siblings else did_you_mean(wrong, keys)
    return near.replace("mean '", f"mean '{before}")


def _one_line(message: str) -> str:
    line = " ".join(part.strip(" -") for part in message.splitlines() if part.strip(" -"))
    return line if len(line) <= 400 else f"{line[:400]}..."
