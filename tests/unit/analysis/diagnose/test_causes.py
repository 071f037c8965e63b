"""Each cause gives back the SAE that was broken by the mistake which it stands for."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from helpers.planted_sae import HERE, OTHER, THRESHOLD, D, F, case, sae, sample
from lightsae.analysis.diagnose.case import CAUSES, SAID, Alternative, Case, Sample, score
from lightsae.analysis.diagnose.computations import activations, b_dec, transposed
from lightsae.analysis.diagnose.frames import decoder_norms, known_scales, scales, thresholds, token_norms
from lightsae.analysis.diagnose.sites import Neighbour, other_sites
from lightsae.formats.layouts import PortableSAE

NORMS = torch.linspace(0.3, 3, F)


def wrong_order(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.T.contiguous().reshape(matrix.shape)


def in_norms_on_one_side() -> PortableSAE:
    right = sae().with_latents_times(1 / NORMS, "")
    return replace(right.with_latents_times(right.W_dec.norm(dim=1), ""), W_dec=right.W_dec)


def scaled(power: int) -> PortableSAE:
    ordinary = sample()[SAID].values[HERE][12:]
    factor = known_scales(ordinary)[f"mean norm sqrt({D})"] ** power
    return sae().with_scales(factor, factor)


BROKEN: dict[str, tuple[Callable[[Case, Sample], Iterator[Alternative]], PortableSAE, str]] = {
    "scale missing": (scales, scaled(-1), "not in the weights"),
    "scale twice": (scales, scaled(1), "in the weights twice"),
    "b_dec subtracted": (b_dec, replace(sae(subtracts=False), subtracts_b_dec=True), "was not subtracted"),
    "b_dec not subtracted": (b_dec, replace(sae(), subtracts_b_dec=False), "was subtracted"),
    "W_enc": (transposed, replace(sae(), W_enc=wrong_order(sae().W_enc)), "W_enc was read"),
    "W_dec": (transposed, replace(sae(), W_dec=wrong_order(sae().W_dec)), "W_dec was read"),
    "log": (thresholds, replace(sae(), threshold=torch.full((F,), THRESHOLD).log()), "are logarithms"),
    "exp": (thresholds, replace(sae(), threshold=torch.full((F,), THRESHOLD).exp()), "are exponentials"),
    "latents in norms": (decoder_norms, in_norms_on_one_side(), "in the encoder already"),
    "choice in norms": (decoder_norms, sae("topk").with_latents_times(1 / NORMS, ""), "z times the norm"),
    "tokens": (token_norms, replace(sae(), token_norm="layer_norm"), "no token was normalised"),
    "TopK as ReLU": (activations, replace(sae("topk"), activation="relu", k=None), "4 largest latents"),
    "ReLU as TopK": (activations, replace(sae("relu"), activation="topk", k=1), "every positive latent"),
    "BatchTopK as ReLU": (activations, replace(sae(), activation="relu", threshold=None), "one threshold"),
}  # fmt: skip
# Those whose numbers are searched for, and the activation of the others that lost theirs.
SEARCHED = ("scale missing", "scale twice", "BatchTopK as ReLU")
SOUND = {"TopK as ReLU": "topk", "ReLU as TopK": "relu"}


@pytest.mark.parametrize("name", BROKEN)
def test_the_cause_explains_what_was_broken(name: str) -> None:
    cause, broken, words = BROKEN[name]
    text = sample()
    bad = score(case(broken), text)
    assert bad is not None
    found = list(cause(case(broken), text))
    fits = [one for one in found if words in one.what]
    assert fits
    assert {one.cause for one in found} <= set(CAUSES)
    errors = [its.error for one in fits if (its := score(one.case, text)) is not None]
    assert min(errors) < 0.8 * bad.error
    if name not in SEARCHED:
        right = score(case(sae(broken.activation if cause is not activations else SOUND[name])), text)
        assert right is not None
        assert min(errors) == pytest.approx(right.error, rel=0.02)


def test_a_factor_of_thresholds_is_that_of_the_activations() -> None:
    text = sample()
    scale = known_scales(text[SAID].values[HERE][12:])[f"mean norm sqrt({D})"]
    assert scale < 0.8
    broken = case(replace(sae(), threshold=THRESHOLD / scale * torch.ones(F)))
    mended = [one.case.sae.threshold for one in thresholds(broken, text)]
    assert any(one is not None and torch.allclose(one, torch.full((F,), THRESHOLD)) for one in mended)


def test_known_scales_make_the_norms_that_they_are_called_by() -> None:
    x = torch.randn(300, D, generator=torch.Generator().manual_seed(5)) * 7
    by_mean, by_square = known_scales(x).values()
    assert (by_mean * x).norm(dim=1).mean() == pytest.approx(D**0.5, rel=1e-5)
    assert (by_square * x).square().sum(1).mean() == pytest.approx(1, rel=1e-5)


def test_nothing_is_said_where_nothing_could_hang_on_it() -> None:
    """Unit rows have no norms to be lost, no b_dec none to subtract, and TopK no thresholds."""
    text, topk = sample(), case(replace(sae("topk"), b_dec=torch.zeros(D)))
    for cause in (decoder_norms, b_dec, thresholds):
        assert list(cause(topk, text)) == []


def test_a_site_that_carries_the_same_is_no_other_one() -> None:
    text = sample()
    values = dict(text[SAID].values)
    twin = OTHER._replace(site="resid_pre.2")
    values[twin] = values[HERE]
    text = {SAID: replace(text[SAID], values=values, sinks=dict.fromkeys(values, text[SAID].sinks[HERE]))}
    near = {HERE: [Neighbour(twin.site, "site"), Neighbour(OTHER.site, "site")]}
    (found,) = other_sites(case(sae()), text, near)
    assert found.case.read == found.case.predicted == OTHER
    assert "site resid_post.2" in found.mend


def test_thresholds_below_0_and_a_k_that_nothing_reaches_speak_against_the_file() -> None:
    """Most of the thresholds; less than half of k."""
    text, below = sample(), torch.full((F,), THRESHOLD / 10).log()
    assert below.max() < 0
    some = torch.where(torch.arange(F) < F // 3, below, below.exp())
    for threshold, likely in ((below, True), (some, False), (below.exp(), False)):
        found = [one for one in thresholds(case(replace(sae(), threshold=threshold)), text) if one.likely]
        assert [one.what for one in found] == [
            "thresholds are logarithms: the file's log_threshold was read as threshold"
        ][:likely]
    fired = score(case(sae("relu")), text)
    assert fired is not None
    for k, likely in ((int(2 * fired.l0) + 2, True), (4, False)):
        found = [one for one in activations(case(replace(sae("relu"), activation="topk", k=k)), text) if one.likely]
        assert [one.what for one in found] == ["every positive latent fires (ReLU)"][:likely]
