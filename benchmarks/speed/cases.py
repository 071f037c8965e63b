"""What is trained: a language model with random weights, rows of token ids, an SAE. Of both environments.

Axes: D width, F latents.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

MODEL, ROWS, CASE = "model", "rows.parquet", "case.json"


@dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        name: What the table calls it.
        variant: `TopK`, or `ReLU`: dense latents with an L1 penalty on their decoder norms.
        d_in: D, of a GPT-2.
        layers: Blocks of the GPT-2.
        heads: Of each.
        layer: The site: the residual stream leaving this block.
        d_sae: F.
        k: Latents per token of `TopK`.
        batch: Tokens a step.
        buffer: Tokens of a full buffer of activations.
        steps: At least so many are timed; each library's own cycle of fills is timed whole.
        targets: How many times as fast as a library ours is to be.
        context: Tokens in a row.
        rows_at_once: Rows in a forward pass of the language model.
        vocabulary: Tokens of the GPT-2.
    """

    name: str
    variant: str
    d_in: int
    layers: int
    heads: int
    layer: int
    d_sae: int
    k: int
    batch: int
    buffer: int
    steps: int
    targets: dict[str, float] = field(default_factory=dict)
    context: int = 128
    rows_at_once: int = 32
    vocabulary: int = 50257

    @property
    def steps_of_buffer(self) -> int:
        return self.buffer // self.batch

    def save(self, folder: Path) -> None:
        """Write the case with its language model and more rows than any library reads.

        The built-in model's tokenizer comes with it; ids are drawn from those that are nothing special.
        """
        import pyarrow
        import pyarrow.parquet
        from transformers import GPT2Config, GPT2LMHeadModel

        from lightsae import LanguageModel

        tokenizer = LanguageModel.from_pretrained("builtin").tokenizer
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=self.vocabulary,
            n_embd=self.d_in,
            n_layer=self.layers,
            n_head=self.heads,
            n_ctx=1024,  # TransformerLens asks for it
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        GPT2LMHeadModel(config).save_pretrained(folder / MODEL)
        tokenizer.save_pretrained(folder / MODEL)
        rows = 3 * self.buffer + 2 * (self.steps + 2 * self.steps_of_buffer) * self.batch
        highest = min(self.vocabulary, len(tokenizer))
        ids = torch.randint(len(tokenizer.all_special_ids), highest, (rows // self.context, self.context))
        pyarrow.parquet.write_table(pyarrow.table({"input_ids": ids.tolist()}), folder / ROWS)
        (folder / CASE).write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "Case":
        return cls(**json.loads((folder / CASE).read_text()))


_GPT2_SMALL = {"d_in": 768, "layers": 12, "heads": 12, "layer": 6, "batch": 2048, "buffer": 8192, "steps": 8}
_WIDTH_64: dict[str, Any] = {"d_in": 64, "layers": 4, "heads": 4, "layer": 2, "vocabulary": 512}
_WIDTH_64 |= {"variant": "TopK", "k": 16, "buffer": 65536, "targets": {"sae_lens": 4.0}}
CASES = (
    Case("GPT-2 small, ReLU 6,144", "ReLU", d_sae=6144, k=0, targets={"sae_lens": 1.35}, **_GPT2_SMALL),
    Case(
        "GPT-2 small, TopK 24,576",
        "TopK",
        d_sae=24576,
        k=32,
        targets={"sae_lens": 2.4, "sparsify": 2.2},
        **_GPT2_SMALL,
    ),
    Case("width 64, TopK 512", d_sae=512, batch=1024, steps=256, **_WIDTH_64),
    Case("width 64, TopK 1,024", d_sae=1024, batch=2048, steps=128, **_WIDTH_64),
)
_TINY: dict[str, Any] = {"d_in": 16, "layers": 2, "heads": 2, "layer": 0, "d_sae": 64, "batch": 64}
_TINY |= {"buffer": 256, "steps": 4, "context": 16, "rows_at_once": 8, "vocabulary": 256}
TINY = (
    Case("tiny, TopK", "TopK", k=4, targets={"sae_lens": 1.0}, **_TINY),
    Case("tiny, ReLU", "ReLU", k=0, **_TINY),
)
