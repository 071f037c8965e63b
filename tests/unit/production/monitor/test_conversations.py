"""Monitors by role: whose words a token is, thresholds on the tokens of some roles, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.errors import refused
from lightsae.activations.roles import ROLES
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.reading.text import TextRows
from lightsae.errors import ConfigError, CorpusError
from lightsae.lm import LanguageModel
from lightsae.production.monitor import Alarm, Event, Firing, Thresholds, calibrate, monitor
from lightsae.production.monitor.conversations import PromptWriter
from lightsae.sae import SparseAutoencoder

WATCHED = [3, 4, 7]
ALL = dict.fromkeys(WATCHED, 0.0)
LAST_SPECIAL = 4
Talk = list[dict[str, Any]]
TALK: Talk = [
    {"role": "user", "content": "cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "on a"},
]
OTHER: Talk = [{"role": "user", "content": "mat"}]


def said(talk: Talk, role: str) -> int:
    """Letters that a role says."""
    return sum(len(message["content"]) for message in talk if message["role"] == role)


def prompt(tokenizer: Any, *talks: Talk) -> dict[str, Tensor]:
    made = tokenizer.apply_chat_template(
        list(talks), add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    return {name: made[name] for name in ("input_ids", "attention_mask")}


def texts(seed: int, n: int = 60, answers: str = "abcdefghij", questions: str = "abcdefghij") -> list[Talk]:
    """Answers and questions of random letters, the answers first: nothing of them depends on the questions.

    The model reads 32 tokens, and the longest of them has as many.
    """
    draw = np.random.default_rng(seed)

    def word(letters: str) -> str:
        return "".join(draw.choice(list(letters), int(draw.integers(3, 6))))

    return [
        [{"role": "assistant", "content": word(answers)}, {"role": "user", "content": word(questions)}]
        for _ in range(n)
    ]


def test_the_ids_are_those_of_the_template_with_their_roles(chat_tokenizer: Any) -> None:
    spoken = PromptWriter(chat_tokenizer, None, "texts").write(TALK)
    assert spoken.ids.tolist() == chat_tokenizer.apply_chat_template(TALK)["input_ids"]
    for role in ("user", "assistant"):
        ids = spoken.ids[spoken.roles == ROLES.index(role)]
        assert chat_tokenizer.decode(ids) == "".join(m["content"] for m in TALK if m["role"] == role)


@pytest.mark.parametrize("cache", [True, False])
def test_tokens_of_the_roles_alone_are_watched(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, chat_tokenizer: Any, cache: bool
) -> None:
    inputs = prompt(chat_tokenizer, TALK, OTHER)
    assert not inputs["attention_mask"].all(), "the shorter one is padded"
    seen: dict[str, list[Any]] = {}
    for name, roles in (("all", None), ("assistant", ["assistant"]), ("user", ["user"])):
        seen[name] = []
        with (
            monitor(
                lm, dictionary, sae=sae, features=WATCHED, thresholds=ALL, roles=roles, sinks=seen[name].append
            ) as watch,
            watch.request("r", [OTHER, TALK]),
        ):
            made = lm.model.generate(
                **inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0, use_cache=cache
            )
        generated = int((made[:, inputs["input_ids"].shape[1] : -1] > LAST_SPECIAL).sum())
        if roles is not None:
            of_prompt = sum(said(talk, name) for talk in (TALK, OTHER))
            assert watch.tokens == of_prompt + (generated if name == "assistant" else 0)
            assert watch.summary().roles == roles
            assert f"tokens of {name} watched" in str(watch)
        else:
            assert watch.tokens == int((made[:, :-1] > LAST_SPECIAL).sum())
            assert watch.summary().roles is None

    def told(events: list[Firing]) -> list[tuple[Any, ...]]:
        return [(e.row, e.position, e.feature, e.token, e.phase, e.role) for e in events]

    for role in ("assistant", "user"):
        assert told(seen[role]) == told([e for e in seen["all"] if e.role == role])
        assert seen[role]
    assert {e.role for e in seen["all"]} == {"assistant", "user", "markup"}
    assert all(e.role == "assistant" for e in seen["all"] if e.phase == "generated")


def test_a_second_turn_on_top_of_a_cache(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, chat_tokenizer: Any
) -> None:
    ids = prompt(chat_tokenizer, TALK)["input_ids"]
    first = prompt(chat_tokenizer, TALK[:1])["input_ids"].shape[1]
    with monitor(lm, dictionary, sae=sae, features=WATCHED, thresholds=ALL, roles=["user"]) as watch:
        with watch.request("r", TALK), torch.no_grad():
            cache = lm.model(ids[:, :first]).past_key_values
            lm.model(ids[:, first:], past_key_values=cache)
        assert watch.tokens == said(TALK, "user")


@pytest.mark.parametrize("roles", [["assistant"], ["user", "assistant"], ["text"], None])
def test_a_calibration_counts_the_tokens_of_the_roles(
    lm: LanguageModel,
    sae: SparseAutoencoder,
    dictionary: FeatureDictionary,
    chat_tokenizer: Any,
    tmp_path: Path,
    roles: list[str] | None,
) -> None:
    talks, plain = texts(0), ["abc abc abc", "bcd"] * 20
    found = calibrate(lm, dictionary, sae=sae, texts=[*talks, *plain], features=WATCHED, rates=[0.4], roles=roles)
    counted = {role: sum(said(talk, role) for talk in talks) for role in ("user", "assistant")}
    # The first token is an attention sink.
    counted["text"] = sum(len(text) - 1 for text in plain)
    if roles is not None:
        assert found.tokens == sum(counted[role] for role in roles)
    assert found.documents + found.held_out_documents == (40 if roles == ["text"] else 60 if roles else 100)
    assert found.roles == roles
    found.save(tmp_path / "thresholds.json")
    assert Thresholds.load(tmp_path / "thresholds.json") == found


def test_rows_of_a_corpus_bring_their_roles(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, chat_tokenizer: Any
) -> None:
    talks = [talk for talk in texts(0, 400) if said(talk, "user") == said(talk, "assistant") == 5]
    spoken = [PromptWriter(chat_tokenizer, None, "texts").write(talk) for talk in talks]
    tokens, roles = np.stack([one.ids for one in spoken]), np.stack([one.roles for one in spoken])
    numbers = np.arange(len(talks))
    rows = TextRows(tokens.astype(np.int32), np.repeat(numbers[:, None], tokens.shape[1], 1), numbers, roles)
    made = [
        calibrate(lm, dictionary, sae=sae, texts=each, features=WATCHED, rates=[0.4], roles=["assistant"])
        for each in (rows, talks)
    ]
    assert made[0] == made[1]
    assert made[0].tokens == 5 * len(talks)


def test_a_rule_about_the_speaker_is_a_concept_where_there_are_speakers(
    lm: LanguageModel,
    sae: SparseAutoencoder,
    make_dictionary: Callable[..., FeatureDictionary],
    chat_tokenizer: Any,
) -> None:
    rule = f'{{"patterns": [["speaker", {ROLES.index("user") + 1}]], "shares": [1.0]}}'

    def change(tables: dict[str, Any], _manifest: dict[str, Any]) -> None:
        labels = tables["labels"].to_pylist()
        for row in labels:
            row |= {"rule": rule, "passed": True} if row["feature"] == 3 else {"rule": None}
        tables["labels"] = tables["labels"].from_pylist(labels, schema=tables["labels"].schema)

    ruled, talks = make_dictionary(sae, "ruled", change), texts(0)
    found = calibrate(lm, ruled, sae=sae, texts=talks, features=[3], rates=[0.4], roles=["user", "assistant"])
    assert found.features[3].kind == "concept"
    users = sum(said(talk, "user") for talk in talks)
    assert found.features[3].concept_share == pytest.approx(users / found.tokens)
    plain = calibrate(lm, ruled, sae=sae, texts=["abc def ghi"] * 40, features=[3], rates=[0.4])
    assert plain.features[3].kind == "rate"


def test_drift_is_that_of_the_roles(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, chat_tokenizer: Any
) -> None:
    """What the user says may change as it likes; what the assistant says may not."""
    found = calibrate(lm, dictionary, sae=sae, texts=texts(0, 200), features=WATCHED, rates=[0.4], roles=["assistant"])
    told: list[Event] = []

    def run(talks: list[Talk]) -> None:
        told.clear()
        with monitor(
            lm,
            dictionary,
            sae=sae,
            features=WATCHED,
            thresholds=found,
            false_positive_rate=0.4,
            sinks=lambda e: told.append(e) if isinstance(e, Alarm) else None,
            drift_window=300,
        ) as watch:
            assert watch.summary().roles == ["assistant"]
            for number, talk in enumerate(talks):
                with watch.request(str(number), talk):
                    lm.logits(torch.tensor([chat_tokenizer.apply_chat_template(talk)["input_ids"]]))
            assert watch.tokens == sum(said(talk, "assistant") for talk in talks)

    run(texts(5, 120, questions="z"))
    assert not told
    run(texts(5, 120, answers="z"))
    assert {alarm.state for alarm in told if isinstance(alarm, Alarm)} == {"left"}
    assert all(alarm.roles == ["assistant"] for alarm in told if isinstance(alarm, Alarm))


def test_what_no_role_can_be_told_of_is_refused(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, chat_tokenizer: Any
) -> None:
    ids = prompt(chat_tokenizer, TALK)["input_ids"]
    before = lm.logits(ids)
    with monitor(lm, dictionary, sae=sae, features=WATCHED, thresholds=ALL, roles=["assistant"]) as watch:
        with refused(ConfigError, "^the tokens of assistant are watched, and nobody says whose words this text is;"):
            lm.logits(ids)
        with (
            refused(ConfigError, "^conversation is not what the model reads: give the messages"),
            watch.request("r", OTHER),
        ):
            lm.logits(ids)
        with (
            refused(ConfigError, "^conversation: a conversation is a list of messages with a role and a content"),
            watch.request("r", [{"content": "cat"}]),
        ):
            pass
        assert watch.tokens == 0
        with watch.request("r", TALK):
            assert torch.equal(lm.logits(ids), before)
        assert watch.tokens == said(TALK, "assistant")
    # Where text counts, that is what it is.
    seen: list[Any] = []
    with monitor(
        lm, dictionary, sae=sae, features=WATCHED, thresholds=ALL, roles=["assistant", "text"], sinks=seen.append
    ) as watch:
        lm.logits(ids)
    assert watch.tokens == int((ids > LAST_SPECIAL).sum())
    assert {e.role for e in seen} == {"text"}


def test_settings_that_do_not_fit_are_refused(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, chat_tokenizer: Any
) -> None:
    settings: dict[str, Any] = {"sae": sae, "features": WATCHED}
    calibration = {**settings, "texts": texts(0), "rates": [0.4]}
    found = calibrate(lm, dictionary, **calibration, roles=["assistant"])
    everything = calibrate(lm, dictionary, **calibration)

    def not_watched(typed: str, thresholds: Any, roles: list[str]) -> None:
        with (
            refused(ConfigError, typed),
            monitor(lm, dictionary, **settings, thresholds=thresholds, false_positive_rate=0.4, roles=roles),
        ):
            pass

    not_watched(r"^roles is \['user'\]; the thresholds were calibrated on those of assistant:", found, ["user"])
    not_watched(r"^roles is \['user'\]; the thresholds were calibrated on all tokens:", everything, ["user"])
    not_watched("^roles is 'asistant'; write some of .* assistant", found, ["asistant"])

    def not_calibrated(kind: Any, typed: str, **change: Any) -> None:
        with refused(kind, typed):
            calibrate(lm, dictionary, **{**calibration, "roles": ["assistant"], **change})

    not_calibrated(ConfigError, r"^roles is \['assistant'\]; but texts holds no conversations; give", texts=["abc"] * 9)
    not_calibrated(ConfigError, r"^roles is \['tool'\]; and no token of texts has one of them", roles=["tool"])
    not_calibrated(ConfigError, "^roles is 'me'; write some of", roles=["me"])
    chat_tokenizer.chat_template = "{{ raise_exception('no') }}"
    not_calibrated(CorpusError, "^texts: the chat template of tokenizer does not take a conversation")
    chat_tokenizer.chat_template = None
    not_calibrated(ConfigError, "^texts is a conversation, and the tokenizer has no chat template; give it one")
