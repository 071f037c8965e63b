"""Whose words the tokens are that a model reads: those of a conversation's messages, in the tokenizer's chat template.

Axes:  B rows, S columns of a pass.

A forward pass has token ids alone, so that somebody has to say which messages they were made of. What `generate` adds
to a conversation is the assistant's.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from lightsae.activations.corpus.conversation import ConversationWriter
from lightsae.activations.corpus.documents import Conversation, SpokenIds
from lightsae.activations.corpus.tokenise import Tokeniser
from lightsae.activations.roles import ASSISTANT, MARKUP, ROLES, TEXT, check_roles
from lightsae.errors import ConfigError, arg, under
from lightsae.production.monitor.thresholds import Thresholds
from lightsae.production.monitor.watcher import Pass


def is_conversation(value: Any) -> bool:
    """Return whether it is a list of messages."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(one, dict) for one in value)


class PromptWriter:
    """Turns messages into the ids that `apply_chat_template` makes of them, and says whose words each is.

    Args:
        tokenizer: A fast transformers tokenizer with a chat template; None if there is none.
        roles: Those that have to be told; None: the assistant.
        argument: What the caller calls the messages.
    """

    def __init__(self, tokenizer: Any, roles: Sequence[str] | None, argument: str) -> None:
        self._tokenizer, self._argument = tokenizer, argument
        self._roles = roles or [ROLES[ASSISTANT]]

    def write(self, conversation: Conversation) -> SpokenIds:
        """Return the ids of a conversation.

        Raises:
            ConfigError: A message has no role, or there is no chat template.
            CorpusError: The template does not take it, or nobody can tell roles in it.
        """
        if not is_conversation(conversation) or any("role" not in message for message in conversation):
            raise ConfigError(f"{arg(self._argument)}: a conversation is a list of messages with a role and a content.")
        with under(dataset=self._argument, model="tokenizer"):
            written = self._writer.write([{"content": None, **message} for message in conversation])
        encoded = self._tokeniser.submit([written])()
        return SpokenIds(encoded.ids, encoded.roles)

    def write_all(self, conversations: Conversation | Sequence[Conversation] | None) -> list[SpokenIds]:
        """Return the ids of one conversation, or of several; of None, none.

        Raises:
            ConfigError, CorpusError: As `write`.
        """
        several: Sequence[Any] = [conversations] if is_conversation(conversations) else conversations or []
        return [self.write(one) for one in several]

    @cached_property
    def _tokeniser(self) -> Tokeniser:
        return Tokeniser(self._tokenizer, num_workers=0)

    @cached_property
    def _writer(self) -> ConversationWriter:
        if not getattr(self._tokenizer, "chat_template", None):
            raise ConfigError(
                f"{arg(self._argument)} is a conversation, and the tokenizer has no chat template; give it one "
                "(tokenizer.chat_template = ...)."
            )
        return ConversationWriter(self._tokenizer, None, self._roles, as_prompt=True)


def watched_roles(roles: Sequence[str] | None, thresholds: Any) -> list[str] | None:
    """Return the roles whose tokens a monitor watches: those that its thresholds were calibrated on.

    Raises:
        ConfigError: Others are asked for, or one is not known.
    """
    check_roles(roles)
    if not isinstance(thresholds, Thresholds):
        return None if roles is None else list(roles)
    calibrated = thresholds.roles
    if roles is not None and set(roles) != set(calibrated or ROLES):
        of = "all tokens" if calibrated is None else f"those of {', '.join(calibrated)}"
        raise ConfigError(
            "roles", list(roles), f"the thresholds were calibrated on {of}: leave it out, or calibrate again"
        )
    return calibrated


def roles_of(
    one: Pass, positions: Int[Tensor, "B S"], conversations: Sequence[SpokenIds], wanted: Sequence[str] | None
) -> UInt8[Tensor, "B S"]:
    """Return whose words each watched token of a pass is; what follows a conversation, and is not generated, is markup.

    Args:
        one: The pass.
        positions: Of its tokens in their rows.
        conversations: Those that the rows begin with, in any order; none: the rows are text.
        wanted: Roles that are watched; None: all.

    Raises:
        ConfigError: A row begins with none of the conversations; or it is text, which is not wanted.
    """
    if not conversations:
        if wanted is not None and ROLES[TEXT] not in wanted:
            raise ConfigError(
                f"the tokens of {', '.join(wanted)} are watched, and nobody says whose words this text is; run the "
                "model within request(name, conversation=messages)."
            )
        return torch.full_like(one.tokens, TEXT, dtype=torch.uint8)
    parts = torch.stack([one.tokens, positions, one.watched.long(), one.generated.long().expand(one.tokens.shape)])
    tokens, places, watched, generated = parts.cpu().numpy()
    codes = np.where(generated > 0, ASSISTANT, MARKUP).astype(np.uint8)
    for row, of_row in enumerate(watched > 0):
        _tell(codes[row], of_row, tokens[row], places[row], conversations)
    return torch.from_numpy(codes).to(one.tokens.device)


def _tell(
    codes: NDArray[np.uint8],
    watched: NDArray[np.bool_],
    tokens: NDArray[np.int64],
    places: NDArray[np.int64],
    conversations: Sequence[SpokenIds],
) -> None:
    """Write the roles of a row's watched tokens, (S,), by the conversation that has most of them, as far as it goes."""
    most, told = -1, None
    for one in conversations:
        columns = np.flatnonzero(watched & (places < len(one)))
        if len(columns) > most and np.array_equal(one.ids[places[columns]], tokens[columns]):
            most, told = len(columns), (columns, one.roles[places[columns]])
    if told is None:
        raise ConfigError(
            f"{arg('conversation')} is not what the model reads: give the messages that apply_chat_template made the "
            "prompt of, with no other setting than add_generation_prompt."
        )
    codes[told[0]] = told[1]
