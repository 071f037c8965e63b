"""Every intervention against a forward pass written by hand, on every architecture; with and without the KV cache."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers.tiny_models import SITE_KINDS
from lightsae.analysis.steering import Ablate, Add, Clamp, Fires, MinClamp, ProjectOut, steer
from lightsae.lm import LanguageModel
from lightsae.sae import SparseAutoencoder

KINDS = ["ReLU", "ReLU-unit", "JumpReLU", "Gated", "TopK", "BatchTopK", "Matryoshka", "ReLU-layer_norm", "TopK-rescale"]
NORM = 5.0
Make = Callable[..., SparseAutoencoder]

ALL = {
    "add": Add(3, 0.7),
    "add in latent units": Add(3, -2.0, unit="latent"),
    "clamp": Clamp(4, 3.0),
    "clamp in norms": Clamp(4, 0.5, unit="norm"),
    "min-clamp": MinClamp(5, 0.8),
    "ablate": Ablate(6),
    "project out": ProjectOut(7),
    "add where another fires": Add(3, 0.7, when=Fires(8, 0.1)),
    "clamp where it fires": Clamp(4, 3.0, when=Fires()),
    "project out where it fires": ProjectOut(7, when=Fires()),
}


def own_unit(x: Tensor, sae: SparseAutoencoder) -> Tensor | float:
    """How long a unit of the SAE is at each token, where that differs."""
    if sae.refinements.token_norm == "layer_norm":
        return x.std(-1, keepdim=True)
    return 1.0 if sae.refinements.token_norm is None else x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5


@torch.no_grad()
def by_hand(name: str, x: Tensor, sae: SparseAutoencoder) -> Tensor:
    """What the formulas say of raw activations, token by token, from the dense encode and the decoder's rows."""
    f, d, w = sae.encode(x), sae.W_dec / sae.output_scale, own_unit(x, sae)
    one = {
        "add": lambda t: t + 0.7 * NORM * d[3] / d[3].norm(),
        "add in latent units": lambda t: t - 2 * w * d[3],
        "clamp": lambda t: t + (3 - f[..., 4, None]) * w * d[4],
        "clamp in norms": lambda t: t + (0.5 * NORM / d[4].norm() - f[..., 4, None] * w) * d[4],
        "min-clamp": lambda t: t + (0.8 - f[..., 5, None]).clamp_min(0) * w * d[5],
        "ablate": lambda t: t - f[..., 6, None] * w * d[6],
        "project out": lambda t: t - (t @ d[7])[..., None] * d[7] / d[7].square().sum(),
        "add where another fires": lambda t: t + 0.7 * NORM * (f[..., 8, None] > 0.1) * d[3] / d[3].norm(),
        "clamp where it fires": lambda t: t + (f[..., 4, None] > 0) * (3 - f[..., 4, None]) * w * d[4],
        "project out where it fires": lambda t: (
            t - (f[..., 7, None] > 0) * (t @ d[7])[..., None] * d[7] / d[7].square().sum()
        ),
    }[name]
    steered = one(x)
    return torch.cat([x[:, :1], steered[:, 1:]], 1)  # the sink


