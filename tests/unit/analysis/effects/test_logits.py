"""Direct logit effects: the folded norm against every architecture's own, the statistics against scipy's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from helpers.tiny_models import SITE_KINDS
from lightsae.analysis.effects.directions import directions
from lightsae.analysis.effects.final_norm import final_norm, final_norm_scale, mean_site_norm
from lightsae.analysis.effects.logits import direct_logits, logits_of, writes_to_stream
from lightsae.errors import ModelError, SiteError
from lightsae.lm import LanguageModel
from lightsae.sae import MECHANISMS, Crosscoder, SiteRef, TopK, Transcoder, Widths

WITHOUT = ("bert", "opt-post-norm")


def dictionary(site: str, width: int, d_sae: int = 40) -> TopK:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        sae = TopK(Widths.autoencoder(SiteRef("m", site), width), d_sae=d_sae, k=4)
    sae.output_scale.fill_(0.25)
    return sae


def test_folded_norm_is_the_models_own(tiny) -> None:
    """With its denominator multiplied out a norm is linear, so that any step gives the folded shift, not small ones."""
    norm = final_norm(tiny.lm)
    if tiny.name in WITHOUT:
        assert norm is None
        return
    module = tiny.lm.model.get_submodule(norm.path)
    bias = getattr(module, "bias", None)
    bias = 0 if bias is None else bias
    d = torch.randn(24, generator=torch.Generator().manual_seed(0)) + 1

    def numerator(step: float) -> torch.Tensor:
        with tiny.lm.intervene("resid_post.2", lambda x: x + step * d):
            read, out = tiny.lm.capture(tiny.tokens, [f"{norm.path}.input", f"{norm.path}.output"]).values()
        return (out - bias) * norm.denominator(read)[..., None]

    shift = (numerator(0.5) - numerator(0.0)) / 0.5
    torch.testing.assert_close(shift, norm.fold(d, 1.0).expand_as(shift), rtol=1e-4, atol=2e-5)


def test_logits_are_the_models_own(tiny) -> None:
    """Added after the norm, the folded direction shifts the model's logits by what is said."""
    norm = final_norm(tiny.lm)
    if norm is None:
        return
    d = torch.randn(1, 24, generator=torch.Generator().manual_seed(0))
    clean = tiny.lm.logits(tiny.tokens)
    with tiny.lm.intervene(f"{norm.path}.output", lambda x: x + norm.fold(d[0], 3.0)):
        moved = tiny.lm.logits(tiny.tokens)
    cap = getattr(tiny.lm.model.config, "final_logit_softcapping", None)
    if cap:
        clean, moved = (cap * torch.atanh(x.double() / cap) for x in (clean, moved))
    shift = (moved - clean).float()
    torch.testing.assert_close(shift, logits_of(tiny.lm, norm, d, 3.0).expand_as(shift), rtol=1e-3, atol=2e-5)


# Norms and heads of their own kind, and a body that is found in its own way.
@pytest.mark.parametrize("name", ["cohere", "granite", "olmo", "llama4", "gemma", "mamba", "stablelm", "bloom"])
def test_logits_of_other_architectures(name: str, family_folder: Callable[[str], Path]) -> None:
    lm = LanguageModel.from_pretrained(str(family_folder(name)))
    tokens = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    norm = final_norm(lm)
    assert norm is not None
    module = lm.model.get_submodule(norm.path)
    read, out = lm.capture(tokens, [f"{norm.path}.input", f"{norm.path}.output"]).values()
    bias = getattr(module, "bias", None)
    folded = norm.fold(read, 1.0) / norm.denominator(read)[..., None] + (0 if bias is None else bias)
    torch.testing.assert_close(out, folded, rtol=1e-3, atol=1e-4)
    d = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    with lm.intervene(f"{norm.path}.output", lambda x: x + norm.fold(d[0], 3.0)):
        shift = lm.logits(tokens)
    shift = shift - lm.logits(tokens)
    torch.testing.assert_close(shift, logits_of(lm, norm, d, 3.0).expand_as(shift), rtol=1e-3, atol=1e-4)


def test_a_scaled_branch_writes_by_its_name_alone(family_folder: Callable[[str], Path]) -> None:
    lm = LanguageModel.from_pretrained(str(family_folder("granite")))
    assert writes_to_stream(lm, "mlp_out.0")
    assert not writes_to_stream(lm, "model.layers.0.mlp.output")
    assert writes_to_stream(LanguageModel.from_pretrained(str(family_folder("mamba"))), "mixer_out.0")


