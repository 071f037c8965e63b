"""Interventions write exactly what they say, exactly where they say, and leave nothing behind."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from helpers.tiny_models import SITE_KINDS
from lightsae.errors import SiteError
from lightsae.lm import LanguageModel

WIDTH, LAYERS = 24, 3


def output(lm: LanguageModel, tokens: Tensor) -> Tensor:
    """The last thing the model computes: logits, or the last hidden states of an encoder."""
    with torch.inference_mode():
        return lm.model(tokens, use_cache=False)[0]


@pytest.fixture
def direction() -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_identity_changes_no_bit(tiny, kind: str) -> None:
    clean = output(tiny.lm, tiny.tokens)
    shapes = []
    with tiny.lm.intervene(f"{kind}.1", lambda x: (shapes.append(x.shape), x)[1]):
        assert torch.equal(output(tiny.lm, tiny.tokens), clean)
    assert shapes == [(2, 9, tiny.lm.width(f"{kind}.1"))]


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_what_is_written_is_what_later_modules_read(tiny, kind: str) -> None:
    """Each site, seen again through the block's own arithmetic after a write."""
    block, wiring = tiny.blocks[1], tiny.wiring
    clean = tiny.lm.capture(tiny.tokens, [f"{k}.1" for k in SITE_KINDS])
    fresh = torch.randn(clean[f"{kind}.1"].shape, generator=torch.Generator().manual_seed(3))
    with tiny.lm.intervene(f"{kind}.1", lambda x: fresh):
        found = tiny.lm.capture(tiny.tokens, [f"{k}.1" for k in SITE_KINDS])
        written = output(tiny.lm, tiny.tokens)
    assert torch.equal(found[f"{kind}.1"], fresh)
    assert not torch.allclose(written, output(tiny.lm, tiny.tokens), atol=1e-3)
    pre, z, attn, mlp_in, act, mlp, _ = (found[f"{k}.1"] for k in SITE_KINDS)
    with torch.inference_mode():

        def apply(path: str, x: Tensor) -> Tensor:
            return block.get_submodule(path)(x) if path else x

        rebuilt = {
            "attn_out": apply(wiring.attention_norm, apply(wiring.attention, z)),
            "mlp_in": apply(wiring.norm, pre if wiring.parallel else pre + attn),
            "mlp_out": apply(wiring.mlp_norm, apply(wiring.down, act)),
            "resid_post": apply(wiring.post_norm, mlp_in + mlp if wiring.post_norm else pre + attn + mlp),
        }
        if wiring.post_norm and kind == "mlp_in":
            del rebuilt["resid_post"]  # the second sum takes the norm's output, not what the MLP was given
    for name, value in rebuilt.items():
        if name != kind:
            torch.testing.assert_close(found[f"{name}.1"], value, rtol=1e-4, atol=1e-5)


def test_steering_equals_a_hand_written_forward(tiny, direction: Tensor) -> None:
    def add(_module, _args, result):
        return (result[0] + direction, *result[1:]) if isinstance(result, tuple) else result + direction

    handle = tiny.blocks[1].register_forward_hook(add)
    expected = output(tiny.lm, tiny.tokens)
    handle.remove()
    with tiny.lm.intervene("resid_post.1", lambda x: x + direction):
        assert torch.equal(output(tiny.lm, tiny.tokens), expected)
    with tiny.lm.intervene("resid_pre.2", lambda x: x + direction):
        assert torch.equal(output(tiny.lm, tiny.tokens), expected)
    assert not torch.allclose(output(tiny.lm, tiny.tokens), expected, atol=1e-3)


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_blocks_before_a_site_compute_once_for_the_same_bits(tiny, kind: str) -> None:
    writes = (lambda x: x, lambda x: -x, torch.zeros_like)
    expected = []
    for write in writes:
        with tiny.lm.intervene(f"{kind}.1", write):
            expected.append(output(tiny.lm, tiny.tokens))
    runs = dict.fromkeys(range(LAYERS), 0)

    def counting(layer: int):
        def count(*_ignored) -> None:
            runs[layer] += 1

        return tiny.blocks[layer].get_submodule(tiny.wiring.down).register_forward_hook(count)

    handles = [counting(layer) for layer in runs]
    # The second site comes later and decides nothing.
    with tiny.lm.computed_once([f"{kind}.1", "resid_post.2"]):
        for write, written in zip(writes, expected, strict=True):
            with tiny.lm.intervene(f"{kind}.1", write):
                assert torch.equal(output(tiny.lm, tiny.tokens), written)
    for handle in handles:
        handle.remove()
    # Where the site is the block's own output, the block computes the same before something is put in its place.
    alike = kind == "resid_post" and tiny.lm.site("resid_post.1").module is tiny.blocks[1]
    assert runs == {0: 1, 1: 1 if alike else 3, 2: 3}
    assert not any("forward" in vars(block) for block in tiny.blocks)


