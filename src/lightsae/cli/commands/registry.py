"""`lightsae registry`: versions of feature dictionaries are published, promoted by a policy, rolled back, checked."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightsae.cli.settings.command import CommandParser
from lightsae.errors import ConfigError, FormatError, did_you_mean
from lightsae.production.registry import PolicyRefusal, promote, publish, rollback, verify
from lightsae.production.registry.hub import local_copy
from lightsae.production.registry.log import CHANNELS
from lightsae.production.registry.store import open_registry
from lightsae.production.registry.version import EVIDENCE, SHORT, folder_of, read_manifest

_HELP = """\
usage: lightsae registry ACTION [OPTIONS]

Versions of feature dictionaries with their SAEs and evidence, in a folder or on the Hub (--registry hub:ORG/NAME).
Programs load what a channel has, staging or production, and nothing else.

Actions:
  publish    Add a version: a feature dictionary, its SAE, and what was measured of them.
  promote    Make a version the present one of a channel, if it reaches the thresholds of a policy.
  rollback   Give a channel back the version before.
  list       Show versions and channels.
  log        Show who did what, when and why.
  verify     Rehash every file and check the log.

Examples:
  lightsae registry publish dictionary --sae lightning_logs/version_0/sae --panel panel.json
  lightsae registry promote 3f2a9c --channel staging --policy configs/policies/default.yaml --why "first labels"
  lightsae registry rollback --channel production --why "steering broke the tone"
  lightsae registry ACTION --help"""
# Where the output is no terminal.
_WIDTH = 120


def run_registry(args: Sequence[str]) -> int:
    """Run one action; 2 where a version falls short of a policy, or something is wrong with the registry."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(_HELP)
        return 0
    action, rest = args[0], list(args[1:])
    if action not in _ACTIONS:
        near = did_you_mean(action, _ACTIONS)
        raise ConfigError(f"{action!r} is no action of registry; there are {', '.join(_ACTIONS)}.{near}")
    return _ACTIONS[action](rest)


def _publish(args: list[str]) -> int:
    parser = _parser("publish", "DICTIONARY --sae SAE [OPTIONS]", "Add a version to a registry.", why="Why.")
    parser.add_argument("dictionary", type=str, help="Feature dictionary: a folder that interpret wrote.")
    parser.add_argument("--sae", type=str, required=True, help="Folder of the SAE that it was made for.")
    parser.add_argument("--validation", type=str | None, help="validation.json of the SAE's run.")
    parser.add_argument("--panel", type=str | None, help="Panel report (panel.json) of this dictionary.")
    parser.add_argument("--drift", type=str | None, help="Drift report against another dictionary.")
    given = parser.parse_args(args)
    evidence = {kind: given[kind] for kind in EVIDENCE if given[kind] is not None}
    why = given.why or ""
    done = publish(given.registry, given.dictionary, given.sae, evidence=evidence, why=why, who=given.who)
    said = "restored" if done.restored else "published" if done.changed else "already published, nothing changed"
    print(f"version  {done.version[:SHORT]}  ({said})")
    if done.changed:
        print(
            f"promote it  lightsae registry promote {done.version[:SHORT]} --channel staging --policy FILE --why TEXT"
        )
    return 0


def _promote(args: list[str]) -> int:
    about = "Make a version the present one of a channel, if it reaches all thresholds of a policy."
    usage = "VERSION --channel CHANNEL --policy FILE --why TEXT [OPTIONS]"
    parser = _parser("promote", usage, about, why="Why; stands in the log.", needs_why=True)
    parser.add_argument("version", type=str, help="First digits of the version's id.")
    parser.add_argument("--channel", type=str, required=True, help=" or ".join(CHANNELS) + ".")
    parser.add_argument("--policy", type=str, required=True, help="File of thresholds, see configs/policies.")
    given = parser.parse_args(args)
    try:
        done = promote(given.registry, given.version, given.channel, given.policy, why=given.why, who=given.who)
    except PolicyRefusal as refusal:
        # A line each: there may be many of them.
        print("\n  ".join([f"lightsae: error: {refusal.head}", *refusal.lines]), file=sys.stderr)
        return 2
    before = f"before: {done.before[:SHORT]}" if done.before else "the first there"
    print(f"{given.channel}  {done.version[:SHORT]}  ({before if done.changed else 'it already was, nothing changed'})")
    return 0


