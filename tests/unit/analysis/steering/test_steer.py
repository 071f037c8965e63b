"""The context: what it accepts and refuses, what it leaves behind, and whose latents it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers.fake_dictionary import fake_manifest, fake_tables
from helpers.threads import together
from lightsae.analysis.dictionary import FeatureDictionary, write_dictionary
from lightsae.analysis.steering import Ablate, Add, Clamp, Fires, MinClamp, ProjectOut, steer
from lightsae.errors import ConfigError, FormatError, ModelError, SiteError
from lightsae.formats.native import save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.lm import LanguageModel
from lightsae.sae import Crosscoder, Refinements, ReLU, SiteRef, SparseAutoencoder, TopK, Transcoder, Widths, mechanisms

SITE = "resid_post.1"
ADD = Add(3, 1.0, unit="latent")
Make = Callable[..., SparseAutoencoder]


def hooks(lm: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def test_nothing_stays_behind(lm: LanguageModel, make_sae: Make, tokens: Tensor) -> None:
    sae, before = make_sae(lm), lm.logits(tokens)
    with steer(lm, ADD, sae=sae):
        assert hooks(lm) > 0
    with pytest.raises(KeyError), steer(lm, [ADD, Clamp(4, 2.0)], sae=sae):
        raise KeyError
    with pytest.raises(RuntimeError), steer(lm, Clamp(4, 2.0), sae=sae):
        lm.model.generate(tokens, attention_mask=torch.ones(3, 4), max_new_tokens=2)
    assert hooks(lm) == 0
    assert "generate" not in vars(lm.model)
    assert torch.equal(lm.logits(tokens), before)


@pytest.mark.parametrize("positions", ["all", "generated", [1, 2]])
def test_every_thread_is_steered_as_if_it_were_alone(
    lm: LanguageModel, make_sae: Make, tokens: Tensor, positions: str | list[int]
) -> None:
    def go(i: int) -> Tensor:
        text = tokens[:, : 3 + i]
        mask = torch.ones_like(text)
        mask[0, : i // 2] = 0
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        made = lm.model.generate(text, attention_mask=mask, **options)
        return torch.cat([lm.logits(made).flatten(), made.flatten(), lm.capture(text, [SITE])[SITE].flatten()])

    with steer(lm, [Add(3, 3.0, unit="latent"), Clamp(4, 6.0)], sae=make_sae(lm), positions=positions):
        alone = [go(i) for i in range(6)]
        for _ in range(3):
            assert all(torch.equal(one, other) for one, other in zip(together(go), alone, strict=True))


def test_contexts_nest_and_open_again(lm: LanguageModel, make_sae: Make, tokens: Tensor) -> None:
    sae = make_sae(lm)
    base = lm.capture(tokens, [SITE])[SITE][:, 1:]
    d = sae.direction(3).detach()

    def now() -> Tensor:
        return lm.capture(tokens, [SITE])[SITE][:, 1:]

    with steer(lm, ADD, sae=sae):
        once = now()
        with steer(lm, ADD, sae=sae), steer(lm, Clamp(4, 2.0), sae=sae):
            inner = now()
            outer = base + 2 * d
            expected = outer + (2 - sae.encode(outer)[..., 4, None]) * sae.direction(4)
        assert torch.equal(now(), once)
    torch.testing.assert_close(once, base + d)
    torch.testing.assert_close(inner, expected.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(now(), base)


def test_a_plain_transformers_model_with_beams(lm: LanguageModel, make_sae: Make, tokens: Tensor) -> None:
    sae = make_sae(lm)
    plain = AutoModelForCausalLM.from_pretrained(lm.name).eval()
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    kwargs = {"attention_mask": mask, "num_beams": 3, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    base = plain.generate(tokens, **kwargs)
    made = []
    for model in (plain, lm):
        with steer(model, [Add(3, 2.0), Clamp(4, 3.0)], sae=sae, mean_norm=5.0):
            # Keyword arguments alone, as pipelines call it.
            made.append((lm.model if model is lm else plain).generate(input_ids=tokens, **kwargs))
            made.append((lm.model if model is lm else plain).generate(tokens, use_cache=False, **kwargs))
    assert all(torch.equal(made[0], other) for other in made[1:])
    assert not torch.equal(made[0], base)
    assert torch.equal(plain.generate(tokens, **kwargs), base)


def test_by_hand_on_top_of_a_cache(lm: LanguageModel, make_sae: Make, tokens: Tensor) -> None:
    """Outside `generate`, what comes on top of a cache was generated; padding and sinks are found from the mask."""
    sae, mask = make_sae(lm), torch.ones_like(tokens)
    mask[1, :3] = 0
    ids = (mask.cumsum(1) - 1).clamp_min(0)

    @torch.no_grad()
    def second_pass(**kwargs) -> Tensor:
        """What leaves block 1 for the last seven tokens, the first two being in the cache, unchanged."""
        cache = lm.model(tokens[:, :2], attention_mask=mask[:, :2], position_ids=ids[:, :2]).past_key_values
        seen = []
        # Attached inside, so that it sees what was written.
        with steer(lm, Add(3, 1.0 if kwargs else 0.0, unit="latent"), sae=sae, **kwargs):
            handle = lm.model.model.layers[2].register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
            lm.model(tokens[:, 2:], attention_mask=mask, position_ids=ids[:, 2:], past_key_values=cache)
            handle.remove()
        return seen[0]

    clean = second_pass()
    for kwargs, expected in (
        ({"positions": "generated"}, [[True] * 7, [True] * 7]),
        # Of the second row two tokens, one of padding and the first real one, are left alone.
        ({"positions": "all"}, [[True] * 7, [False, False, *[True] * 5]]),
        ({"positions": [0, 4]}, [[p == 4 for p in range(2, 9)], [p in (0, 4) for p in range(-1, 6)]]),
    ):
        assert (second_pass(**kwargs) != clean).any(-1).tolist() == expected


def test_gradients_pass(lm: LanguageModel, make_sae: Make, tokens: Tensor) -> None:
    embeds = lm.model.get_input_embeddings()(tokens).detach().requires_grad_()
    for kind in ("ReLU", "TopK"):
        with steer(lm, [ADD, Clamp(4, 2.0), ProjectOut(5)], sae=make_sae(lm, kind=kind)):
            lm.model(inputs_embeds=embeds).logits[:, -1].sum().backward()
    assert embeds.grad is not None
    assert embeds.grad.abs().sum() > 0


def test_training_mode_of_a_dictionary_does_not_count(lm: LanguageModel, make_sae: Make, tokens: Tensor) -> None:
    sae = make_sae(lm, kind="BatchTopK")
    with steer(lm, Clamp(4, 2.0), sae=sae):
        expected = lm.logits(tokens)
    sae.train()
    with steer(lm, Clamp(4, 2.0), sae=sae):
        assert torch.equal(lm.logits(tokens), expected)
    assert sae.training


def test_refined_dictionaries_are_encoded_whole(lm: LanguageModel, tokens: Tensor) -> None:
    widths = Widths.autoencoder(SiteRef(lm.name, SITE), lm.width(SITE))
    torch.manual_seed(0)
    sae = ReLU(widths, 40, decoder_norm="unit", refinements=Refinements(second_step=0.3)).eval()
    clean = lm.capture(tokens, [SITE])[SITE]
    with steer(lm, Clamp(4, 2.0), sae=sae) as steering:
        found = lm.capture(tokens, [SITE])[SITE]
    expected = clean + (2 - sae.encode(clean)[..., 4, None]) * sae.direction(4)
    torch.testing.assert_close(found[:, 1:], expected.detach()[:, 1:], rtol=1e-4, atol=1e-5)
    assert steering.encodes == tokens.numel()


def transcoder(lm: LanguageModel, read: str, predicted: str) -> Transcoder:
    refs = {name: SiteRef(lm.name, name) for name in (read, predicted)}
    widths = Widths({refs[read]: lm.width(read)}, {refs[predicted]: lm.width(predicted)})
    torch.manual_seed(1)
    return Transcoder(widths, 30, mechanisms.ReLU("unit"), skip=True).eval()


def test_transcoders_write_where_they_predict_from_what_they_read(lm: LanguageModel, tokens: Tensor) -> None:
    sae = transcoder(lm, "mlp_in.1", "mlp_out.1")
    read, clean = lm.capture(tokens, ["mlp_in.1", "mlp_out.1"]).values()
    with steer(lm, [Clamp(4, 2.0), Add(5, 1.0, unit="latent", when=Fires())], sae=sae):
        found = lm.capture(tokens, ["mlp_out.1"])["mlp_out.1"]
    f = sae.encode(read)
    expected = clean + (2 - f[..., 4, None]) * sae.direction(4) + (f[..., 5, None] > 0) * sae.direction(5)
    torch.testing.assert_close(found[:, 1:], expected.detach()[:, 1:], rtol=1e-4, atol=1e-5)
    backwards = transcoder(lm, "mlp_out.1", "mlp_in.1")
    with (
        steer(lm, Clamp(4, 2.0), sae=backwards),
        pytest.raises(SiteError, match=r"is written before 'mlp_out.1' is read"),
    ):
        lm.logits(tokens)
    with steer(lm, ADD, sae=backwards):
        lm.logits(tokens)


def test_crosscoders(lm: LanguageModel, tokens: Tensor) -> None:
    names = ("resid_post.0", "resid_post.2")
    refs = {SiteRef(lm.name, name): lm.width(name) for name in names}
    torch.manual_seed(2)
    sae = Crosscoder(Widths(refs, refs), 30, mechanisms.ReLU("free")).eval()
    with pytest.raises(SiteError, match=r"writes at 'resid_post.0', 'resid_post.2'; name one"), steer(lm, ADD, sae=sae):
        pass
    with pytest.raises(SiteError, match=r"site is 'resid_post.1', but the SAE belongs to"):
        steer(lm, ADD, sae=sae, site="resid_post.1").__enter__()
    clean = lm.capture(tokens, names)
    rows = sae.direction(3).detach().split(lm.width(names[0]))
    for name, row in zip(names, rows, strict=True):
        with steer(lm, ADD, sae=sae, site=name):
            found = lm.capture(tokens, [name])[name]
        torch.testing.assert_close(found[:, 1:], (clean[name] + row)[:, 1:])
    with steer(lm, Clamp(3, 2.0), sae=sae, site=names[1]):
        found = lm.capture(tokens, [names[1]])[names[1]]
    f = sae.encode(torch.cat(list(clean.values()), -1))[..., 3, None].detach()
    torch.testing.assert_close(found[:, 1:], (clean[names[1]] + (2 - f) * rows[1])[:, 1:], rtol=1e-4, atol=1e-5)
    with (
        steer(lm, Clamp(3, 2.0), sae=sae, site=names[0]),
        pytest.raises(SiteError, match="only the last can"),
    ):
        lm.logits(tokens)
    mixed = {SiteRef(lm.name, names[0]): 24, SiteRef("other", names[1]): 24}
    sae = Crosscoder(Widths(mixed, mixed), 30, mechanisms.ReLU("free")).eval()
    with pytest.raises(SiteError, match=r"clamp feature 3.* reads from 'other:resid_post.2' too"):
        steer(lm, Clamp(3, 2.0), sae=sae, site=names[0]).__enter__()
    with steer(lm, ADD, sae=sae, site=names[0]):
        lm.logits(tokens)


def dictionary(lm: LanguageModel, sae: SparseAutoencoder, folder: Path, **manifest: object) -> FeatureDictionary:
    save_sae(sae, folder / "sae", {"model": lm.name, "normalisation": "sqrt_d"})
    told = fake_manifest(sae.d_sae) | {
        "sae": SavedSAE.open(folder / "sae").entry,
        "model": {"name": lm.name, "revision": None},
    }
    write_dictionary(folder / "dictionary", fake_tables(sae.d_sae), told | manifest)
    return FeatureDictionary.open(folder / "dictionary")


def test_units_from_a_feature_dictionary(lm: LanguageModel, make_sae: Make, tokens: Tensor, tmp_path: Path) -> None:
    sae = make_sae(lm)
    known = dictionary(lm, sae, tmp_path, effects={"mean_site_norm": 7.0})
    largest = known.feature(3).row["max"]
    base = lm.capture(tokens, [SITE])[SITE]
    with steer(lm, Add(3, 2.0, unit="max"), sae=sae, dictionary=known):
        found = lm.capture(tokens, [SITE])[SITE] - base
    torch.testing.assert_close(found[0, 1], 2 * largest * sae.direction(3).detach(), rtol=1e-4, atol=1e-5)
    with steer(lm, Clamp(3, 0.5, unit="max", when=Fires(5, 0.1, unit="max")), sae=sae, dictionary=known) as steering:
        assert steering.report()["interventions"][0]["latent"] == pytest.approx(0.5 * largest)
    with steer(lm, Add(3, 2.0), sae=sae, dictionary=str(known.folder)) as steering:
        assert steering.mean_norm == 7.0
        assert (lm.capture(tokens, [SITE])[SITE] - base)[0, 1].norm().item() == pytest.approx(14.0, rel=1e-4)
    # The folder of the SAE knows how its scale was measured.
    with steer(lm, Add(3, 2.0), sae=tmp_path / "sae") as steering:
        assert steering.mean_norm == pytest.approx(24**0.5 / float(sae.output_scale))
    for one in (Add(4, 1.0, unit="max"), MinClamp(3, 1.0, when=Fires(4, 0.1, unit="max"))):
        with pytest.raises(ConfigError, match="feature 4 never fires"):
            steer(lm, one, sae=sae, dictionary=known).__enter__()


@dataclass
class Promoted:
    sae: SparseAutoencoder
    dictionary: FeatureDictionary


def test_an_sae_may_bring_its_feature_dictionary(lm: LanguageModel, make_sae: Make, tmp_path: Path) -> None:
    sae = make_sae(lm)
    known = dictionary(lm, sae, tmp_path, effects={"mean_site_norm": 7.0})
    with steer(lm, Add(3, 2.0), Promoted(sae, known)) as steering:
        assert steering.mean_norm == 7.0
    with pytest.raises(ConfigError, match="dictionary is given, but sae brings its own"):
        steer(lm, Add(3, 2.0), Promoted(sae, known), dictionary=known).__enter__()
    with steer(lm, Add(3, 2.0), SavedSAE.open(tmp_path / "sae")) as steering:
        assert steering.mean_norm == pytest.approx(24**0.5 / float(sae.output_scale))


def test_another_model_revision_or_site_is_refused(
    lm: LanguageModel, make_sae: Make, tokens: Tensor, tmp_path: Path, tiny_folder
) -> None:
    sae = make_sae(lm)
    other = LanguageModel.from_pretrained(str(tiny_folder("qwen2")))

    def refused(model, error, match, using=sae, **kwargs) -> None:
        with pytest.raises(error, match=match):
            steer(model, kwargs.pop("what", ADD), sae=using, **kwargs).__enter__()

    refused(other, ModelError, r"was made for '.*llama', and the model in use is '.*qwen2'. .*any_model=True")
    refused(other.model, ModelError, r"and the model in use is '.*qwen2'")
    nameless = AutoModelForCausalLM.from_config(lm.model.config)
    nameless.config._name_or_path = nameless.name_or_path = ""
    refused(nameless, ModelError, "has no name")
    with steer(other, ADD, sae=sae, any_model=True):
        other.logits(tokens)
    refused(lm, SiteError, "site is 'resid_post.2', but the SAE belongs to 'resid_post.1'", site="resid_post.2")
    elsewhere = TopK(Widths.autoencoder(SiteRef(lm.name, "resid_post.9"), 24), 40, k=4)
    refused(lm, SiteError, "the SAE's site is 'resid_post.9', but .* has layers 0..2", using=elsewhere)
    narrow = TopK(Widths.autoencoder(SiteRef(lm.name, SITE), 12), 40, k=4)
    with steer(lm, ADD, sae=narrow), pytest.raises(SiteError, match=r"has width 24 .* the SAE writes 12 numbers"):
        lm.logits(tokens)
    files = TopK(Widths.of(24), 40, k=4)
    refused(lm, ModelError, "without a language model", using=files)

    known = dictionary(lm, sae, tmp_path, model={"name": lm.name, "revision": "abc"})
    with steer(lm, ADD, sae=sae, dictionary=known):
        pass  # a local folder has no revision
    lm.revision = "def"
    try:
        refused(lm, ModelError, "at revision 'abc', and the model in use is at 'def'", dictionary=known)
        with steer(lm, ADD, sae=sae, dictionary=known, any_model=True):
            pass
    finally:
        lm.revision = None
    reseeded = make_sae(lm, kind="JumpReLU")
    refused(lm, FormatError, "is not the SAE that the feature dictionary", using=reseeded, dictionary=known)


@pytest.mark.parametrize(
    ("interventions", "kwargs", "message"),
    [
        ([], {}, "interventions is empty"),
        ([Add(40, 1.0, unit="latent")], {}, "feature 40 does not exist: the SAE has 40, from 0"),
        ([Ablate(3, when=Fires(50))], {}, "feature 50 does not exist"),
        ([Clamp(3, 1.0), Ablate(3)], {}, "feature 3 gets clamp and ablate at once; keep one"),
        ([Add(3, 1.0)], {}, "add feature 3: .1 x mean norm: the mean norm at resid_post.1 is not known"),
        ([Add(3, 1.0, unit="max")], {}, "feature 3: its own maximum is not known; give a feature dictionary"),
        ([ADD], {"positions": "prompt"}, "positions is 'prompt'; write 'all', 'generated' or positions"),
        ([ADD], {"positions": [-1]}, "counted from a row's first token"),
        ([ADD], {"skip_first": -1}, "skip_first is -1"),
        ([Add(3, 1.0, unit="latent", along=torch.zeros(24))], {}, "along has shape .24,.; write 24 finite numbers"),
    ],
)
def test_what_does_not_fit_is_refused(lm: LanguageModel, make_sae: Make, interventions, kwargs, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        steer(lm, interventions, sae=make_sae(lm), **kwargs).__enter__()
    assert hooks(lm) == 0
