"""The context: what it sees of any forward pass, that it changes none, and what it refuses."""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers.threads import together
from lightsae.analysis.dictionary import FeatureDictionary
from lightsae.analysis.steering import Add, steer
from lightsae.errors import ConfigError, FormatError, ModelError, SiteError
from lightsae.lm import LanguageModel
from lightsae.production.monitor import Event, Firing, monitor
from lightsae.sae import Crosscoder, SiteRef, SparseAutoencoder, Widths, mechanisms

SITE = "resid_post.1"
WATCHED = [3, 4, 7]
ALL = dict.fromkeys(WATCHED, 0.0)
Padded = dict[str, Tensor]
SAMPLED: dict[str, Any] = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, "pad_token_id": 0}


def places(events: list[Event]) -> dict[tuple[int, int, int], tuple[int, str, float]]:
    """(row, position, feature) -> (token, phase, value); each place once."""
    found = {(e.row, e.position, e.feature): (e.token, e.phase, e.value) for e in events if isinstance(e, Firing)}
    assert len(found) == len(events)
    return found


@torch.no_grad()
def by_hand(lm: LanguageModel, sae: SparseAutoencoder, ids: Tensor, mask: Tensor, prompt: int) -> Any:
    """The same from one pass over the whole text, row by row and without padding."""
    found = {}
    for row, (text, real) in enumerate(zip(ids, mask.bool(), strict=True)):
        pad = int((~real).sum())
        x = lm.capture(text[None, pad:], [SITE])[SITE]
        latents = sae.encode(x[0])
        for position in range(1, len(text) - pad):
            token = int(text[pad + position])
            for feature in WATCHED:
                # 0, 1, 2 are special.
                if token > 2 and (value := float(latents[position, feature])) > 0:
                    phase = "generated" if pad + position >= prompt else "prompt"
                    found[row, position, feature] = (token, phase, pytest.approx(value, abs=1e-4))
    return found


@pytest.mark.parametrize("kind", ["ReLU", "TopK"])
@pytest.mark.parametrize("cache", [True, False])
def test_every_token_of_a_padded_batch_once_and_no_bit_changes(
    lm: LanguageModel,
    make_sae: Callable[..., SparseAutoencoder],
    make_dictionary: Callable[..., FeatureDictionary],
    padded: Padded,
    kind: str,
    cache: bool,
) -> None:
    sae = make_sae(lm, SITE, kind)
    seen: list[Event] = []
    plain = {"return_dict_in_generate": True, "output_logits": True, "use_cache": cache} | SAMPLED
    before = lm.model.generate(**padded, **plain)
    with monitor(lm, make_dictionary(sae), sae=sae, features=WATCHED, thresholds=ALL, sinks=seen.append) as watch:
        after = lm.model.generate(**padded, **plain)
        again = lm.logits(padded["input_ids"])
    assert torch.equal(before.sequences, after.sequences)
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))
    assert torch.equal(again, lm.logits(padded["input_ids"]))
    generated = [e for e in seen if e.text < 2]
    # The last token is never run through the model.
    ids, length = after.sequences[:, :-1], padded["input_ids"].shape[1]
    mask = torch.cat([padded["attention_mask"], torch.ones(2, ids.shape[1] - length, dtype=torch.long)], 1)
    expected = by_hand(lm, sae, ids, mask, length)
    assert places(generated) == expected
    assert {"prompt", "generated"} == {phase for _, phase, _ in expected.values()}
    assert {e.text for e in seen} == {0, 1, 2, 3}
    assert sum(one.firings for one in watch.summary().features) == len(seen)


@pytest.mark.parametrize("run", ["generate", "forward", "chunks"])
def test_every_thread_is_seen_as_if_it_were_alone(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, tokens: Tensor, run: str
) -> None:
    """Prompts of different lengths, several times over; the events are those of one after the other."""

    def go(i: int, watch: Any) -> None:
        text = tokens[:, : 3 + i]
        for _ in range(3):
            with watch.request(f"request {i}"), torch.no_grad():
                if run == "generate":
                    lm.model.generate(text, attention_mask=torch.ones_like(text), **SAMPLED)
                elif run == "forward":
                    lm.model(text)
                else:
                    cache = lm.model(text[:, :2]).past_key_values
                    lm.model(text[:, 2:], past_key_values=cache)

    def seen(all_of_them: Callable[[Callable[[int], None]], Any]) -> tuple[Any, int, int]:
        events: list[Any] = []
        with monitor(lm, dictionary, sae=sae, features=WATCHED, thresholds=ALL, sinks=events.append) as watch:
            all_of_them(lambda i: go(i, watch))
        told = Counter((e.request, e.row, e.position, e.phase, e.token, e.feature, round(e.value, 4)) for e in events)
        assert sum(one.firings for one in watch.summary().features) == len(events)
        return told, watch.tokens, len({e.text for e in events})

    assert seen(together) == seen(lambda work: [work(i) for i in range(6)])


