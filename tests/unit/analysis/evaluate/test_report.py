"""The report: what is written is read again, what is damaged is named, and the page shows it all."""

import json
import math
from pathlib import Path

import pytest

from lightsae.analysis.evaluate.markdown import to_markdown
from lightsae.analysis.evaluate.measure import names_of
from lightsae.analysis.evaluate.report import Band, Evaluation, Figure, read_report, write_report
from lightsae.errors import FormatError


def evaluation(name: str = "sae", roles: dict[str, dict[str, Figure]] | None = None) -> Evaluation:
    fve, l0 = Figure(0.91, 0.9, 0.92, 1000), Figure(20.0, None, None, 1000)
    return Evaluation(
        name=name,
        sae={"variant": "TopK", "d_sae": 64, "sha256": "a" * 64},
        text={"model": "builtin", "dataset": "my|texts", "tokens": 1000, "documents": 12},
        figures={"fve": fve, "l0": l0, "mse": Figure(math.nan, None, None, 0)},
        positions=[Band("0", fve, l0), Band("1 on", fve, l0)],
        frequencies=[Band("below 0.01%", fve, l0)],
        firing_histogram={"never": 3, "1e-2": 61},
        published={"l0": 19.0},
        controls={"random_sae": {"fve": Figure(0.4, 0.3, 0.5, 1000)}},
        roles=roles or {},
    )


ROLES = {"user": {"fve": Figure(0.7, 0.6, 0.8, 300), "l0": Figure(9.0, None, None, 300)}}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    write_report([evaluation("a"), evaluation("b")], {"fve": "of variance"}, path)
    read = read_report(path)
    assert [one.name for one in read] == ["a", "b"]
    expected = evaluation("a")
    assert math.isnan(read[0].figures["mse"].value)
    assert {k: v for k, v in read[0].figures.items() if k != "mse"} == {
        k: v for k, v in expected.figures.items() if k != "mse"
    }
    assert (read[0].positions, read[0].frequencies) == (expected.positions, expected.frequencies)
    assert (read[0].controls, read[0].published) == (expected.controls, expected.published)
    assert json.loads(path.read_text())["definitions"] == {"fve": "of variance"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda report: report.pop("saes"), "'saes' is missing"),
        (lambda report: report.update(format_version=99), "format version 99"),
        (lambda report: report["saes"].append(3), "an SAE is a int"),
        (lambda report: report["saes"][0].pop("text"), "'text' is missing"),
        (lambda report: report["saes"][0]["figures"].update(fve=0.5), "0.5 is no figure"),
        (lambda report: report["saes"][0]["figures"]["fve"].update(value="high"), "is no figure"),
        (lambda report: report["saes"][0]["figures"]["fve"].pop("tokens"), "is no figure"),
        (lambda report: report["saes"][0]["positions"].append({}), "a band has no name"),
        (lambda report: report["saes"][0]["firing_histogram"].update(never=0.5), "is no number"),
        (lambda report: report["saes"][0]["controls"].update(more=1), "a control is no object"),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, change, said: str) -> None:
    path = tmp_path / "report.json"
    write_report([evaluation()], {}, path)
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))
    with pytest.raises(FormatError) as caught:
        read_report(path)
    assert said in str(caught.value)


def test_roles_are_told_where_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report([evaluation("a", ROLES), evaluation("b")], {}, path)
    first, second = read_report(path)
    assert (first.roles, second.roles) == (ROLES, {})
    assert not {"roles", "datasets"} & set(json.loads(path.read_text())["saes"][1])
    page = to_markdown([first])
    assert "| Role | `fve` | `l0` | tokens |" in page
    assert "| user | 0.7 [0.6, 0.8] | 9 | 300 |" in page
    assert "| Role |" not in to_markdown([second])
    report = json.loads(path.read_text())
    report["saes"][0]["roles"]["user"] = 0.5
    path.write_text(json.dumps(report))
    with pytest.raises(FormatError, match="one of the roles is no object"):
        read_report(path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_what_is_no_report_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(FormatError):
        read_report(path)
    with pytest.raises(FormatError, match="cannot be read"):
        read_report(tmp_path / "missing.json")


def test_the_page_shows_figures_published_ones_controls_and_definitions() -> None:
    page = to_markdown([evaluation()])
    assert "| figure | SAE | published | random sae |" in page
    assert "| `fve` | 0.91 [0.9, 0.92] |  | 0.4 [0.3, 0.5] |" in page
    assert "| `l0` | 20 | 19 |  |" in page
    assert "documents of my|texts" in page
    assert "| 1% to 10% | 61 |" in page
    assert "| `fve` | 1 - sum \\|x - x_hat\\|^2" in page


def test_bands_are_named_by_what_they_hold() -> None:
    assert names_of((0, 1, 4, 16), "on") == ["0", "1 to 3", "4 to 15", "16 on"]
    assert names_of((0.0, 1e-4, 1e-3, 1e-2), "or more", "%") == [
        "below 0.01%",
        "0.01% to 0.1%",
        "0.1% to 1%",
        "1% or more",
    ]
