"""jsonargparse's messages, put into one line of the user's own terms: key, value found, what to write."""

import re
from collections.abc import Collection, Iterable
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


def in_short(message: str, keys: Collection[str], classes: dict[str, list[str]]) -> str:
    """Return what is wrong, in one line.

    Args:
        message: Of jsonargparse.
        keys: All settings of the command, for near names.
        classes: For a setting that takes a class, the names of those that are known.
    """
    message = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
    if found := re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        word = found[1].partition("=")[0]
        if not word.startswith("-"):
            return f"{word!r} stands where an option is expected; options are written --key value."
        return f"{word} is not an option.{_near_key(word.lstrip('-'), keys, '--')}"
    if found := re.search(r"(?:does not accept option|Option) '([^']+)'", message):
        return f"{found[1]} is not a setting.{_near_key(found[1], keys)}"
    if found := re.match(r"the following arguments are required: (.+)", message):
        # The command's own name comes first: fit.model.lr.
        key = re.sub(r"^(fit|validate)\.", "", found[1].split(", ")[0])
        return f"{key} is missing."
    if found := re.match(r"argument (\S+): expected", message):
        return f"{found[1].rpartition('/')[2]} stands without a value; write one after it."
    if found := re.match(r'Parser key "([^"]+)":?\s*(.*)', message, re.DOTALL):
        return _of_key(found[1], found[2], classes)
    return _one_line(message)


def in_short_of_class(message: str, name: str, keys: Collection[str], classes: dict[str, list[str]]) -> str:
    """Return what is wrong with a setting of a class, to stand after the key that the class was chosen for.

    Args:
        message: Of the parser of that class.
        name: The class.
        keys: Its settings.
        classes: For those of them that take a class, the names of those that are known.
    """
    if SETTING in message:
        return message
    if found := re.search(r"Option '([^']+)' is not accepted|unrecognized arguments: --(\S+)", message):
        key = found[1] or found[2]
        has = f"it has {', '.join(keys)}" if keys else "it has none"
        said = f"{key}: {name} has no such setting; {has}.{did_you_mean(key, keys)}"
    elif found := re.match(r"the following arguments are required: (.+)", message):
        said = f"{found[1].split(', ')[0]} is missing; {name} needs it."
    elif found := re.match(r'Parser key "([^"]+)":?\s*(.*)', message, re.DOTALL):
        said = _of_key(found[1], found[2], classes)
    else:
        return message
    return f"{SETTING}{said}{SETTING}"


def names_of_classes(hint: Any) -> list[str]:
    """Return the names of the known subclasses of every class in a type hint."""
    if isinstance(hint, type) and not get_args(hint):
        if hint.__module__ in ("builtins", "collections.abc", "typing"):
            return []
        below: list[type] = hint.__subclasses__()
        return sorted({name for kind in below for name in [kind.__name__, *names_of_classes(kind)]})
    inner = hint if isinstance(hint, list) else get_args(hint)
    return list(dict.fromkeys(name for part in inner for name in names_of_classes(part)))


def _of_key(key: str, problem: str, classes: dict[str, list[str]]) -> str:
    """Word a problem with the value of a key that exists."""
    if SETTING in problem:
        said = problem.split(SETTING)[1]
        if "SparseAutoencoder" in said:
            name = re.split(r"[\s:]", said)[0]
            return (
                f"{key}: {name} is set, but no variant is chosen; write --{key} TopK before it "
                "(in a file: class_path: TopK, and the settings under init_args)."
            )
        return f"{key}.{said}"
    if found := re.match(r"Unable to load config '(.*?)'", problem):
        return f"{key} is {found[1]!r}, and there is no such file; write settings as --{key}.NAME VALUE."
    nested, value = _value_found(problem)
    key += nested
    wrong_class = re.search(
        r"import path string: (\S+)|Import path (\S+) does not|Expected '([^']+)' to be a subclass", problem
    )
    named = next((name for name in wrong_class.groups() if name), "") if wrong_class else ""
    if named and key in classes:
        known = classes[key]
        listing = f" Known: {', '.join(known)}." if len(known) <= MANY else ""
        near = did_you_mean(named, known)
        return f"{key} is {named!r}, which is not known.{near}{listing}{'' if near or listing else IMPORT_PATH}"
    expected = list(dict.fromkeys(_expected(problem)))
    if "a number" in expected and "a whole number" in expected:
        expected.remove("a whole number")
    if nested and expected[1:] and "null" in expected:
        # That is for the whole, not for this part of it.
        expected.remove("null")
    if not expected or value is None:
        return f"{key}: {_one_line(problem)}"
    return f"{key} is {value}; write {', '.join(expected[:-1])}{' or ' if expected[1:] else ''}{expected[-1]}."


def _value_found(problem: str) -> tuple[str, str | None]:
    """Return what is to be appended to the key, and the value as the user may recognise it."""
    found = re.findall(r"(?:Given value|Got value): (.*?)(?=\n|$)", problem)
    if not found:
        return "", None
    if nested := re.match(r"NestedArg\(key='([^']+)', val=(.*)\)$", found[-1]):
        return f".{nested[1]}", nested[2]
    value = found[-1] if len(found[-1]) <= _LONGEST_VALUE else f"{found[-1][:_LONGEST_VALUE]}..."
    return "", value if re.match(r"""[-+.\d\[{'"]|\w+\(""", value) else repr(value)


def _expected(problem: str) -> Iterable[str]:
    kinds = r"Expected an? (?:(?:typing\.)?Literal\[(.+?)\](?:\.|\n|$)|<class '([\w.]+)'>)"
    for choices, kind in re.findall(kinds, problem):
        if choices:
            yield from choices.replace("'", "").split(", ")
        elif (name := kind.rpartition(".")[2]) in _TYPES:
            yield from _TYPES[name].split(", ")


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
