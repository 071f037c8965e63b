"""Readings against plain passes without padding and cache, and against what `generate` saw while it was steered."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightsae.analysis.panels.readings import Reading, in_parts, read
from lightsae.analysis.steering.interventions import Add, Clamp
from lightsae.analysis.steering.steer import steer
from lightsae.lm import LanguageModel
from lightsae.sae import ReLU, SiteRef, SparseAutoencoder, Widths

PROMPTS = [[0, 30, 31, 32, 33], [0, 40], [0, 50, 51]]
TEXTS = [[60, 61, 62, 63], [70, 71, 1], [80]]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., Path]) -> LanguageModel:
    return LanguageModel.from_pretrained(str(make_model(request.param)))


@pytest.fixture(scope="module")
def sae(model: LanguageModel) -> SparseAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ReLU(Widths.autoencoder(SiteRef(model.name, "resid_post.0"), 12), 20).eval()


def test_padding_and_cache_change_no_probability(model: LanguageModel) -> None:
    found = read(model, PROMPTS, TEXTS, pad=7)
    assert found.log_probs.shape == (3, 4, model.model.config.vocab_size)
    assert found.there.tolist() == [[True] * 4, [True] * 3 + [False], [True] + [False] * 3]
    for row, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        plain = model.logits(torch.tensor([prompt + text]))[0].log_softmax(-1)
        wanted = plain[len(prompt) - 1 : -1]
        torch.testing.assert_close(found.log_probs[row, : len(text)], wanted, rtol=1e-4, atol=1e-5)
        nats = -wanted.gather(1, torch.tensor(text)[:, None]).mean()
        torch.testing.assert_close(found.surprise()[row], nats, rtol=1e-4, atol=1e-5)


def test_which_token_pads_does_not_matter(model: LanguageModel) -> None:
    one, other = read(model, PROMPTS, TEXTS, pad=0), read(model, PROMPTS, TEXTS, pad=9)
    assert torch.equal(one.surprise(), other.surprise())


@pytest.mark.parametrize("positions", ["all", "generated", [1, 6]])
@pytest.mark.parametrize("clamped", [False, True])
def test_under_steering_it_reads_what_generate_saw(
    positions: str | list[int], clamped: bool, model: LanguageModel, sae: SparseAutoencoder
) -> None:
    what = Clamp(3, 4.0) if clamped else Add(3, 6.0, "latent")
    longest = max(map(len, PROMPTS))
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    with steer(model, what, sae=sae, positions=positions):
        made = model.model.generate(
            tokens, attention_mask=mask, do_sample=False, max_new_tokens=6, min_new_tokens=6, eos_token_id=None,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        texts = made.sequences[:, longest:].tolist()
        found = read(model, PROMPTS, texts)
    saw = torch.stack(made.logits, 1).log_softmax(-1)
    torch.testing.assert_close(found.log_probs, saw, rtol=1e-4, atol=1e-5)
    untouched = read(model, PROMPTS, texts)
    apart = (found.log_probs - untouched.log_probs).abs().amax(2)
    assert (apart[:, 2:] > 1e-3).all(), "steering did nothing, and the test nothing either"
    if positions == "generated":
        assert (apart[:, 0] < 1e-5).all(), "the prompt's last token was steered"


def test_a_text_of_one_token_needs_no_second_pass(model: LanguageModel) -> None:
    found = read(model, PROMPTS, [[60], [70], [80]])
    assert found.log_probs.shape[:2] == (3, 1)
    torch.testing.assert_close(found.log_probs[:, 0], read(model, PROMPTS, TEXTS).log_probs[:, 0], rtol=1e-4, atol=1e-5)


def test_means_by_hand() -> None:
    p = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]])
    q = torch.tensor([[[0.25, 0.5, 0.25], [1 / 3, 1 / 3, 1 / 3]]])
    tokens, there = torch.tensor([[0, 2]]), torch.tensor([[True, False]])
    one, other = Reading(p.log(), tokens, there), Reading(q.log(), tokens, there)
    # The second position lies beyond the text's end.
    assert one.surprise().tolist() == pytest.approx([0.693147], abs=1e-6)
    assert one.mass([0, 2]).tolist() == pytest.approx([0.75])
    assert one.divergence(other).tolist() == pytest.approx([0.25 * 0.693147], abs=1e-6)
    assert one.divergence(one).tolist() == [0.0]
    both = Reading(p.log(), tokens, torch.ones(1, 2, dtype=torch.bool))
    assert both.mass([2]).tolist() == pytest.approx([(0.25 + 0.8) / 2])
    assert both.mass([]).tolist() == [0.0]


def test_parts_cover_all_once() -> None:
    places = [place for part in in_parts(10, 4) for place in range(10)[part]]
    assert places == list(range(10))
    assert [len(range(10)[part]) for part in in_parts(10, 4)] == [4, 4, 2]
