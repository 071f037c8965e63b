"""A causal Hugging Face model on this machine as the judge."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from lightsae.analysis.labels.llm.judge import Answer, AskError, Message
from lightsae.errors import ModelError, under
from lightsae.lm import LanguageModel


class LocalJudge:
    """A causal Hugging Face model on this machine, one question at a time, decoded greedily.

    Args:
        name: Hub name or local folder.
        device: Where it runs.
        dtype: float32, bfloat16, float16, or auto.

    Raises:
        ModelError: It cannot be loaded, or predicts no next token.
    """

    def __init__(self, name: str, *, device: str = "cpu", dtype: str = "auto") -> None:
        self.name = f"hf:{name}"
        self.identity = f"{self.name} {_weights_mark(Path(name).expanduser())}"
        with under(name_or_path="judge"):
            self._lm = LanguageModel.from_pretrained(name, device=device, dtype=dtype)
            self._tokenizer = self._lm.tokenizer
        if not self._lm.has_next_token_head:
            raise ModelError(f"The judge is 'hf:{name}', which predicts no next token; name a causal language model.")
        self._turn: asyncio.Lock | None = None

    async def ask(self, messages: Sequence[Message], *, max_tokens: int) -> Answer:
        self._turn = self._turn or asyncio.Lock()
        async with self._turn:
            return await asyncio.to_thread(self._generate, messages, max_tokens)

    async def close(self) -> None:
        self._turn = None  # belongs to one event loop

    def _generate(self, messages: Sequence[Message], max_tokens: int) -> Answer:
        ids = self._ids(messages)
        longest = self._lm.max_context
        if longest is not None and len(ids) + max_tokens > longest:
            raise AskError("longer than the model's context")
        prompt = torch.tensor([ids], device=self._lm.device)
        # A pad token is asked for, and in a single row never used.
        pad = self._lm.eos_token_id if self._lm.eos_token_id is not None else 0
        with torch.inference_mode():
            output = self._lm.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=max_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad,
            )
        answer = output[0, len(ids) :].tolist()
        text = self._tokenizer.decode(answer, skip_special_tokens=True)
        if not text.strip():
            raise AskError("empty answer")
        return Answer(text, len(ids), len(answer))

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        turns, joined = [dict(m) for m in messages], "\n\n".join(m["content"] for m in messages)
        if not self._tokenizer.chat_template:
            # A model without chat turns goes on with a text.
            return list(self._tokenizer(f"{joined}\n\nAnswer:")["input_ids"])
        chat = partial(self._tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
        try:
            text = chat(turns)
        except Exception:  # templates raise what they like; several know no system turn
            text = chat([{"role": "user", "content": joined}])
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _weights_mark(folder: Path) -> str:
    """Return what tells two versions of a local folder's weights apart; nothing for a Hub name."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return " ".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
