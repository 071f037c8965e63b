"""Registries, the reports that serve as evidence in them, and the state of a pipeline."""

import json
from pathlib import Path

from fuzz.readers.base import Reader
from helpers.fake_versions import make_parts
from lightsae.cli.pipeline.runs import Pipeline
from lightsae.production.registry import publish
from lightsae.production.registry.evidence import check_evidence, figures_of
from lightsae.production.registry.loading import verify
from lightsae.production.registry.log import commit, inspect_log, read_state
from lightsae.production.registry.version import check_intact

KINDS = ("validation", "panel", "drift")
PIPELINE = {
    "format": 1,
    "done": {"fit": {"folder": "lightning_logs/version_0", "inputs": {"config": "a.yaml"}, "before": None}},
    "begun": {"interpret": {"folder": "dictionary", "inputs": {"the SAE": "ab"}, "before": "cd"}},
}


def _make_evidence(folder: Path) -> None:
    parts = make_parts(folder / "parts", 0)
    (folder / "id").write_text(parts.id)
    for kind, path in parts.reports().items():
        path.rename(folder / f"{kind}.json")


def _read_evidence(folder: Path) -> None:
    check_evidence({kind: folder / f"{kind}.json" for kind in KINDS}, folder / "parts/sae", (folder / "id").read_text())
    (folder / "evidence").mkdir()
    for kind in KINDS:
        (folder / f"{kind}.json").rename(folder / "evidence" / f"{kind}.json")
    for group, figures in figures_of_parts(folder).items():
        for name, value in figures.items():
            assert isinstance(value, bool) or value <= 1.5, (group, name, value)
            if name not in ("fve_no_sinks", "ce_recovered"):
                assert 0 <= value <= 1, (group, name, value)


def figures_of_parts(folder: Path) -> dict[str, dict[str, float | bool]]:
    for name in ("dictionary", "sae"):
        (folder / name).symlink_to(folder / "parts" / name)
    return figures_of(folder)


def _make_registry(folder: Path) -> None:
    parts = make_parts(folder / "parts", 0)
    publish(folder / "registry", parts.dictionary, parts.sae, evidence=parts.reports(), why="x", who="ann")
    state = read_state(folder / "registry", "r")
    entry = {"time": "2026-01-02T03:04:05+00:00", "who": "ann", "action": "promote", "version": state.published[0]}
    commit(folder / "registry", state, {**entry, "why": "y", "channel": "staging"})


def _read_registry(folder: Path) -> None:
    state, problems = inspect_log(folder / "registry")
    assert all("\n" not in problem for problem in problems)
    if not problems:
        assert all(isinstance(version, str) for version in state.published)
        json.dumps(state.entries, allow_nan=False)
    found = verify(folder / "registry")
    assert all("\n" not in problem for problem in found.problems)
    # Whoever reads it further is refused what `verify` lists.
    state = read_state(folder / "registry", "registry")
    for version in state.published:
        check_intact(folder / "registry", version, "registry")


def _make_pipeline(folder: Path) -> None:
    (folder / "pipeline.json").write_text(json.dumps(PIPELINE))


def _read_pipeline(folder: Path) -> None:
    pipeline = Pipeline(folder, {}, None)
    for run in (*pipeline.done.values(), *pipeline.begun.values()):
        assert isinstance(run.folder, str)
        assert all(isinstance(value, str) for value in run.inputs.values())
        assert run.before is None or isinstance(run.before, str)


PUBLISHED = {
    "evidence": Reader(_make_evidence, _read_evidence, mutates=lambda name: name.endswith(".json") and "/" not in name),
    "registry": Reader(
        _make_registry, _read_registry, mutates=lambda name: name.startswith("registry") and ".lock" not in name
    ),
    "pipeline": Reader(_make_pipeline, _read_pipeline),
}
