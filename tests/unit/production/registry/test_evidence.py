import json
from pathlib import Path

import pytest

from helpers.fake_dictionary import SITE
from helpers.fake_versions import FIGURES, Parts, make_parts
from lightsae.errors import FormatError, SiteError
from lightsae.production.registry import publish
from lightsae.production.registry.evidence import check_evidence, figures_of
from lightsae.production.registry.policy import read_policy


def test_reports_of_these_parts_are_taken(parts: Parts) -> None:
    check_evidence(parts.reports(), parts.sae, parts.id)


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ("panel", {"dictionary": "ff" * 32}, FormatError, "is of the dictionary ffffffffffff, not of"),
        ("panel", {"sae": "ff" * 32}, FormatError, "is of the sae ffffffffffff, not of"),
        ("panel", {"sae": None}, FormatError, "is of the sae None, not of"),
        # Of format 1 verdicts did not ask for other features.
        ("panel", {"schema": 1}, FormatError, "is a panel report of format 1, whose verdicts ask for less"),
        ("panel", {"schema": None}, FormatError, "is a panel report of format None"),
        ("panel", {"summary": None}, FormatError, "has no 'summary'"),
        ("validation", {"figures": [1]}, FormatError, "has no 'figures'"),
        ("validation", {"figures": {"topk/val/fve": 1.0}}, FormatError, "it has those of 'topk'"),
        ("validation", {"data": {**SITE, "site": "resid_post.1"}}, SiteError, r"the site 'resid_post\.1', and"),
        ("validation", {"data": {**SITE, "model": "gpt2"}}, SiteError, "the model 'gpt2', and the SAE of 'builtin'"),
        ("validation", {"sha256": {"sae": "ff" * 32}}, FormatError, "does not name this SAE's weights"),
        ("validation", {"sha256": None}, FormatError, "does not name this SAE's weights"),
        (
            "drift",
            {"summary": {"sae": {"a": "ee" * 32, "b": "dd" * 32}}},
            FormatError,
            "eeeeeeeeeeee with dddddddd",
        ),
        ("drift", {"summary": {"sae": []}}, FormatError, "compares the SAEs None with None"),
    ],
)
def test_reports_of_something_else_are_refused(
    parts: Parts, kind: str, changes: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    report = parts.report(kind, **changes)
    with pytest.raises(error, match=message):
        publish(tmp_path / "r", parts.dictionary, parts.sae, evidence={kind: report})
    assert not (tmp_path / "r").exists()


def test_files_that_are_no_reports_are_refused(parts: Parts, tmp_path: Path) -> None:
    for content, message in (("{", "not valid JSON"), ("[]", "has no 'summary'")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(FormatError, match=message):
            check_evidence({"drift": tmp_path / "x.json"}, parts.sae, parts.id)
    with pytest.raises(FormatError, match="does not exist; name the panel report of format 2, made by: lightsae panel"):
        check_evidence({"panel": tmp_path / "no.json"}, parts.sae, parts.id)
    with pytest.raises(FormatError, match="is a folder"):
        check_evidence({"panel": tmp_path}, parts.sae, parts.id)


def test_figures_of_a_run_of_several_are_those_of_the_sae(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "p", seed=0, name="topk")
    both = {
        f"{name}/{key}": value + shift for name, shift in (("topk", 0), ("relu", 9)) for key, value in FIGURES.items()
    }
    report = parts.report("validation", figures=both)
    done = publish(tmp_path / "r", parts.dictionary, parts.sae, evidence={"validation": report})
    figures = figures_of(tmp_path / "r" / "versions" / done.version)
    assert figures["validation"] == {"fve_no_sinks": 0.9, "ce_recovered": 0.97, "dead": 0.01}


@pytest.mark.parametrize(("low", "high", "above"), [(0.3, 0.2, True), (0.2, 0.2, False), (0.1, 0.2, False)])
def test_above_the_random_floor_means_intervals_apart(
    parts: Parts, tmp_path: Path, low: float, high: float, above: bool
) -> None:
    summary = {"causal_usefulness": {"share": 0.5, "low": low}, "random_floor": {"share": 0.1, "high": high}}
    panel = parts.report("panel", summary=summary)
    done = publish(tmp_path / "r", parts.dictionary, parts.sae, evidence={"panel": panel})
    # What the report does not hold is not measured.
    assert figures_of(tmp_path / "r" / "versions" / done.version)["panel"] == {"above_random_floor": above}


@pytest.mark.parametrize(("p", "above"), [(0.05, True), (0.051, False)])
def test_above_other_features_means_the_exact_paired_test(parts: Parts, tmp_path: Path, p: float, above: bool) -> None:
    panel = parts.report("panel", summary={"paired": {"label": {"p": p}}})
    done = publish(tmp_path / "r", parts.dictionary, parts.sae, evidence={"panel": panel})
    assert figures_of(tmp_path / "r" / "versions" / done.version)["panel"] == {"above_other_features": above}


def test_a_panel_published_in_an_older_format_is_not_read(parts: Parts, tmp_path: Path) -> None:
    done = publish(tmp_path / "r", parts.dictionary, parts.sae, evidence={"panel": parts.report("panel")})
    folder = tmp_path / "r" / "versions" / done.version
    path = folder / "evidence" / "panel.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 1'))
    figures = figures_of(folder)
    assert "panel" not in figures
    policy = tmp_path / "policy.yaml"
    policy.write_text("panel: {min_reliable_share: 0.1}")
    (line,) = read_policy(policy).shortfalls(figures)
    assert line.startswith("panel.reliable_share: not measured: panel report of format 2 (lightsae panel)")


def test_what_is_no_number_is_not_measured(parts: Parts, tmp_path: Path) -> None:
    figures = {"val/fve_no_sinks": float("nan"), "val/ce_recovered": None, "val/dead_fraction": "0"}
    report = parts.report("validation", figures=figures)
    assert "NaN" in report.read_text()
    assert json.loads(report.read_text())["figures"].keys() == figures.keys()
    done = publish(tmp_path / "r", parts.dictionary, parts.sae, evidence={"validation": report})
    assert figures_of(tmp_path / "r" / "versions" / done.version)["validation"] == {}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        *(
            ("validation", {"figures": {**FIGURES, f"val/{name}": value}}, f"validation .*{name} is {shown}, which")
            for name, value, shown in (
                ("dead_fraction", -1e9, r"-1e\+09"),
                ("dead_fraction", 1.01, "1.01"),
                ("dead_fraction", 10**90, r"1e\+90"),
                ("fve_no_sinks", 1.01, "1.01"),
                ("fve_no_sinks", 97, "97"),
                ("ce_recovered", 97, "97"),
            )
        ),
        (
            "drift",
            {"summary": {"shares": {"kept": 80}}},
            "drift .*shares.kept is 80, which is no such figure",
        ),
        ("panel", {"summary": {"reliable_share": 1.5}}, "panel .*reliable_share is 1.5"),
        ("panel", {"summary": {"features": 4, "harmful": -1}}, "panel .*harmful is -1"),
        ("panel", {"summary": {"features": 4, "harmful": 5}}, "has 5 harmful of 4 features"),
        ("panel", {"summary": {"causal_usefulness": {"low": 2}}}, "causal_usefulness.low is 2"),
        ("panel", {"summary": {"random_floor": {"high": -0.5}}}, "random_floor.high is -0.5"),
        ("panel", {"summary": {"paired": {"label": {"p": -1e-3}}}}, "paired.label.p is -0.001"),
    ],
)
def test_figures_that_none_can_be_are_no_evidence(
    parts: Parts, tmp_path: Path, kind: str, changes: dict[str, dict[str, object]], message: str
) -> None:
    whole = json.loads(parts.report(kind).read_text())
    report = parts.report(kind, **{key: whole[key] | value for key, value in changes.items()})
    with pytest.raises(FormatError, match=message) as caught:
        publish(tmp_path / "r", parts.dictionary, parts.sae, evidence={kind: report})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_figures_that_none_can_be_do_not_promote_what_was_published_before(parts: Parts, tmp_path: Path) -> None:
    done = publish(tmp_path / "r", parts.dictionary, parts.sae, evidence=parts.reports())
    folder = tmp_path / "r" / "versions" / done.version
    for name, old, new in (
        ("evidence/validation.json", '"val/dead_fraction": 0.01', '"val/dead_fraction": -1e9'),
        ("dictionary/dictionary.json", '"lower_median": 0.8', '"lower_median": 8'),
        ("dictionary/dictionary.json", '"share": 0.01', '"share": -7'),
    ):
        whole = (folder / name).read_text()
        assert old in whole
        (folder / name).write_text(whole.replace(old, new))
        with pytest.raises(FormatError, match="which is no such figure"):
            figures_of(folder)
        (folder / name).write_text(whole)
    assert figures_of(folder)["validation"]["dead"] == 0.01


