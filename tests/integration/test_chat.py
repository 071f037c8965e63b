"""Conversations and plain text in one run: the roles' tokens alone, stopped and resumed to the same bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.chat_templates import ZEPHYR
from lightsae.activations.roles import ROLES
from lightsae.analysis.reading.loaded_sae import LoadedSAE, TextSettings
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