def test_a_pass_that_began_before_is_left_alone(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, tokens: Tensor
) -> None:
    began, goes_on, opened = (threading.Event() for _ in range(3))
    first = lm.model.get_input_embeddings()

    def wait(*_: Any) -> None:
        began.set()
        assert goes_on.wait(60)

    def two_passes() -> None:
        lm.logits(tokens)
        assert opened.wait(60)
        lm.logits(tokens)

    handle = first.register_forward_hook(wait)
    thread = threading.Thread(target=two_passes)
    thread.start()
    assert began.wait(60)
    with monitor(lm, dictionary, sae=sae, features=WATCHED, thresholds=ALL) as watch:
        lm_tokens = int((tokens[:, 1:] > 2).sum())
        handle.remove()
        goes_on.set()
        opened.set()
        thread.join()
        assert watch.tokens == lm_tokens


def test_texts_of_threads_that_are_gone_are_over(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, tokens: Tensor
) -> None:
    seen: list[Any] = []
    with monitor(lm, dictionary, sae=sae, features=WATCHED, thresholds=ALL, sinks=seen.append) as watch:
        for _ in range(4):
            thread = threading.Thread(target=lm.logits, args=(tokens,))
            thread.start()
            thread.join()
        assert len(watch._texts) == 1
    assert {e.text for e in seen} == set(range(4 * len(tokens)))


def test_a_plain_model_chunks_on_a_cache_and_beams(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, padded: Padded
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(lm.name).eval()
    ids, mask = padded["input_ids"], padded["attention_mask"]
    where = (mask.cumsum(1) - 1).clamp_min(0)
    seen: list[Event] = []
    with (
        torch.no_grad(),
        monitor(plain, dictionary, sae=sae, features=WATCHED, thresholds=ALL, sinks=[seen.append]) as watch,
    ):
        cache = plain(ids[:, :6], attention_mask=mask[:, :6], position_ids=where[:, :6]).past_key_values
        plain(ids[:, 6:], attention_mask=mask, position_ids=where[:, 6:], past_key_values=cache)
        assert places(seen) == by_hand(lm, sae, ids, mask, 6)
        assert {e.text for e in seen} == {0, 1}
        real = mask.bool() & (ids > 2)
        assert watch.tokens == int(real.sum()) - int(ids[0, 0] > 2) - int(ids[1, 4] > 2)
        texts = plain.generate(**padded, num_beams=3, **SAMPLED)
        plain.model(inputs_embeds=plain.get_input_embeddings()(ids))
    assert torch.equal(texts, plain.generate(**padded, num_beams=3, **SAMPLED))
    assert seen[-1].token == -1
    assert seen[-1].token_text is None


def test_rows_that_are_done_are_not_watched(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, tokens: Tensor
) -> None:
    """What a finished row is filled with, here an ordinary token, is not text."""
    made = lm.model.generate(tokens[:, 1:], attention_mask=torch.ones_like(tokens[:, 1:]), **SAMPLED)[:, 8:]
    end = next(int(t) for t in made[0, :-1] if t not in made[1])
    stop = made[0].tolist().index(end)
    with monitor(lm, dictionary, sae=sae, features=WATCHED, thresholds=ALL) as watch:
        kwargs = SAMPLED | {"min_new_tokens": 1, "eos_token_id": end, "pad_token_id": 33}
        lm.model.generate(tokens[:, 1:], attention_mask=torch.ones_like(tokens[:, 1:]), **kwargs)
    fed = [*tokens[:, 2:].flatten().tolist(), *made[0, : stop + 1].tolist(), *made[1, :-1].tolist()]
    assert watch.tokens == sum(t > 2 for t in fed) - made[:, :-1].flatten().tolist().count(33)


def test_units_labels_requests_and_tenth_of_the_maximum(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, tokens: Tensor
) -> None:
    seen: list[Event] = []
    row = dictionary.feature(3).row
    with monitor(lm, dictionary, sae=sae, features=WATCHED, sinks=seen.append) as watch:
        lm.logits(tokens)
        with watch.request("a"):
            lm.logits(tokens)
            with watch.request("b"):
                lm.logits(tokens)
        lm.logits(tokens)
    half = {r: sum(e.request == r for e in seen) for r in (None, "a", "b")}
    assert half[None] == 2 * half["a"] == 2 * half["b"] > 0
    one = next(e for e in seen if e.feature == 3)
    assert one.label == row["label"]
    assert one.of_max == pytest.approx(one.value / row["max"])
    assert one.threshold == pytest.approx(0.1 * row["max"])
    assert all(e.value > e.threshold for e in seen)
    shown = str(watch)
    assert f"{watch.tokens:,} tokens watched" in shown
    assert "10% of the maximum" in shown
    told = watch.summary().as_json()["features"][0]
    assert told["firings"] == sum(e.feature == 3 for e in seen)
    assert told["dictionary_frequency"] == row["frequency"]


def test_features_are_those_of_tier_high_and_a_steer_outside_is_seen(
    lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary, tokens: Tensor
) -> None:
    seen: list[Event] = []
    with monitor(lm, dictionary, sae=sae) as watch:
        assert watch.features == dictionary.filter(tier="high")["feature"].to_pylist()
    with steer(lm, Add(3, 40.0, unit="latent"), sae=sae):
        x = lm.capture(tokens, [SITE])[SITE][:, 1:]
        with monitor(lm, dictionary, sae=sae, features=[4], thresholds={4: 0.0}, sinks=seen.append):
            lm.logits(tokens)
    steered = sae.encode(x)[..., 4][tokens[:, 1:] > 2]
    assert [e.value for e in seen] == pytest.approx(steered[steered > 0].tolist(), abs=1e-4)
    unsteered = sae.encode(lm.capture(tokens, [SITE])[SITE][:, 1:])[..., 4]
    assert len(seen) != int((unsteered > 0).sum())


def test_a_crosscoder_reads_several_sites(
    lm: LanguageModel, make_dictionary: Callable[..., FeatureDictionary], tokens: Tensor
) -> None:
    refs = {SiteRef(lm.name, site): lm.width(site) for site in ("resid_post.0", SITE)}
    torch.manual_seed(0)
    sae = Crosscoder(Widths(refs, refs), 40, mechanisms.ReLU("free")).eval()
    seen: list[Event] = []
    with monitor(lm, make_dictionary(sae), sae=sae, features=WATCHED, thresholds=ALL, sinks=seen.append):
        lm.logits(tokens)
    found = lm.capture(tokens, [ref.site for ref in refs])
    latents = sae.encode(torch.cat([found[ref.site] for ref in refs], -1)[:, 1:].flatten(0, 1))[:, WATCHED]
    expected = latents[tokens[:, 1:].flatten() > 2]
    assert [e.value for e in seen] == pytest.approx(expected[expected > 0].tolist(), abs=1e-4)
    several = {**refs, SiteRef("another", SITE): 24}
    elsewhere = Crosscoder(Widths(several, several), 40, mechanisms.ReLU("free"))
    with (
        pytest.raises(SiteError, match="reads several models"),
        monitor(lm, make_dictionary(elsewhere, "elsewhere"), sae=elsewhere, features=[3]),
    ):
        pass


def test_nothing_stays_behind(lm: LanguageModel, sae: SparseAutoencoder, dictionary: FeatureDictionary) -> None:
    with pytest.raises(RuntimeError), monitor(lm, dictionary, sae=sae, features=WATCHED) as watch:
        lm.model.generate(torch.ones(2, 3, dtype=torch.long), attention_mask=torch.ones(3, 4), max_new_tokens=2)
    assert watch.tokens == 0
    assert not sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())
    assert "generate" not in vars(lm.model)


