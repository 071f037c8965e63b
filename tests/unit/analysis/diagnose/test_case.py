"""The figures of a case, held against their definitions."""

import math
from dataclasses import replace

import pytest
import torch

from helpers.planted_sae import HERE, THRESHOLD, F, T, case, sae, sample
from lightsae.analysis.diagnose.case import SAID, Case, score
from lightsae.formats.layouts import Source


def test_figures_are_those_of_their_definitions() -> None:
    text, one = sample(), case(sae())
    its = score(one, text)
    assert its is not None
    x = text[SAID].values[HERE].double()
    latents = (x.float() - one.sae.b_dec) @ one.sae.W_enc
    latents = torch.where(latents > THRESHOLD, latents, 0)
    x_hat = (latents @ one.sae.W_dec + one.sae.b_dec).double()
    error = (x - x_hat).square().sum(1)
    for figure, tokens in ((its.fve, slice(0, T)), (its.fve_no_sinks, slice(12, T))):
        spread = (x[tokens] - x[tokens].mean(0)).square().sum()
        assert figure == pytest.approx(float(1 - error[tokens].sum() / spread), abs=1e-5)
    apart = (x[:12] - x[12:].mean(0)).square().sum()
    assert its.fve_of_sinks == pytest.approx(float(1 - error[:12].sum() / apart), abs=1e-5)
    relative = error[12:] / (x[12:] - x[12:].mean(0)).square().sum(1)
    assert its.error == pytest.approx(float(relative.clamp_max(2).mean()), abs=1e-5)
    off = (x - x_hat)[12:].mean(0).square().sum() / (x[12:] - x[12:].mean(0)).square().sum(1).mean()
    assert its.bias == pytest.approx(float(off), abs=1e-6)
    assert its.misfit == pytest.approx(its.error + 5 * its.bias + 20 * its.gradient)
    assert its.l0 == pytest.approx(float((latents[12:] > 0).sum(1).double().mean()))
    assert its.dead == pytest.approx(float((~(latents[12:] > 0).any(0)).double().mean()))


def test_latents_that_the_file_says_are_held_against_those_that_fire() -> None:
    published = replace(sae(), source=Source(published=(("l0", 16.0),)))
    trained_to = replace(sae(), k=16)
    for one in (published, trained_to):
        its = score(Case.of(one, HERE, HERE), sample())
        assert its is not None
        assert its.l0_apart == pytest.approx(math.log(16 / its.l0))
        free = its.error + 5 * its.bias + 20 * its.gradient
        assert its.misfit == pytest.approx(free + 0.15 * (its.l0_apart - math.log(1.25)))
    # Of TopK it says nothing, since it cannot differ.
    assert Case.of(sae("topk"), HERE, HERE).l0 is None
    assert Case.of(sae(), HERE, HERE).l0 is None


def test_tokens_that_training_left_out_count_in_no_figure_of_all() -> None:
    text = sample()
    seen = torch.arange(T) >= 12
    left_out = score(case(sae()), {SAID: replace(text[SAID], seen=seen)})
    assert left_out is not None
    assert left_out.fve == pytest.approx(left_out.fve_no_sinks)
    assert left_out.fve_of_sinks != left_out.fve_of_sinks  # there are none


def test_what_makes_no_sae_has_no_score() -> None:
    assert score(case(replace(sae(), threshold=torch.full((F,), torch.inf))), sample()) is None
    assert score(case(replace(sae("topk"), k=F + 1)), sample()) is None
