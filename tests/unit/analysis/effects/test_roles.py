"""S_out against one steered pass a feature, written out; S_in by hand."""

from functools import partial

import numpy as np
import pytest
import torch

from lightsae.analysis.effects.roles import input_scores, output_scores
from lightsae.analysis.reading.firings import BEFORE, WIDTH, Windows
from lightsae.lm import LanguageModel


def test_output_scores_are_those_of_one_pass_each(tiny_folder) -> None:
    lm = LanguageModel.from_pretrained(str(tiny_folder("llama")))
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 24, generator=draw) * torch.rand(7, 1, generator=draw)
    rows[2] = 0
    promoted = np.random.default_rng(0).integers(0, 61, (7, 5)).astype(np.int32)
    prompt = torch.tensor([1, 9, 30, 12])
    found = output_scores(lm, rows, promoted, prompt, site="resid_post.1", mean_norm=5.0, strength=2.0, rows_at_once=3)
    for i in range(7):
        if i == 2:
            assert np.isnan(found[i])
            continue
        push = torch.zeros(4, 24)
        push[-1] = 2.0 * 5.0 * rows[i] / rows[i].norm()
        with lm.intervene("resid_post.1", partial(torch.add, other=push)):
            p = lm.logits(prompt[None])[0, -1].softmax(-1).numpy()
        ranks = np.argsort(np.argsort(-p))
        expected = (1 - ranks[promoted[i]].min() / 61) * p[promoted[i]].max()
        assert found[i] == pytest.approx(expected, rel=1e-3)


def test_input_scores_by_hand() -> None:
    scores = np.array([[3, 2, 1], [1, -np.inf, -np.inf], [-np.inf] * 3], np.float32)
    tokens = np.full((3, 3, WIDTH), 9, np.int32)
    tokens[0, :, BEFORE] = [4, 5, 6]
    tokens[0, :, BEFORE + 1] = 7
    tokens[1, :, BEFORE] = [2, 8, 8]
    zeros = np.zeros((3, 3), np.int64)
    windows = Windows(scores, tokens, np.zeros(tokens.shape, np.float32), zeros, zeros, zeros.astype(np.int32))
    promoted = np.array([[4, 6, 7], [8, 1, 0], [9, 9, 9]], np.int32)
    assert input_scores(windows, promoted).tolist()[:2] == pytest.approx([2 / 3, 0.0])
    assert np.isnan(input_scores(windows, promoted)[2])
