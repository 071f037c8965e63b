"""A tiny GPT-2, a corpus with concepts, and a dictionary at `resid_pre.0` made by hand to detect them.

Axes: V vocabulary, P positions of a row, D width, F latents.

`resid_pre.0` is the sum of a token's embedding and a position's. There are fewer of both than D, so that linear algebra
gives an encoder which fires on exactly the tokens, or positions, that it is told to. Words are whole tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lightsae.formats.native import save_sae
from lightsae.sae import ReLU, SiteRef, SparseAutoencoder, Widths

SCRIPT, IMAGE = " <script>alert(1)</script>", " </script><img/src=x/onerror=alert(2)>"
RED, DIGITS, ANIMALS = [" red"], [f" {i}" for i in range(10)], [" cat", " cow", " dog"]
FILLERS = [f" {word}" for word in "the a of and to in it on by at as or an be we he".split()]
WORDS = [*RED, *DIGITS, *ANIMALS, SCRIPT, IMAGE, *FILLERS]
# How often each of a group is drawn.
CHANCES = [0.05, *[0.012] * 10, *[0.03] * 3, *[0.02] * 2]
CONTEXT, WIDTH, DOCUMENTS = 32, 72, 500
# The latents by number. The one on positions fires at places that no pattern of the text tells.
ON_RED, ON_DIGITS, ON_ANIMALS, ON_SCRIPT, ON_IMAGE, ON_POSITIONS, DEAD, ON_FILLER = range(8)
TOKENS_OF = {
    ON_RED: RED,
    ON_DIGITS: DIGITS,
    ON_ANIMALS: ANIMALS,
    ON_SCRIPT: [SCRIPT],
    ON_IMAGE: [IMAGE],
    ON_FILLER: FILLERS[:1],
}
D_SAE = 8


@dataclass(frozen=True)
class Planted:
    """Folders of a model and of dictionaries at its site, and the corpus.

    Attributes:
        sae: The dictionary with the planted latents.
        permuted: The same with its latents in the order of `order`.
        stranger: Its latents fire on other words, in other directions.
    """

    model: Path
    corpus: Path
    sae: Path
    permuted: Path
    stranger: Path
    order: list[int]
    site: SiteRef


def plant(folder: Path) -> Planted:
    """Write everything to a folder."""
    model, corpus = folder / "model", folder / "corpus.jsonl"
    embedding = _write_model(model)
    _write_corpus(corpus)
    site = SiteRef(str(model), "resid_pre.0")
    data = {"dataset": str(corpus), "context_size": CONTEXT, "validation_fraction": 0.5, "model": str(model)}
    provenance = {"config": yaml.safe_dump({"data": data})}
    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(2 * D_SAE, WIDTH, generator=draw), dim=1)
    order = torch.randperm(D_SAE, generator=draw).tolist()

    def save(name: str, strengths: torch.Tensor, rows: torch.Tensor) -> Path:
        save_sae(dictionary(site, embedding, strengths, rows), folder / name, provenance)
        return folder / name

    wanted = _wanted()
    others = torch.zeros_like(wanted)
    for latent, word in enumerate(FILLERS[2 : 2 + D_SAE]):
        others[latent, _token(word)] = 1.0
    return Planted(
        model,
        corpus,
        save("sae", wanted, directions[:D_SAE]),
        save("permuted", wanted[order], directions[:D_SAE][order]),
        save("stranger", others, directions[D_SAE:]),
        order,
        site,
    )


def dictionary(
    site: SiteRef, embedding: torch.Tensor, strengths: torch.Tensor, directions: torch.Tensor
) -> SparseAutoencoder:
    """Return a dictionary whose latent i fires with strengths[i, j] - 0.5, where above 0, on token or position j."""
    sae = ReLU(Widths.autoencoder(site, WIDTH), d_sae=len(strengths))
    with torch.no_grad():
        sae.W_enc.copy_((torch.linalg.pinv(embedding.double()) @ strengths.T.double()).float())
        sae.b_enc.fill_(-0.5)
        sae.W_dec.copy_(directions)
        sae.b_dec.zero_()
    return sae


def _token(word: str) -> int:
    return 2 + WORDS.index(word)


def _wanted() -> torch.Tensor:
    """(F, V + P) how strongly each latent is to listen to each token and position."""
    tokens = 2 + len(WORDS)
    wanted = torch.zeros(D_SAE, tokens + CONTEXT)
    for latent, words in TOKENS_OF.items():
        for place, word in enumerate(words):
            wanted[latent, _token(word)] = 1.0 + 0.1 * place  # strata have something to tell apart
    chosen = np.random.default_rng(3).choice(np.arange(1, CONTEXT), 8, replace=False)
    wanted[ON_POSITIONS, tokens + torch.from_numpy(chosen)] = 1.0
    return wanted


def _write_model(folder: Path) -> torch.Tensor:
    """Write the model; return (V + P, D) the embeddings of tokens and positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=WIDTH, n_inner=24, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        for table in (model.transformer.wte, model.transformer.wpe):
            table.weight.copy_(torch.randn(table.weight.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return torch.cat([model.transformer.wte.weight, model.transformer.wpe.weight]).detach()


def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<bos>", "<eos>", *WORDS])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(" [^ ]+"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")


def _write_corpus(path: Path) -> None:
    draw = np.random.default_rng(1)
    rest = (1 - sum(CHANCES)) / len(FILLERS)
    chances = [*CHANCES, *[rest] * len(FILLERS)]
    texts = ["".join(draw.choice(WORDS, draw.integers(20, 80), p=chances)) for _ in range(DOCUMENTS)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
