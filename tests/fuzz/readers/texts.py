"""JSON and YAML as they are, configurations, policies, and what else a person may write by hand."""

import json
import math
from pathlib import Path
from typing import Any

from fuzz.readers.base import Reader
from lightsae.analysis.concepts.documents import DocumentText
from lightsae.analysis.concepts.files import ConceptFile
from lightsae.analysis.concepts.truth import Marks
from lightsae.analysis.labels.human import import_csv
from lightsae.analysis.labels.neuronpedia_labels import import_neuronpedia
from lightsae.analysis.labels.patterns import patterns_of
from lightsae.cli.commands.steer import _prompts_of
from lightsae.cli.settings.typed import check_config_files
from lightsae.parsing import parse_json_of_others, read_bytes, read_json, read_yaml
from lightsae.production.registry.policy import Policy, read_policy

CONFIG = """\
seed_everything: 0
trainer: &t {max_steps: 30, val_check_interval: 10, gradient_clip_val: 1.0e-3}
model:
  grid:
    topk: {sae: {class_path: TopK, init_args: {d_sae: [32, 64], k: [4, 8]}}}
data: {model: builtin, dataset: builtin, site: resid_post.2, batch_tokens: 256, skip_special_tokens: true}
more: [*t, 1, 2.5, null, "text", 'a: b', {x: [1, {y: 2}]}]
"""
POLICY = """\
requires_staging: true
validation: {min_fve_no_sinks: 0.8, min_ce_recovered: 0.9, max_dead: 0.1}
labels: {min_share_labelled: 0.2, above_floors: true}
panel: {min_reliable_share: 0.1, above_random_floor: false}
drift: {min_kept_share: null}
"""
DESCRIPTION = {
    "name": "x",
    "values": [1, -2, 3.5, None, True, "text", "é😀", {"a": {"b": [[1], [2, [3]]]}}],
    "empty": {"list": [], "object": {}},
}
RULE = {"patterns": [["token", 7], ["after", 12345]], "shares": [0.9, 0.1]}
CONCEPTS = """\
{"text": "Ada Lovelace wrote to Babbage.", "spans": [[0, 12, "name.person"], [22, 29, "name.person"], [13, 18, "verb"]]}
{"text": "Nothing here.", "spans": []}
"""
LABELS = """feature,label,human_label,by,when,note,dictionary
1,unlabelled,"a call, of a function",ann,2026-01-02T03:04:05+00:00,,abcd
2,x,'=plain,bob,,"two
lines",abcd
"""
EXPLANATIONS = """{"modelId": "gpt2-small", "layer": "6-res-jb", "index": "1", "description": "calls of functions"}
{"modelId": "gpt2-small", "layer": "6-res-jb", "index": 2, "description": "é", "typeName": "t"}
"""


def _written(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def _plain(value: Any) -> None:
    """Check that a value holds plain ones alone, which can be written, and is no bomb."""
    left, count = [value], 0
    while left:
        one = left.pop()
        count += 1
        assert type(one) in (dict, list, str, int, float, bool, type(None)), type(one)
        assert not isinstance(one, int) or abs(one) < 10**100
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    assert count < 300_000
    json.dumps(value, ensure_ascii=False).encode()


def _json(folder: Path) -> None:
    value = read_json(folder / "a.json")
    _plain(value)
    assert value == json.loads((folder / "a.json").read_bytes().decode("utf-8-sig"))
    json.dumps(value, allow_nan=False)


def _json_of_others(folder: Path) -> None:
    parse_json_of_others(read_bytes(folder / "a.json"))


def _yaml(folder: Path) -> None:
    _plain(read_yaml(folder / "a.yaml"))


def _config(folder: Path) -> None:
    check_config_files(["--config", str(folder / "c.yaml")])


def _policy(folder: Path) -> None:
    policy: Policy = read_policy(folder / "policy.yaml")
    for rules in policy.rules.values():
        for value in rules.values():
            assert value is None or isinstance(value, bool) or 0 <= value <= 1
    policy.shortfalls({})
    json.dumps(policy.entry(folder / "policy.yaml"), allow_nan=False)


def _prompts(folder: Path) -> None:
    for prompt in _prompts_of(str(folder / "panel.yaml")):
        prompt.encode()


def _labels(folder: Path) -> None:
    for row in import_csv(folder / "labels.csv", dictionary_id="abcd", features=range(5)):
        assert row["feature"] in range(5)
        assert row["label"].strip()


def _neuronpedia(folder: Path) -> None:
    for row in import_neuronpedia(folder / "e.jsonl", features=range(5), layer=6):
        assert row["feature"] in range(5)
        assert row["label"].strip()
        json.dumps(row)


def _concepts(folder: Path) -> None:
    told, marks = ConceptFile.read(str(folder / "concepts.jsonl")), Marks()
    document = DocumentText(0, ["Ada Lovelace", " wrote", " to Babbage."])
    known = told.mark(document, marks)
    assert known in (0, len(document.text))
    for concept, start, end in marks.take().tolist():
        assert 0 <= start < end <= len(document.text)
        assert concept < len(told.names)


def _rule(folder: Path) -> None:
    for kind, key in patterns_of((folder / "rule.json").read_bytes().decode(errors="replace")):
        assert isinstance(kind, str)
        assert math.isfinite(key)


TEXTS = {
    "json": Reader(_written("a.json", json.dumps(DESCRIPTION)), _json, (ValueError,)),
    "json_of_others": Reader(_written("a.json", json.dumps(DESCRIPTION)), _json_of_others, (ValueError,)),
    "yaml": Reader(_written("a.yaml", CONFIG), _yaml, (ValueError,)),
    "config": Reader(_written("c.yaml", CONFIG), _config),
    "policy": Reader(_written("policy.yaml", POLICY), _policy),
    "prompts": Reader(_written("panel.yaml", "prompts: [a, 'b\n\n  c', \"d\"]\nsamples: 3\n"), _prompts),
    "concepts": Reader(_written("concepts.jsonl", CONCEPTS), _concepts),
    "human_labels": Reader(_written("labels.csv", LABELS), _labels),
    "neuronpedia_labels": Reader(_written("e.jsonl", EXPLANATIONS), _neuronpedia),
    "rule": Reader(
        _written("rule.json", '{"patterns": [["token", 7], ["after", 12345]], "shares": [0.9, 0.1]}'), _rule
    ),
}