def _rollback(args: list[str]) -> int:
    about = "Give a channel back the version that it had before the present one; again: the one before that."
    parser = _parser("rollback", "--channel CHANNEL --why TEXT [OPTIONS]", about, why="Why.", needs_why=True)
    parser.add_argument("--channel", type=str, required=True, help=" or ".join(CHANNELS) + ".")
    given = parser.parse_args(args)
    done = rollback(given.registry, given.channel, why=given.why, who=given.who)
    print(f"{given.channel}  {done.version[:SHORT]}  (rolled back from {(done.before or '')[:SHORT]})")
    return 0


def _list(args: list[str]) -> int:
    given = _parser("list", "[OPTIONS]", "Show the versions of a registry, and what each channel has.").parse_args(args)
    table = Table(
        "version", "channels", "dictionary", "model", "site", "evidence", "published", box=None, pad_edge=False
    )
    with local_copy(given.registry) as here:
        where, state = open_registry(here)
        times = {entry["version"]: entry["time"] for entry in state.entries if entry["action"] == "publish"}
        for version in state.published:
            has = ", ".join(channel for channel in CHANNELS if state.has(channel) == version)
            try:
                told = read_manifest(folder_of(where, version))
                evidence = ", ".join(kind for kind in EVIDENCE if f"evidence/{kind}.json" in told["files"])
                sites = ", ".join(str(entry["site"]) for entry in told["predicted"])
                row = (version[:SHORT], has, told["dictionary"][:SHORT], str(told["model"]["name"]), sites, evidence)
            except (FormatError, KeyError, TypeError):
                table.add_row(version[:SHORT], has, "[red]damaged: see lightsae registry verify[/red]")
                continue
            table.add_row(*map(escape, row), times[version])
    _console().print(table if state.published else "Nothing is published here.")
    return 0


def _log(args: list[str]) -> int:
    given = _parser("log", "[OPTIONS]", "Show who did what, when and why.").parse_args(args)
    table = Table("", "when", "who", "action", "version", "channel", "why", box=None, pad_edge=False)
    with local_copy(given.registry) as here:
        _, state = open_registry(here)
    for entry in state.entries:
        row = (entry["time"], entry["who"], entry["action"], entry["version"][:SHORT], entry.get("channel", ""))
        table.add_row(str(entry["number"]), *map(escape, row), escape(" ".join(entry["why"].split())))
    _console().print(table if state.entries else "The log is empty.")
    return 0


def _verify(args: list[str]) -> int:
    parser = _parser("verify", "[OPTIONS]", "Rehash every file of a registry, and check its log and its channels.")
    given = parser.parse_args(args)
    found = verify(given.registry)
    for note in found.notes:
        print(f"note: {note}")
    if found.problems:
        print("\n  ".join([f"lightsae: error: {given.registry} is not as it was:", *found.problems]), file=sys.stderr)
        return 2
    versions = "1 version" if found.versions == 1 else f"{found.versions} versions"
    print(f"{given.registry}: {versions}, {found.entries} entries of the log, all as they were written")
    return 0


_ACTIONS: dict[str, Callable[[list[str]], int]] = {
    "publish": _publish,
    "promote": _promote,
    "rollback": _rollback,
    "list": _list,
    "log": _log,
    "verify": _verify,
}


def _parser(action: str, usage: str, about: str, *, why: str | None = None, needs_why: bool = False) -> CommandParser:
    # The examples of registry's own help, for this action.
    examples = [line.strip() for line in _HELP.splitlines() if line.startswith(f"  lightsae registry {action}")]
    parser = CommandParser(f"registry {action}", usage, about, examples or [f"lightsae registry {action}"])
    parser.add_argument("--registry", type=str, default="registry", help="Folder of the registry, or hub:ORG/NAME.")
    if why is not None:
        kind: Any = str if needs_why else str | None
        parser.add_argument("--why", type=kind, required=needs_why, help=why)
        parser.add_argument("--who", type=str | None, help="Who, for the log; the user of the system otherwise.")
    return parser


def _console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    return console
