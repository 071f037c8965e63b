"""Whose words a token is: held against transformers' own masks, and against texts that say it themselves."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers.chat_templates import CHATML, LLAMA_3, LOOKS, TEMPLATES, THINKS, without_tags
from helpers.errors import refused
from lightsae.activations.corpus.conversation import ConversationWriter, Written
from lightsae.activations.corpus.rows import RowSource
from lightsae.activations.corpus.token_rows import TokenRows
from lightsae.activations.corpus.tokenise import Tokeniser
from lightsae.activations.roles import ROLES
from lightsae.activations.settings import DataSettings
from lightsae.errors import CorpusError
from lightsae.lm.vocabulary import Vocabulary

MARKERS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "[INST]", "[/INST]", "<|end|>"]
TALKS: dict[str, list[dict[str, Any]]] = {
    "plain": [
        {"role": "user", "content": "the cat sat on user"},
        {"role": "assistant", "content": "assistant: a mat, Größe 数据 x"},
        {"role": "user", "content": "model"},
        {"role": "assistant", "content": "a"},
    ],
    "system": [
        {"role": "system", "content": "the mat is a cat"},
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "sat"},
        {"role": "user", "content": "a cat"},
        {"role": "assistant", "content": "sat"},
    ],
    "white space": [
        {"role": "user", "content": "\n the cat  "},
        {"role": "assistant", "content": "  sat\n\n"},
        {"role": "user", "content": "  "},
        {"role": "assistant", "content": "the <|im_end|> 🙂 mat"},
    ],
    "thinking": [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "<think>\nthe mat\n</think>\n\nsat"},
        {"role": "user", "content": "a cat"},
        {"role": "assistant", "content": "<think>the cat</think>on a mat"},
    ],
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=MARKERS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["the cat sat on a mat", "assistant user model system"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def template_file(folder: Path, template: str) -> str:
    (folder / "template.jinja").write_text(template)
    return str(folder / "template.jinja")


def written(tokenizer: Any, folder: Path, template: str, talk: list[dict[str, Any]]) -> Written:
    text = ConversationWriter(tokenizer, template_file(folder, template), ["assistant", "user"]).write(talk)
    assert isinstance(text, Written)
    return text


def roles_of(tokenizer: Any, text: Written) -> tuple[list[int], list[str]]:
    encoded = Tokeniser(tokenizer, 0).submit([text])()
    return encoded.ids.tolist(), [ROLES[code] for code in encoded.roles]


def said_by(tokenizer: Any, text: Written, role: str) -> str:
    ids, roles = roles_of(tokenizer, text)
    return str(tokenizer.decode([token for token, of in zip(ids, roles, strict=True) if of == role]))


# -- against transformers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("talk", TALKS)
def test_the_assistants_tokens_are_those_of_transformers(tokenizer: Any, tmp_path: Path, name: str, talk: str) -> None:
    template = TEMPLATES[name].replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    theirs = tokenizer.apply_chat_template(
        TALKS[talk], chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = theirs["input_ids"], theirs["assistant_masks"]
    assert 0 < sum(mask) < len(mask)
    text = written(tokenizer, tmp_path, TEMPLATES[name], TALKS[talk])
    our_ids, roles = roles_of(tokenizer, text)
    ours = [role == "assistant" for role in roles]
    # Rows have a BOS of their own, and a separator with the role that an EOS at the end had.
    if ids[0] == tokenizer.bos_token_id:
        ids, mask = ids[1:], mask[1:]
    if ids[-1] == tokenizer.eos_token_id:
        our_ids, ours = [*our_ids, tokenizer.eos_token_id], [*ours, ROLES[text.closing] == "assistant"]
    assert our_ids == ids
    assert ours == [bool(one) for one in mask]


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "mistral"])
@pytest.mark.parametrize("talk", TALKS)
def test_without_tags_the_roles_are_the_same(tokenizer: Any, tmp_path: Path, name: str, talk: str) -> None:
    with_tags = written(tokenizer, tmp_path, TEMPLATES[name], TALKS[talk])
    bare = written(tokenizer, tmp_path, without_tags(TEMPLATES[name]), TALKS[talk])
    assert bare.text == with_tags.text
    assert roles_of(tokenizer, bare) == roles_of(tokenizer, with_tags)


def test_an_eos_after_a_turn_is_the_assistants_only_where_tags_say_so(tokenizer: Any, tmp_path: Path) -> None:
    tagged = written(tokenizer, tmp_path, TEMPLATES["mistral"], TALKS["plain"])
    bare = written(tokenizer, tmp_path, without_tags(TEMPLATES["mistral"]), TALKS["plain"])
    assert bare.text == tagged.text
    assert (ROLES[tagged.closing], ROLES[bare.closing]) == ("assistant", "markup")
    assert said_by(tokenizer, tagged, "assistant") == said_by(tokenizer, bare, "assistant").replace("x a", "x</s> a")


# -- every role --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_role_has_its_words_and_headers_are_nobodys(tokenizer: Any, tmp_path: Path, name: str) -> None:
    template = without_tags(TEMPLATES[name])
    said = {
        role: said_by(tokenizer, written(tokenizer, tmp_path, template, TALKS["system"]), role)
        for role in ("system", "user", "assistant", "tool")
    }
    # Mistral's space between marker and word is of the word's token.
    words = {role: text.replace("cat", "cat ").replace("sat", "sat ").split() for role, text in said.items()}
    assert {role: " ".join(text) for role, text in words.items()} == {
        "system": "the mat is a cat", "user": "the cat a cat", "assistant": "sat sat", "tool": "",
    }  # fmt: skip


def test_a_tool_and_who_is_nobody_known(tokenizer: Any, tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "the cat"},
        {"role": "tool", "content": 'a "mat"'},
        {"role": "narrator", "content": "sat"},
    ]
    text = written(tokenizer, tmp_path, without_tags(LLAMA_3), talk)
    assert said_by(tokenizer, text, "tool") == 'a \\"mat\\"'
    assert said_by(tokenizer, text, "other") == "sat"


def test_thinking_that_is_left_out_or_written_anew(tokenizer: Any, tmp_path: Path) -> None:
    text = written(tokenizer, tmp_path, without_tags(THINKS), TALKS["thinking"])
    assert said_by(tokenizer, text, "assistant") == "sat<think>\nthe cat\n</think>\n\non a mat"


def test_calls_of_tools_are_the_assistants(tokenizer: Any, tmp_path: Path) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "look", "arguments": {"at": "the mat"}}}
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat", "tool_calls": [call]}]
    text = written(tokenizer, tmp_path, without_tags(THINKS), talk)
    assert said_by(tokenizer, text, "assistant") == 'sat<tool_call>{"name": "look", "arguments": {"at": "the mat'


def test_a_long_conversation_is_tokenised_in_pieces(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = [{"role": role, "content": f"the cat\n{i} sat\n"} for i in range(9) for role in ("user", "assistant")]
    text = written(tokenizer, tmp_path, CHATML, talk)
    whole = said_by(tokenizer, text, "assistant")
    assert whole.count("sat") == 9
    monkeypatch.setattr("lightsae.activations.corpus.tokenise.PIECE_CHARACTERS", 30)
    assert said_by(tokenizer, text, "assistant") == whole


def test_all_bytes_of_a_characters_tokens_have_its_role(tokenizer: Any, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "🙂"}]
    assert said_by(tokenizer, written(tokenizer, tmp_path, CHATML, talk), "assistant") == "🙂"


# -- what cannot be told -----------------------------------------------------------------------------------------------


def test_a_template_that_looks_at_marks(tokenizer: Any, tmp_path: Path) -> None:
    template = template_file(tmp_path, LOOKS)
    with refused(CorpusError, r"the chat template of model writes other text .* or leave roles out"):
        ConversationWriter(tokenizer, template, ["user"]).write(TALKS["plain"])
    writer = ConversationWriter(tokenizer, template, None)
    with pytest.warns(UserWarning, match="its tokens count as markup"):
        text = writer.write(TALKS["plain"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert writer.write(TALKS["plain"]) == text
    assert text == Written("Athe cat sat on userBassistant: a mat, Größe 数据 xBmodelBa", ())
    # One conversation among others ends no run.
    writer = ConversationWriter(tokenizer, template, ["user"])
    assert isinstance(writer.write([{"role": "user", "content": "a cat"}]), Written)
    with pytest.warns(UserWarning, match="its tokens count as markup"):
        writer.write(TALKS["plain"])
    # Tags say what the assistant says, whatever becomes of the others.
    tagged = LOOKS.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    writer = ConversationWriter(tokenizer, template_file(tmp_path, tagged), ["assistant"])
    with pytest.warns(UserWarning, match="its tokens count as markup"):
        assert isinstance(writer.write(TALKS["plain"]), Written)


def test_the_day_on_which_a_run_goes_on_is_in_no_text(tokenizer: Any, tmp_path: Path) -> None:
    assert "Today is 26 Jul 2024" in written(tokenizer, tmp_path, LLAMA_3, TALKS["plain"]).text
    dated = "{{ date_string }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert written(tokenizer, tmp_path, dated, TALKS["plain"]).text.startswith("26 Jul 2024")


def test_no_template_or_none_that_can_be_read(tokenizer: Any, tmp_path: Path) -> None:
    with refused(CorpusError, r"the tokenizer of model has no chat template\. Name a file with one \(chat_template"):
        ConversationWriter(tokenizer, None, None)
    with refused(CorpusError, r"chat_template is 'nowhere\.jinja', which cannot be read"):
        ConversationWriter(tokenizer, "nowhere.jinja", None)


def test_a_slow_tokenizer_says_no_roles(tokenizer: Any, tmp_path: Path) -> None:
    class Slow:
        chat_template, bos_token, eos_token, special_tokens_map = CHATML, None, None, {}

        def get_chat_template(self, chat_template: None) -> str:
            return CHATML

    with refused(CorpusError, r"roles: the tokenizer of model does not say where"):
        ConversationWriter(Slow(), None, ["user"])
    assert isinstance(ConversationWriter(Slow(), None, None).write(TALKS["plain"]), str)


# -- rows --------------------------------------------------------------------------------------------------------------


def write_talks(folder: Path, count: int = 40) -> str:
    talks = [
        [{"role": "user", "content": f"the cat {i}"}, {"role": "assistant", "content": f"sat on {i * i}"}]
        for i in range(count)
    ]
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return str(path)


def source_of(folder: Path, tokenizer: Any, template: str = TEMPLATES["mistral"], workers: int = 0) -> RowSource:
    settings = DataSettings(
        dataset=write_talks(folder), validation_fraction=0.1, context_size=8, num_workers=workers,
        chat_template=template_file(folder, template), roles=["assistant"],
    )  # fmt: skip
    return RowSource(settings, Vocabulary.of(tokenizer), "train")


def test_the_roles_of_rows_are_those_of_their_tokens(tokenizer: Any, tmp_path: Path) -> None:
    source = source_of(tmp_path, tokenizer)
    rows = source.take(60)
    source.close()
    assert rows.roles is not None
    assert source.epoch == 0
    assert not rows.roles[:, 0].any(), "a row's BOS is markup"
    tokens, roles = rows.tokens[:, 1:].ravel(), rows.roles[:, 1:].ravel()
    said = tokenizer.decode(tokens[roles == ROLES.index("assistant")].tolist())
    first = [text.split()[-1] for text in said.split("</s>")][:5]
    assert all(int(number) ** 0.5 % 1 == 0 for number in first), said
    assert said.startswith(" sat on ")
    assert "the cat" not in said


@pytest.mark.parametrize("stop", [1, 7, 30])
def test_resumed_rows_have_the_same_roles(
    tokenizer: Any, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightsae.activations.corpus.rows._CHUNK_DOCUMENTS", 3)
    whole = source_of(tmp_path, tokenizer)
    expected = TokenRows.joined([whole.take(5) for _ in range(20)])  # more than once through the corpus
    again = source_of(tmp_path, tokenizer, workers=2)
    before = again.take(stop)
    state = json.loads(json.dumps(again.state_dict()))
    after = source_of(tmp_path, tokenizer)
    after.load_state_dict(state)
    rows = TokenRows.joined([before, after.take(100 - stop)])
    for source in (whole, again, after):
        source.close()
    assert np.array_equal(rows.tokens, expected.tokens)
    assert rows.roles is not None
    assert expected.roles is not None
    assert np.array_equal(rows.roles, expected.roles)


def test_text_has_no_roles(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"the cat {i}"}) + "\n" for i in range(40)))
    settings = DataSettings(dataset=str(tmp_path / "a.jsonl"), context_size=8, num_workers=0)
    assert RowSource(settings, Vocabulary.of(tokenizer), "train").take(3).roles is None
