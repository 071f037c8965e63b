"""Sweeps: which prompts choose and which report, a feature whose effect is planted, costs that no dose keeps to."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    sweeper = Sweeper(steered, words, prompts, settings(**changed))
    return sweeper.sweep(PLANTED, curves=curves, arms=(RANDOM, SECOND_RANDOM, SHUFFLED))


# -- what is chosen, and on which prompts ------------------------------------------------------------------------------

# (effect, perplexity's ratio) by dose; the two halves disagree on what is best, and on what is dear.
ON_CHOOSING = {0.0: (0.1, 1.0), 1.0: (0.2, 1.1), 2.0: (0.5, 1.9), 3.0: (0.9, 2.1)}
ON_REPORTING = {0.0: (0.1, 1.0), 1.0: (0.8, 50.0), 2.0: (0.3, 50.0), 3.0: (0.9, 1.0)}


class PlannedMeter:
    """Gives the planned figures, and notes what it was asked."""

    made: list["PlannedMeter"] = []  # noqa: RUF012

    def __init__(self, steered: Steered, vocabulary: Any, prompts: list[list[int]], settings: SweepSettings) -> None:
        self.prompts, self.given = prompts, vars(settings)
        self.plan = (ON_CHOOSING, ON_REPORTING)[len(self.made)]
        self.made.append(self)

    def measure(self, interventions: Any, concept: Any, prompts: Any = None) -> Any:
        dose = interventions[0].amount()[0] if interventions else 0.0
        effect, ratio = self.plan[dose]
        values = {"target": effect, "fires": -effect, "ppl_untouched": np.log(7 * ratio)}
        each = {name: np.full(len(self.prompts), value) for name, value in values.items()}
        return each, Samples([], [], [])


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[PlannedMeter]:
    PlannedMeter.made = []
    monkeypatch.setattr(sweep_module, "Meter", PlannedMeter)
    return PlannedMeter.made


DOSES = (3.0, 1.0, 2.0)


def test_the_dose_is_chosen_on_one_half_and_reported_on_the_other(steered: Steered, planned: Any) -> None:
    found = swept(steered, doses=DOSES, max_perplexity_ratio=2.0)
    choosing, reporting = planned
    ids = encode_prompts(steered.model, PROMPTS)
    assert (choosing.prompts, reporting.prompts) == (ids[0::2], ids[1::2])
    assert found.prompts == PROMPTS[1::2]
    assert choosing.given["seed"] != reporting.given["seed"]
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
    assert TOKEN in found.concept.target
    assert found.chosen == 0.2
    own = found.shift(FEATURE, "target")
    assert own is not None
    for arm in (RANDOM, SECOND_RANDOM, SHUFFLED):
        other = found.shift(arm, "target")
        assert other is not None
        assert own.above(other), arm
    assert own.low is not None
    assert own.low > 0.2
    nothing = found.shift(NONE, "target")
    assert nothing is not None
    assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)


def test_figures_are_those_of_a_meter_on_each_half(steered: Steered) -> None:
    found = swept(steered, samples=2)
    ids = encode_prompts(steered.model, PROMPTS)
    words = [""] * steered.model.model.config.vocab_size

    def meter(prompts: list[list[int]], seed: int) -> Meter:
        return Meter(steered, words, prompts, settings(samples=2, seed=seed))

    what = [Add(PLANTED, 0.2, "latent")]
    choosing, reporting = meter(ids[0::2], 0), meter(ids[1::2], 1)
    changed, plain = (choosing.measure(done, found.concept)[0] for done in (what, ()))
    ratio = np.exp((changed["ppl_untouched"] - plain["ppl_untouched"]).mean())
    assert found.choosing[0.2] == pytest.approx(((changed["target"] - plain["target"]).mean(), ratio))
    wanted, texts = reporting.measure(what, found.concept)
    reported = found.at(FEATURE, 0.2)
    assert reported is not None
    assert reported.samples == texts
    assert all(np.array_equal(reported.values[name], wanted[name]) for name in wanted)


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

    sweeper = Sweeper(steered, [""] * 258, PROMPTS[:4], settings())
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
