"""Sweeps: which prompts choose and which report, a feature whose effect is planted, costs that no dose keeps to."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightsae.analysis.panels import sweep as sweep_module
from lightsae.analysis.panels.arms import FEATURE, NONE, RANDOM, SECOND_RANDOM, SHUFFLED, Steered
from lightsae.analysis.panels.meter import Meter
from lightsae.analysis.panels.settings import SweepSettings
from lightsae.analysis.panels.sweep import Sweep, Sweeper
from lightsae.analysis.panels.sweep_report import draw_sweep
from lightsae.analysis.steering.interventions import Add
from lightsae.errors import ConfigError
from lightsae.lm import LanguageModel
from lightsae.lm.generate import Samples, Sampling, encode_prompts
from lightsae.sae import ReLU, SiteRef, SparseAutoencoder, TopK, Widths

PROMPTS = ["the cat", "a mat", "def f", "x + 1", "and", "on a mat sat", "return", "cat cat"]
PLANTED, TOKEN = 5, 100
SHORT = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=8, min_new_tokens=8)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path]) -> LanguageModel:
    """The tiny model with an output head that says something, and no token alike another."""
    loaded = LanguageModel.from_pretrained(str(make_model("llama")))
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(30)
    return loaded


def an_sae(kind: type[SparseAutoencoder], model: LanguageModel) -> SparseAutoencoder:
    """At the last site; one feature's direction is what the head reads a token from."""
    widths = Widths.autoencoder(SiteRef(model.name, "resid_post.1"), 12)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        sae = kind(widths, 16, **({"k": 5} if kind is TopK else {}))
        sae.W_enc.copy_(torch.randn(12, 16))
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(16, 12), dim=1))
        sae.W_dec[PLANTED] = torch.nn.functional.normalize(model.model.lm_head.weight[TOKEN], dim=0)
        sae.input_scale.fill_(30.0)
    return sae.eval()


@pytest.fixture(scope="module", params=[ReLU, TopK])
def steered(request: pytest.FixtureRequest, model: LanguageModel) -> Steered:
    return Steered(model, an_sae(request.param, model), None)


def settings(**changed: Any) -> SweepSettings:
    given = {"doses": (0.02, 0.2), "unit": "latent", "sampling": SHORT, "max_perplexity_ratio": 1e6} | changed
    return SweepSettings(**given)


def swept(steered: Steered, prompts: list[str] = PROMPTS, *, curves: tuple[str, ...] = (), **changed: Any) -> Sweep:
    words = [f" w{number}" for number in range(steered.model.model.config.vocab_size)]
    sweeper = Sweeper(steered, words, prompts, settings(**changed), [PLANTED])
    return sweeper.sweep(PLANTED, curves=curves, arms=(RANDOM, SECOND_RANDOM, SHUFFLED))


# -- what is chosen, and on which prompts ------------------------------------------------------------------------------

# (effect, perplexity's ratio) by dose; the two halves disagree on what is best, and on what is dear.
ON_CHOOSING = {0.0: (0.1, 1.0), 1.0: (0.2, 1.1), 2.0: (0.5, 1.9), 3.0: (0.9, 2.1)}
ON_REPORTING = {0.0: (0.1, 1.0), 1.0: (0.8, 50.0), 2.0: (0.3, 50.0), 3.0: (0.9, 1.0)}


class PlannedMeter:
    """Gives the planned figures, and notes what it was asked."""

    made: list["PlannedMeter"] = []  # noqa: RUF012

    def __init__(self, steered: Steered, vocabulary: Any, prompts: list[list[int]], *_: Any) -> None:
        self.prompts = prompts
        self.made.append(self)

    def measure_all(self, interventions: Any, concepts: Any, prompts: Any = None) -> Any:
        dose = interventions[0].amount()[0] if interventions else 0.0
        plans = [(ON_CHOOSING, ON_REPORTING)[place % 2][dose] for place in range(len(self.prompts))]
        effect, ratio = np.array(plans).T
        values = {"target": effect, "fires": -effect, "ppl_untouched": np.log(7 * ratio)}
        return [values for _ in concepts], Samples([], [], [])


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[PlannedMeter]:
    PlannedMeter.made = []
    monkeypatch.setattr(sweep_module, "Meter", PlannedMeter)
    return PlannedMeter.made


DOSES = (3.0, 1.0, 2.0)