def test_refusals(
    lm: LanguageModel,
    make_sae: Callable[..., SparseAutoencoder],
    make_dictionary: Callable[..., FeatureDictionary],
    dictionary: FeatureDictionary,
    sae: SparseAutoencoder,
    tmp_path: Path,
) -> None:
    def refused(kind: type[Exception], match: str, model: Any = lm, **kwargs: Any) -> None:
        with pytest.raises(kind, match=match), monitor(model, kwargs.pop("d", dictionary), **({"sae": sae} | kwargs)):
            pass

    other = AutoModelForCausalLM.from_config(lm.model.config)
    other.name_or_path = str(tmp_path / "another")
    refused(ModelError, "another", other)
    wrong = make_sae(lm, SITE, "ReLU")
    with torch.no_grad():
        wrong.b_enc.add_(1)
    refused(FormatError, "is not the SAE", sae=wrong)
    refused(Exception, "resid_post.0", sae=make_sae(lm, "resid_post.0"))
    revised = make_dictionary(sae, "revised", lambda _, m: m["model"].update(revision="abc"))
    lm.model.config._commit_hash, lm_revision = "def", lm.revision
    lm.revision = "def"
    try:
        refused(ModelError, "revision 'abc'", d=revised)
    finally:
        lm.revision = lm_revision
        lm.model.config._commit_hash = None
    refused(ConfigError, "feature 40 does not exist", features=[40])
    refused(ConfigError, "features is empty", features=[])
    refused(ConfigError, "no entry for feature 4", features=[3, 4], thresholds={3: 1.0})
    refused(ConfigError, r"thresholds\[3\] is -1", features=[3], thresholds={3: -1.0})
    refused(ConfigError, "drift_window is 0", drift_window=0)
    refused(ConfigError, "drift_level is 1", drift_level=1.0)
    refused(FormatError, "cannot be read", thresholds=tmp_path / "none.json")
