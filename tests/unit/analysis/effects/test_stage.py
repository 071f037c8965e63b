"""Scales stand for the whole text, wherever it differs from its beginning."""

import numpy as np
import pytest
import torch

from lightsae.analysis.contexts.reservoirs import Reservoir
from lightsae.analysis.effects.final_norm import final_norm_scale, mean_site_norm
from lightsae.analysis.effects.stage import Effects
from lightsae.analysis.reading.text import TextRows
from lightsae.lm import LanguageModel
from lightsae.progress import NullProgress
from lightsae.sae import SiteRef, TopK, Widths

D_SAE, LOUD = 40, 5


def test_scales_of_a_text_whose_beginning_differs(tiny_folder) -> None:
    lm = LanguageModel.from_pretrained(str(tiny_folder("llama")))
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[LOUD] *= 50
    tokens = np.random.default_rng(0).integers(6, 61, (640, 9)).astype(np.int32)
    tokens[:40, 1:] = LOUD  # the first sixteenth: more than the rows that scales are measured on
    text = TextRows(tokens, np.repeat(np.arange(640)[:, None], 9, 1), np.arange(640))
    site = "resid_post.2"
    rows = torch.from_numpy(tokens.astype(np.int64))
    whole = final_norm_scale(lm, rows), mean_site_norm(lm, rows, site)
    beginning = final_norm_scale(lm, rows[:32]), mean_site_norm(lm, rows[:32], site)
    assert min(a / b for a, b in zip(beginning, whole, strict=True)) > 1.5

    windows = Reservoir(D_SAE, 2).windows()
    effects = Effects.of_windows(windows, [str(i) for i in range(61)], 0)
    sae = TopK(Widths.autoencoder(SiteRef(lm.name, site), lm.width(site)), d_sae=D_SAE, k=4)
    effects.add_those_of(sae, lm, windows, text, 0, NullProgress())
    scales = effects.manifest["final_norm_scale"], effects.manifest["mean_site_norm"]
    assert scales == pytest.approx(whole, rel=0.1)
