"""`lightsae evaluate`: the figures of a run's own validation, with their noise, beside an SAE that learned nothing."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_clearml import FakeClearML
from lightsae.analysis.concepts.figures import PROBES, WORDS
from lightsae.analysis.evaluate.figures import DEFINITIONS
from lightsae.analysis.evaluate.report import read_report
from lightsae.cli import main
from lightsae.formats.native import save_sae
from lightsae.formats.saved_sae import SavedSAE

SAE = "lightning_logs/version_0/sae"
TEXT = ("--model_batch_tokens", "256", "--dtype", "float32")


def run_of(fit: Callable[..., Any]) -> None:
    assert fit("--data.dtype float32").code == 0


def test_the_same_text_gives_what_the_validation_gave(fit: Callable[..., Any], lightsae: Any, tmp_path: Path) -> None:
    run_of(fit)
    config = "lightning_logs/version_0/config.yaml"
    assert lightsae("validate", "--config", config, "--ckpt_path", "last").code == 0
    ended = lightsae("evaluate", "--sae", SAE, "--tokens", "128", "--ce_tokens", "128", "--out", "e.json", *TEXT)
    assert ended.code == 0, ended.err
    validated = json.loads(next((tmp_path / "lightning_logs").rglob("validation.json")).read_text())
    figures = read_report(tmp_path / "e.json")[0].figures
    compared = 0
    for name, value in validated["figures"].items():
        short = name.removeprefix("val/")
        if short in figures:
            assert figures[short].value == pytest.approx(value, rel=2e-4, abs=2e-6), name
            compared += 1
    assert compared >= 15
    assert set(figures) == set(DEFINITIONS) - set(WORDS | PROBES)
    assert all(figure.tokens > 0 for figure in figures.values())
    assert "documents, no intervals below 10" in ended.out
    assert all(figure.low is None for figure in figures.values())


def test_a_report_says_it_all_and_its_page_shows_it(fit: Callable[..., Any], lightsae: Any, tmp_path: Path) -> None:
    run_of(fit)
    sizes = ("--tokens", "1600", "--ce_tokens", "400", "--probes", "3")
    ended = lightsae("evaluate", "--sae", f"[{SAE}, {SAE}]", *sizes, "--out", "deep/e.json", *TEXT)
    assert ended.code == 0, ended.err
    assert ended.out.count("documents, 95% intervals over them") == 2
    first, second = read_report(tmp_path / "deep" / "e.json")
    assert first == second
    assert first.sae["variant"] == "TopK"
    assert first.text["documents"] >= 10
    fve = first.figures["fve"]
    assert fve.low is not None
    assert fve.high is not None
    assert fve.low < fve.value < fve.high
    assert first.controls["random_sae"]["l0"].value == pytest.approx(first.figures["l0"].value, abs=0.5)
    assert sum(first.firing_histogram.values()) == 24
    tokens = sum(band.fve.tokens for band in first.frequencies)
    assert tokens == first.figures["fve_no_sinks"].tokens
    page = (tmp_path / "deep" / "e.md").read_text()
    assert f"# {SAE}" in page
    assert all(f"| `{name}` | " in page for name in first.figures)
    assert set(DEFINITIONS) - set(first.figures) <= set(WORDS | PROBES)
    # The text is no Python: its characters are its concepts.
    assert first.concepts is not None
    assert first.concepts.source == "characters"
    assert len(first.concepts.concept_of) == 24
    scores = [(one.f1, one.controls["random_sae"]) for one in first.concepts.concepts]
    means = [sum(some) / len(some) for some in zip(*scores, strict=True)]
    assert means[0] == pytest.approx(first.figures["concept_f1"].value, abs=1e-3)
    assert means[1] == pytest.approx(first.controls["random_sae"]["concept_f1"].value, abs=1e-3)
    assert len(first.concepts.probes) == 3
    assert set(first.concepts.probes[0].auc) == {"sae", "random_sae", "neurons"}
    mean = sum(one.auc["neurons"]["k2"] for one in first.concepts.probes) / 3
    assert first.controls["neurons"]["probe_auc_k2"].value == pytest.approx(mean, abs=1e-3)
    assert first.figures["probe_auc_full"].tokens == sum(one.tokens for one in first.concepts.probes)
    assert f"{len(first.concepts.concepts)} of {first.concepts.named} concepts (characters)" in page


def test_the_recipe_is_trained_on_random_weights(
    fit: Callable[..., Any], lightsae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(fit)
    commands: list[Sequence[str]] = []

    def in_this_process(command: Sequence[str]) -> int:
        commands.append(command)
        with pytest.raises(SystemExit) as end:
            main(command)
        return int(str(end.value.code))

    monkeypatch.setattr("lightsae.cli.random_model.run_command", in_this_process)
    sizes = ("--tokens", "128", "--ce_tokens", "128", "--concepts", "none", "--controls", "[random_model]")
    for _ in range(2):
        ended = lightsae("evaluate", "--sae", SAE, *sizes, "--out", "e.json", *TEXT)
        assert ended.code == 0, ended.err
    (command,) = commands  # the second time it was there
    assert command[:2] == ["fit", "--config"]
    evaluation = read_report(tmp_path / "e.json")[0]
    assert list(evaluation.controls) == ["random_model"]
    control, figures = evaluation.controls["random_model"], evaluation.figures
    assert set(control) == set(figures)
    # Of a model that learned nothing the next token is no better known than by chance.
    assert control["ce_clean"].value > figures["ce_clean"].value
    trained = SavedSAE.open("lightning_logs/version_0/random_model/lightning_logs/version_0/sae")
    ours = SavedSAE.open(SAE)
    assert trained.provenance.model == f"{ours.provenance.model}@random"
    assert (trained.variant, trained.settings) == (ours.variant, ours.settings)
    save_sae(ours.sae, tmp_path / "moved", ours.provenance.values)
    for sae, said in (
        ("moved", "'moved' lies in no run's folder: its recipe is not known; leave random_model out."),
        (str(trained.folder), "whose weights are random already."),
    ):
        ended = lightsae("evaluate", "--sae", sae, *sizes, *TEXT)
        assert ended.code == 2
        assert said in ended.err
    assert len(commands) == 1


def test_clearml_gets_figures_and_report(
    fit: Callable[..., Any], lightsae: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_of(fit)
    fake = FakeClearML()
    monkeypatch.setitem(sys.modules, "clearml", fake)
    sizes = ("--tokens", "128", "--ce_tokens", "0", "--controls", "[]")
    ended = lightsae("evaluate", "--sae", SAE, *sizes, "--out", "e.json", "--clearml", "demo", *TEXT)
    assert ended.code == 0, ended.err
    assert "offline-t1.zip" in ended.out
    (task,) = fake.tasks
    figures = read_report(tmp_path / "e.json")[0].figures
    assert task.values == {name: figure.value for name, figure in figures.items()}
    assert task.artefacts == {"evaluation": "e.json", "page": "e.md"}
    assert task.connected["settings"]["tokens"] == 128
    monkeypatch.setitem(sys.modules, "clearml", None)
    ended = lightsae("evaluate", "--sae", "missing", "--clearml", "demo")
    assert (ended.code, ended.new) == (2, [])
    assert "pip install 'lightsae[clearml]'" in ended.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--out", "e.txt"), "out is 'e.txt'; name a file that ends in .json."),
        (("--tokens", "0"), "tokens is 0; write 1 or more."),
        (("--ce_tokens", "-1"), "ce_tokens is -1; write how many, 0 for none."),
        (("--probes", "-1"), "probes is -1; write how many concepts, 0 for none."),
        (("--probes", "1", "--concepts", "none"), "probes is 1, but concepts is 'none'; write auto or a file."),
        (("--sae", "[]"), "sae is []; name at least one."),
        (("--sae", "missing"), "sae is 'missing', which does not exist."),
        (("--controls", "[luck]"), "controls"),
        (("--concepts", "some.jsonl"), "concepts is 'some.jsonl'; name a file that exists, or write auto or none."),
    ],
)
def test_a_mistake_is_one_line(lightsae: Any, options: tuple[str, ...], said: str) -> None:
    ended = lightsae("evaluate", "--sae", "missing", *options)
    assert ended.code == 2
    assert said in ended.err
    assert ended.new == []


def test_without_a_head_nothing_is_spliced(fit: Callable[..., Any], lightsae: Any, tmp_path: Path) -> None:
    run_of(fit)
    ended = lightsae("evaluate", "--sae", SAE, "--tokens", "320", "--ce_tokens", "0", "--out", "e.json", *TEXT)
    assert ended.code == 0, ended.err
    assert not any(name.startswith("ce_") for name in read_report(tmp_path / "e.json")[0].figures)


def test_concepts_of_a_file(fit: Callable[..., Any], lightsae: Any, inputs: Path, tmp_path: Path) -> None:
    run_of(fit)
    lines = []
    for line in (inputs / "text.jsonl").read_text().splitlines():
        text = json.loads(line)["text"]
        vowels = [[place, place + 1, f"vowel.{sign}"] for place, sign in enumerate(text) if sign in "aeiou"]
        lines.append(json.dumps({"text": text, "spans": [*vowels, [0, max(1, len(text) // 3), "begin"]]}))
    (tmp_path / "named.jsonl").write_text("\n".join(lines))
    options = ("--sae", SAE, "--tokens", "1600", "--ce_tokens", "0", "--out", "e.json", *TEXT)
    ended = lightsae("evaluate", *options, "--concepts", "named.jsonl")
    assert ended.code == 0, ended.err
    concepts = read_report(tmp_path / "e.json")[0].concepts
    assert concepts is not None
    assert concepts.source == "named.jsonl"
    assert {one.name.partition(".")[0] for one in concepts.concepts} == {"begin", "vowel"}
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "Nothing of it.", "spans": [[0, 7, "nothing"]]}))
    ended = lightsae("evaluate", *options, "--concepts", "other.jsonl")
    assert ended.code == 2
    assert "concepts is 'other.jsonl', and the held-out text has none of its documents; name the file as" in ended.err
    ended = lightsae("evaluate", *options, "--concepts", "none")
    assert ended.code == 0, ended.err
    assert read_report(tmp_path / "e.json")[0].concepts is None