def last(lm: LanguageModel, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return lm.model(tokens, use_cache=False)[0]


def test_every_architecture(tiny, make_sae: Make) -> None:
    """The block's output replaced by a hook of its own, against the context."""
    sae = make_sae(tiny.lm)
    clean = last(tiny.lm, tiny.tokens)
    for name, intervention in ALL.items():

        def replace(_module, _args, result, name=name):
            x = result[0] if isinstance(result, tuple) else result
            new = by_hand(name, x, sae)
            return (new, *result[1:]) if isinstance(result, tuple) else new

        handle = tiny.blocks[1].register_forward_hook(replace)
        expected = last(tiny.lm, tiny.tokens)
        handle.remove()
        with steer(tiny.lm, intervention, sae=sae, mean_norm=NORM):
            found = last(tiny.lm, tiny.tokens)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        assert not torch.allclose(found, clean, atol=1e-3), name
        assert torch.equal(last(tiny.lm, tiny.tokens), clean)


def test_the_identity_dose_on_every_architecture(tiny, make_sae: Make) -> None:
    sae, row = make_sae(tiny.lm), tiny.tokens[:1]
    f = sae.encode(tiny.lm.capture(row, ["resid_post.1"])["resid_post.1"])[0].detach()
    clean = last(tiny.lm, row)
    # The weakest firings, whose rounding error is largest beside them, and the strongest.
    places = (f[1:] > 0).nonzero()
    places = places[f[1:][places[:, 0], places[:, 1]].argsort()]
    for place in (*places[:8], *places[-4:]):
        position, feature = int(place[0]) + 1, int(place[1])
        value = float(f[position, feature])
        for one in (Add(3, 0.0), Clamp(feature, value), MinClamp(feature, value), MinClamp(feature, 0.0)):
            with steer(tiny.lm, one, sae=sae, positions=[position]):
                assert torch.equal(last(tiny.lm, row), clean), one
        with steer(tiny.lm, Clamp(feature, value + 0.01), sae=sae, positions=[position]):
            assert not torch.equal(last(tiny.lm, row), clean)


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_every_site(tiny, make_sae: Make, kind: str) -> None:
    site = f"{kind}.1"
    sae = make_sae(tiny.lm, site)
    clean = tiny.lm.capture(tiny.tokens, [site])[site]
    for name in ("add", "clamp", "project out"):
        with steer(tiny.lm, ALL[name], sae=sae, mean_norm=NORM):
            found = tiny.lm.capture(tiny.tokens, [site])[site]
        torch.testing.assert_close(found, by_hand(name, clean, sae), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_variant(lm: LanguageModel, tokens: Tensor, make_sae: Make, kind: str) -> None:
    sae = make_sae(lm, kind=kind)
    clean = lm.capture(tokens, ["resid_post.1"])["resid_post.1"]
    fired = sae.encode(clean)[:, 1:]
    assert all(0 < (fired[..., i] > 0).sum() for i in (4, 5, 6, 7, 8)), "the test would not see a condition"
    for name, intervention in ALL.items():
        with steer(lm, intervention, sae=sae, mean_norm=NORM) as steering:
            found = lm.capture(tokens, ["resid_post.1"])["resid_post.1"]
        torch.testing.assert_close(found, by_hand(name, clean, sae), rtol=1e-4, atol=1e-5)
        needs = intervention.reads_own or intervention.when is not None
        alone = kind in ("ReLU", "ReLU-unit", "ReLU-layer_norm", "JumpReLU", "Gated")
        assert steering.encodes == (tokens.numel() if needs and not alone else 0), name


SEVERAL = [Add(3, 0.7), Clamp(4, 3.0), Ablate(6, when=Fires(8)), ProjectOut(7)]


@pytest.mark.parametrize("positions", ["all", "generated", [0, 2, 6]])
def test_cache_and_padding_give_what_a_full_forward_of_each_row_gives(tiny, make_sae: Make, positions) -> None:
    """Steered while generating with the KV cache in a batch padded on the left; then each text alone, in one pass."""
    if not tiny.lm.has_next_token_head:
        pytest.skip("encoders do not generate")
    lengths = (5, 3)
    prompts = [row[:n] for row, n in zip(tiny.tokens, lengths, strict=True)]
    padded = torch.stack([torch.cat([row.new_zeros(5 - len(row)), row]) for row in prompts])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    for kind in ("ReLU", "TopK"):
        sae = make_sae(tiny.lm, kind=kind)
        with steer(tiny.lm, SEVERAL, sae=sae, mean_norm=NORM, positions=positions):
            made = [
                tiny.lm.model.generate(padded, attention_mask=mask, use_cache=cache, **settings)
                for cache in (True, False)
            ]
        clean = tiny.lm.model.generate(padded, attention_mask=mask, **settings)
        for result in made:
            logits = torch.stack(result.logits, 1)
            assert not torch.allclose(logits, torch.stack(clean.logits, 1), atol=1e-3)
            for row, n in enumerate(lengths):
                text = torch.cat([prompts[row], result.sequences[row, 5:]])[None, :-1]
                # In one pass nothing is generated: the same positions by number.
                same = range(n, n + 5) if positions == "generated" else positions
                with steer(tiny.lm, SEVERAL, sae=sae, mean_norm=NORM, positions=same):
                    whole = last(tiny.lm, text)[0, n - 1 :]
                torch.testing.assert_close(logits[row], whole, rtol=1e-3, atol=2e-4)