def test_another_thread_computes_its_own_pass(tiny) -> None:
    other = tiny.tokens.flip(1)
    expected = output(tiny.lm, other)
    with tiny.lm.computed_once(["resid_post.1"]), ThreadPoolExecutor(1) as pool:
        output(tiny.lm, tiny.tokens)
        assert torch.equal(pool.submit(output, tiny.lm, other).result(), expected)


def test_outside_known_blocks_everything_computes(tiny) -> None:
    """A site before the blocks: what is written there changes them all."""
    embeddings = tiny.lm.model.get_input_embeddings()
    path = next(path for path, module in tiny.lm.model.named_modules() if module is embeddings) + ".output"
    with tiny.lm.intervene(path, lambda x: -x):
        expected = output(tiny.lm, tiny.tokens)
    with tiny.lm.computed_once([path, "resid_post.1"]):
        clean = output(tiny.lm, tiny.tokens)
        with tiny.lm.intervene(path, lambda x: -x):
            assert torch.equal(output(tiny.lm, tiny.tokens), expected)
    assert not torch.equal(clean, expected)


def test_generate_with_cache_steers_every_position(tiny, direction: Tensor) -> None:
    if not tiny.lm.has_next_token_head:
        pytest.skip("encoders do not generate")
    prompt, lengths, texts = tiny.tokens[:, :4], [], []

    def steer(x: Tensor) -> Tensor:
        lengths.append(x.shape[1])
        return x + 3 * direction

    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    for site in ("mlp_out.1", "resid_post.1"):
        with tiny.lm.intervene(site, steer):
            for use_cache in (True, False):
                result = tiny.lm.model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), use_cache=use_cache, output_logits=True,
                    return_dict_in_generate=True, **settings,
                )  # fmt: skip
                texts.append(torch.stack(result.logits))
        assert lengths == [4, 1, 1, 1, 1, 4, 5, 6, 7, 8]
        lengths.clear()
        torch.testing.assert_close(texts[-2], texts[-1], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def lm(tiny_folder) -> LanguageModel:
    return LanguageModel.from_pretrained(str(tiny_folder("llama")))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))


def test_interventions_stack_in_order_and_go(lm: LanguageModel, tokens: Tensor) -> None:
    clean = lm.capture(tokens, ["resid_post.1"])["resid_post.1"]
    with lm.intervene("resid_post.1", lambda x: x + 1), lm.intervene("resid_post.1", lambda x: x * 2):
        found = lm.capture(tokens, ["resid_post.1", "resid_pre.2"])
    assert torch.equal(found["resid_post.1"], (clean + 1) * 2)
    assert torch.equal(found["resid_pre.2"], (clean + 1) * 2)
    assert torch.equal(lm.capture(tokens, ["resid_post.1"])["resid_post.1"], clean)


def test_nothing_stays_after_an_exception(lm: LanguageModel, tokens: Tensor) -> None:
    clean = lm.logits(tokens)
    with pytest.raises(KeyError), lm.intervene("mlp_out.0", lambda x: x * 0):
        raise KeyError
    with pytest.raises(ZeroDivisionError), lm.intervene("mlp_out.0", lambda x: x / (1 // 0)):
        lm.logits(tokens)
    assert torch.equal(lm.logits(tokens), clean)


def test_gradients_reach_what_was_written(lm: LanguageModel, tokens: Tensor) -> None:
    vector = torch.zeros(WIDTH, requires_grad=True)
    with lm.intervene("resid_post.0", lambda x: x + vector):
        lm.model(tokens).logits[..., 5].sum().backward()
    assert vector.grad is not None
    assert vector.grad.abs().sum() > 0


def test_shape_has_to_be_kept(lm: LanguageModel, tokens: Tensor) -> None:
    with (
        lm.intervene("resid_post.0", lambda x: x[:, :1]),
        pytest.raises(SiteError, match=r"returned shape \(2, 1, 24\)"),
    ):
        lm.logits(tokens)


def test_result_is_cast_to_the_models_dtype(tiny_folder, tokens: Tensor) -> None:
    lm = LanguageModel.from_pretrained(str(tiny_folder("llama")), dtype="bfloat16")
    assert lm.logits(tokens).dtype == torch.bfloat16
    clean = lm.logits(tokens)
    with lm.intervene("resid_post.0", lambda x: x.float()):
        assert torch.equal(lm.logits(tokens), clean)