def test_sites_that_write(tiny) -> None:
    kinds = {kind for kind in SITE_KINDS if writes_to_stream(tiny.lm, f"{kind}.1")}
    assert kinds == {"resid_pre", "attn_out", "mlp_out", "resid_post"}
    raw = tiny.lm.site("mlp_out.1")
    assert writes_to_stream(tiny.lm, f"{raw.path}.{raw.side}")
    assert not writes_to_stream(tiny.lm, f"{tiny.wiring.blocks}.1.{tiny.wiring.norm}.output")


def test_post_norm_models_and_read_sites_have_none(tiny) -> None:
    for kind, width in (("resid_post", 24), ("mlp_in", 24), ("mlp_act", 52)):
        effects = direct_logits(
            dictionary(f"{kind}.1", width), tiny.lm, site=SiteRef("m", f"{kind}.1"), norm_scale=1.0, top=3
        )
        assert (effects is None) == (kind != "resid_post" or tiny.name in WITHOUT)


def test_statistics(tiny_folder) -> None:
    lm = LanguageModel.from_pretrained(str(tiny_folder("gpt2")))
    sae, site = dictionary("mlp_out.0", 24), SiteRef("m", "mlp_out.0")
    with torch.no_grad():
        sae.W_dec[7] = 0
    found = direct_logits(sae, lm, site=site, norm_scale=2.0, top=5, chunk=16)
    ln, head = lm.model.transformer.ln_f, lm.model.lm_head.weight
    rows = sae.W_dec.detach() / 0.25
    logits = ((rows - rows.mean(1, keepdim=True)) * ln.weight / 2.0 @ head.T).numpy().astype(np.float64)
    live = np.arange(40) != 7
    order = np.argsort(logits, axis=1)
    assert np.array_equal(found.promoted[live], order[live, ::-1][:, :5])
    assert np.array_equal(found.suppressed[live], order[live, :5])
    np.testing.assert_allclose(found.promoted_logits, -np.sort(-logits, axis=1)[:, :5], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.suppressed_logits, np.sort(logits, axis=1)[:, :5], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.kurtosis[live], scipy.stats.kurtosis(logits[live], axis=1), rtol=1e-3, atol=1e-4)
    squares = np.sort((logits - logits.mean(1, keepdims=True)) ** 2, axis=1)[live]
    np.testing.assert_allclose(found.concentration[live], squares[:, -10:].sum(1) / squares.sum(1), rtol=1e-4)
    assert np.isnan(found.kurtosis[7])
    assert np.isnan(found.concentration[7])


def test_scales_leave_sinks_out(tiny_folder) -> None:
    lm = LanguageModel.from_pretrained(str(tiny_folder("llama")))
    rows = torch.randint(3, 61, (20, 9), generator=torch.Generator().manual_seed(1))

    def boost(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, 0] *= 3
        x[3, 4] *= 1000
        return x

    with lm.intervene("resid_post.2", boost):
        x = lm.capture(rows, ["resid_post.2"])["resid_post.2"]
        found = final_norm_scale(lm, rows), mean_site_norm(lm, rows, "resid_post.2")
    keep = torch.ones(20, 9, dtype=torch.bool)
    keep[:, 0] = keep[[3, 19], 4] = False  # 16 rows at once: row 19 is the second pass's row 3
    root = (x[keep].square().mean(1) + lm.model.config.rms_norm_eps).sqrt().mean()
    assert found == pytest.approx((root.item(), x[keep].norm(dim=1).mean().item()), rel=1e-5)


def test_directions_of_a_crosscoder_and_a_transcoder() -> None:
    a, b = SiteRef("m", "resid_post.0"), SiteRef("m", "resid_post.1")
    sae = Crosscoder(Widths({a: 3, b: 5}, {a: 3, b: 5}), d_sae=6, mechanism=MECHANISMS["BatchTopK"](k=2))
    sae.output_scale.copy_(torch.tensor([2.0, 4.0]))
    assert torch.equal(directions(sae, b), sae.W_dec.detach()[:, 3:] / 4)
    transcoder = Transcoder(Widths({a: 3}, {b: 5}), d_sae=6, mechanism=MECHANISMS["TopK"](k=2))
    assert directions(transcoder, b).shape == (6, 5)
    with pytest.raises(SiteError, match=r"m:resid_post\.0.*predicts m:resid_post\.1"):
        directions(transcoder, a)


def test_needs_a_head(tiny_folder) -> None:
    lm = LanguageModel.from_pretrained(str(tiny_folder("gpt2")), sites=["resid_post.1"])
    with pytest.raises(ModelError, match="without a next-token head"):
        direct_logits(dictionary("resid_post.1", 24), lm, site=SiteRef("m", "resid_post.1"), norm_scale=1.0)