def test_the_dose_is_chosen_on_one_half_and_reported_on_the_other(steered: Steered, planned: Any) -> None:
    found = swept(steered, doses=DOSES, max_perplexity_ratio=2.0)
    (meter,) = planned
    assert meter.prompts == encode_prompts(steered.model, PROMPTS)
    assert found.prompts == PROMPTS[1::2]
    assert found.chosen == found.taken == 2.0
    assert found.choosing == {dose: pytest.approx((effect - 0.1, ratio)) for dose, (effect, ratio) in list(
        ON_CHOOSING.items())[1:]}  # fmt: skip
    gain = found.shift(FEATURE, "target")
    assert gain is not None
    assert gain.mean == pytest.approx(0.3 - 0.1), "the choosing prompts' gain is reported"
    report = found.report()
    assert (report["chosen_dose"], report["reported_dose"], report["chosen_by"]) == (2.0, 2.0, "target")
    assert {one["dose"] for one in report["arms"] if one["arm"] != NONE} == {2.0}


def test_a_ratio_at_the_limit_is_within_it(steered: Steered, planned: Any) -> None:
    # 7 * 2.1 / 7 is 2.1 but for rounding.
    assert swept(steered, doses=DOSES, max_perplexity_ratio=2.1 + 1e-9).chosen == 3.0


def test_no_dose_within_the_limit(steered: Steered, planned: Any) -> None:
    found = swept(steered, doses=DOSES, max_perplexity_ratio=1.0)
    assert (found.chosen, found.taken) == (None, 1.0)
    assert found.report()["chosen_dose"] is None
    arm = found.at(FEATURE)
    assert arm is not None
    assert arm.dose == 1.0


def test_an_effect_that_is_not_measured_gives_way_to_firing_and_says_so(steered: Steered, planned: Any) -> None:
    found = swept(steered, doses=DOSES, max_perplexity_ratio=5.0, choose_by="concept")
    assert found.chosen == 1.0, "the planned meter fires less, the more is added"
    assert found.report()["chosen_by"] == "fires"


def test_of_negative_doses_the_smallest_is_nearest_to_zero(steered: Steered, planned: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(ON_CHOOSING, -2.0, (0.0, 9.0))
    monkeypatch.setitem(ON_REPORTING, -2.0, (0.0, 9.0))
    assert swept(steered, doses=(-2.0, 3.0), max_perplexity_ratio=1.5).taken == -2.0


# -- with the model ----------------------------------------------------------------------------------------------------


def test_a_planted_feature_moves_its_token_and_others_do_not(steered: Steered) -> None:
    found = swept(steered)
    assert TOKEN in steered.promoted(Add(PLANTED, 1.0))
    assert found.chosen == 0.2
    own = found.shift(FEATURE, "target")
    assert own is not None
    # Each is asked about its own tokens, and random ones raise theirs too; no more is claimed than that.
    for arm in (RANDOM, SECOND_RANDOM, SHUFFLED):
        other = found.shift(arm, "target")
        assert other is not None
        assert other.mean > 0, arm
    assert own.low is not None
    assert own.low > 0.2
    nothing = found.shift(NONE, "target")
    assert nothing is not None
    assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)


def test_figures_are_those_of_a_meter_on_each_half(steered: Steered) -> None:
    found = swept(steered, samples=2)
    words = [""] * steered.model.model.config.vocab_size
    meter = Meter(steered, words, encode_prompts(steered.model, PROMPTS), settings(samples=2))
    changed, texts = meter.measure([Add(PLANTED, 0.2, "latent")], found.concept)
    plain, _ = meter.measure((), found.concept)
    choosing = {name: (changed[name] - plain[name])[0::2] for name in plain}
    wanted = (choosing["target"].mean(), np.exp(choosing["ppl_untouched"].mean()))
    assert found.choosing[0.2] == pytest.approx(wanted)
    reported = found.at(FEATURE, 0.2)
    assert reported is not None
    assert reported.samples == Samples(texts.prompts[1::2], texts.texts[1::2], texts.tokens[1::2])
    assert all(np.array_equal(reported.values[name], changed[name][1::2]) for name in changed)


def test_other_features_are_arms_of_their_own(steered: Steered) -> None:
    sweeper = Sweeper(steered, [""] * 258, PROMPTS, settings(), [PLANTED])
    found = sweeper.sweep(PLANTED, arms=(SHUFFLED,), others=[3, 9, 11])
    assert [one.number for one in found.others] == [3, 9, 11]
    for one in found.others:
        (changed,) = steered.arm(SHUFFLED, [Add(PLANTED, found.taken, "latent")], 0, one.number)
        whole, _ = sweeper._meter.measure([changed], found.concept)
        assert np.array_equal(one.values["fires"], whole["fires"][1::2])
    gains = found.gains(found.others, "fires")
    assert gains.tolist() == [(one.values["fires"] - found.plain.values["fires"]).tolist() for one in found.others]
    told = found.report()
    assert [one["feature"] for one in told["others"]] == [3, 9, 11]
    assert [one["number"] for one in told["arms"] if one["arm"] == SHUFFLED] == [3], "in short, but for the first"
    assert told["others"][1]["fires"] == pytest.approx(gains[1].mean())


