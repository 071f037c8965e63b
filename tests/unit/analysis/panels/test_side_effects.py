"""What steering costs on unrelated text, against the same thing worked out one token at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lightsae.analysis.panels.arms import Steered
from lightsae.analysis.panels.side_effects import UnrelatedText
from lightsae.analysis.steering.interventions import Add
from lightsae.lm import LanguageModel
from lightsae.metrics.intervals import Interval
from lightsae.sae import ReLU, SiteRef, Widths

SITE = "resid_post.0"


@pytest.fixture(scope="module")
def steered(make_model: Callable[..., Path]) -> Steered:
    model = LanguageModel.from_pretrained(str(make_model("llama")))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        sae = ReLU(Widths.autoencoder(SiteRef(model.name, SITE), 12), 16).eval()
        sae.W_enc.copy_(torch.randn(12, 16))
        sae.W_dec.copy_(torch.randn(16, 12))
        sae.b_enc[7], sae.b_enc[8] = 1e6, -1e6  # one always fires, one never
        sae.input_scale.fill_(30.0)
    return Steered(model, sae, None)


ROWS = torch.randint(2, 200, (5, 12), generator=torch.Generator().manual_seed(0))
STRONG = 0.05  # latent units, where activations are about that long


def test_nothing_done_costs_nothing(steered: Steered) -> None:
    told = UnrelatedText(steered, ROWS).effects([], 3).report()
    assert {value for one in told.values() for value in one.values()} == {0.0}


@pytest.mark.parametrize("feature", [3, 7, 8])
def test_costs_row_by_row(feature: int, steered: Steered) -> None:
    rows = ROWS.clone()
    rows[2, 4] = 1  # the end of a document: what comes after it is not counted
    what = [Add(feature, STRONG, "latent")]
    found = UnrelatedText(steered, rows, rows_at_once=2).effects(what, feature)
    rises, changes = [], []
    for row in rows:
        clean, fired = ce_and_fires(steered, row)
        with steered.by(what):
            changed, fires = ce_and_fires(steered, row)
        silent = [place for place in range(1, 12) if feature == 7 or feature not in fired[place]]
        counted = [place for place in silent if place < 11 and row[place + 1] != 1]
        rises.append(np.mean([changed[place] - clean[place] for place in counted]))
        changes.append(np.mean([distance(fired[place] - {feature}, fires[place] - {feature}) for place in silent]))
    for one, wanted in ((found.ce_rise, rises), (found.others_changed, changes)):
        interval = Interval.over(wanted)
        assert one.mean == pytest.approx(interval.mean, rel=1e-3, abs=1e-6)
        assert (one.low, one.high) == pytest.approx((interval.low, interval.high), rel=1e-3, abs=1e-6)
    assert 0.01 < found.others_changed.mean < 1


def ce_and_fires(steered: Steered, row: torch.Tensor) -> tuple[list[float], list[set[int]]]:
    likely = steered.model.logits(row[None])[0].log_softmax(-1)
    nats = [-likely[place, row[place + 1]].item() for place in range(11)]
    x = steered.model.capture(row[None], [SITE])[SITE][0].float().clone()
    return nats, [set(latents.nonzero()[:, 0].tolist()) for latents in steered.sae.encode(x)]


def distance(one: set[int], other: set[int]) -> float:
    return 1 - len(one & other) / max(1, len(one | other))
