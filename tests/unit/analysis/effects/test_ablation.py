"""Ablation against one unpadded pass a window, written out: padded windows, windows that open with BOS, transcoders."""

import numpy as np
import pytest
import torch

from lightsae.analysis.effects.ablation import ablation_effects
from lightsae.analysis.reading.firings import BEFORE, NO_TOKEN, WIDTH, Windows
from lightsae.errors import ModelError, SiteError
from lightsae.lm import LanguageModel
from lightsae.sae import JumpReLU, Refinements, ReLU, SiteRef, SparseAutoencoder, TopK, Transcoder, Widths
from lightsae.sae.mechanisms import MECHANISMS

BOS, F = 1, 12


@pytest.fixture(scope="module")
def lm(tiny_folder) -> LanguageModel:
    return LanguageModel.from_pretrained(str(tiny_folder("gpt2")))


def some_windows() -> Windows:
    """Three windows a feature, of random tokens: some cut at an end, one that opens with BOS; a feature has none."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(3, 61, (F, 3, WIDTH)).astype(np.int32)
    tokens[1, 0, : BEFORE - 3] = NO_TOKEN
    tokens[2, 1, BEFORE + 1 :] = NO_TOKEN
    tokens[3, 0, :5] = NO_TOKEN
    tokens[3, 0, 5] = BOS
    tokens[4, 0, : BEFORE - 1] = NO_TOKEN
    tokens[4, 0, BEFORE + 2 :] = NO_TOKEN
    scores = np.tile(np.array([3, 2, 1], np.float32), (F, 1))
    scores[5] = -np.inf
    scores[6, 1:] = -np.inf
    zeros = np.zeros((F, 3), np.int64)
    return Windows(scores, tokens, np.zeros(tokens.shape, np.float32), zeros, zeros, zeros.astype(np.int32))


def reference(lm: LanguageModel, sae: SparseAutoencoder, windows: Windows, read: str, written: str) -> np.ndarray:
    """(F, 3): sums of KL and CE rise, and tokens, with the best two windows of each feature run one by one."""
    sums = np.zeros((F, 3))
    for i in range(F):
        for j in range(2):
            if not windows.there[i, j]:
                continue
            ids = [int(t) for t in windows.tokens[i, j] if t != NO_TOKEN]
            row = torch.tensor([ids if ids[0] == BOS else [BOS, *ids]])
            f = sae.encode(lm.capture(row, [read])[read])[0, :, i]
            f[0] = 0
            fires = f.nonzero()[:, 0]
            if not len(fires):
                continue
            direction = sae.direction(i, lm.capture(row, [read])[read][0]).detach()
            clean = lm.logits(row)[0].log_softmax(-1)
            with lm.intervene(written, lambda x, f=f, d=direction: x - (f[:, None] * d)[None]):
                ablated = lm.logits(row)[0].log_softmax(-1)
            for s in range(int(fires[0]), row.shape[1] - 1):
                kl = (clean[s].exp() * (clean[s] - ablated[s])).sum()
                rise = clean[s, row[0, s + 1]] - ablated[s, row[0, s + 1]]
                sums[i] += [kl.item(), rise.item(), 1]
    return sums


@torch.no_grad()
def dictionaries() -> list[tuple[SparseAutoencoder, str, str]]:
    read, written = SiteRef("m", "mlp_in.1"), SiteRef("m", "mlp_out.1")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        topk = TopK(Widths.autoencoder(SiteRef("m", "resid_post.0"), 24), d_sae=F, k=2)
        dense = JumpReLU(Widths.autoencoder(SiteRef("m", "attn_out.1"), 24), d_sae=F)
        transcoder = Transcoder(Widths({read: 24}, {written: 24}), d_sae=F, mechanism=MECHANISMS["TopK"](k=3))
        tokens = Refinements(token_norm="layer_norm")
        by_token = ReLU(Widths.autoencoder(SiteRef("m", "resid_post.0"), 24), d_sae=F, refinements=tokens)
        by_token.W_dec.mul_(30)  # a token's unit is small here
    for sae in (topk, dense, transcoder, by_token):
        sae.input_scale.fill_(1.7)
        sae.output_scale.fill_(0.6)
        sae.b_enc.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        sae.eval()
    return [
        (topk, "resid_post.0", "resid_post.0"),
        (dense, "attn_out.1", "attn_out.1"),
        (transcoder, "mlp_in.1", "mlp_out.1"),
        (by_token, "resid_post.0", "resid_post.0"),
    ]


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_one_pass_a_window(lm: LanguageModel, which: int) -> None:
    sae, read, written = dictionaries()[which]
    windows = some_windows()
    found = ablation_effects(lm, sae, windows, site=SiteRef("m", written), rows_at_once=7)
    expected = reference(lm, sae, windows, read, written)
    assert np.array_equal(found.tokens, expected[:, 2])
    assert found.tokens[5] == 0
    assert np.isnan(found.kl[5])
    assert (found.tokens > 0).sum() >= F // 2
    live = found.tokens > 0
    np.testing.assert_allclose(found.kl[live], (expected[:, 0] / expected[:, 2].clip(1))[live], rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(found.ce[live], (expected[:, 1] / expected[:, 2].clip(1))[live], rtol=2e-3, atol=2e-6)
    assert found.kl[live].max() > 1e-3


def test_a_head_and_one_model_are_needed(lm: LanguageModel, tiny_folder) -> None:
    sae = dictionaries()[0][0]
    part = LanguageModel.from_pretrained(str(tiny_folder("gpt2")), sites=["resid_post.1"])
    with pytest.raises(ModelError, match="without a next-token head"):
        ablation_effects(part, sae, some_windows(), site=SiteRef("m", "resid_post.0"))
    with pytest.raises(SiteError, match=r"predicts m:resid_post\.0"):
        ablation_effects(lm, sae, some_windows(), site=SiteRef("m", "resid_post.1"))
    other = SiteRef("n", "resid_post.0")
    transcoder = Transcoder(Widths({other: 24}, {SiteRef("m", "mlp_out.1"): 24}), F, MECHANISMS["TopK"](k=3))
    with pytest.raises(SiteError, match=r"n:resid_post\.0, of another model"):
        ablation_effects(lm, transcoder, some_windows(), site=SiteRef("m", "mlp_out.1"))
