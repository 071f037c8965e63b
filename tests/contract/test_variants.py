"""What every dictionary owes its users, whatever makes its latents sparse."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightsae.formats.native import load_sae, save_sae
from lightsae.sae import VARIANTS, LatentUsage, SiteRef, SparseAutoencoder, Widths

D, F = 12, 40
SITE = SiteRef("tiny", "resid_post.1")
CASES: dict[str, list[dict[str, Any]]] = {
    "ReLU": [{}, {"decoder_norm": "unit"}],
    "TopK": [{"k": 5}, {"k": 1, "k_aux": 3}, {"k": F}],
}


def test_every_variant_is_under_contract() -> None:
    assert set(CASES) == set(VARIANTS)


@pytest.fixture
def x() -> Tensor:
    return 3 * torch.randn(48, D, generator=torch.Generator().manual_seed(0)) + 5


@pytest.fixture(params=[(name, settings) for name, cases in CASES.items() for settings in cases], ids=str)
def sae(request: pytest.FixtureRequest, x: Tensor) -> SparseAutoencoder:
    """As it is in the middle of training: started on data, with weights that have moved."""
    name, settings = request.param
    sae = VARIANTS[name](Widths.autoencoder(SITE, D), d_sae=F, **settings)
    generator = torch.Generator().manual_seed(1)
    sae.reset_parameters(generator)
    sae.start_from({SITE: x}, "sqrt_d")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    sae.constrain()
    return sae


@pytest.fixture
def usage() -> LatentUsage:
    usage = LatentUsage(F, dead_after=10)
    usage.known_dead[:8] = True
    return usage


# -- encode and decode -----------------------------------------------------------------------------------------------


def test_latents_are_not_negative_and_some_fire(sae: SparseAutoencoder, x: Tensor) -> None:
    latents = sae.encode(x)
    assert latents.shape == (48, F)
    assert (latents >= 0).all()
    assert (latents > 0).any()


def test_sparse_latents_are_the_dense_ones(sae: SparseAutoencoder, x: Tensor) -> None:
    assert torch.equal(sae.encode_sparse(x).to_dense(), sae.encode(x))
    assert torch.equal(sae(x).dense_latents(), sae.encode(x))


def test_decoded_latents_are_the_output(sae: SparseAutoencoder, x: Tensor) -> None:
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae(x).x_hat, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (2,), (3, 4), (2, 1, 5), (0,)])
def test_any_leading_axes(sae: SparseAutoencoder, x: Tensor, shape: tuple[int, ...]) -> None:
    count = int(torch.tensor(shape).prod()) if shape else 1
    some = x[:count].reshape(*shape, D)
    latents = sae.encode(some)
    assert latents.shape == (*shape, F)
    torch.testing.assert_close(latents.reshape(-1, F), sae.encode(x[:count]), rtol=1e-5, atol=1e-5)
    assert sae.decode(latents).shape == (*shape, D)


def test_one_token_is_encoded_as_in_a_batch(sae: SparseAutoencoder, x: Tensor) -> None:
    torch.testing.assert_close(sae.encode(x[7]), sae.encode(x)[7], rtol=1e-5, atol=1e-5)


def test_raw_and_normalised_units(sae: SparseAutoencoder, x: Tensor) -> None:
    output = sae(x)
    assert sae.output_scale != 1
    torch.testing.assert_close(output.x_normalised, x * sae.input_scale)
    torch.testing.assert_close(output.x_hat * sae.output_scale, output.x_hat_normalised)
    torch.testing.assert_close(
        output.x_hat_normalised, output.dense_latents() @ sae.W_dec + sae.b_dec, rtol=1e-5, atol=1e-5
    )


def test_a_direction_is_what_one_unit_of_a_latent_adds(sae: SparseAutoencoder, x: Tensor) -> None:
    latents = sae.encode(x)
    more = latents.clone()
    more[:, 9] += 1
    torch.testing.assert_close(
        sae.decode(more) - sae.decode(latents), sae.direction(9).expand(48, D), atol=1e-4, rtol=0
    )


def test_a_detached_output_has_no_graph(sae: SparseAutoencoder, x: Tensor) -> None:
    output = sae(x).detach()
    assert not output.x_hat.requires_grad
    assert not output.dense_latents().requires_grad


# -- losses ----------------------------------------------------------------------------------------------------------


def test_terms_are_scalars_with_the_names_of_the_coefficients(
    sae: SparseAutoencoder, x: Tensor, usage: LatentUsage
) -> None:
    terms = sae.loss_terms(x, sae(x), usage)
    assert set(terms) == set(sae.mechanism.default_coefficients)
    assert set(sae.mechanism.default_warm_up) <= set(terms)
    for name, value in terms.items():
        assert value.shape == (), name
        assert value.isfinite(), name
        assert value >= 0, name


def test_the_loss_reaches_every_parameter_and_leaves_the_usage_alone(
    sae: SparseAutoencoder, x: Tensor, usage: LatentUsage
) -> None:
    before = copy.deepcopy(usage.state_dict())
    sum(sae.loss_terms(x, sae(x), usage).values()).backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert before.keys() == usage.state_dict().keys()
    for key, value in usage.state_dict().items():
        assert torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key]


def test_gradients_reach_the_input(sae: SparseAutoencoder, x: Tensor) -> None:
    double, given, weights = sae.double(), x[:4].double().requires_grad_(), x[4:8].double()
    (double(given).x_hat * weights).sum().backward()

    def value(place: int, by: float) -> Tensor:
        moved = given.detach().clone()
        moved.view(-1)[place] += by
        return (double(moved).x_hat * weights).sum().detach()

    numeric = torch.stack([(value(i, 1e-6) - value(i, -1e-6)) / 2e-6 for i in range(given.numel())])
    assert given.grad is not None
    torch.testing.assert_close(given.grad.view(-1), numeric, rtol=1e-4, atol=1e-5)


def test_losses_do_not_depend_on_the_unit_of_the_data(sae: SparseAutoencoder, x: Tensor, usage: LatentUsage) -> None:
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.input_scale.div_(64)
        other.output_scale.div_(64)
    here, there = sae.loss_terms(x, sae(x), usage), other.loss_terms(x * 64, other(x * 64), usage)
    assert {name: value.item() for name, value in here.items()} == {name: value.item() for name, value in there.items()}


# -- constraints -----------------------------------------------------------------------------------------------------


def test_constrain_gives_unit_rows_where_they_are_demanded(sae: SparseAutoencoder) -> None:
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.1, 3, F)[:, None])
    before = sae.W_dec.detach().clone()
    sae.constrain()
    if sae.mechanism.unit_norm_decoder:
        torch.testing.assert_close(sae.W_dec.norm(dim=1).detach(), torch.ones(F))
        torch.testing.assert_close(torch.cosine_similarity(before, sae.W_dec.detach()), torch.ones(F))
    else:
        assert torch.equal(sae.W_dec, before)


def test_constrain_survives_a_row_of_zeros(sae: SparseAutoencoder) -> None:
    with torch.no_grad():
        sae.W_dec[3] = 0
    sae.constrain()
    assert sae.W_dec.isfinite().all()


def test_before_step_drops_the_gradient_along_the_rows(sae: SparseAutoencoder, x: Tensor, usage: LatentUsage) -> None:
    sae.before_step()  # without a gradient: nothing to do
    sum(sae.loss_terms(x, sae(x), usage).values()).backward()
    before = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.before_step()
    for name in ("W_enc", "b_enc", "b_dec"):
        assert torch.equal(getattr(sae, name).grad, before[name])
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
    other = type(sae)(sae.widths, **sae.settings)
    assert other.settings == sae.settings
    other.load_state_dict(sae.state_dict())
    assert same_bits(sae, other, x)


def test_export_then_load_changes_no_bit(sae: SparseAutoencoder, x: Tensor, tmp_path: Path) -> None:
    save_sae(sae, tmp_path / "sae")
    other = load_sae(tmp_path / "sae")
    assert type(other) is type(sae)
    assert other.settings == sae.settings
    assert other.widths == sae.widths
    assert same_bits(sae, other, x)


def test_a_loaded_dictionary_can_be_trained_on(
    sae: SparseAutoencoder, x: Tensor, usage: LatentUsage, tmp_path: Path
) -> None:
    save_sae(sae, tmp_path / "sae")
    other = load_sae(tmp_path / "sae")
    for each in (sae, other):
        sum(each.loss_terms(x, each(x), usage).values()).backward()
    for mine, theirs in zip(sae.parameters(), other.parameters(), strict=True):
        # Not to the bit: a matrix product may take another path for another alignment in memory.
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-5, atol=1e-6)


def test_a_deep_copy_is_on_its_own(sae: SparseAutoencoder, x: Tensor) -> None:
    other = copy.deepcopy(sae)
    assert same_bits(sae, other, x)
    with torch.no_grad():
        other.W_dec.zero_()
    assert sae.W_dec.abs().sum() > 0


def test_built_on_the_meta_device(sae: SparseAutoencoder) -> None:
    random_state = torch.get_rng_state()
    with torch.device("meta"):
        other = type(sae)(sae.widths, **sae.settings)
    assert all(tensor.is_meta for tensor in other.state_dict().values())
    assert {n: t.shape for n, t in other.state_dict().items()} == {n: t.shape for n, t in sae.state_dict().items()}
    assert torch.equal(torch.get_rng_state(), random_state), "nothing is drawn"


def test_shapes_are_those_of_the_design(sae: SparseAutoencoder) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    expected = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}
    assert {name: shapes[name] for name in expected} == expected
    assert shapes["input_scale"] == shapes["output_scale"] == (1,)


# -- it learns -------------------------------------------------------------------------------------------------------


def test_a_few_steps_lower_the_loss(sae: SparseAutoencoder, x: Tensor, usage: LatentUsage) -> None:
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3, betas=sae.adam_betas, eps=sae.adam_eps)

    def loss() -> Tensor:
        return sae.loss_terms(x, sae(x), usage)["mse"]

    start = loss().item()
    for _ in range(40):
        optimizer.zero_grad()
        loss().backward()
        sae.before_step()
        optimizer.step()
        sae.constrain()
    assert loss().item() < 0.7 * start
