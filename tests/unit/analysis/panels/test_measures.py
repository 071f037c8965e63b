"""Measures of steered texts, each against the same thing worked out one text at a time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightsae.analysis.panels.arms import FEATURE, NONE, PROMPT, RANDOM, SECOND_RANDOM, SHUFFLED, Arm, Steered
from lightsae.analysis.panels.concepts import Concept, Generated
from lightsae.analysis.panels.measures import Measure, interval, shift
from lightsae.analysis.panels.meter import Meter
from lightsae.analysis.panels.settings import SweepSettings
from lightsae.analysis.steering.interventions import Ablate, Add, Clamp
from lightsae.errors import ConfigError, SiteError
from lightsae.lm import LanguageModel
from lightsae.lm.generate import Samples, Sampling
from lightsae.sae import ReLU, SiteRef, SparseAutoencoder, TopK, Transcoder, Widths, mechanisms

PROMPTS = [[0, 30, 31, 32], [0, 40], [0, 50, 51]]
SAMPLES = 2
DRAWN = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=7)
FEATURE_NUMBER = 3
AFTER = (60, 61, 62)
READ, WRITTEN = "resid_post.0", "resid_post.1"


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path]) -> LanguageModel:
    return LanguageModel.from_pretrained(str(make_model("llama")))


def an_sae(kind: str, model: LanguageModel) -> SparseAutoencoder:
    read, written = SiteRef(model.name, READ), SiteRef(model.name, WRITTEN)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "transcoder":
            sae: SparseAutoencoder = Transcoder(Widths({read: 12}, {written: 12}), 20, mechanisms.ReLU())
        else:
            widths = Widths.autoencoder(read, 12)
            sae = TopK(widths, 20, k=6) if kind == "TopK" else ReLU(widths, 20)
        with torch.no_grad():
            sae.W_enc.copy_(torch.randn(12, 20))
            sae.W_dec.copy_(torch.randn(20, 12))
            sae.input_scale.fill_(30.0)  # the model's activations are small
            sae.output_scale.fill_(0.25)
    return sae.eval()


@pytest.fixture(scope="module", params=["ReLU", "TopK", "transcoder"])
def steered(request: pytest.FixtureRequest, model: LanguageModel) -> Steered:
    return Steered(model, an_sae(request.param, model), None)


@pytest.fixture(scope="module")
def meter(steered: Steered, model: LanguageModel) -> Meter:
    return a_meter(steered)


def a_meter(steered: Steered, **changed: Any) -> Meter:
    given = {"samples": SAMPLES, "sampling": DRAWN, "seed": 0, "rows_at_once": 4} | changed
    return Meter(steered, words(steered.model), PROMPTS, SweepSettings(**given))


def words(model: LanguageModel) -> list[str]:
    return [model.tokenizer.decode([token]) for token in range(model.model.config.vocab_size)]


def a_concept(vocabulary: int, maximum: float = 2.0) -> Concept:
    # A token; and a pair of tokens, of which the first may stand in the prompt: (before, now).
    patterns = (("token", 80), ("after", 32 * (vocabulary + 1) + 33))
    return Concept(FEATURE_NUMBER, "a label", "high", maximum, patterns, AFTER)


CONCEPT = a_concept(258)
STRONG = [Add(FEATURE_NUMBER, 8.0, "latent")]


def test_nothing_done_is_nothing_measured(meter: Meter) -> None:
    values, made = meter.measure((), CONCEPT)
    assert set(values) == set(Measure)
    assert made is meter.plain
    assert (values["kl"] == 0).all()
    assert (values["ppl_steered"] == values["ppl_untouched"]).all()
    again, _ = meter.measure((), CONCEPT)
    for name in values:
        gained = shift(name, again[name], values[name])
        assert gained.mean == gained.low == gained.high == (1 if name.startswith("ppl") else 0), name


def test_a_strength_of_zero_changes_no_text(meter: Meter) -> None:
    values, made = meter.measure([Add(FEATURE_NUMBER, 0.0, "latent")], CONCEPT)
    assert made == meter.plain
    assert values["kl"].tolist() == pytest.approx([0] * 3, abs=1e-6)


def test_texts_are_read_by_the_untouched_model(meter: Meter) -> None:
    """Perplexity, firing and activation: text by text, without padding, cache or hooks."""
    values, made = meter.measure(STRONG, CONCEPT)
    assert made != meter.plain
    model, sae = meter.steered.model, meter.steered.sae
    for number, prompt in enumerate(made.prompts):
        nats, fires, activation = [], [], []
        for text in made.tokens[number]:
            row = torch.tensor([prompt + text])
            likely = model.logits(row)[0].log_softmax(-1)[len(prompt) - 1 : -1]
            nats.append(-likely.gather(1, torch.tensor(text)[:, None]).mean().item())
            # What the last token leads to is not part of the text.
            x = model.capture(row, [READ])[READ][0, len(prompt) : -1].float().clone()
            latent = sae.encode(x)[:, FEATURE_NUMBER].detach()
            fires.append((latent > 0.1 * 2.0).float().mean().item())
            activation.append(latent.mean().item() / 2.0)
        assert values["ppl_untouched"][number] == pytest.approx(np.mean(nats), rel=1e-4)
        assert values["fires"][number] == pytest.approx(np.mean(fires), abs=1e-6)
        assert values["activation"][number] == pytest.approx(np.mean(activation), rel=1e-3, abs=1e-5)
    assert 0 < values["fires"].mean() < 1, "nothing was told apart"


def test_texts_that_end_early_are_read_to_their_end(steered: Steered) -> None:
    meter = a_meter(steered, samples=1)
    texts = [[90, 91, 92, 93, 94, 95, 96], [97, 98, 1], [99, 1]]
    meter.plain = Samples(PROMPTS, [[""]] * 3, [[text] for text in texts])
    together, _ = meter.measure((), CONCEPT)
    assert together["fires"].max() > 0
    for number, text in enumerate(texts):
        alone = a_meter(steered, samples=1)
        alone.prompts = [PROMPTS[number]]
        alone.plain = Samples([PROMPTS[number]], [[""]], [[text]])
        values, _ = alone.measure((), CONCEPT)
        for name, value in values.items():
            assert together[name][number] == pytest.approx(value[0], rel=1e-3, abs=1e-5), name


def test_expectations_along_the_unsteered_texts(meter: Meter) -> None:
    values, _ = meter.measure(STRONG, CONCEPT)
    model, plain = meter.steered.model, meter.plain
    for number, prompt in enumerate(plain.prompts):
        after, promoted, kl, nats = [], [], [], []
        for text in plain.tokens[number]:
            row, end = torch.tensor([prompt + text]), slice(len(prompt) - 1, -1)
            clean = model.logits(row)[0, end].log_softmax(-1)
            with meter.steered.by(STRONG):
                changed = model.logits(row)[0, end].log_softmax(-1)
            after.append(changed[:, list(AFTER)].exp().sum(1).mean().item())
            own = promoted_by(meter.steered, meter.steered.direction(FEATURE_NUMBER))
            promoted.append((changed[:, own].exp() - clean[:, own].exp()).sum(1).mean().item())
            kl.append((clean.exp() * (clean - changed)).sum(1).mean().item())
        for text in meter.generate(STRONG).tokens[number]:
            with meter.steered.by(STRONG):
                likely = model.logits(torch.tensor([prompt + text]))[0].log_softmax(-1)[len(prompt) - 1 : -1]
            nats.append(-likely.gather(1, torch.tensor(text)[:, None]).mean().item())
        for name, wanted in (("follows", after), ("target", promoted), ("kl", kl), ("ppl_steered", nats)):
            assert values[name][number] == pytest.approx(np.mean(wanted), rel=1e-3, abs=1e-6), name
    assert (values["kl"] > 1e-4).all()


def promoted_by(steered: Steered, direction: torch.Tensor) -> list[int]:
    """The ten tokens whose logits a direction raises most, through the gain of the final norm."""
    model = steered.model.model
    tokens: list[int] = (model.lm_head.weight @ (direction * model.model.norm.weight)).topk(10).indices.tolist()
    return tokens


@pytest.mark.parametrize("arm", [RANDOM, SECOND_RANDOM, SHUFFLED])
def test_every_arm_is_asked_about_the_tokens_of_its_own_direction(meter: Meter, arm: Arm) -> None:
    steered, (one,) = meter.steered, meter.steered.arm(arm, STRONG, 0)
    assert one.along is not None
    own = promoted_by(steered, one.along)
    assert set(own) != set(promoted_by(steered, steered.direction(FEATURE_NUMBER)))
    values, _ = meter.measure([one], CONCEPT)
    for number, prompt in enumerate(meter.plain.prompts):
        rises = []
        for text in meter.plain.tokens[number]:
            row, end = torch.tensor([prompt + text]), slice(len(prompt) - 1, -1)
            clean = model_reads(steered, row, end)
            with steered.by([one]):
                changed = model_reads(steered, row, end)
            rises.append((changed[:, own] - clean[:, own]).sum(1).mean().item())
        assert values["target"][number] == pytest.approx(np.mean(rises), rel=1e-3, abs=1e-6)


def model_reads(steered: Steered, row: torch.Tensor, end: slice) -> torch.Tensor:
    return steered.model.logits(row)[0, end].softmax(-1)


def test_random_directions_raise_their_own_tokens(steered: Steered) -> None:
    """The honest floor of «what it promotes rises» is far from 0: it says that the wiring holds, and no more."""
    meter = a_meter(steered)
    own, of_the_feature = [], []
    for number in range(12):
        (one,) = steered.arm(RANDOM, STRONG, 0, number)
        own.append(float(meter.measure([one], CONCEPT)[0]["target"].mean()))
        tokens = promoted_by(steered, steered.direction(FEATURE_NUMBER))
        texts = [
            torch.tensor([p + t]) for p, ts in zip(meter.plain.prompts, meter.plain.tokens, strict=True) for t in ts
        ]
        before = [model_reads(steered, row, slice(-5, -1))[:, tokens].sum(1).mean().item() for row in texts]
        with steered.by([one]):
            after = [model_reads(steered, row, slice(-5, -1))[:, tokens].sum(1).mean().item() for row in texts]
        of_the_feature.append(float(np.mean(after) - np.mean(before)))
    assert sum(rise > 0 for rise in own) >= 9
    assert sum(rise > 0 for rise in of_the_feature) < sum(rise > 0 for rise in own)


def test_several_concepts_are_read_off_the_same_texts(meter: Meter) -> None:
    other = replace(CONCEPT, feature=7, maximum=0.5, patterns=(("token", 90),), follows=(65,))
    unknown = replace(CONCEPT, feature=8, patterns=None, follows=())
    each, made = meter.measure_all(STRONG, [CONCEPT, other, unknown])
    for values, concept in zip(each, (CONCEPT, other, unknown), strict=True):
        alone, texts = meter.measure(STRONG, concept)
        assert texts == made
        assert alone.keys() == values.keys()
        for name in alone:
            assert alone[name].tolist() == pytest.approx(values[name].tolist(), rel=1e-5, abs=1e-7), name


def test_texts_need_not_be_read_under_steering(steered: Steered) -> None:
    given = {"samples": SAMPLES, "sampling": DRAWN, "rows_at_once": 4}
    meter = Meter(steered, words(steered.model), PROMPTS, SweepSettings(**given), as_steered=False)
    assert set(meter.measure(STRONG, CONCEPT)[0]) == set(Measure) - {"ppl_steered"}


def test_a_concept_holds_on_generated_tokens_alone() -> None:
    vocabulary = [f"w{number}" for number in range(258)]
    prompts = [[0, 80, 32], [80], [0, 30, 31, 32]]
    texts = [[33, 80, 5, 33], [5], [33]]
    # The pair 32, 33 spans prompt and text; a 33 after something else, and the prompt's 80, do not count.
    assert CONCEPT.rate(Generated(prompts, texts, vocabulary)).tolist() == [0.5, 0.0, 1.0]
    assert CONCEPT.rate(Generated([[0], [0]], [[], [80]], vocabulary)).tolist() == [0.0, 1.0]
    assert replace(CONCEPT, patterns=None).rate(Generated(prompts, texts, vocabulary)) is None
    # Without the rule, tokens that follow and tokens promoted there is nothing to say of them.
    two = replace(CONCEPT, patterns=(("token", 5), ("token", 33)))
    assert two.rate(Generated(prompts, texts, vocabulary)).tolist() == [0.75, 1.0, 1.0]


def test_concept_rate_of_drawn_texts(meter: Meter) -> None:
    often = replace(CONCEPT, patterns=tuple(("token", token) for token in range(100, 180)))
    values, made = meter.measure(STRONG, often)
    wanted = [np.mean([np.mean([100 <= t < 180 for t in text]) for text in texts]) for texts in made.tokens]
    assert values["concept"].tolist() == pytest.approx(wanted)
    assert len(set(wanted)) > 1


def test_what_is_not_known_is_not_measured(meter: Meter) -> None:
    values, _ = meter.measure(STRONG, replace(CONCEPT, patterns=None, follows=()))
    assert set(values) == set(Measure) - {"concept", "follows"}


def test_texts_of_one_token(steered: Steered) -> None:
    meter = a_meter(steered, sampling=Sampling(temperature=1.0, top_p=1.0, max_new_tokens=1))
    values, made = meter.measure(STRONG, CONCEPT)
    assert {len(text) for texts in made.tokens for text in texts} == {1}
    assert values["fires"].tolist() == values["activation"].tolist() == [0, 0, 0]
    assert all(np.isfinite(value).all() for value in values.values())


def test_batches_change_no_figure_of_the_same_texts(steered: Steered) -> None:
    greedy = {"samples": 1, "sampling": Sampling(temperature=0.0, max_new_tokens=6)}
    one, _ = a_meter(steered, **greedy, rows_at_once=64).measure(STRONG, CONCEPT)
    other, _ = a_meter(steered, **greedy, rows_at_once=1).measure(STRONG, CONCEPT)
    for name in one:
        assert one[name].tolist() == pytest.approx(other[name].tolist(), rel=1e-3, abs=1e-5), name


def test_a_prompt_stands_in_for_steering(meter: Meter) -> None:
    said = [[0, 60, 61, *prompt[1:]] for prompt in PROMPTS]
    values, made = meter.measure((), CONCEPT, said)
    assert made.prompts == said
    assert (values["kl"] > 0).all()
    assert (values["ppl_steered"] == values["ppl_untouched"]).all()
    assert "target" not in values, "a prompt has no direction"
    same, _ = meter.measure((), CONCEPT, PROMPTS)
    assert same["kl"].tolist() == [0, 0, 0]


def test_other_directions_have_the_features_norm(steered: Steered) -> None:
    own = steered.direction(FEATURE_NUMBER).norm().item()
    rows = torch.randint(3, 200, (4, 9), generator=torch.Generator().manual_seed(0))
    site = WRITTEN if steered.sae.predicts_another_site else READ
    clean = steered.model.capture(rows, [site])[site].clone()
    written = {}
    for arm in (FEATURE, RANDOM, SECOND_RANDOM, SHUFFLED):
        with steered.by(steered.arm(arm, STRONG, 0)):
            moved = steered.model.capture(rows, [site])[site] - clean
        assert (moved[:, 0] == 0).all(), "the first position is an attention sink"
        torch.testing.assert_close(moved[:, 1:].norm(dim=2), torch.full((4, 8), 8 * own), rtol=1e-3, atol=0)
        written[arm] = moved[0, 1] / (8 * own)
    cosines = torch.stack(list(written.values())) @ torch.stack(list(written.values())).T
    assert (cosines.fill_diagonal_(0).abs() < 0.99).all(), "two arms are the same"
    assert steered.arm(NONE, STRONG, 0) == steered.arm(PROMPT, STRONG, 0) == []


def test_arms_of_a_clamp_keep_what_is_clamped(steered: Steered) -> None:
    (changed,) = steered.arm(RANDOM, [Clamp(FEATURE_NUMBER, 4.0)], 0)
    assert isinstance(changed, Clamp)
    assert (changed.feature, changed.value) == (FEATURE_NUMBER, 4.0)
    (ablated,) = steered.arm(SHUFFLED, [Ablate(FEATURE_NUMBER)], 0)
    assert isinstance(ablated, Ablate)
    assert torch.equal(ablated.along, steered.direction(steered.other_feature(FEATURE_NUMBER, 0)))


def test_draws_of_arms_depend_on_seed_and_feature(steered: Steered) -> None:
    assert torch.equal(steered.random_direction(3, 0, 0), steered.random_direction(3, 0, 0))
    drawn = [steered.random_direction(*which) for which in ((3, 0, 0), (3, 0, 1), (3, 1, 0), (4, 0, 0))]
    assert len({tuple(one.tolist()) for one in drawn}) == 4
    for feature in range(20):
        others = {steered.other_feature(feature, seed) for seed in range(60)}
        assert feature not in others
        assert others <= set(range(20))
        assert len(others) > 12


def test_directions_for_all_features_depend_on_number_and_seed(steered: Steered) -> None:
    (one,), (other,) = (steered.arm(RANDOM, [Add(feature, 1.0, "latent")], 0, 4) for feature in (3, 5))
    assert torch.equal(one.along, other.along)
    (second,) = steered.arm(SECOND_RANDOM, STRONG, 0, 5)
    assert not torch.equal(one.along, second.along)
    assert not torch.equal(one.along, steered.arm(RANDOM, STRONG, 1, 4)[0].along)
    assert torch.equal(steered.arm(SHUFFLED, STRONG, 0, 9)[0].along, steered.direction(9))


def test_a_dictionary_of_one_feature_has_no_other(model: LanguageModel) -> None:
    only = Steered(model, ReLU(Widths.autoencoder(SiteRef(model.name, READ), 12), 1).eval(), None)
    assert only.other_feature(0, 0) == 0


def test_an_unknown_feature_is_refused(steered: Steered) -> None:
    for feature in (-1, 20):
        with pytest.raises(ConfigError, match=f"feature {feature} does not exist: the SAE has 20"):
            steered.concept(feature)


def test_without_a_dictionary_the_weights_say_what_is_promoted(steered: Steered) -> None:
    found = steered.concept(FEATURE_NUMBER)
    assert (found.label, found.tier, found.patterns, found.follows) == (None, "unlabelled", None, ())
    own = promoted_by(steered, steered.direction(FEATURE_NUMBER))
    assert set(steered.promoted(Add(FEATURE_NUMBER, 1.0))) == set(own)
    given = torch.randn(12, generator=torch.Generator().manual_seed(0))
    assert set(steered.promoted(Add(FEATURE_NUMBER, 1.0, along=given))) == set(promoted_by(steered, given))


def test_what_is_not_added_to_the_residual_stream_promotes_nothing(model: LanguageModel) -> None:
    site = next(info.name for info in model.sites() if info.name.startswith("mlp_act"))
    width = model.width(site)
    with torch.random.fork_rng():
        inner = Steered(model, ReLU(Widths.autoencoder(SiteRef(model.name, site), width), 20).eval(), None)
    assert inner.promoted(Add(0, 1.0)) == ()
    values, _ = a_meter(inner).measure((), CONCEPT)
    assert "target" not in values


def test_a_dictionary_that_writes_at_several_sites_is_refused(model: LanguageModel) -> None:
    both = {SiteRef(model.name, READ): 12, SiteRef(model.name, WRITTEN): 12}
    with torch.random.fork_rng():
        sae = Transcoder(Widths({SiteRef(model.name, READ): 12}, both), 20, mechanisms.ReLU())
    with pytest.raises(SiteError, match="the SAE writes at"):
        Steered(model, sae, None).concept(0)


def test_perplexities_are_geometric_means() -> None:
    nats = np.log([2.0, 8.0])
    assert interval("ppl_untouched", nats).mean == pytest.approx(4)
    assert shift("ppl_untouched", nats, np.log([1.0, 4.0])).mean == pytest.approx(2)
    assert interval("concept", np.array([0.2, 0.4])).mean == pytest.approx(0.3)
