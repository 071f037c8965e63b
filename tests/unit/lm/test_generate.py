"""Sampling: the same draws for baseline and steered texts, padding, ends, progress, refusals."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightsae.analysis.steering import Add, Sampling, generate_samples, steer
from lightsae.errors import ConfigError, ModelError
from lightsae.lm import LanguageModel
from lightsae.lm.generate import encode_prompts
from lightsae.sae import ReLU, SiteRef, Widths

PROMPTS = ["the cat sat on", "def f(x):", "a"]
SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def speaker(make_model: Callable[..., Path]) -> LanguageModel:
    return LanguageModel.from_pretrained(str(make_model("llama")))


@pytest.fixture
def sae(speaker: LanguageModel) -> ReLU:
    torch.manual_seed(0)
    return ReLU(Widths.autoencoder(SiteRef(speaker.name, "resid_post.0"), 12), 20).eval()


def test_dose_zero_is_the_baseline_and_another_is_not(speaker: LanguageModel, sae: ReLU) -> None:
    def texts(**kwargs):
        return generate_samples(speaker, PROMPTS, samples=3, rows_at_once=4, sampling=SHORT, **kwargs)

    base = texts()
    assert [len(rows) for rows in base.texts] == [3, 3, 3]
    assert len({tuple(row) for rows in base.tokens for row in rows}) == 9
    assert base.prompts[0][0] == speaker.bos_token_id
    with steer(speaker, Add(3, 0.0), sae=sae):
        torch.rand(3)
        assert texts() == base
    with steer(speaker, Add(3, 3.0), sae=sae, mean_norm=10.0):
        assert texts() != base
    assert texts(seed=1) != base
    assert texts() == base


def test_global_random_state_is_kept(speaker: LanguageModel) -> None:
    before = torch.random.get_rng_state()
    generate_samples(speaker, PROMPTS, sampling=SHORT)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_prompt_with_its_bos_gets_no_second_one(speaker: LanguageModel) -> None:
    bos = speaker.tokenizer.bos_token
    plain, copied = encode_prompts(speaker, ["def f(x):", f"{bos}def f(x):"])
    assert copied == plain
    assert copied.count(speaker.bos_token_id) == 1
    # One that was written twice is meant.
    assert encode_prompts(speaker, [f"{bos}{bos}a"])[0][:2] == [speaker.bos_token_id] * 2


def test_padding_changes_no_greedy_text(speaker: LanguageModel, sae: ReLU) -> None:
    greedy = Sampling(temperature=0.0, max_new_tokens=8)
    with steer(speaker, Add(3, 1.0), sae=sae, mean_norm=10.0):
        together = generate_samples(speaker, PROMPTS, sampling=greedy)
        alone = [generate_samples(speaker, [prompt], sampling=greedy) for prompt in PROMPTS]
    assert together.tokens == [one.tokens[0] for one in alone]


def test_texts_end_where_the_model_ends_them(speaker: LanguageModel) -> None:
    sampling = Sampling(temperature=3.0, top_p=1.0, max_new_tokens=50)
    found = generate_samples(speaker, [[0, 5, 6]], samples=40, sampling=sampling)
    end = speaker.eos_token_id
    lengths = {len(row) for row in found.tokens[0]}
    assert min(lengths) < 50
    assert all(end not in row[:-1] for row in found.tokens[0])
    assert all(row[-1] == end for row in found.tokens[0] if len(row) < 50)
    assert found.prompts == [[0, 5, 6]]
    longer = Sampling(temperature=3.0, top_p=1.0, max_new_tokens=50, min_new_tokens=50)
    assert {len(r) for r in generate_samples(speaker, [[0, 5]], samples=9, sampling=longer).tokens[0]} == {50}


def test_a_transformers_model_and_its_own_settings(speaker: LanguageModel) -> None:
    plain = AutoModelForCausalLM.from_pretrained(speaker.name)
    # Settings that the model brings must not count.
    plain.generation_config.update(top_k=1, repetition_penalty=5.0, do_sample=True)
    expected = generate_samples(speaker, PROMPTS, sampling=SHORT)
    assert generate_samples(plain, PROMPTS, tokenizer=speaker.tokenizer, sampling=SHORT) == expected
    with pytest.raises(ModelError, match="tokenizer is missing"):
        generate_samples(plain, PROMPTS)


def test_progress_counts_texts(speaker: LanguageModel) -> None:
    heard: list[object] = []

    class Ear:
        @contextmanager
        def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
            heard.append((name, total))
            yield heard.append

    generate_samples(speaker, PROMPTS, samples=2, rows_at_once=4, sampling=SHORT, progress=Ear())
    assert heard == [("generate", 6), 4, 6]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda lm: generate_samples(lm, []), "at least one prompt"),
        (lambda lm: generate_samples(lm, "abc"), "write a list"),
        (lambda lm: generate_samples(lm, [[]]), "a prompt is empty"),
        (lambda lm: generate_samples(lm, PROMPTS, samples=0), "samples is 0"),
        (lambda lm: generate_samples(lm, PROMPTS, samples=2, sampling=Sampling(temperature=0.0)), "all the same"),
        (
            lambda lm: generate_samples(lm, PROMPTS),
            r"longest prompt has 15 tokens, but .* 64 .* write 49 or",
        ),
        (lambda lm: Sampling(temperature=-1.0), "temperature is -1"),
        (lambda lm: Sampling(top_p=0.0), "top_p is 0"),
        (lambda lm: Sampling(max_new_tokens=0), "max_new_tokens is 0"),
        (lambda lm: Sampling(max_new_tokens=3, min_new_tokens=4), "min_new_tokens is 4"),
    ],
)
def test_what_does_not_fit_is_refused(speaker: LanguageModel, make: Callable[..., object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(speaker)


def test_a_model_without_a_head(speaker: LanguageModel) -> None:
    headless = LanguageModel.from_pretrained(speaker.name, sites=["resid_post.0"])
    with pytest.raises(ModelError, match="without a next-token head"):
        generate_samples(headless, PROMPTS)
