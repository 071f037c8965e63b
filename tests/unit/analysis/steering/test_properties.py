"""What holds of interventions whatever the numbers are: loops over seeds, and bits at the identity dose."""

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor

from lightsae.analysis.steering import Ablate, Add, Clamp, Fires, Intervention, MinClamp, ProjectOut, steer
from lightsae.errors import ConfigError
from lightsae.lm import LanguageModel
from lightsae.sae import ReLU, SiteRef, SparseAutoencoder, Widths

SITE, SEEDS = "resid_post.1", range(4)


def site(lm: LanguageModel, tokens: Tensor, *interventions: Intervention, **kwargs) -> Tensor:
    """What is at the site, past the sink, while steered."""
    with steer(lm, interventions, mean_norm=5.0, **kwargs):
        return lm.capture(tokens, [SITE])[SITE][:, 1:]


def clean(lm: LanguageModel, tokens: Tensor) -> Tensor:
    return lm.capture(tokens, [SITE])[SITE][:, 1:]


def rows(seed: int) -> Tensor:
    return torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(seed))


def without_interference(lm: LanguageModel, seed: int) -> ReLU:
    """Orthonormal decoder rows that are also the encoder's columns: writing one latent moves no other."""
    width = lm.width(SITE)
    sae = ReLU(Widths.autoencoder(SiteRef(lm.name, SITE), width), width, decoder_norm="unit").eval()
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        sae.W_dec.copy_(torch.linalg.qr(drawn)[0])
        sae.W_enc.copy_(sae.W_dec.T)
        sae.input_scale.fill_(0.3)
        sae.output_scale.fill_(0.3)
        # Each fires on half of the tokens, and on none by a rounding error.
        sae.b_enc.copy_(0.01 - sae.pre_activations(clean(lm, rows(seed)).flatten(0, 1).clone()).median(0).values)
    return sae


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_clamped_measures_what_it_was_clamped_to(lm: LanguageModel, seed: int) -> None:
    sae = without_interference(lm, seed)
    before = sae.encode(clean(lm, rows(seed)))
    after = sae.encode(site(lm, rows(seed), Clamp(3, 2.5), MinClamp(5, 0.4), Ablate(7), sae=sae))
    for feature, expected in ((3, torch.tensor(2.5)), (5, before[..., 5].clamp_min(0.4)), (7, torch.tensor(0.0))):
        # Where it did not fire, its pre-activation lay below 0, and so it ends below c.
        fired = before[..., feature] > 0
        expected = expected.expand_as(fired)
        assert fired.any()
        torch.testing.assert_close(after[..., feature][fired], expected[fired], rtol=1e-4, atol=1e-5)
        assert (after[..., feature][~fired] <= expected[~fired]).all()
    others = [i for i in range(sae.d_sae) if i not in (3, 5, 7)]
    torch.testing.assert_close(after[..., others], before[..., others], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_add_is_linear(lm: LanguageModel, make_sae: Callable[..., SparseAutoencoder], seed: int) -> None:
    sae, tokens = make_sae(lm), rows(seed)
    base = clean(lm, tokens)
    one, two = (site(lm, tokens, add, sae=sae) - base for add in (Add(1, 0.3), Add(2, -0.8)))
    both = site(lm, tokens, Add(1, 0.3), Add(2, -0.8), sae=sae) - base
    torch.testing.assert_close(both, one + two, rtol=1e-4, atol=1e-5)
    twice = site(lm, tokens, Add(1, 0.3), Add(1, 0.3), sae=sae) - base
    torch.testing.assert_close(twice, 2 * one, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one[0, 0].norm(), torch.tensor(0.3 * 5.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_left_of_what_is_projected_out(
    lm: LanguageModel, make_sae: Callable[..., SparseAutoencoder], seed: int
) -> None:
    """Of several directions that are not orthogonal either, and of what is added along them."""
    sae, tokens = make_sae(lm), torch.cat([rows(seed), rows(seed + 50)])
    left = site(lm, tokens, ProjectOut(1), ProjectOut(2), Add(1, 3.0), Clamp(2, 4.0), Add(9, 1.0), sae=sae)
    directions = torch.nn.functional.normalize(sae.W_dec[[1, 2]].detach(), dim=1)
    assert directions[0] @ directions[1] != 0
    assert (left @ directions.T).abs().max() < 1e-4
    assert left.norm(dim=-1).min() > 1
    # Where only some directions go, and which differs from token to token.
    own = sae.encode(clean(lm, tokens))[..., [1, 2]] > 0
    assert len(own.reshape(-1, 2).unique(dim=0)) >= 3
    left = site(lm, tokens, ProjectOut(1, when=Fires()), ProjectOut(2, when=Fires()), sae=sae)
    shares = (left @ directions.T).abs()
    assert shares[own].max() < 1e-4
    assert torch.equal(left[~own.any(-1)], clean(lm, tokens)[~own.any(-1)])


@pytest.mark.parametrize("seed", SEEDS)
def test_ablate_is_clamp_to_zero_and_order_never_matters(
    lm: LanguageModel, make_sae: Callable[..., SparseAutoencoder], seed: int
) -> None:
    tokens = rows(seed)
    for kind in ("ReLU", "TopK"):
        sae = make_sae(lm, kind=kind)
        assert torch.equal(site(lm, tokens, Ablate(4), sae=sae), site(lm, tokens, Clamp(4, 0.0), sae=sae))
        some = [Add(3, 0.5), Clamp(4, 2.0), Ablate(6, when=Fires(8)), ProjectOut(7)]
        outcomes = [site(lm, tokens, *order, sae=sae) for order in permutations(some)]
        assert all(torch.equal(outcomes[0], other) for other in outcomes[1:])


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["ReLU", "JumpReLU", "Gated", "TopK", "BatchTopK", "Matryoshka"])
def test_the_identity_dose_changes_no_bit(
    tiny_folder, make_sae: Callable[..., SparseAutoencoder], dtype: str, kind: str
) -> None:
    lm = LanguageModel.from_pretrained(str(tiny_folder("gpt2")), dtype=dtype)
    sae, tokens = make_sae(lm, kind=kind), rows(0)[:1]
    x = lm.capture(tokens, [SITE])[SITE]
    before, f = lm.logits(tokens), sae.encode(x)[0].detach()
    position = int((f[1:, 4] > 0).nonzero()[0]) + 1
    silent = int((f == 0).all(0).nonzero()[0]) if bool((f == 0).all(0).any()) else None
    doses: list[tuple[list[Intervention], object]] = [
        ([Add(3, 0.0)], "all"),
        ([Add(3, 0.0, when=Fires())], "all"),
        ([Clamp(4, float(f[position, 4]))], [position]),
        ([Clamp(4, float(f[position, 4])), Add(2, 0.0), MinClamp(9, 0.0)], [position]),
        ([MinClamp(4, 0.0)], "all"),
        ([Add(3, 1.0, when=Fires(4, 1e9))], "all"),
        ([Clamp(3, 1.0, when=Fires(4, 1e9)), ProjectOut(3, when=Fires(4, 1e9))], "all"),
        ([Add(3, 1.0)], "generated"),
    ]
    doses += [([Ablate(silent)], "all")] if silent is not None else []
    for interventions, positions in doses:
        with steer(lm, interventions, sae=sae, mean_norm=5.0, positions=positions):
            assert torch.equal(bits(lm.capture(tokens, [SITE])[SITE]), bits(x)), interventions
            assert torch.equal(bits(lm.logits(tokens)), bits(before)), interventions
    # Only the token at which something is written changes.
    with steer(lm, Clamp(4, 3.0), sae=sae, positions=[position]):
        moved = (lm.capture(tokens, [SITE])[SITE] != x)[0].any(-1)
    assert moved.nonzero().flatten().tolist() == [position]


def test_silence_is_kept_where_a_feature_does_not_fire(
    lm: LanguageModel, make_sae: Callable[..., SparseAutoencoder], tokens: Tensor
) -> None:
    sae = make_sae(lm)
    base = clean(lm, tokens)
    fires = sae.encode(base)[..., 6] > 0
    moved = (site(lm, tokens, Ablate(6), sae=sae) != base).any(-1)
    assert 0 < fires.sum() < fires.numel()
    assert torch.equal(moved, fires)


def test_sinks_are_left_alone_unless_asked(
    lm: LanguageModel, make_sae: Callable[..., SparseAutoencoder], tokens: Tensor
) -> None:
    sae, base = make_sae(lm), lm.capture(tokens, [SITE])[SITE]
    for kwargs, first in (({}, 1), ({"skip_first": 0}, 0), ({"skip_first": 3}, 3), ({"positions": range(9)}, 0)):
        with steer(lm, Add(3, 1.0), sae=sae, mean_norm=5.0, **kwargs):
            moved = (lm.capture(tokens, [SITE])[SITE] != base).any(-1)
        assert moved.tolist() == [[p >= first for p in range(9)]] * 2


def test_along_another_direction_at_the_same_norm(
    lm: LanguageModel, make_sae: Callable[..., SparseAutoencoder], tokens: Tensor
) -> None:
    sae, base = make_sae(lm), clean(lm, tokens)
    other = torch.randn(lm.width(SITE), generator=torch.Generator().manual_seed(5))
    for make in (lambda **k: Add(3, 0.5, **k), lambda **k: Clamp(3, 2.0, **k), lambda **k: Ablate(3, **k)):
        own, random = (site(lm, tokens, make(**k), sae=sae) - base for k in ({}, {"along": other}))
        torch.testing.assert_close(random.norm(dim=-1), own.norm(dim=-1), rtol=1e-3, atol=1e-4)
        written = random[random.norm(dim=-1) > 1e-3]
        torch.testing.assert_close(torch.cosine_similarity(written, other, dim=-1).abs(), torch.ones(len(written)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Add(-1, 1.0), r"Add: feature is -1; write its number"),
        (lambda: Add(True, 1.0), "feature is True"),
        (lambda: Add(1, float("nan")), "Add: strength is nan; write a finite number"),
        (lambda: Clamp(1, float("inf")), "Clamp: value is inf"),
        (lambda: Add(1, 1.0, unit="norms"), "Add: unit is 'norms'; write one of norm, max, latent"),
        (lambda: Fires(1, unit="norm"), "a threshold is in units of 'latent' or 'max'"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_unit_is_said(lm: LanguageModel, make_sae: Callable[..., SparseAutoencoder]) -> None:
    some = [Add(3, 0.5), Clamp(4, 2.0), MinClamp(5, 1.5, when=Fires(6, 0.2)), Ablate(7)]
    assert str(some[0]) == "add feature 3: +0.5 x mean norm"
    assert "unit='latent'" in repr(some[1])
    with steer(lm, some, sae=make_sae(lm), mean_norm=5.0) as steering:
        report = steering.report()
    assert "where feature 6 fires above 0.2 latent units" in repr(steering)
    assert "mean norm 5" in repr(steering)
    assert [entry["unit"] for entry in report["interventions"]] == ["norm", "latent", "latent", None]
    assert report["interventions"][0]["raw_norm"] == pytest.approx(2.5)
    assert (report["site"], report["positions"], report["skip_first"]) == (SITE, "all", 1)
