"""What every dictionary owes its users, whatever makes its latents sparse and however it is built."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.host_syncs import HostSyncs
from lightsae.errors import ConfigError
from lightsae.formats.native import load_sae, plain, save_sae
from lightsae.sae import (
    MECHANISMS,
    VARIANTS,
    BatchTopK,
    Crosscoder,
    Gated,
    GroupMax,
    JumpReLU,
    LatentUsage,
    Matryoshka,
    Mechanism,
    Refinements,
    ReLU,
    SiteRef,
    SparseAutoencoder,
    TopK,
    Transcoder,
    Widths,
    mechanisms,
)
from lightsae.sae.variants import MatchingPursuit
from lightsae.training.optimiser import normalise_gradients

T, F = 48, 40
A, B = SiteRef("tiny", "mlp_in.1"), SiteRef("tiny", "mlp_out.1")
SELF, ACROSS, BOTH = Widths.autoencoder(A, 12), Widths({A: 12}, {B: 7}), Widths({A: 12, B: 7}, {A: 12, B: 7})
Build = Callable[[], SparseAutoencoder]


def nested(mechanism: Callable[[], Mechanism], **settings: object) -> Build:
    return lambda: Matryoshka(SELF, F, mechanism(), **settings)


def across(mechanism: Callable[[], Mechanism], **settings: object) -> Build:
    return lambda: Transcoder(ACROSS, F, mechanism(), **settings)


def both(mechanism: Callable[[], Mechanism], **settings: object) -> Build:
    return lambda: Crosscoder(BOTH, F, mechanism(), **settings)


def topk() -> Mechanism:
    return mechanisms.TopK(5)


def batch_topk() -> Mechanism:
    return mechanisms.BatchTopK(5)


ALL = Refinements(aligned=True, second_step=0.3, tilt=0.002, prune=0.05)
CASES: dict[str, Build] = {
    "ReLU": lambda: ReLU(SELF, F),
    "ReLU unit": lambda: ReLU(SELF, F, "unit"),
    "ReLU annealed": lambda: ReLU(SELF, F, p_end=0.2),
    "ReLU unit annealed": lambda: ReLU(SELF, F, "unit", p_end=0.2, p_begin=0.0),
    "TopK": lambda: TopK(SELF, F, k=5),
    "TopK 1": lambda: TopK(SELF, F, k=1, k_aux=3),
    "TopK all": lambda: TopK(SELF, F, k=F),
    "TopK falling": lambda: TopK(SELF, F, k=3, k_start=11, k_fall=0.8),
    "TopK multi": lambda: TopK(SELF, F, k=3, multi_k=12),
    "BatchTopK": lambda: BatchTopK(SELF, F, k=5),
    "BatchTopK falling, multi": lambda: BatchTopK(SELF, F, k=3, k_start=11, k_fall=0.8, multi_k=12),
    "GroupMax": lambda: GroupMax(SELF, F, k=5),
    "GroupMax of one": lambda: GroupMax(SELF, F, k=1, k_aux=3),
    "GroupMax all": lambda: GroupMax(SELF, F, k=F),
    "Matryoshka TopK": nested(topk),
    "Matryoshka TopK groups, multi": nested(lambda: mechanisms.TopK(5, multi_k=9), groups=[3, 17, 20]),
    "Matryoshka TopK frequency": nested(topk, order="frequency"),
    "Matryoshka TopK detached": nested(topk, detach_inner=True),
    "Matryoshka BatchTopK": nested(batch_topk),
    "Matryoshka BatchTopK frequency": nested(batch_topk, groups=[1, 19, 20], order="frequency"),
    "Matryoshka BatchTopK frequency, detached": nested(batch_topk, order="frequency", detach_inner=True),
    "Transcoder ReLU": across(mechanisms.ReLU),
    "Transcoder ReLU unit, skip": across(lambda: mechanisms.ReLU("unit"), skip=True),
    "Transcoder TopK": across(topk),
    "Transcoder TopK skip": across(topk, skip=True),
    "Transcoder BatchTopK": across(batch_topk),
    "Transcoder BatchTopK skip, tilt": across(batch_topk, skip=True, refinements=Refinements(tilt=0.002)),
    "Crosscoder ReLU": both(mechanisms.ReLU),
    "Crosscoder ReLU annealed": both(lambda: mechanisms.ReLU(p_end=0.2)),
    "Transcoder GroupMax skip": across(lambda: mechanisms.GroupMax(8), skip=True),
    "Crosscoder TopK": both(topk),
    "Crosscoder BatchTopK": both(batch_topk),
    "Crosscoder GroupMax": both(lambda: mechanisms.GroupMax(4)),
    "ReLU, all refinements": lambda: ReLU(SELF, F, refinements=ALL),
    "TopK aligned": lambda: TopK(SELF, F, k=5, refinements=Refinements(aligned=True)),
    "TopK, all refinements": lambda: TopK(SELF, F, k=5, refinements=ALL),
    "TopK not centred": lambda: TopK(SELF, F, k=5, refinements=Refinements(centre_input=False)),
    "ReLU free, centred": lambda: ReLU(SELF, F, refinements=Refinements(centre_input=True)),
    "GroupMax, all refinements": lambda: GroupMax(SELF, F, k=5, refinements=ALL),
    "BatchTopK second step": lambda: BatchTopK(SELF, F, k=5, refinements=Refinements(second_step=0.3)),
    "BatchTopK pruned": lambda: BatchTopK(SELF, F, k=5, refinements=Refinements(prune=0.1)),
    "Matryoshka, all refinements": nested(batch_topk, order="frequency", detach_inner=True, refinements=ALL),
    "Crosscoder, all refinements": both(batch_topk, refinements=ALL),
    "JumpReLU": lambda: JumpReLU(SELF, F),
    "JumpReLU tanh": lambda: JumpReLU(SELF, F, penalty="tanh"),
    "JumpReLU target": lambda: JumpReLU(SELF, F, target_l0=4.0),
    "JumpReLU, all refinements": lambda: JumpReLU(SELF, F, refinements=ALL),
    "Transcoder JumpReLU": across(mechanisms.JumpReLU),
    "Transcoder JumpReLU tanh, skip": across(lambda: mechanisms.JumpReLU("tanh"), skip=True),
    "Crosscoder JumpReLU": both(mechanisms.JumpReLU),
    "MatchingPursuit": lambda: MatchingPursuit(SELF, F, 0.5),
    "MatchingPursuit repeated": lambda: MatchingPursuit(SELF, F, 0.0, 9, False),
    "MatchingPursuit pruned": lambda: MatchingPursuit(SELF, F, 0.5, refinements=Refinements(prune=0.05)),
    "Gated": lambda: Gated(SELF, F),
    "Gated, all refinements": lambda: Gated(SELF, F, refinements=ALL),
    "Transcoder Gated": across(mechanisms.Gated),
    "Transcoder Gated skip": across(mechanisms.Gated, skip=True),
    "Crosscoder Gated": both(mechanisms.Gated),
}
# Every token in units of its own, in every mechanism and with every refinement.
LAYER_NORM, RESCALE = Refinements(token_norm="layer_norm"), Refinements(token_norm="rescale")
CASES |= {
    "ReLU layer norm": lambda: ReLU(SELF, F, refinements=LAYER_NORM),
    "ReLU unit rescaled": lambda: ReLU(SELF, F, "unit", refinements=RESCALE),
    "TopK layer norm": lambda: TopK(SELF, F, k=5, refinements=LAYER_NORM),
    "TopK layer norm, all refinements": lambda: TopK(SELF, F, k=5, refinements=replace(ALL, token_norm="layer_norm")),
    "BatchTopK rescaled": lambda: BatchTopK(SELF, F, k=5, refinements=RESCALE),
    "Matryoshka TopK rescaled": nested(topk, refinements=RESCALE),
    "Matryoshka BatchTopK layer norm, detached": nested(batch_topk, detach_inner=True, refinements=LAYER_NORM),
    "JumpReLU rescaled": lambda: JumpReLU(SELF, F, refinements=RESCALE),
    "JumpReLU rescaled, all refinements": lambda: JumpReLU(SELF, F, refinements=replace(ALL, token_norm="rescale")),
    "MatchingPursuit layer norm": lambda: MatchingPursuit(SELF, F, 0.5, refinements=LAYER_NORM),
    "Gated layer norm": lambda: Gated(SELF, F, refinements=LAYER_NORM),
}
# In these, latents or outputs are made otherwise in training than at inference.
TWO_MODES = [
    n for n in CASES if any(s in n for s in ("BatchTopK", "Matryoshka", "falling", "all refinements", "pruned"))
]
# The others are opened from files alone, and have no loss.
TRAINED = [name for name, build in CASES.items() if not build().mechanism.train_instead]
MODES = [(name, True) for name in CASES] + [(name, False) for name in TWO_MODES]


def test_every_variant_and_mechanism_is_under_contract() -> None:
    made = [build() for build in CASES.values()]
    assert {type(sae) for sae in made} == set(VARIANTS.values())
    assert {type(sae.mechanism) for sae in made} == set(MECHANISMS.values())
    two_modes = {name for name, build in CASES.items() if build().mechanism.two_modes}
    assert two_modes <= set(TWO_MODES)


def make_sample() -> dict[SiteRef, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        A: 3 * torch.randn(T, 12, generator=generator) + 5,
        B: 70 * torch.randn(T, 7, generator=generator) - 40,
    }


def started(name: str) -> SparseAutoencoder:
    """As it is in the middle of training: started on data, with weights that have moved, and steps that were ended."""
    return copy.deepcopy(_started(name))


@cache
def _started(name: str) -> SparseAutoencoder:
    sae, sample = CASES[name](), make_sample()
    generator = torch.Generator().manual_seed(1)
    sae.reset_parameters(generator)
    # Tokens of norm sqrt(D) have no scale left to measure in units of it.
    sae.start_from(sample, "sqrt_d" if sae.refinements.token_norm is None else "unit")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    sae.constrain()
    sae.progress = 0.4
    read, target, usage = read_of(sae, sample), target_of(sae, sample), LatentUsage(F, 10)
    for _ in range(3 if name in TRAINED else 0):
        output = sae(read)
        sae.loss_terms(target, output, usage)
        sae.observe(output)
        sae.commit()
    return sae


def read_of(sae: SparseAutoencoder, sample: dict[SiteRef, Tensor]) -> Tensor:
    return torch.cat([sample[site] for site in sae.widths.read], 1)


def target_of(sae: SparseAutoencoder, sample: dict[SiteRef, Tensor]) -> Tensor:
    return torch.cat([sample[site] for site in sae.widths.predicted], 1)


def factors(sae: SparseAutoencoder) -> tuple[Tensor, Tensor]:
    """The factor of every column that is read, and of every one that is predicted."""
    read = [scale.expand(width) for scale, width in zip(sae.input_scale, sae.widths.read.values(), strict=True)]
    predicted = [scale.expand(w) for scale, w in zip(sae.output_scale, sae.widths.predicted.values(), strict=True)]
    return torch.cat(read), torch.cat(predicted)


def frame_of(sae: SparseAutoencoder, x: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
    """Of each token, what is subtracted, what is then multiplied, and how long a unit is in the way back."""
    if sae.refinements.token_norm == "layer_norm":
        return x.mean(-1, keepdim=True), 1 / (x.std(-1, keepdim=True) + 1e-5), x.std(-1, keepdim=True)
    if sae.refinements.token_norm == "rescale":
        root = x.shape[-1] ** 0.5
        return 0.0, root / x.norm(dim=-1, keepdim=True), x.norm(dim=-1, keepdim=True) / root
    return 0.0, 1.0, 1.0


@pytest.fixture
def sample() -> dict[SiteRef, Tensor]:
    return make_sample()


@pytest.fixture(params=MODES, ids=lambda mode: mode[0] if mode[1] else f"{mode[0]}, at inference")
def sae(request: pytest.FixtureRequest) -> SparseAutoencoder:
    """Every case, in each of its modes."""
    name, training = request.param
    return started(name).train(training)


@pytest.fixture(params=TRAINED)
def in_training(request: pytest.FixtureRequest) -> SparseAutoencoder:
    return started(request.param)


@pytest.fixture(params=CASES)
def at_inference(request: pytest.FixtureRequest) -> SparseAutoencoder:
    return started(request.param).eval()


@pytest.fixture
def x(request: pytest.FixtureRequest, sample: dict[SiteRef, Tensor]) -> Tensor:
    """What the dictionary of the test reads, raw."""
    return read_of(made(request), sample)


@pytest.fixture
def y(request: pytest.FixtureRequest, sample: dict[SiteRef, Tensor]) -> Tensor:
    """What it is to predict, raw."""
    return target_of(made(request), sample)


def made(request: pytest.FixtureRequest) -> SparseAutoencoder:
    (name,) = {"sae", "in_training", "at_inference"} & set(request.fixturenames)
    return request.getfixturevalue(name)


@pytest.fixture
def usage() -> LatentUsage:
    usage = LatentUsage(F, dead_after=10)
    usage.known_dead[:8] = True
    return usage


# -- encode and decode -----------------------------------------------------------------------------------------------


def test_latents_are_not_negative_and_some_fire(sae: SparseAutoencoder, x: Tensor) -> None:
    latents = sae.encode(x)
    assert latents.shape == (T, F)
    assert (latents >= 0).all()
    assert (latents > 0).any()


def test_sparse_latents_are_the_dense_ones(sae: SparseAutoencoder, x: Tensor) -> None:
    assert torch.equal(sae.encode_sparse(x).to_dense(), sae.encode(x))
    assert torch.equal(sae(x).dense_latents(), sae.encode(x))


def test_decoded_latents_are_the_output(sae: SparseAutoencoder, x: Tensor) -> None:
    decoded = sae.decode(sae.encode(x), x)
    if isinstance(sae, Transcoder) and sae.W_skip is not None:
        decoded = decoded + (x * factors(sae)[0] - sae.input_centre) @ sae.W_skip / factors(sae)[1]
    torch.testing.assert_close(decoded, sae(x).x_hat, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", [(), (2,), (3, 4), (2, 1, 5), (0,)])
def test_any_leading_axes(sae: SparseAutoencoder, x: Tensor, shape: tuple[int, ...]) -> None:
    count = int(torch.tensor(shape).prod()) if shape else 1
    some = x[:count].reshape(*shape, sae.d_in)
    latents = sae.encode(some)
    assert latents.shape == (*shape, F)
    torch.testing.assert_close(latents.reshape(-1, F), sae.encode(x[:count]), rtol=1e-5, atol=1e-5)
    assert sae.decode(latents, some).shape == (*shape, sae.d_out)


def test_a_tokens_latents_depend_on_no_other_token(at_inference: SparseAutoencoder, x: Tensor) -> None:
    together = at_inference.encode(x)
    torch.testing.assert_close(at_inference.encode(x[7]), together[7], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(at_inference.encode(x[5:19]), together[5:19], rtol=1e-5, atol=1e-5)
    crowd = torch.cat([x[7:8], 50 * x[8:]])
    torch.testing.assert_close(at_inference.encode(crowd)[0], together[7], rtol=1e-5, atol=1e-5)


def test_in_training_they_do_where_there_are_two_modes(in_training: SparseAutoencoder, x: Tensor) -> None:
    if in_training.refinements.token_norm is not None:
        # None can be louder than the others: as many fire on each as there are, but together.
        together = in_training.encode(x)
        alone = torch.cat([in_training.encode(token[None]) for token in x])
        assert torch.equal(alone > 0, together > 0) != in_training.mechanism.two_modes
        return
    crowd = torch.cat([x[7:8], 50 * x[8:]])
    alone, crowded = in_training.encode(x[7:8])[0], in_training.encode(crowd)[0]
    if in_training.mechanism.two_modes:
        assert (alone > 0).any()
        assert not (crowded > 0).any(), "the others took all the places"
    else:
        torch.testing.assert_close(alone, crowded, rtol=1e-5, atol=1e-5)


def test_raw_and_normalised_units(sae: SparseAutoencoder, x: Tensor) -> None:
    output, (read, predicted), (shift, factor, unit) = sae(x), factors(sae), frame_of(sae, x)
    assert (predicted != 1).all()
    torch.testing.assert_close(output.x_normalised, (x - shift) * factor * read, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.x_hat, output.x_hat_normalised / predicted * unit + shift, rtol=1e-5, atol=1e-4)
    expected = output.dense_latents() @ sae.W_dec + sae.b_dec
    if isinstance(sae, Transcoder) and sae.W_skip is not None:
        expected = expected + (x * read - sae.input_centre) @ sae.W_skip
    torch.testing.assert_close(output.x_hat_normalised, expected, rtol=1e-5, atol=1e-5)


def test_a_direction_is_what_one_unit_of_a_latent_adds(sae: SparseAutoencoder, x: Tensor) -> None:
    latents = sae.encode(x)
    more = latents.clone()
    more[:, 9] += 1
    added = sae.decode(more, x) - sae.decode(latents, x)
    torch.testing.assert_close(added, sae.direction(9, x).expand(T, sae.d_out), atol=1e-3, rtol=0)


def test_what_a_latent_adds_is_told_of_tokens_where_each_has_a_unit(sae: SparseAutoencoder, x: Tensor) -> None:
    latents = sae.encode(x)
    if sae.refinements.token_norm is None:
        assert sae.token_units(x) is None
        assert torch.equal(sae.decode(latents), sae.decode(latents, x))
        assert torch.equal(sae.direction(9), sae.direction(9, x))
        return
    torch.testing.assert_close(sae.token_units(x), frame_of(sae, x)[2])
    for alone in (lambda: sae.decode(latents), lambda: sae.direction(9)):
        with pytest.raises(ConfigError, match=r"x is missing: with token_norm .* give the raw activations"):
            alone()


def test_a_detached_output_has_no_graph(sae: SparseAutoencoder, x: Tensor) -> None:
    output = sae(x).detach()
    assert not output.x_hat.requires_grad
    assert not output.dense_latents().requires_grad


def test_looking_changes_nothing(sae: SparseAutoencoder, x: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    first = sae(x).x_hat
    sae.encode(2 * x)
    sae.encode_sparse(x[:3])
    repr(sae)
    assert torch.equal(sae(x).x_hat, first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


# -- losses ----------------------------------------------------------------------------------------------------------


def test_terms_are_scalars_with_the_names_of_the_coefficients(
    in_training: SparseAutoencoder, x: Tensor, y: Tensor, usage: LatentUsage
) -> None:
    terms = in_training.loss_terms(y, in_training(x), usage)
    assert set(terms) == set(in_training.mechanism.default_coefficients)
    assert set(in_training.mechanism.default_warm_up) <= set(terms)
    for name, value in terms.items():
        assert value.shape == (), name
        assert value.isfinite(), name
        assert value >= 0, name


def test_the_loss_reaches_every_parameter_and_leaves_the_usage_alone(
    in_training: SparseAutoencoder, x: Tensor, y: Tensor, usage: LatentUsage
) -> None:
    before = copy.deepcopy(usage.state_dict())
    sum(in_training.loss_terms(y, in_training(x), usage).values()).backward()
    for name, parameter in in_training.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert before.keys() == usage.state_dict().keys()
    for key, value in usage.state_dict().items():
        assert torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key]


def test_gradients_reach_the_input(sae: SparseAutoencoder, x: Tensor) -> None:
    double, raw = sae.double(), x[:4].double().requires_grad_()
    weights = torch.randn(4, sae.d_out, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (double(raw).x_hat * weights).sum().backward()

    def value(place: int, by: float) -> Tensor:
        moved = raw.detach().clone()
        moved.view(-1)[place] += by
        return (double(moved).x_hat * weights).sum().detach()

    numeric = torch.stack([(value(i, 1e-6) - value(i, -1e-6)) / 2e-6 for i in range(raw.numel())])
    assert raw.grad is not None
    torch.testing.assert_close(raw.grad.view(-1), numeric, rtol=1e-4, atol=1e-4)


def test_losses_do_not_depend_on_the_unit_of_the_data(
    in_training: SparseAutoencoder, x: Tensor, y: Tensor, usage: LatentUsage
) -> None:
    sae, other = in_training, copy.deepcopy(in_training)
    kind = sae.refinements.token_norm
    with torch.no_grad():
        other.input_scale.div_(1 if kind else 64)
        other.output_scale.div_(1 if kind else 64)
    terms, rescaled = sae.loss_terms(y, sae(x), usage), other.loss_terms(y * 64, other(x * 64), usage)
    if kind == "layer_norm":
        # But for the epsilon.
        assert {name: value.item() for name, value in terms.items()} == pytest.approx(
            {name: value.item() for name, value in rescaled.items()}, rel=1e-3
        )
        return
    assert {name: value.item() for name, value in terms.items()} == {
        name: value.item() for name, value in rescaled.items()
    }


# -- constraints -----------------------------------------------------------------------------------------------------


def test_constrain_gives_what_is_demanded(in_training: SparseAutoencoder) -> None:
    sae = in_training
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.1, 3, F)[:, None])
    rows, columns = sae.W_dec.detach().clone(), sae.W_enc.detach().clone()
    sae.constrain()
    if sae.mechanism.unit_norm_decoder:
        torch.testing.assert_close(sae.W_dec.norm(dim=1).detach(), torch.ones(F))
        torch.testing.assert_close(torch.cosine_similarity(rows, sae.W_dec.detach()), torch.ones(F))
    else:
        assert torch.equal(sae.W_dec, rows)
    if sae.refinements.aligned:
        torch.testing.assert_close((sae.W_enc.T * sae.W_dec).sum(1).detach(), torch.ones(F), rtol=0, atol=1e-5)
        # Moved along the rows alone.
        moved = (sae.W_enc - columns).T.detach()
        along = torch.cosine_similarity(moved, sae.W_dec.detach()).abs()
        torch.testing.assert_close(along[moved.norm(dim=1) > 1e-3], torch.ones(F)[moved.norm(dim=1) > 1e-3])
    else:
        assert torch.equal(sae.W_enc, columns)


def test_constrain_survives_a_row_of_zeros(in_training: SparseAutoencoder) -> None:
    with torch.no_grad():
        in_training.W_dec[3] = 0
    in_training.constrain()
    assert all(parameter.isfinite().all() for parameter in in_training.parameters())


def test_before_step_drops_the_gradient_along_the_rows(
    in_training: SparseAutoencoder, x: Tensor, y: Tensor, usage: LatentUsage
) -> None:
    sae = in_training
    sae.before_step()  # without a gradient: nothing to do
    sum(sae.loss_terms(y, sae(x), usage).values()).backward()
    before = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.before_step()
    for name in before.keys() - {"W_dec"}:
        assert torch.equal(sae.get_parameter(name).grad, before[name])
    if sae.mechanism.unit_norm_decoder:
        rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
        along = (before["W_dec"] * rows).sum(1, keepdim=True)
        assert along.abs().max() > 1e-4
        torch.testing.assert_close(sae.W_dec.grad, before["W_dec"] - along * rows, rtol=1e-5, atol=1e-6)
        assert (sae.W_dec.grad * rows).sum(1).abs().max() < 1e-5
    else:
        assert torch.equal(sae.W_dec.grad, before["W_dec"])


# -- copies ----------------------------------------------------------------------------------------------------------


def same_bits(a: SparseAutoencoder, b: SparseAutoencoder, x: Tensor) -> bool:
    states = a.state_dict(), b.state_dict()
    assert states[0].keys() == states[1].keys()
    outputs = torch.equal(a(x).x_hat, b(x).x_hat) and torch.equal(a.encode(x), b.encode(x))
    return outputs and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_settings_rebuild_the_dictionary(sae: SparseAutoencoder, x: Tensor) -> None:
    other = type(sae)(sae.widths, **copy.deepcopy(sae.settings)).train(sae.training)
    assert plain(other.settings) == plain(sae.settings)
    other.load_state_dict(sae.state_dict())
    other.progress = sae.progress
    assert same_bits(sae, other, x)


def test_a_mechanism_object_belongs_to_one_dictionary() -> None:
    """Built again from its own settings, the first keeps what it has measured; and the meta device stays away."""
    for name in CASES:
        sae = started(name)
        before = {key: tensor.clone() for key, tensor in sae.state_dict().items()}
        other = type(sae)(sae.widths, **sae.settings)
        with torch.device("meta"):
            type(sae)(sae.widths, **sae.settings)
        assert not any(tensor.is_meta for tensor in sae.state_dict().values()), name
        assert all(torch.equal(tensor, before[key]) for key, tensor in sae.state_dict().items()), name
        assert other.mechanism is not sae.mechanism, name


def test_export_then_load_changes_no_bit(sae: SparseAutoencoder, x: Tensor, tmp_path: Path) -> None:
    mode = sae.training
    save_sae(sae, tmp_path / "sae")
    assert sae.training == mode, "saving is no change of mode"
    other = load_sae(tmp_path / "sae")
    assert type(other) is type(sae)
    assert plain(other.settings) == plain(sae.settings)
    assert other.widths == sae.widths
    assert not any(module.training for module in other.modules()), "what is loaded is for use"
    assert same_bits(sae.eval(), other, x)
    sae.progress = other.progress
    assert same_bits(sae.train(), other.train(), x)


def test_a_loaded_dictionary_can_be_trained_on(
    in_training: SparseAutoencoder, x: Tensor, y: Tensor, usage: LatentUsage, tmp_path: Path
) -> None:
    save_sae(in_training, tmp_path / "sae")
    other = load_sae(tmp_path / "sae").train()
    in_training.progress = other.progress
    for each in (in_training, other):
        output = each(x)
        sum(each.loss_terms(y, output, usage).values()).backward()
        each.observe(output)
    for mine, theirs in zip(in_training.parameters(), other.parameters(), strict=True):
        # Not to the bit: a matrix product may take another path for another alignment in memory.
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-5, atol=1e-6)
    other.commit()


def test_a_deep_copy_is_on_its_own(sae: SparseAutoencoder, x: Tensor) -> None:
    other = copy.deepcopy(sae)
    assert same_bits(sae, other, x)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    assert sae.W_dec.abs().sum() > 0
    assert all(tensor.abs().sum() > 0 for tensor in sae.mechanism.state_dict().values())


def test_built_on_the_meta_device(sae: SparseAutoencoder) -> None:
    random_state = torch.get_rng_state()
    settings = copy.deepcopy(sae.settings)
    with torch.device("meta"):
        other = type(sae)(sae.widths, **settings)
    assert all(tensor.is_meta for tensor in other.state_dict().values())
    assert {n: t.shape for n, t in other.state_dict().items()} == {n: t.shape for n, t in sae.state_dict().items()}
    assert torch.equal(torch.get_rng_state(), random_state), "nothing is drawn"
    repr(other)


def test_shapes_are_those_of_the_design(sae: SparseAutoencoder) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    expected = {"W_enc": (sae.d_in, F), "W_dec": (F, sae.d_out), "b_enc": (F,), "b_dec": (sae.d_out,)}
    expected |= {"input_scale": (len(sae.widths.read),), "output_scale": (len(sae.widths.predicted),)}
    assert {name: shapes[name] for name in expected} == expected


# -- it learns -------------------------------------------------------------------------------------------------------


def test_a_few_steps_lower_the_loss(in_training: SparseAutoencoder, x: Tensor, y: Tensor, usage: LatentUsage) -> None:
    sae, settings = in_training, in_training.mechanism
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3, betas=settings.adam_betas, eps=settings.adam_eps)
    losses = []
    for _ in range(80):
        output = sae(x)
        loss = sae.loss_terms(y, output, usage)["mse"]
        optimizer.zero_grad()
        loss.backward()
        sae.before_step()
        optimizer.step()
        usage.observe(output.latents)
        sae.observe(output)
        sae.commit()
        usage.commit()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# -- on a device -----------------------------------------------------------------------------------------------------


def host_syncs(
    sae: SparseAutoencoder, x: Tensor, y: Tensor, usage: LatentUsage, device: str, step: Callable[[], None]
) -> list[str]:
    """Return what made the host wait in training steps, after the first refresh of the usage, which waits once."""
    usage._steps_to_refresh = usage.REFRESH_STEPS = 2
    with HostSyncs(device) as syncs:
        for number in range(6):
            if number == 2:
                syncs.found.clear()
            sae.zero_grad()
            output = sae(x)
            sum(sae.loss_terms(y, output, usage).values()).backward()
            usage.observe(output.latents)
            sae.observe(output)
            sae.before_step()
            normalise_gradients(sae.parameters())
            step()
            sae.commit()
            usage.commit()
    return syncs.found


def test_a_training_step_does_not_wait_for_a_device(
    in_training: SparseAutoencoder, x: Tensor, y: Tensor, usage: LatentUsage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With values, on the CPU: dead latents come and go, and Adam steps."""
    monkeypatch.setattr("lightsae.sae.mechanisms.batch_topk.searches_near", lambda pre: False)
    adam = torch.optim.Adam(in_training.parameters(), lr=1e-3, fused=True)
    assert host_syncs(in_training, x, y, usage, "cpu", adam.step) == []


