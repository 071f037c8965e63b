"""Write a conversation out in a chat template, and say which stretches of the text are whose words.

Where the template has generation tags, they say what the assistant says. Else, and for the other roles, the
conversation is written out twice, once with a mark of one character before and behind what each message says; where the
marks come out, there are the messages. That a template trims, moves or leaves out content, adds a system message, or
writes an earlier turn without its thinking changes nothing in it. A template that decides by what a message begins or
ends with does not write the same text with marks in it, which is noticed.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightsae.activations.corpus.columns import as_encodable
from lightsae.activations.corpus.documents import Conversation
from lightsae.activations.roles import ASSISTANT, MARKUP, ROLES, code_of
from lightsae.compat import has_generation_tags, render_chat
from lightsae.errors import CorpusError, arg, reading

Span = tuple[int, int, int]  # first character, the one after the last, role
# Of a plane for private use: each message has a mark before a text, one within it, and one behind it.
_MARKS = 0x100000
_MARKED_MESSAGES = 20_000
_IS_MARK = re.compile(f"[{chr(_MARKS)}-{chr(_MARKS + 3 * _MARKED_MESSAGES)}]")
_BEFORE, _WITHIN, _BEHIND = range(3)
# What else of a message templates write out.
_MORE_TEXT = ("reasoning_content", "reasoning", "thinking")
# A template that writes today's date would make another text of a run that goes on tomorrow.
_DAY = date(2024, 7, 26)
_TODAY = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")


@dataclass(frozen=True)
class Written:
    """A conversation as text.

    Attributes:
        text: Without the BOS and EOS around it, which rows have of their own.
        spans: Stretches of it with a role, in no order; where two share a character the later one counts.
        closing: Role of an EOS that the template put at the end.
    """

    text: str
    spans: tuple[Span, ...]
    closing: int = MARKUP

    def __len__(self) -> int:
        return len(self.text)


class ConversationWriter:
    """Writes conversations out in a tokenizer's chat template.

    Args:
        tokenizer: A transformers tokenizer.
        template: File of a chat template that takes the place of the tokenizer's own.
        roles: Those that are needed: where they cannot be told, an error is raised rather than a warning.
        as_prompt: Write the text that `apply_chat_template` does, with the BOS and EOS around it and today's date.

    Raises:
        CorpusError: There is no template; or roles are needed, and the tokenizer cannot say where a token stands.
    """

    def __init__(
        self, tokenizer: Any, template: str | None, roles: Sequence[str] | None, *, as_prompt: bool = False
    ) -> None:
        # Those that the tags do not tell.
        self._needed, self._needed_beside_tags = bool(roles), bool(set(roles or ()) - {ROLES[ASSISTANT]})
        # A slow one does not say which characters a token is made of.
        self._locates = getattr(tokenizer, "backend_tokenizer", None) is not None
        if roles and not self._locates:
            raise CorpusError(
                f"{arg('roles')}: the tokenizer of {arg('model')} does not say where in the text a token stands; save "
                "a fast one (tokenizer.json) beside the weights."
            )
        self._template, self._special = _template_of(tokenizer, template), dict(tokenizer.special_tokens_map)
        # What is taken off the ends of a text.
        self._bos = self._eos = ""
        if not as_prompt:
            self._template = _TODAY.sub(lambda found: json.dumps(_DAY.strftime(found["format"])), self._template)
            self._special = {"date_string": _DAY.strftime("%d %b %Y"), **self._special}
            self._bos, self._eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        self._told_any = self._warned = False

    def write(self, conversation: Conversation) -> Written | str:
        """Return the conversation in the template; text alone where the tokenizer does not say where a token stands.

        Raises:
            CorpusError: The template does not take it; or roles are needed, and can be told neither in it nor in one
                before it.
        """
        try:
            text, generated = render_chat(self._template, conversation, self._special)
        except Exception as error:  # a template is a program, which raises what it likes
            reason = " ".join(str(error).split())[:160].rstrip(".")
            raise CorpusError(
                f"{arg('dataset')}: the chat template of {arg('model')} does not take a conversation ({reason}). Its "
                f"roles are {', '.join(str(message['role']) for message in conversation[:6])}."
            ) from None
        if not self._locates:
            return self._without_ends(text, None)
        spans = self._spans(conversation, text)
        tagged = has_generation_tags(self._template)
        if spans is None:
            self._say_unknown(conversation, needed=self._needed_beside_tags if tagged else self._needed)
        self._told_any |= spans is not None
        spans = [span for span in spans or [] if not tagged or span[2] != ASSISTANT]
        return self._without_ends(text, [*spans, *((start, end, ASSISTANT) for start, end in generated)])

    def _without_ends(self, text: str, spans: list[Span] | None) -> Written | str:
        """Take off the BOS and EOS around it: rows have a BOS of their own, and an EOS between documents."""
        start = len(self._bos) if text.startswith(self._bos) else 0
        end = len(text) - (len(self._eos) if text.endswith(self._eos) else 0)
        inner = as_encodable(text[start:end])
        if spans is None:
            return inner
        closing = next((role for _, last, role in reversed(spans) if end < len(text) and last > end), MARKUP)
        inside = ((max(first, start) - start, min(last, end) - start, role) for first, last, role in spans)
        return Written(inner, tuple(span for span in inside if span[0] < span[1]), closing)

    def _spans(self, conversation: Conversation, text: str) -> list[Span] | None:
        """Return which stretches of the text each message says; None where marks change more than themselves."""
        if len(conversation) > _MARKED_MESSAGES or _IS_MARK.search(text):
            return None
        for everything in (True, False):
            # Around white space first, which belongs to a message unless the template trims it.
            for inside in (False, True):
                marked = [_marked(message, i, everything, inside) for i, message in enumerate(conversation)]
                try:
                    with_marks, _ = render_chat(self._template, marked, self._special)
                except Exception:  # it refuses what it cannot know, such as the id of a call
                    continue
                if _IS_MARK.sub("", with_marks) == text and (found := _between_marks(with_marks)) is not None:
                    return [(start, end, code_of(conversation[i]["role"])) for start, end, i in found]
        return None

    def _say_unknown(self, conversation: Conversation, *, needed: bool) -> None:
        """Say that roles cannot be told; a single conversation among others does not end a run."""
        found = (
            f"{arg('dataset')}: the chat template of {arg('model')} writes other text where a message begins and ends "
            f"with a mark, so that roles cannot be told in a conversation ({str(conversation[0])[:80]} ...)"
        )
        advice = f"Put generation tags into it, and name its file ({arg('chat_template')})"
        if needed and not self._told_any:
            raise CorpusError(f"{found}. {advice}, or leave {arg('roles')} out.")
        if not self._warned:
            rank_zero_warn(str(CorpusError(f"{found}; its tokens count as {ROLES[MARKUP]}. {advice}.")))
            self._warned = True


def _marked(message: dict[str, Any], number: int, everything: bool, inside: bool) -> dict[str, Any]:
    """Return a message with marks around its texts: inside or outside of their white space.

    Args:
        message: With a content.
        number: Its place in the conversation.
        everything: Mark the thinking and the calls of tools too, beside the content.
        inside: Put marks inside of the white space around a text.
    """
    before, within, behind = (chr(_MARKS + 3 * number + kind) for kind in (_BEFORE, _WITHIN, _BEHIND))

    def mark(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: mark(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [mark(inner) for inner in value]
        if not isinstance(value, str) or not value.strip():
            return value  # a text that is empty must stay so: templates ask
        # What comes before the end of the thinking may be left out, and the mark with it.
        said = re.sub(r"</?think>\s*", lambda tag: tag[0] + within, value.rstrip())
        first = len(said) - len(said.lstrip()) if inside else 0
        end = value[len(value.rstrip()) :]
        return f"{said[:first]}{before}{said[first:]}" + (f"{behind}{end}" if inside else f"{end}{behind}")

    marked = {**message, "content": mark(message["content"])}
    if everything:
        marked |= {key: mark(message[key]) for key in _MORE_TEXT if key in message}
        if message.get("tool_calls"):
            marked["tool_calls"] = [
                {**call, "function": mark(call["function"])} if isinstance(call, dict) and "function" in call else call
                for call in message["tool_calls"]
            ]
    return marked


def _between_marks(text: str) -> list[Span] | None:
    """Return (first character, the one after the last, message) of what stands between marks, in text without them.

    What a message says in several places with nothing of another in between counts as one piece: its thinking, its
    answer and its calls. None where a piece has lost its end.
    """
    marks = [
        (place - earlier, *divmod(ord(text[place]) - _MARKS, 3))
        for earlier, place in enumerate(found.start() for found in _IS_MARK.finditer(text))
    ]
    plain, spans = _IS_MARK.sub("", text), []
    for message, group in groupby(marks, key=itemgetter(1)):
        pieces = list(group)
        (start, _, first), (end, _, last) = pieces[0], pieces[-1]
        if first == _BEHIND or last != _BEHIND:
            return None
        # Thinking that is written out anew loses the mark before it.
        if first == _WITHIN and plain[:start].rstrip().endswith("<think>"):
            start = plain.rindex("<think>", 0, start)
        spans.append((start, end, message))
    return spans


def _template_of(tokenizer: Any, file: str | None) -> str:
    """Return the text of a file, or the tokenizer's own template.

    Raises:
        CorpusError: There is neither.
    """
    if file is not None:
        with reading(CorpusError, f"{arg('chat_template')} is {file!r}, which cannot be read"):
            return Path(file).expanduser().read_text(encoding="utf-8")
    if not getattr(tokenizer, "chat_template", None):
        raise CorpusError(
            f"{arg('dataset')} holds conversations, and the tokenizer of {arg('model')} has no chat template. Name a "
            f"file with one ({arg('chat_template')}: template.jinja), such as the chat model's; or a column of text "
            f"({arg('text_column')})."
        )
    with reading(CorpusError, f"the tokenizer of {arg('model')} has no default chat template"):
        template: str = tokenizer.get_chat_template(None)
    return template
