"""Resampling: what of the real parameters changes, to what, drawn from which inputs, and what does not."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import DeadLatentResampling
from lightsae.callbacks.resampling import draw_by_loss, resample
from lightsae.errors import ConfigError
from lightsae.randomness import keyed_generator
from lightsae.sae import (
    MECHANISMS,
    Mechanism,
    ReLU,
    SiteRef,
    SparseAutoencoder,
    TopK,
    Transcoder,
    Widths,
    mechanisms,
)
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule

F, BATCH = 24, 64
DEAD = [2, 3, 11, 17]


class Silence(Callback):
    """After two steps some latents fall far too low to fire: they have moments by then."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            with torch.no_grad():
                pl_module.saes["sae"].b_enc[DEAD] = -50


class Look(Callback):
    """Copy weights, moments and counts after each batch; stands before and after resampling."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.steps: list[int] = []
        self.batches: list[Tensor] = []
        self.pools: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        sae, usage = pl_module.saes["sae"], pl_module.usage["sae"]
        moments = {name: trainer.optimizers[0].state.get(p, {}) for name, p in sae.named_parameters()}
        state = {"weights": sae.state_dict(), "moments": moments, "usage": usage.state_dict(), "dead": usage.dead}
        self.seen.append(copy.deepcopy(state | {"sae": sae}))
        self.steps.append(trainer.global_step)
        self.batches.append(next(iter(batch.activations.values())).clone())
        fill = trainer.datamodule._stream._current.fill.everything
        self.pools.append(next(iter(fill.activations.values())).clone())


@pytest.fixture
def train(activation_file: Callable[..., str], quiet: dict[str, Any]) -> Callable[..., tuple[Look, Look, Trainer]]:
    def fit(
        resampling: DeadLatentResampling,
        sae: Callable[[Widths], SparseAutoencoder] = lambda w: ReLU(w, F, "unit"),
        steps: int = 10,
        seed: int = 0,
        callbacks: tuple[Callback, ...] = (),
        rows: int = 2000,
        dead_after: int = 4 * BATCH,
        buffer_tokens: int = 512,
        path: str | None = None,
        **trainer_options: Any,
    ) -> tuple[Look, Look, Trainer]:
        before, after = Look(), Look()
        module = SAEModule(sae, coefficients={}, lr=0.01, dead_after=dead_after)
        source = path or activation_file(rows)
        data = ActivationDataModule(
            activations=source, batch_tokens=BATCH, buffer_tokens=buffer_tokens, val_tokens=BATCH, seed=seed
        )
        trainer = Trainer(
            **(quiet | trainer_options),
            max_steps=steps,
            callbacks=[Silence(), *callbacks, before, resampling, after],
        )
        trainer.fit(module, data)
        return before, after, trainer

    return fit


Train = Callable[..., tuple[Look, Look, Trainer]]


def rows(state: dict[str, Any], part: str = "weights") -> dict[str, Tensor]:
    """What belongs to a latent, a latent a row."""
    if part == "weights":
        w = state["weights"]
        return {"W_enc": w["W_enc"].T, "W_dec": w["W_dec"], "b_enc": w["b_enc"][:, None]}
    by_tensor = {}
    for key in ("exp_avg", "exp_avg_sq"):
        m = {name: moments[key] for name, moments in state["moments"].items()}
        by_tensor |= {f"W_enc {key}": m["W_enc"].T, f"W_dec {key}": m["W_dec"], f"b_enc {key}": m["b_enc"][:, None]}
    return by_tensor


LIVE = [i for i in range(F) if i not in DEAD]


@pytest.mark.parametrize("decoder_norm", ["unit", "free"])
def test_the_dead_change_and_the_live_do_not(train: Train, decoder_norm: str) -> None:
    before, after, _ = train(DeadLatentResampling([6]), lambda w: ReLU(w, F, decoder_norm))
    old, new = before.seen[5], after.seen[5]
    assert old["dead"].nonzero().flatten().tolist() == DEAD
    for name, weight in rows(new).items():
        assert torch.equal(weight[LIVE], rows(old)[name][LIVE]), name
        assert (weight[DEAD] != rows(old)[name][DEAD]).any(1).all(), name
    assert torch.equal(new["weights"]["b_dec"], old["weights"]["b_dec"])
    for name, moment in rows(new, "moments").items():
        assert torch.equal(moment[LIVE], rows(old, "moments")[name][LIVE]), name
        assert (moment[DEAD] == 0).all(), name
        assert (rows(old, "moments")[name] != 0).any(1).all(), f"{name}: there were moments to keep and to drop"
    assert torch.equal(new["moments"]["b_dec"]["exp_avg"], old["moments"]["b_dec"]["exp_avg"])
    assert not new["dead"].any()
    assert (new["usage"]["silent_tokens"][LIVE] == old["usage"]["silent_tokens"][LIVE]).all()


def test_nothing_happens_at_other_steps(train: Train) -> None:
    before, after, _ = train(DeadLatentResampling([6]))
    for step in (0, 1, 4, 6, 7, 9):
        for name, weight in before.seen[step]["weights"].items():
            assert torch.equal(weight, after.seen[step]["weights"][name])


@pytest.mark.parametrize("decoder_norm", ["unit", "free"])
def test_norms_and_bias_are_those_of_the_paper(train: Train, decoder_norm: str) -> None:
    before, after, _ = train(DeadLatentResampling([6]), lambda w: ReLU(w, F, decoder_norm))
    old, new = before.seen[5]["weights"], after.seen[5]["weights"]
    live_encoder = old["W_enc"].norm(dim=0)[LIVE].mean()
    torch.testing.assert_close(new["W_enc"].norm(dim=0)[DEAD], (0.2 * live_encoder).expand(4))
    live_decoder = old["W_dec"].norm(dim=1)[LIVE].mean()
    torch.testing.assert_close(new["W_dec"].norm(dim=1)[DEAD], live_decoder.expand(4))
    assert (new["b_enc"][DEAD] == 0).all()


def drawn_of(sae: SparseAutoencoder, x: Tensor, latents: list[int]) -> list[int]:
    """Which rows of `x` the latents got, as encoder column and as decoder row."""
    x_normalised = x * sae.input_scale
    read = x_normalised - sae.b_dec if sae.mechanism.centres_input else x_normalised
    chosen = []
    for latent in latents:
        to_columns = torch.nn.functional.cosine_similarity(read, sae.W_enc[:, latent][None], dim=1)
        to_rows = torch.nn.functional.cosine_similarity(x_normalised - sae.b_dec, sae.W_dec[latent][None], dim=1)
        chosen.append(int(to_columns.argmax()))
        assert to_columns[chosen[-1]].item() == pytest.approx(1, abs=1e-5), "an input of the buffer"
        assert to_rows[chosen[-1]].item() == pytest.approx(1, abs=1e-5), "the same input"
    return chosen


@pytest.mark.parametrize("decoder_norm", ["unit", "free"])
def test_each_fires_on_the_input_that_it_got(train: Train, decoder_norm: str) -> None:
    _, after, _ = train(DeadLatentResampling([6]), lambda w: ReLU(w, F, decoder_norm))
    sae, x = after.seen[5]["sae"], after.pools[5]
    drawn = drawn_of(sae, x, DEAD)
    latents = sae.encode(x)
    for latent, token in zip(DEAD, drawn, strict=True):
        assert latents[token, latent] > 0


def test_inputs_come_from_the_whole_buffer_and_no_two_are_the_same(train: Train) -> None:
    """After 8 batches of a buffer of 8: the next buffer is not looked at."""
    _, after, _ = train(DeadLatentResampling([8]), steps=9)
    x, batch = after.pools[7], after.batches[7]
    assert len(x) == 8 * BATCH
    drawn = drawn_of(after.seen[7]["sae"], x, DEAD)
    assert len(set(drawn)) == len(DEAD)
    assert not all((batch == x[token]).all(1).any() for token in drawn), "not from the present batch alone"
    assert torch.equal(after.pools[0], x)
    assert not torch.equal(after.pools[8], x)


def test_a_sink_is_not_drawn(train: Train, activation_file: Callable[..., str]) -> None:
    """One token in twenty, with twenty times the norm, has nearly all of the squared loss."""
    path = activation_file()
    values = np.load(path)
    values[::20] *= 20
    np.save(path, values)
    before, after, _ = train(DeadLatentResampling([6]), path=path)
    dead = before.seen[5]["dead"].nonzero().flatten().tolist()
    assert len(dead) >= 3
    sae, x = after.seen[5]["sae"], after.pools[5]
    norms = x.norm(dim=1)
    sinks = norms > 10 * norms.median()
    assert 10 < sinks.sum() < 30
    loss = (sae(x).x_hat - x).square().sum(1).square()
    assert loss[sinks].sum() > 0.9 * loss.sum(), "drawn by loss alone, they would be"
    assert not sinks[drawn_of(sae, x, dead)].any()


def test_with_fewer_inputs_than_dead_latents_the_longest_silent_get_them(train: Train) -> None:
    many, silent_first = 200, list(range(10, 80))

    class SilenceMany(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            with torch.no_grad():
                for step, latents in ((2, silent_first), (3, range(80, 150))):
                    if trainer.global_step == step:
                        pl_module.saes["sae"].b_enc[list(latents)] = -50

    before, after, _ = train(
        DeadLatentResampling([8]),
        lambda w: ReLU(w, many, "unit"),
        callbacks=(SilenceMany(),),
        buffer_tokens=BATCH,
        rows=1000,
    )
    old, new = before.seen[7], after.seen[7]
    assert old["dead"].sum() > 2 * BATCH
    changed = (rows(new)["b_enc"] != rows(old)["b_enc"]).flatten().nonzero().flatten()
    assert len(changed) == BATCH
    assert old["usage"]["silent_tokens"][changed].min() >= old["usage"]["silent_tokens"][old["dead"]].median()
    assert new["dead"].sum() == old["dead"].sum() - BATCH
    assert len(set(drawn_of(new["sae"], after.pools[7], changed.tolist()))) == BATCH, "each of them once"


def test_resampled_latents_learn_from_then_on(train: Train) -> None:
    _, after, trainer = train(DeadLatentResampling([6]), steps=12)
    new, later = rows(after.seen[5]), rows(after.seen[11])
    for name in new:
        assert (later[name][DEAD] != new[name][DEAD]).any(1).all(), name
    module = trainer.lightning_module
    parameter = module.saes["sae"].W_dec
    assert parameter is trainer.optimizers[0].param_groups[0]["params"][0], "the optimiser holds the real one"


def test_it_helps(train: Train, activation_file: Callable[..., str]) -> None:
    without, _, _ = train(DeadLatentResampling([1000]), steps=60)
    _, resampled, _ = train(DeadLatentResampling([6]), steps=60)

    def error(look: Look) -> float:
        x = torch.cat(look.batches[-5:])
        return (look.seen[-1]["sae"](x).x_hat - x).square().sum(1).mean().item()

    assert error(resampled) < error(without)


# -- the draw --------------------------------------------------------------------------------------------------------


def blank(width: int = 1, **settings: Any) -> SparseAutoencoder:
    """A dictionary that predicts 0: the loss of a token is its squared norm."""
    sae = ReLU(Widths.of(width), 4, **settings)
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.b_enc.fill_(-100.0)
    return sae


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_drawn_in_proportion_to_the_squared_loss(scale: float) -> None:
    each, count = 40_000, 4000
    x = torch.tensor([[0.0], [1.0], [-2.0], [3.0]]).repeat(each, 1)
    sae = blank()
    sae.input_scale.fill_(scale)
    sae.output_scale.fill_(scale)
    read, predicted = draw_by_loss(sae, x, x, count, torch.Generator().manual_seed(0))
    assert torch.equal(read, predicted)
    losses = torch.tensor([0.0, 1.0, 4.0, 9.0])
    expected = losses**2 / (losses**2).sum()
    shares = torch.stack([(read == value * scale).float().mean() for value in x[:4].flatten()])
    assert shares[0] == 0
    for place in (1, 2, 3):
        p = expected[place].item()
        assert shares[place].item() == pytest.approx(p, abs=5 * (p * (1 - p) / count) ** 0.5)


def test_no_token_is_drawn_twice_and_none_without_a_loss() -> None:
    x = torch.tensor([[0.0], [1.0], [-2.0], [300.0], [0.0]])
    for count, expected in ((2, 2), (3, 3), (5, 3)):
        read, predicted = draw_by_loss(blank(), x, x, count, torch.Generator().manual_seed(0))
        assert len(set(read.flatten().tolist())) == len(read) == len(predicted) == expected
        assert 0.0 not in read
    nothing, _ = draw_by_loss(blank(), torch.zeros(4, 1), torch.zeros(4, 1), 2, torch.Generator())
    assert nothing.shape == (0, 1)


def test_half_precision_and_other_targets() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    targets = torch.tensor([[0.0, 5.0], [0.0, 0.0]], dtype=torch.bfloat16)
    # What counts is the error of the prediction, not the size of what was read.
    read, predicted = draw_by_loss(blank(2), x, targets, 2, torch.Generator().manual_seed(0))
    assert torch.equal(read, x[:1])
    assert torch.equal(predicted, targets[:1].float())


def test_draws_are_keyed_by_seed_and_step(train: Train) -> None:
    def drawn(seed: int, global_seed: int, at: int = 6) -> Tensor:
        torch.manual_seed(global_seed)
        _, after, _ = train(DeadLatentResampling([at]), seed=seed)
        return after.seen[at - 1]["weights"]["W_dec"][DEAD]

    first = drawn(0, 0)
    assert torch.equal(first, drawn(0, 1))
    assert not torch.equal(first, drawn(1, 0))


def test_draws_leave_the_global_generator_alone(train: Train) -> None:
    states: list[Tensor] = []

    class State(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            states.append(torch.get_rng_state())

    train(DeadLatentResampling([6]), callbacks=(State(),))
    assert all(torch.equal(state, states[0]) for state in states)


def test_draws_at_two_steps_differ() -> None:
    sae, x = blank(3), torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    first, second = (draw_by_loss(sae, x, x, 10, keyed_generator(0, "resampling sae", step))[0] for step in (6, 8))
    assert not torch.equal(first, second)


# -- which latents, and when -----------------------------------------------------------------------------------------


def test_at_most_takes_the_longest_silent_first(train: Train) -> None:
    class SilenceMore(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if trainer.global_step == 4:
                with torch.no_grad():
                    pl_module.saes["sae"].b_enc[[0, 1]] = -50

    before, after, _ = train(DeadLatentResampling([9], at_most=5), callbacks=(SilenceMore(),))
    old, new = before.seen[8], after.seen[8]
    assert old["dead"].nonzero().flatten().tolist() == [0, 1, *DEAD]
    silent = old["usage"]["silent_tokens"]
    assert (silent[DEAD] > silent[[0, 1]].max()).all()
    changed = (rows(new)["b_enc"] != rows(old)["b_enc"]).flatten().nonzero().flatten().tolist()
    assert changed == [0, *DEAD]
    assert new["dead"].nonzero().flatten().tolist() == [1]


def test_the_dead_that_are_left_do_not_count_as_live(train: Train) -> None:
    class Shrink(Callback):
        """Dead encoder columns of no size: they would pull the mean norm down."""

        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            with torch.no_grad():
                pl_module.saes["sae"].W_enc[:, DEAD] = 1e-6

    before, after, _ = train(DeadLatentResampling([6], at_most=1), callbacks=(Shrink(),))
    old, new = before.seen[5]["weights"]["W_enc"], after.seen[5]["weights"]["W_enc"]
    (changed,) = (old != new).any(0).nonzero().flatten().tolist()
    torch.testing.assert_close(new[:, changed].norm(), 0.2 * old.norm(dim=0)[LIVE].mean(), rtol=1e-4, atol=0)


def test_all_of_them_dead() -> None:
    sae = blank(3)
    optimizer = torch.optim.Adam(sae.parameters())
    drawn = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    resample(sae, optimizer, torch.arange(4), (drawn, drawn), live=torch.zeros(4, dtype=torch.bool))
    assert all(parameter.isfinite().all() for parameter in sae.parameters())
    assert (sae.encode(drawn).diagonal() > 0).all()


def test_no_dead_latents_no_change(train: Train) -> None:
    before, after, _ = train(DeadLatentResampling([3]))  # dead only after four batches
    for name, weight in before.seen[2]["weights"].items():
        assert torch.equal(weight, after.seen[2]["weights"][name])


def test_once_a_step_under_accumulation(train: Train) -> None:
    before, after, _ = train(DeadLatentResampling([3]), steps=6, dead_after=BATCH, accumulate_grad_batches=3)
    changed = [
        batch
        for batch, (old, new) in enumerate(zip(before.seen, after.seen, strict=True))
        if not torch.equal(old["weights"]["b_enc"], new["weights"]["b_enc"])
    ]
    assert changed == [8], "after the last of the three batches of step 3"


def test_after_the_short_step_that_ends_an_epoch(train: Train) -> None:
    # 7 batches an epoch: the third step has one batch only.
    before, after, _ = train(
        DeadLatentResampling([3]), steps=-1, rows=500, dead_after=BATCH, max_epochs=2, accumulate_grad_batches=3
    )
    assert after.steps == [0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4, 5, 6]
    for batch, (old, new) in enumerate(zip(before.seen, after.seen, strict=True)):
        assert torch.equal(old["weights"]["b_enc"], new["weights"]["b_enc"]) == (batch != 6)


def test_variants_that_select_are_left_alone(train: Train) -> None:
    before, after, _ = train(DeadLatentResampling([6]), lambda w: TopK(w, F, k=3))
    assert before.seen[5]["dead"].any()
    for name, weight in before.seen[5]["weights"].items():
        assert torch.equal(weight, after.seen[5]["weights"][name])


def test_steps_count_from_one() -> None:
    with pytest.raises(ConfigError, match=r"^steps is \[0, 5\]"):
        DeadLatentResampling([0, 5])


@pytest.mark.parametrize("at_most", [0, -1])
def test_at_most_is_one_or_more(at_most: int) -> None:
    with pytest.raises(ConfigError, match=f"at_most is {at_most}"):
        DeadLatentResampling([5], at_most=at_most)


def test_sites_other_than_the_one_that_is_read() -> None:
    site = SiteRef("m", "resid_post.0")
    sae = ReLU(Widths.autoencoder(site, 3), 4)
    assert draw_by_loss(sae, torch.ones(5, 3), torch.ones(5, 3), 2, torch.Generator())[0].shape == (2, 3)


# -- other structures and mechanisms ---------------------------------------------------------------------------------

READ, PREDICTED = SiteRef("m", "mlp_in.0"), SiteRef("m", "mlp_out.0")
ACROSS = Widths({READ: 3}, {PREDICTED: 2})


def across(mechanism: Mechanism, **settings: Any) -> Transcoder:
    sae = Transcoder(ACROSS, F, mechanism, **settings)
    generator = torch.Generator().manual_seed(0)
    sample = {READ: torch.randn(300, 3, generator=generator) + 4, PREDICTED: 9 * torch.randn(300, 2) - 20}
    sae.start_from(sample, "sqrt_d")
    return sae


def test_of_a_transcoder_input_and_target_are_drawn_of_the_same_tokens() -> None:
    torch.manual_seed(0)
    sae = across(mechanisms.ReLU("unit"), skip=True)
    x, y = torch.randn(4000, 3) + 4, 9 * torch.randn(4000, 2) - 20
    read, predicted = draw_by_loss(sae, x, y, 200, torch.Generator().manual_seed(1))
    # As the encoder sees them: less the fixed centre; as the rows are added: less the decoder's bias.
    inputs, targets = x * sae.input_scale - sae.input_centre, y * sae.output_scale - sae.b_dec
    drawn = torch.cdist(read, inputs).argmin(1)
    torch.testing.assert_close(read, inputs[drawn])
    torch.testing.assert_close(predicted, targets[drawn])
    loss = (y * sae.output_scale - sae(x).x_hat_normalised).square().sum(1)
    assert loss[drawn].mean() > 1.5 * loss.mean(), "the worse a token is explained, the likelier"


def moments_of(sae: SparseAutoencoder) -> torch.optim.Adam:
    """An Adam that has something to remember of every parameter."""
    adam = torch.optim.Adam(sae.parameters())
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    return adam


@pytest.mark.parametrize("kind", ["JumpReLU", "Gated"])
def test_a_mechanisms_own_parameters_start_afresh(kind: str) -> None:
    torch.manual_seed(0)
    sae = across(MECHANISMS[kind]())
    x, y = torch.randn(40, 3) + 4, 9 * torch.randn(40, 2) - 20
    adam = moments_of(sae)
    with torch.no_grad():
        for parameter in sae.mechanism.parameters():
            parameter.copy_(torch.linspace(1, 3, F))
    before = copy.deepcopy(sae.state_dict())
    dead, live = torch.tensor(DEAD), torch.ones(F, dtype=torch.bool)
    live[dead] = False
    drawn = draw_by_loss(sae, x, y, len(dead), torch.Generator().manual_seed(1))
    resample(sae, adam, dead, drawn, live)
    own = dict(sae.mechanism.named_parameters())
    assert own, "there is something of its own"
    # A threshold in the middle of all; a gate that opens as wide as the encoder says.
    fresh = float(before["mechanism.log_threshold"].median()) if kind == "JumpReLU" else 0.0
    for name, parameter in own.items():
        assert torch.equal(parameter[live], before[f"mechanism.{name}"][live]), name
        assert (parameter[dead] == fresh).all(), name
        for key in ("exp_avg", "exp_avg_sq"):
            assert (adam.state[parameter][key][dead] == 0).all(), name
            assert (adam.state[parameter][key][live] != 0).all(), name


@pytest.mark.parametrize("skip", [False, True])
def test_a_skip_connection_is_left_alone(skip: bool) -> None:
    torch.manual_seed(0)
    sae = across(mechanisms.ReLU(), skip=skip)
    x, y = torch.randn(40, 3) + 4, 9 * torch.randn(40, 2) - 20
    adam = moments_of(sae)
    dead = torch.tensor(DEAD)
    before = copy.deepcopy(sae.state_dict())
    drawn = draw_by_loss(sae, x, y, len(dead), torch.Generator())
    resample(sae, adam, dead, drawn, live=torch.ones(F, dtype=torch.bool))
    changed = {name for name, tensor in sae.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"W_enc", "W_dec", "b_enc"}
    # Each row at the norm of the live, the column along the same token.
    norms = sae.W_dec.norm(dim=1)
    torch.testing.assert_close(norms[dead], before["W_dec"].norm(dim=1).mean().expand(len(DEAD)))


def test_of_several_dictionaries_each_is_resampled_by_its_own_counts(
    activation_file: Callable[..., str], quiet: dict[str, Any]
) -> None:
    class Some(Callback):
        """In each dictionary other latents fall silent."""

        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 2:
                with torch.no_grad():
                    for name, silent in (("a", [1, 2]), ("b", [5]), ("k", [7])):
                        pl_module.each_sae()[name].b_enc[silent] = -50

    class Silent(Callback):
        def __init__(self) -> None:
            self.latents: dict[str, list[int]] = {}

        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            for name, sae in pl_module.each_sae().items():
                # What fell silent lies far below 0 until it is resampled.
                self.latents[name] = (sae.b_enc < -40).nonzero().flatten().tolist()

    silent = Silent()
    entries = {name: Entry(lambda w: ReLU(w, F, "unit")) for name in "ab"} | {"k": Entry(lambda w: TopK(w, F, k=3))}
    module = SAEModule(saes=entries, lr=0.01, dead_after=4 * BATCH)
    data = ActivationDataModule(activations=activation_file(), batch_tokens=BATCH, buffer_tokens=512, seed=0)
    callbacks = [Some(), DeadLatentResampling([6]), silent]
    Trainer(**quiet, max_steps=7, callbacks=callbacks).fit(module, data)
    assert silent.latents == {"a": [], "b": [], "k": [7]}, "what selects has AuxK"
