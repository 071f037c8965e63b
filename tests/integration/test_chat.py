"""Conversations and plain text in one run: the roles' tokens alone, stopped and resumed to the same bytes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.chat_templates import ZEPHYR
from lightsae.activations.roles import ROLES
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.evaluate.report import read_report
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
from lightsae.analysis.reading.text import Texts
from lightsae.progress import NullProgress

Run = Callable[..., Any]
CONFIG = """
seed_everything: 1
trainer:
  max_steps: 14
  callbacks: [{{class_path: helpers.signal_at.SignalAt}}]
checkpoint: {{every_n_train_steps: 4}}
data:
  datasets:
    - {{name: chat, dataset: {folder}/talks.jsonl, weight: 1}}
    - {{name: texts, dataset: {inputs}/text.jsonl, weight: 2}}
  roles: [assistant, text]
  chat_template: {folder}/chat.jinja
"""


@pytest.fixture
def config(tmp_path: Path, inputs: Path) -> Path:
    talks = [
        [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"the cat sat {i} times"}]
        for i in range(60)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    (tmp_path / "chat.jinja").write_text(ZEPHYR)
    (tmp_path / "c.yaml").write_text(CONFIG.format(folder=tmp_path, inputs=inputs))
    return tmp_path / "c.yaml"


def run_of(lightsae: Run, complete: Callable[..., list[str]], config: Path) -> Path:
    """Train, undisturbed, and return the folder of the run."""
    config.write_text(config.read_text().replace("callbacks: [{class_path: helpers.signal_at.SignalAt}]", ""))
    options = [*complete("data.dataset"), "--data.val_tokens", "1024", "--data.dtype", "float32"]
    ended = lightsae("fit", "--config", str(config), *options)
    assert ended.code == 0, ended.err
    return config.parent / "lightning_logs" / "version_0"


def test_stopped_and_resumed_it_ends_in_the_same_bytes(
    lightsae: Run, complete: Callable[..., list[str]], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*complete("data.dataset", "trainer.max_steps"), "--allow_classes", "helpers.signal_at"]
    options += ["--data.val_tokens", "1024"]
    whole = lightsae("fit", "--config", str(config), *options)
    assert whole.code == 0, whole.err
    # Within the second block, at a step of which there is no checkpoint but the one that is written on the way out.
    monkeypatch.setenv("SIGNAL_AT", "9 0 SIGTERM")
    assert lightsae("fit", "--config", str(config), *options).code != 0
    monkeypatch.delenv("SIGNAL_AT")
    runs = [tmp_path / "lightning_logs" / f"version_{number}" for number in (0, 1)]
    weights = [run / "sae" / "sae.safetensors" for run in runs]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    again = ["--config", str(runs[1] / "config.yaml"), "--ckpt_path", "last", "--allow_classes", "helpers.signal_at"]
    resumed = lightsae("fit", *again)
    assert resumed.code == 0, resumed.err
    assert weights[0].read_bytes() == weights[1].read_bytes()

    events = EventAccumulator(str(runs[0]))
    events.Reload()
    figures = set(events.Tags()["scalars"])
    assert {
        f"val/{what}/{group}" for what in ("fve", "l0") for group in ("assistant", "user", "chat", "texts")
    } <= figures
    assert "val/fve/tool" not in figures

    # What is read after the training are the same datasets, and the same roles count.
    loaded = LoadedSAE.load(str(runs[0] / "sae"), TextSettings(num_workers=0), whole_model=False)
    rows = loaded.held_out_rows(256)
    assert rows.roles is not None
    assert {0, 1} == set((rows.documents % 2).ravel().tolist())
    for batch, counted in loaded.reader().read(rows, "text", NullProgress()):
        assert batch.roles is not None
        roles = batch.roles.numpy().reshape(counted.shape)
        assert {ROLES[role] for role in np.unique(roles[counted])} == {"assistant", "text"}


def test_an_evaluation_has_figures_by_role_and_by_dataset(
    lightsae: Run, complete: Callable[..., list[str]], config: Path, tmp_path: Path
) -> None:
    run = run_of(lightsae, complete, config)
    validated = lightsae("validate", "--config", str(run / "config.yaml"), "--ckpt_path", "last")
    assert validated.code == 0, validated.err
    sizes = ("--tokens", "1024", "--ce_tokens", "1024", "--concepts", "none")
    ended = lightsae("evaluate", "--sae", str(run / "sae"), *sizes, "--out", "e.json", "--tensorboard", str(run))
    assert ended.code == 0, ended.err
    told = read_report(tmp_path / "e.json")[0]
    assert {"assistant", "user", "markup", "text"} == set(told.roles)
    assert {"chat", "texts"} == set(told.datasets)
    expected = json.loads(next(tmp_path.rglob("validation.json")).read_text())["figures"]
    compared = 0
    for group, figures in told.groups.items():
        for name in ("fve", "fve_no_sinks", "l0", "dead_fraction"):
            if (value := expected[f"val/{name}/{group}"]) is not None:
                assert figures[name].value == pytest.approx(value, rel=2e-4, abs=2e-6), (name, group)
                compared += 1
        assert figures["l0"].tokens == expected[f"val/tokens/{group}"]
    assert compared > 20
    # The predictions are shared out among the roles, and among the datasets.
    everything = told.figures["ce_clean"]
    for groups in (told.roles, told.datasets):
        costs = [figures["ce_clean"] for figures in groups.values()]
        assert sum(cost.tokens for cost in costs) == everything.tokens
        mean = sum(cost.value * cost.tokens for cost in costs) / everything.tokens
        assert mean == pytest.approx(everything.value, rel=1e-6)
    page = (tmp_path / "e.md").read_text()
    assert "| Role | `fve` |" in page
    assert "| Dataset | `fve` |" in page
    assert f"| assistant | {told.roles['assistant']['fve']} |" in page
    assert "role" in ended.out
    shown = EventAccumulator(str(run)).Reload().Tags()["scalars"]
    assert "evaluation/fve/assistant" in shown


@pytest.mark.parametrize("roles", [None, "[user, assistant, markup]"])
def test_a_dictionary_has_figures_by_role_and_so_has_its_dashboard(
    lightsae: Run, complete: Callable[..., list[str]], config: Path, tmp_path: Path, roles: str | None
) -> None:
    """Of the roles that the SAE was trained on, or of those that are named."""
    run = run_of(lightsae, complete, config)
    sizes = ("--tokens", "1024", "--score_tokens", "1024", "--mining_tokens", "1024", "--ablation_windows", "0")
    named = () if roles is None else ("--data.roles", roles)
    ended = lightsae(
        "interpret", "--sae", str(run / "sae"), "--out", "dictionary", *sizes, *named, "--num_workers", "0"
    )
    assert ended.code == 0, ended.err
    dictionary = FeatureDictionary.open("dictionary")
    tokens = dictionary.manifest["tokens"]
    assert set(tokens["by_role"]) == {"assistant", *(("text",) if roles is None else ("user", "markup"))}
    assert sum(tokens["by_role"].values()) == tokens["contexts"]

    # By hand, from the same text.
    loaded = LoadedSAE.load(
        str(run / "sae"), TextSettings(num_workers=0, roles=None if roles is None else yaml.safe_load(roles))
    )
    texts = Texts.read(loaded.corpus, loaded.main_model.vocabulary, tokens=1024, score_tokens=1024, mining_tokens=0)
    codes, fires = [], []
    for batch, counted in loaded.reader().read(texts.contexts, "text", NullProgress()):
        assert batch.roles is not None
        (x,) = batch.activations.values()
        codes.append(batch.roles.numpy()[counted.ravel()])
        fires.append(loaded.sae.encode(x).detach().numpy()[counted.ravel()] > 0)
    of_token, fired = np.concatenate(codes), np.concatenate(fires)
    rows, dashboard = dictionary.filter()["feature"].to_pylist(), _received(Path("dictionary"))
    for role, count in tokens["by_role"].items():
        here = of_token == ROLES.index(role)
        assert here.sum() == count
        shares = np.array([dictionary.feature(feature).row[f"{role}_share"] or 0.0 for feature in rows])
        expected = fired[here].sum(0) / np.maximum(1, fired.sum(0))
        assert shares == pytest.approx(expected[rows], abs=1e-6), role
        listed = dashboard["features"][f"{role}_share"]
        opened = [one[f"{role}_share"] for one in dashboard["features/0"]["features"]]
        for shown in (listed, opened):
            assert [value or 0.0 for value in shown] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6), role
    assert "tool_share" not in dashboard["features"]


def _received(folder: Path) -> dict[str, Any]:
    """Return what the scripts of a dashboard hand to its page, by name."""
    pattern = re.compile(r"lightsae\.receive\((\".*?\"),(.*)\)\n", re.DOTALL)
    found = [pattern.fullmatch(path.read_text()) for path in folder.rglob("*.js")]
    return {json.loads(one[1]): json.loads(one[2]) for one in found if one is not None}


def test_ids_with_a_mask_train_on_the_assistant_s(
    lightsae: Run, complete: Callable[..., list[str]], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    records = []
    for _ in range(80):
        ids, mask = draw.integers(2, 250, 30).tolist(), [0] * 10 + [1] * 20
        records.append({"input_ids": ids, "assistant_masks": mask})

    def fit() -> Any:
        Path("ids.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return lightsae("fit", *complete("data.dataset"), "--data.dataset", "ids.jsonl", "--data.roles", "[assistant]")

    ended = fit()
    assert ended.code == 0, ended.err
    run = Path("lightning_logs", "version_0")
    validated = lightsae("validate", "--config", str(run / "config.yaml"), "--ckpt_path", "last")
    assert validated.code == 0, validated.err
    figures = json.loads((run.parent / "version_1" / "validation.json").read_text())["figures"]
    assert {name for name in figures if name.startswith("val/fve/")} == {
        f"val/fve/{role}" for role in ("assistant", "other", "markup")
    }
    assert figures["val/tokens/assistant"] > figures["val/tokens/other"] > figures["val/tokens/markup"]
    records[3]["assistant_masks"] = [2] * 30
    ended = fit()
    assert ended.code == 2
    assert "data.dataset: an assistant_masks in ids.jsonl holds 2; write 1 where the assistant speaks" in ended.err


def test_roles_of_text_are_a_mistake(lightsae: Run, complete: Callable[..., list[str]]) -> None:
    ended = lightsae("fit", *complete(), "--data.roles", "[assistant]")
    assert ended.code == 2
    assert "data.roles is ['assistant'], but" in ended.err
    assert "holds no conversations; add text to train on all of it, or leave it out." in ended.err


def test_conversations_without_a_template_are_a_mistake(
    lightsae: Run, complete: Callable[..., list[str]], config: Path, tmp_path: Path
) -> None:
    ended = lightsae("fit", *complete("data.dataset"), "--data.dataset", str(tmp_path / "talks.jsonl"))
    assert ended.code == 2
    assert "data.dataset holds conversations, and the tokenizer of data.model has no chat template." in ended.err
    assert "(data.chat_template: template.jinja)" in ended.err


def test_a_cache_of_a_run_with_roles_is_refused(lightsae: Run, inputs: Path) -> None:
    Path("c.yaml").write_text(f"data: {{model: {inputs}/tiny, site: resid_post.1, roles: [assistant]}}")
    ended = lightsae(
        "cache", "--config", "c.yaml", "--data.dataset", f"{inputs}/text.jsonl", "--out", "x", "--tokens", "1024"
    )
    assert ended.code == 2
    assert "data.roles: a cache keeps neither datasets nor roles apart; leave it out." in ended.err
    assert not Path("x").exists()


def test_a_cache_of_a_run_on_a_mixture_is_refused(lightsae: Run, inputs: Path) -> None:
    Path("c.yaml").write_text(f"data: {{model: {inputs}/tiny, site: resid_post.1, datasets: [{{name: a.jsonl}}]}}")
    ended = lightsae("cache", "--config", "c.yaml", "--out", "x", "--tokens", "1024")
    assert ended.code == 2
    assert "data.datasets: a cache keeps neither datasets nor roles apart; leave it out." in ended.err
    assert not Path("x").exists()
