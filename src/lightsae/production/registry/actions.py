"""What changes a registry: publish, promote, roll back. Each is one entry of the log, and happens as a whole or not."""

import getpass
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.errors import ConfigError, arg
from lightsae.formats.files import explain_os_errors, replace_folder_atomically
from lightsae.formats.native import write_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.production.registry.evidence import check_evidence, figures_of
from lightsae.production.registry.log import LOG, commit
from lightsae.production.registry.policy import PolicyRefusal, read_policy
from lightsae.production.registry.store import check_channel, find_version, writing
from lightsae.production.registry.version import (
    EVIDENCE,
    SHORT,
    VERSIONS,
    check_intact,
    copy_version,
    describe,
    folder_of,
    problems_of,
    sources_of,
    version_id,
)


@dataclass(frozen=True)
class Outcome:
    """What an action came to.

    Attributes:
        version: The version that was published, or that the channel has now.
        changed: Whether anything is different from before.
        before: The version that the channel had before.
        restored: Whether a damaged version was put back as it was published.
    """

    version: str
    changed: bool
    before: str | None = None
    restored: bool = False


def publish(
    registry: str | Path,
    dictionary: str | Path,
    sae: str | Path,
    *,
    evidence: Mapping[str, str | Path] | None = None,
    why: str = "",
    who: str | None = None,
) -> Outcome:
    """Copy a feature dictionary, its SAE and what was measured of them into a registry, as a new version.

    The same contents again change nothing; if the published files were damaged, they are put back.

    Args:
        registry: Folder of the registry, or `hub:org/name`; it is made if there is none.
        dictionary: Folder of the feature dictionary.
        sae: The SAE that it was made for; see `SavedSAE.open`.
        evidence: Files of reports, by `validation`, `panel` and `drift`.
        why: Reason, for the log.
        who: Author, for the log; None: the user of the system.

    Raises:
        FormatError: Something is damaged, or is not of the same feature dictionary and SAE.
        SiteError: The SAE, or its figures, are of another site.
        ConfigError: The registry cannot be written to.
    """
    opened = FeatureDictionary.of(dictionary)
    saved = opened.named(sae)
    opened.check_belongs_to(saved)
    # sae.json was compared; this reads the tensors.
    _ = saved.sae
    files = {kind: Path(path) for kind, path in (evidence or {}).items()}
    assert files.keys() <= set(EVIDENCE), f"evidence is {list(files)}"
    check_evidence(files, saved, opened.id)
    with _as_export(saved) as folder:
        sources = sources_of(opened, folder, files)
        return _publish(registry, sources, describe(opened, sources), why, who)


@contextmanager
def _as_export(saved: SavedSAE) -> Iterator[str | Path]:
    """Give the folder of an SAE's export; of one that has none, such as a file of another library, a temporary one."""
    if saved.is_export:
        assert saved.folder is not None
        yield saved.folder
        return
    with TemporaryDirectory() as folder:
        write_sae(saved.sae, Path(folder), dict(saved.provenance.values))
        yield folder


def _publish(
    registry: str | Path, sources: Mapping[str, Path], manifest: Mapping[str, Any], why: str, who: str | None
) -> Outcome:
    version = version_id(manifest)
    with writing(registry, f"publish {version[:SHORT]}", begin=True) as (where, state):
        known, intact = version in state.published, not problems_of(where, version)
        if known and intact:
            return Outcome(version, changed=False)
        if not intact:
            # Versions in a folder without a log are a loss, which `verify` reports; not so a first one on its way.
            if not state.entries:
                with explain_os_errors(where):
                    (where / LOG).touch()
            with replace_folder_atomically(where / VERSIONS / version) as staged:
                copy_version(sources, manifest, staged)
        commit(where, state, _entry("restore" if known else "publish", version, why, who))
    return Outcome(version, changed=True, restored=known)


def promote(
    registry: str | Path, version: str, channel: str, policy: str | Path, *, why: str, who: str | None = None
) -> Outcome:
    """Make a version the present one of a channel, if it reaches all thresholds of a policy.

    Args:
        registry: Folder of the registry, or `hub:org/name`.
        version: The first digits of its id, or all.
        channel: `staging` or `production`.
        policy: File of thresholds.
        why: Reason, for the log.
        who: Author, for the log; None: the user of the system.

    Raises:
        PolicyRefusal: It falls short; names every figure that does.
        ConfigError: The version, the channel or the policy is unknown; or no reason is given.
        FormatError: Files of the version, or the log, were changed.
    """
    check_channel(channel)
    rules = read_policy(policy)
    _check_why(why, "promote")
    with writing(registry, f"promote {version} to {channel}") as (where, state):
        whole = find_version(where, state, version)
        check_intact(where, whole, str(registry))
        figures = figures_of(folder_of(where, whole))
        lines = rules.shortfalls(figures)
        if channel == "production" and rules.requires_staging and not state.was_in("staging", whole):
            lines.insert(0, "staging: the version was never there; promote it to staging first")
        if lines:
            raise PolicyRefusal(
                f"Version {whole[:SHORT]} falls short of {str(policy)!r} and was not promoted to {channel}:", lines
            )
        before = state.has(channel)
        if before == whole:
            return Outcome(whole, changed=False, before=before)
        more = {"channel": channel, "replaces": before, "policy": rules.entry(policy), "figures": figures}
        commit(where, state, _entry("promote", whole, why, who, **more))
    return Outcome(whole, changed=True, before=before)


def rollback(registry: str | Path, channel: str, *, why: str, who: str | None = None) -> Outcome:
    """Give a channel back the version that it had before the present one; again: the one before that.

    Raises:
        ConfigError: There is nothing before, the channel is unknown, or no reason is given.
        FormatError: Files of the version before, or the log, were changed.
    """
    check_channel(channel)
    _check_why(why, "rollback")
    with writing(registry, f"roll {channel} back") as (where, state):
        versions = state.channels[channel]
        if len(versions) < 2:
            why_not = f"has had no version before {versions[0][:SHORT]}" if versions else "is empty"
            raise ConfigError(
                f"Nothing to roll back to: {channel} {why_not}. Promote another: lightsae registry promote VERSION"
            )
        target, before = versions[-2:]
        check_intact(where, target, str(registry))
        commit(where, state, _entry("rollback", target, why, who, channel=channel, replaces=before))
    return Outcome(target, changed=True, before=before)


def _entry(action: str, version: str, why: str, who: str | None, **more: Any) -> dict[str, Any]:
    if who is None:
        try:
            who = getpass.getuser()
        except (OSError, KeyError):
            # A container's user without a name.
            who = "unknown"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"time": now, "who": who, "action": action, "version": version, "why": why, **more}


def _check_why(why: str, command: str) -> None:
    if not why.strip():
        raise ConfigError(f"{arg('why')} is empty; say for the log why you {command}: --why TEXT")
