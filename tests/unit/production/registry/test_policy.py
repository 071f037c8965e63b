from pathlib import Path

import pytest

from lightsae.errors import ConfigError
from lightsae.production.registry.policy import Policy, PolicyRefusal, read_policy

DEFAULT = Path(__file__).parents[4] / "configs" / "policies" / "default.yaml"
GOOD = {
    "validation": {"fve_no_sinks": 0.9, "ce_recovered": 0.95, "dead": 0.0},
    "labels": {"share_labelled": 0.5, "lower": 0.7, "shuffled_floor": 0.0, "above_floors": True},
    "panel": {"reliable_share": 0.5, "harmful_share": 0.0, "above_random_floor": True, "above_other_features": True},
}


def _read(folder: Path, text: str) -> Policy:
    path = folder / "policy.yaml"
    path.write_text(text)
    return read_policy(path)


def test_the_default_policy_asks_for_every_group_but_drift() -> None:
    policy = read_policy(DEFAULT)
    assert policy.requires_staging
    assert policy.shortfalls(GOOD) == []
    missing = policy.shortfalls({})
    assert len(missing) == 11
    assert {line.partition(".")[0] for line in missing} == {"validation", "labels", "panel"}
    assert all("not measured" in line for line in missing)


@pytest.mark.parametrize(
    ("group", "figure", "bad", "said"),
    [
        ("validation", "fve_no_sinks", 0.71, "validation.fve_no_sinks: found 0.71; needed at least 0.8"),
        ("validation", "dead", 0.2, "validation.dead: found 0.2; needed at most 0.1"),
        ("labels", "lower", 0.2, "labels.lower: found 0.2; needed at least 0.3"),
        ("labels", "above_floors", False, "labels.above_floors: found intervals that overlap"),
        ("labels", "shuffled_floor", 0.03, "labels.shuffled_floor: found 0.03; needed at most 0.02"),
        ("panel", "harmful_share", 0.5, "panel.harmful_share: found 0.5; needed at most 0.2"),
        ("panel", "above_random_floor", False, "panel.above_random_floor: found intervals that overlap"),
        (
            "panel",
            "above_other_features",
            False,
            "panel.above_other_features: found p above 0.05 in the paired test; needed p of at most 0.05",
        ),
    ],
)
def test_each_figure_that_falls_short_is_named_with_what_is_needed(
    group: str, figure: str, bad: float | bool, said: str
) -> None:
    (line,) = read_policy(DEFAULT).shortfalls({**GOOD, group: {**GOOD[group], figure: bad}})
    assert line.startswith(said)


def test_thresholds_are_inclusive_and_what_is_not_set_is_not_asked(tmp_path: Path) -> None:
    policy = _read(tmp_path, "drift: {min_kept_share: 0.5}\nvalidation: {max_dead: 0.1, min_ce_recovered: null}\n")
    assert policy.shortfalls({"drift": {"kept_share": 0.5}, "validation": {"dead": 0.1}}) == []
    assert _read(tmp_path, "panel: {above_random_floor: false}").shortfalls({}) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("validaton: {}", "validaton is not known.*Did you mean 'validation'"),
        ("labels: {min_lowr: 0.8}", "labels.min_lowr is not known.*Did you mean 'min_lower'"),
        (
            "labels: {min_precision: 0.8}",
            "labels.min_precision was a median over labels that had passed; write labels.min_lower",
        ),
        ("labels: {min_recall: 0.7}", "labels.min_recall was a median .* write labels.min_lower"),
        ("labels: {min_lower: 80}", "labels.min_lower is 80; write a number from 0 to 1"),
        ("labels: {min_lower: .nan}", "labels.min_lower is nan"),
        ("labels: {min_lower: high}", "labels.min_lower is 'high'"),
        ("labels: {min_lower: true}", "labels.min_lower is True"),
        ("labels: 0.8", "labels is 0.8; write thresholds under it"),
        ("panel: {above_random_floor: 1}", "panel.above_random_floor is 1; write true or false"),
        ("requires_staging: maybe", "requires_staging is 'maybe'"),
        ("", "sets nothing"),
        ("- a", "sets nothing"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_a_policy_does_not_have_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _read(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").touch()
    with pytest.raises(ConfigError, match=r"does not exist\. Did you mean 'default\.yaml'"):
        read_policy(tmp_path / "defualt.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_policy(tmp_path)


def test_a_refusal_is_one_message_too() -> None:
    assert str(PolicyRefusal("Short:", ["a", "b"])) == "Short: a; b."
