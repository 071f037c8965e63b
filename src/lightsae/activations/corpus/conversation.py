"""Write a conversation out as the text that a language model reads."""

from typing import Any

from lightsae.activations.corpus.columns import as_encodable
from lightsae.activations.corpus.documents import Conversation
from lightsae.errors import CorpusError, arg


def written_out(conversation: Conversation, tokenizer: Any) -> str:
    """Return the messages in the tokenizer's chat template; without one, as paragraphs `role: content`.

    Raises:
        CorpusError: The template does not take them.
    """
    if not getattr(tokenizer, "chat_template", None):
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in conversation)
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
    except Exception as error:  # a template is a program, which raises what it likes
        reason = " ".join(str(error).split())[:160].rstrip(".")
        raise CorpusError(
            f"{arg('dataset')}: the chat template of {arg('model')} does not take a conversation ({reason}). Its roles "
            f"are {', '.join(str(message['role']) for message in conversation[:6])}."
        ) from None
    # Rows have a BOS of their own, and an EOS between documents.
    return as_encodable(text.removeprefix(tokenizer.bos_token or "").removesuffix(tokenizer.eos_token or ""))