def test_added_norms_are_measured_once_for_all(steered: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of a feature are those of «another feature» for the others; other units need texts of their own."""
    counted: list[Any] = []
    whole = Meter.measure_all

    def count(meter: Meter, interventions: Any, concepts: Any, prompts: Any = None) -> Any:
        counted.append(interventions)
        return whole(meter, interventions, concepts, prompts)

    monkeypatch.setattr(Meter, "measure_all", count)
    places = {"arms": (RANDOM, SHUFFLED), "randoms": {RANDOM: 0}}
    for unit, runs in (("norm", 1 + 3 + 1), ("latent", 1 + 3 + 3 * (2 + 1))):
        of_unit = replace(steered, mean_norm=1.0)
        sweeper = Sweeper(of_unit, [""] * 258, PROMPTS, settings(unit=unit, doses=(0.2,)), [PLANTED, 3, 9])
        counted.clear()
        sweeps = [
            sweeper.sweep(one, others=[o for o in (PLANTED, 3, 9) if o != one], **places) for one in (PLANTED, 3, 9)
        ]
        assert len(counted) == runs, unit
        one, other = sweeps[0].others[0], sweeps[1].at(FEATURE)
        assert other is not None
        assert (one.samples == other.samples) == (unit == "norm" or one.number != 3) or unit == "latent"


@pytest.mark.parametrize("kind", ["add", "clamp", "min-clamp"])
def test_the_same_seed_gives_the_same_report(kind: str, steered: Steered) -> None:
    few = PROMPTS[:4]
    one, other, third = (swept(steered, few, kind=kind, seed=seed) for seed in (7, 7, 8))
    assert json.dumps(one.report(), allow_nan=False) == json.dumps(other.report())
    assert [arm.samples for arm in one.measured] == [arm.samples for arm in other.measured]
    assert one.report()["arms"] != third.report()["arms"]


def test_curves_hold_every_dose_and_progress_adds_up(steered: Steered) -> None:
    steps: dict[str, list[int]] = {}

    class Told:
        @contextmanager
        def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
            steps[name] = [total]
            yield steps[name].append

    sweeper = Sweeper(steered, [""] * 258, PROMPTS[:4], settings(), [PLANTED])
    found = sweeper.sweep(PLANTED, curves=(FEATURE, RANDOM), arms=(RANDOM, SHUFFLED), progress=Told())
    places = [(one.arm, one.dose) for one in found.measured]
    assert places == [(NONE, 0.0), *((arm, dose) for arm in (FEATURE, RANDOM) for dose in (0.02, 0.2)),
                      (SHUFFLED, found.taken)]  # fmt: skip
    (counts,) = steps.values()
    assert counts[1:] == list(range(1, counts[0] + 1))
    figure = draw_sweep(found)
    assert "0.2" in figure.get_suptitle()
    assert next(axes.get_title(loc="left") for axes in figure.axes if axes.axison).startswith("it fires")


def test_what_was_written_is_told_with_its_unit(steered: Steered) -> None:
    found = swept(steered, PROMPTS[:2], doses=(0.2,))
    (told,) = found.report()["steering"]["interventions"]
    assert (told["amount"], told["unit"], told["kind"]) == (0.2, "latent", "add")
    assert told["raw_norm"] == pytest.approx(0.2, rel=1e-4)
    # One prompt a half: means, no intervals.
    own = found.shift(FEATURE, "target")
    assert own is not None
    assert (own.low, own.high) == (None, None)
    draw_sweep(found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"doses": ()}, "doses is "),
        ({"doses": (0.1, 0.0)}, "other than 0"),
        ({"doses": (float("nan"),)}, "finite"),
        ({"kind": "clmp"}, "Did you mean 'clamp'"),
        ({"unit": "norms"}, "unit is 'norms'"),
        ({"choose_by": "targets"}, "Did you mean 'target'"),
        ({"max_perplexity_ratio": 0.5}, "write 1 or more"),
        ({"max_perplexity_ratio": float("nan")}, "write 1 or more"),
        ({"prompt_template": "{context}"}, "has to hold {prompt}"),
    ],
)
def test_settings_that_cannot_work(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changed)


def test_one_prompt_is_too_few(steered: Steered) -> None:
    with pytest.raises(ConfigError, match="there is 1 prompt"):
        swept(steered, ["the cat"])