def test_a_training_step_copies_nothing_to_or_from_a_device(
    in_training: SparseAutoencoder, x: Tensor, y: Tensor, usage: LatentUsage
) -> None:
    """On meta tensors, so that it takes the path of a device."""
    sae, usage = in_training.to("meta"), usage.to("meta")

    def step() -> None:
        for parameter in sae.parameters():
            parameter.data.sub_(parameter.grad)

    assert host_syncs(sae, x.to("meta"), y.to("meta"), usage, "meta", step) == []


# -- precision -------------------------------------------------------------------------------------------------------


def test_bf16_autocast_stays_near_fp32(
    in_training: SparseAutoencoder, x: Tensor, y: Tensor, usage: LatentUsage
) -> None:
    """Within 1% in the prediction of the median token, 2% in each term, 20% in the gradient as a whole.

    On a token in six at most, a latent at the edge of firing changes sides.
    """
    sae = in_training

    def run() -> tuple[Tensor, Tensor, dict[str, float], Tensor]:
        sae.zero_grad()
        output = sae(x)
        terms = sae.loss_terms(y, output, usage)
        sum(terms.values()).backward()
        gradients = [parameter.grad for parameter in sae.parameters()]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        x_hat, fires = output.x_hat_normalised.detach().float(), output.dense_latents() > 0
        return x_hat, fires, {k: v.item() for k, v in terms.items()}, torch.cat([g.flatten() for g in gradients])

    exact = run()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run()
    assert ((exact[0] - rounded[0]).norm(dim=1) / exact[0].norm(dim=1)).median() < 0.01
    assert (exact[1] != rounded[1]).any(1).sum() <= T / 6
    assert rounded[2] == pytest.approx(exact[2], rel=0.02)
    assert (exact[3] - rounded[3]).norm() / exact[3].norm() < 0.2