def test_a_figure_may_be_worse_than_the_mean_and_a_little_above_what_it_recovers(parts: Parts, tmp_path: Path) -> None:
    figures = {"val/fve_no_sinks": -3.0, "val/ce_recovered": 1.004, "val/dead_fraction": 1.0}
    report = parts.report("validation", figures=figures)
    done = publish(tmp_path / "r", parts.dictionary, parts.sae, evidence={"validation": report})
    measured = figures_of(tmp_path / "r" / "versions" / done.version)["validation"]
    assert measured == {"fve_no_sinks": -3.0, "ce_recovered": 1.004, "dead": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 200_000, "is not valid JSON .*levels deep"),
        ('{"summary": {}, "summary": {"reliable_share": 1}}', "is not valid JSON .*'summary' stands there twice"),
        ('{"summary": "\\ud800"}', "is not valid JSON .*surrogates"),
        ('{"summary": {"features": ' + "9" * 400 + "}}", "is not valid JSON .*400 digits"),
        ("\xff", "has no 'summary'|is not valid JSON"),
    ],
)
def test_reports_beyond_the_bounds_are_refused(parts: Parts, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(FormatError, match=message):
        check_evidence({"panel": tmp_path / "x.json"}, parts.sae, parts.id)


@pytest.mark.parametrize("floors", [[], "x", {"shuffled labels": [1]}, {"shuffled labels": {"share": "x"}}])
def test_floors_of_another_shape_were_not_measured(parts: Parts, tmp_path: Path, floors: object) -> None:
    done = publish(tmp_path / "r", parts.dictionary, parts.sae)
    folder = tmp_path / "r" / "versions" / done.version
    path = folder / "dictionary" / "dictionary.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "summary": {"floors": floors}}))
    assert figures_of(folder)["labels"] == {}
