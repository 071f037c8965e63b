"""`lightsae registry`: versions of feature dictionaries are published, promoted by a policy, rolled back, checked."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from lightsae.cli.settings.command import CommandParser
from lightsae.cli.tables import console
from lightsae.errors import ConfigError, FormatError, did_you_mean
from lightsae.production.registry import PolicyRefusal, promote, publish, rollback, verify
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
# If the output is no terminal.
_WIDTH = 120


def run_registry(args: Sequence[str]) -> int:
    """Run one action; 2 if a version falls short of a policy, or something is wrong with the registry."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(_HELP)
        return 0
    action, rest = args[0], list(args[1:])
    if action not in _ACTIONS:
        near = did_you_mean(action, _ACTIONS)
        raise ConfigError(f"{action!r} is no action of registry; there are {', '.join(_ACTIONS)}.{near}")
    run, usage, options = _ACTIONS[action]
    # The examples of registry's own help, for this action.
    examples = [line.strip() for line in _HELP.splitlines() if line.startswith(f"  lightsae registry {action}")]
    parser = CommandParser(f"registry {action}", usage, run.__doc__ or "", examples or [f"lightsae registry {action}"])
    for name in options.split():
        required = name in usage.split()
        more = {"required": required} if name.startswith("--") else {}
        kind: Any = str if required or not more else str | None
        parser.add_argument(name, type=kind, help=_OPTIONS[name], **more)
    parser.add_argument("--registry", type=str, default="registry", help="Folder of the registry, or hub:ORG/NAME.")
    return run(parser.parse_args(rest))


def _publish(parsed: Any) -> int:
    """Add a version to a registry."""
    evidence = {kind: parsed[kind] for kind in EVIDENCE if parsed[kind] is not None}
    why = parsed.why or ""
    done = publish(parsed.registry, parsed.dictionary, parsed.sae, evidence=evidence, why=why, who=parsed.who)
    outcome = "restored" if done.restored else "published" if done.changed else "already published, nothing changed"
    print(f"version  {done.version[:SHORT]}  ({outcome})")
    if done.changed:
        print(
            f"promote it  lightsae registry promote {done.version[:SHORT]} --channel staging --policy FILE --why TEXT"
        )
    return 0


def _promote(parsed: Any) -> int:
    """Make a version the present one of a channel, if it reaches all thresholds of a policy."""
    try:
        done = promote(parsed.registry, parsed.version, parsed.channel, parsed.policy, why=parsed.why, who=parsed.who)
    except PolicyRefusal as refusal:
        # A line each: there may be many of them.
        print("\n  ".join([f"lightsae: error: {refusal.head}", *refusal.lines]), file=sys.stderr)
        return 2
    before = f"before: {done.before[:SHORT]}" if done.before else "the first there"
    print(
        f"{parsed.channel}  {done.version[:SHORT]}  ({before if done.changed else 'it already was, nothing changed'})"
    )
    return 0


def _rollback(parsed: Any) -> int:
    """Give a channel back the version that it had before the present one; again: the one before that."""
    done = rollback(parsed.registry, parsed.channel, why=parsed.why, who=parsed.who)
    print(f"{parsed.channel}  {done.version[:SHORT]}  (rolled back from {(done.before or '')[:SHORT]})")
    return 0


def _list(parsed: Any) -> int:
    """Show the versions of a registry, and what each channel has."""
    columns = ("version", "channels", "dictionary", "model", "site", "evidence", "published")
    table = Table(*columns, box=None, pad_edge=False)
    where, state = open_registry(parsed.registry)
    times = {entry["version"]: entry["time"] for entry in state.entries if entry["action"] == "publish"}
    for version in state.published:
        channels = ", ".join(state.channels_of(version))
        try:
            manifest = read_manifest(folder_of(where, version))
            evidence = ", ".join(kind for kind in EVIDENCE if f"evidence/{kind}.json" in manifest["files"])
            sites = ", ".join(str(entry["site"]) for entry in manifest["predicted"])
            row = (manifest["dictionary"][:SHORT], str(manifest["model"]["name"]), sites, evidence)
        except (FormatError, KeyError, TypeError):
            table.add_row(version[:SHORT], channels, "[red]damaged: see lightsae registry verify[/red]")
            continue
        table.add_row(*map(escape, (version[:SHORT], channels, *row)), times[version])
    console(_WIDTH).print(table if state.published else "Nothing is published here.")
    return 0


def _log(parsed: Any) -> int:
    """Show who did what, when and why."""
    table = Table("", "when", "who", "action", "version", "channel", "why", box=None, pad_edge=False)
    _, state = open_registry(parsed.registry)
    for entry in state.entries:
        row = (entry["time"], entry["who"], entry["action"], entry["version"][:SHORT], entry.get("channel", ""))
        table.add_row(str(entry["number"]), *map(escape, row), escape(" ".join(entry["why"].split())))
    console(_WIDTH).print(table if state.entries else "The log is empty.")
    return 0


def _verify(parsed: Any) -> int:
    """Rehash every file of a registry, and check its log and its channels."""
    verified = verify(parsed.registry)
    for note in verified.notes:
        print(f"note: {note}")
    if verified.problems:
        head = f"lightsae: error: {parsed.registry} is not as it was:"
        print("\n  ".join([head, *verified.problems]), file=sys.stderr)
        return 2
    versions = "1 version" if verified.versions == 1 else f"{verified.versions} versions"
    print(f"{parsed.registry}: {versions}, {verified.entries} entries of the log, all as they were written")
    return 0


_OPTIONS = {
    "dictionary": "Feature dictionary: a folder that interpret wrote.",
    "version": "First digits of the version's id.",
    "--sae": "Folder of the SAE that it was made for.",
    "--validation": "validation.json of the SAE's run.",
    "--panel": "Panel report (panel.json) of this feature dictionary.",
    "--drift": "Drift report against another SAE.",
    "--channel": " or ".join(CHANNELS) + ".",
    "--policy": "File of thresholds, see configs/policies.",
    "--why": "Why; stands in the log.",
    "--who": "Who, for the log; the user of the system otherwise.",
}
# The function of each action, what stands after its name (and is therefore required), and its options.
_ACTIONS: dict[str, tuple[Callable[[Any], int], str, str]] = {
    "publish": (
        _publish,
        "DICTIONARY --sae SAE [OPTIONS]",
        "dictionary --sae --validation --panel --drift --why --who",
    ),
    "promote": (
        _promote,
        "VERSION --channel CHANNEL --policy FILE --why TEXT [OPTIONS]",
        "version --channel --policy --why --who",
    ),
    "rollback": (_rollback, "--channel CHANNEL --why TEXT [OPTIONS]", "--channel --why --who"),
    "list": (_list, "[OPTIONS]", ""),
    "log": (_log, "[OPTIONS]", ""),
    "verify": (_verify, "[OPTIONS]", ""),
}
