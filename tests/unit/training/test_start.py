"""Where a training starts: random and tied, at data points, or at a saved SAE."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from helpers.errors import refused
from helpers.layout_files.sae_lens import write_sae_lens
from lightsae.activations.datamodule import ActivationDataModule
from lightsae.errors import ActivationError, ConfigError, FormatError
from lightsae.formats.native import load_sae, save_sae
from lightsae.formats.saved_sae import SavedSAE
from lightsae.sae import (
    BatchTopK,
    Crosscoder,
    Gated,
    JumpReLU,
    Matryoshka,
    Refinements,
    ReLU,
    SiteRef,
    SparseAutoencoder,
    TopK,
    Transcoder,
    Widths,
    mechanisms,
)
from lightsae.sae.initialise import measure_scale
from lightsae.training.entries import Entry
from lightsae.training.module import SAEModule
from lightsae.training.start import DATA, TIED, check_start, start_weights

A, B = SiteRef("m", "mlp_in.0"), SiteRef("m", "mlp_out.0")
SELF, ACROSS, BOTH = Widths.autoencoder(A, 6), Widths({A: 6}, {B: 4}), Widths({A: 6, B: 4}, {A: 6, B: 4})
F = 20
MAKE: dict[str, Callable[[], SparseAutoencoder]] = {
    "ReLU": lambda: ReLU(SELF, F),
    "ReLU unit": lambda: ReLU(SELF, F, "unit"),
    "TopK": lambda: TopK(SELF, F, k=3),
    "BatchTopK": lambda: BatchTopK(SELF, F, k=3),
    "Matryoshka": lambda: Matryoshka(SELF, F, mechanisms.BatchTopK(3), order="frequency"),
    "Transcoder": lambda: Transcoder(ACROSS, F, mechanisms.BatchTopK(3), skip=True),
    "Transcoder ReLU": lambda: Transcoder(ACROSS, F, mechanisms.ReLU()),
    "Crosscoder": lambda: Crosscoder(BOTH, F, mechanisms.BatchTopK(3)),
    "Crosscoder ReLU": lambda: Crosscoder(BOTH, F, mechanisms.ReLU()),
}
START_NORM = {"ReLU": 0.1, "Transcoder ReLU": 0.1, "Crosscoder ReLU": 0.1}


def sample(tokens: int = 400) -> dict[SiteRef, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        A: 2 * torch.randn(tokens, 6, generator=generator) + 3,
        B: 30 * torch.randn(tokens, 4, generator=generator) - 70,
    }


def read_and_predicted(sae: SparseAutoencoder, x: dict[SiteRef, Tensor]) -> tuple[Tensor, Tensor]:
    """The sample in normalised units, as the dictionary reads it and as it predicts it."""
    read = [x[s] * scale for s, scale in zip(sae.widths.read, sae.input_scale, strict=True)]
    predicted = [x[s] * scale for s, scale in zip(sae.widths.predicted, sae.output_scale, strict=True)]
    return torch.cat(read, 1), torch.cat(predicted, 1)


def state(sae: SparseAutoencoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sae.state_dict().items()}


# -- random and tied -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", MAKE)
def test_tied(variant: str) -> None:
    sae = MAKE[variant]()
    start_weights(sae, "tied", sample(), "sqrt_d", seed=7)
    norms = torch.full((F,), START_NORM.get(variant, 1.0))
    torch.testing.assert_close(sae.W_dec.norm(dim=1).detach(), norms)
    torch.testing.assert_close(sae.W_enc.norm(dim=0).detach(), norms)
    if sae.widths.read == sae.widths.predicted:
        torch.testing.assert_close(sae.W_enc, sae.W_dec.T)
    else:
        # Input and output have no directions in common: those of the first columns are not the same either.
        between = torch.cosine_similarity(sae.W_enc.T[:, :4], sae.W_dec, dim=1)
        assert between.abs().min() < 0.2


@pytest.mark.parametrize("variant", MAKE)
@pytest.mark.parametrize("start", ["tied", "data"])
def test_the_median_input_starts_at_zero_pre_activations_and_is_predicted(variant: str, start: str) -> None:
    x = sample()
    # Symmetric data: the geometric median is known.
    x = {site: torch.cat([values, 2 * values.mean(0) - values]) for site, values in x.items()}
    sae = MAKE[variant]()
    start_weights(sae, start, x, "sqrt_d", seed=7)
    centre = torch.cat([x[site].mean(0) for site in sae.widths.read])[None]
    target = torch.cat([x[site].mean(0) for site in sae.widths.predicted])
    sae.train()
    assert sae.encode(centre).abs().max() < 1e-3
    torch.testing.assert_close(sae.decode(torch.zeros(F)).detach(), target, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("start", ["tied", "data"])
@pytest.mark.parametrize("variant", MAKE)
def test_the_start_follows_from_the_seed(variant: str, start: str) -> None:
    starts = []
    for global_seed, seed in ((0, 1), (1, 1), (0, 2)):
        torch.manual_seed(global_seed)
        sae = MAKE[variant]()
        start_weights(sae, start, sample(), "sqrt_d", seed)
        starts.append(state(sae))
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not torch.equal(starts[0]["W_dec"], starts[2]["W_dec"])


# -- data points -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", MAKE)
def test_each_latent_starts_at_a_data_point(variant: str) -> None:
    x = sample()
    sae = MAKE[variant]()
    start_weights(sae, "data", x, "sqrt_d", seed=7)
    read, predicted = read_and_predicted(sae, x)
    encoded = read - (sae.b_dec if sae.centre is None else sae.centre)
    columns = torch.cosine_similarity(sae.W_enc.T[:, None], encoded[None], dim=2)
    rows = torch.cosine_similarity(sae.W_dec[:, None], (predicted - sae.b_dec)[None], dim=2)
    best = (columns + rows).max(1)
    torch.testing.assert_close(best.values.detach(), torch.full((F,), 2.0), rtol=0, atol=1e-4)
    assert len(set(best.indices.tolist())) > F / 2, "not all the same point"
    norms = torch.full((F,), START_NORM.get(variant, 1.0))
    torch.testing.assert_close(sae.W_dec.norm(dim=1).detach(), norms)
    # It fires on the point that it was made of.
    pre = encoded @ sae.W_enc
    assert (pre[best.indices, torch.arange(F)] > 0).all()


@pytest.mark.parametrize("variant", [name for name in MAKE if name not in ("ReLU", "ReLU unit", "TopK")])
def test_thresholds_start_near_what_the_batch_keeps(variant: str) -> None:
    sae = MAKE[variant]()
    if not hasattr(sae.mechanism, "threshold"):
        pytest.skip("has no threshold")
    start_weights(sae, "tied", sample(2000), "sqrt_d", seed=7)
    assert sae.mechanism.threshold > 0
    read = torch.cat([sample(2000)[site] for site in sae.widths.read], 1)
    l0 = (sae.eval().encode(read) > 0).sum(1).float().mean()
    assert l0.item() == pytest.approx(3, rel=0.05)


# -- a saved SAE ----------------------------------------------------------------------------------------------


def trained(variant: str) -> SparseAutoencoder:
    """A dictionary whose every tensor is something of its own, and that keeps its constraints."""
    sae = MAKE[variant]()
    start_weights(sae, "tied", sample(), "sqrt_d", seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    sae.constrain()
    return sae


@pytest.mark.parametrize("variant", MAKE)
def test_fine_tuning_starts_where_the_saved_one_ended(variant: str, tmp_path: Path) -> None:
    saved = trained(variant)
    save_sae(saved, tmp_path / "sae")
    sae = MAKE[variant]()
    check_start(str(tmp_path / "sae"), sae)
    start_weights(sae, str(tmp_path / "sae"), {s: 9 * v for s, v in sample().items()}, "unit", seed=2)
    for name, tensor in state(saved).items():
        # Scales too, whatever the sample; rows of norm 1 are made so once more.
        torch.testing.assert_close(sae.state_dict()[name], tensor, rtol=1e-6, atol=0, msg=name)
    assert sae.training
    read = torch.cat([sample()[site] for site in sae.widths.read], 1)
    for mode in (True, False):
        torch.testing.assert_close(sae.train(mode)(read).x_hat, saved.train(mode)(read).x_hat, rtol=1e-4, atol=1e-3)


FOREIGN: dict[str, Callable[[SparseAutoencoder], SparseAutoencoder]] = {
    "standard": lambda sae: ReLU(sae.widths, 16),
    "topk": lambda sae: TopK(sae.widths, 16, k=4),
    "jumprelu": lambda sae: JumpReLU(sae.widths, 16),
    "gated": lambda sae: Gated(sae.widths, 16),
    "transcoder": lambda sae: Transcoder(sae.widths, 16, mechanisms.ReLU()),
    "skip_transcoder": lambda sae: Transcoder(sae.widths, 16, mechanisms.ReLU(), skip=True),
    "jumprelu_transcoder": lambda sae: Transcoder(sae.widths, 16, mechanisms.JumpReLU()),
}


@pytest.mark.parametrize("architecture", FOREIGN)
@pytest.mark.parametrize("normalisation", ["sqrt_d", "unit", "none"])
def test_an_sae_of_another_library_starts_as_it_is_in_normalised_units(
    architecture: str, normalisation: str, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(16, 9 if "transcoder" in architecture else 6, generator=generator))
    write_sae_lens(tmp_path / "sae", architecture, tensors={"W_dec": rows})
    saved = SavedSAE.open(tmp_path / "sae").sae
    sae = FOREIGN[architecture](saved)
    check_start(str(tmp_path / "sae"), sae)
    x = {site: 40 * torch.randn(300, width, generator=generator) + 7 for site, width in saved.widths.read.items()}
    x |= {
        site: 3 * torch.randn(300, width, generator=generator)
        for site, width in saved.widths.predicted.items()
        if site not in x
    }
    start_weights(sae, str(tmp_path / "sae"), x, normalisation, seed=2)
    read, predicted = (torch.cat([x[site] for site in sites], 1) for sites in (sae.widths.read, sae.widths.predicted))
    torch.testing.assert_close(sae.eval()(read).x_hat, saved(read).x_hat, rtol=1e-3, atol=1e-3)
    scale = measure_scale(predicted, normalisation)
    torch.testing.assert_close(sae(read).normalised(predicted), predicted * scale)
    if sae.mechanism.unit_norm_decoder:
        torch.testing.assert_close(sae.decoder_norms(), torch.ones(16))


def test_rows_of_several_norms_where_latents_compete_are_said(tmp_path: Path) -> None:
    write_sae_lens(tmp_path / "sae", "topk")
    saved = SavedSAE.open(tmp_path / "sae").sae
    sae = TopK(saved.widths, 16, k=4)
    (site,) = saved.widths.read
    with pytest.warns(UserWarning, match="differ in norm, and TopK keeps them at 1"):
        start_weights(sae, str(tmp_path / "sae"), {site: torch.randn(50, 6)}, "sqrt_d", seed=2)


def test_a_second_step_that_the_saved_one_had_not_starts_at_its_threshold(tmp_path: Path) -> None:
    saved = BatchTopK(SELF, F, k=3)
    saved.mechanism.threshold.fill_(0.7)
    save_sae(saved, tmp_path / "sae")
    sae = BatchTopK(SELF, F, k=3, refinements=Refinements(second_step=0.3))
    start_weights(sae, str(tmp_path / "sae"), {}, "sqrt_d", seed=0)
    assert sae.mechanism.threshold == sae.mechanism.first_threshold == saved.mechanism.threshold


def test_in_a_fit_the_first_step_sees_the_saved_weights(
    activation_file: Callable[..., str], quiet: dict[str, Any], tmp_path: Path
) -> None:
    path = activation_file(1000)
    options: dict[str, Any] = {"activations": path, "batch_tokens": 64, "buffer_tokens": 256, "seed": 0}
    first = SAEModule(lambda w: BatchTopK(w, F, k=3), lr=0.01)
    Trainer(**quiet, max_steps=20).fit(first, ActivationDataModule(**options))
    saved = first.each_sae()["sae"]
    save_sae(saved, tmp_path / "run" / "sae")
    starts: dict[str, dict[str, Tensor]] = {}

    class Start(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            starts.update({name: state(sae) for name, sae in pl_module.each_sae().items()})

    entries = {
        "fine": Entry(lambda w: BatchTopK(w, F, k=3), start=str(tmp_path / "run" / "sae")),
        "new": Entry(lambda w: BatchTopK(w, F, k=3)),
    }
    module = SAEModule(saes=entries, lr=1e-3)
    Trainer(**quiet, max_steps=3, callbacks=[Start()]).fit(module, ActivationDataModule(**options))
    for name, tensor in state(saved).items():
        torch.testing.assert_close(starts["fine"][name], tensor, rtol=1e-6, atol=0)
    assert not torch.equal(starts["new"]["W_dec"], starts["fine"]["W_dec"])
    assert not torch.equal(module.each_sae()["fine"].W_dec, saved.W_dec), "and is trained further"
    again = load_sae(tmp_path / "run" / "sae")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in state(saved).items())


def test_a_resumed_fine_tuning_does_not_start_again(
    activation_file: Callable[..., str], quiet: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"activations": activation_file(1000), "batch_tokens": 64, "buffer_tokens": 256}
    save_sae(TopK(Widths.autoencoder(SiteRef("", "acts"), 8), F, k=3), tmp_path / "sae")

    def fit(ckpt_path: Path | None = None) -> tuple[SAEModule, Trainer]:
        module = SAEModule(lambda w: TopK(w, F, k=3), start=str(tmp_path / "sae"), lr=0.01)
        trainer = Trainer(**quiet, max_steps=8, callbacks=[Keep()])
        trainer.fit(module, ActivationDataModule(**options), ckpt_path=ckpt_path)
        return module, trainer

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "at4.ckpt")

    whole, _ = fit()
    resumed, _ = fit(tmp_path / "at4.ckpt")
    for mine, its in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_what_was_trained_before_has_a_lower_rate(
    activation_file: Callable[..., str], quiet: dict[str, Any], tmp_path: Path
) -> None:
    data = {"activations": activation_file(1000), "batch_tokens": 64, "buffer_tokens": 256}
    save_sae(TopK(Widths.autoencoder(SiteRef("", "acts"), 8), F, k=3), tmp_path / "sae")
    rates = {}
    for start in ("tied", "data", str(tmp_path / "sae")):
        module = SAEModule(lambda w: TopK(w, F, k=3), start=start)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lightsae.sae.mechanisms.base.HIGHEST_LR", 1.0)
            Trainer(**quiet, max_steps=8).fit(module, ActivationDataModule(**data))
            rates[start] = module.learning_rate("sae")
    assert rates["tied"] == rates["data"] == pytest.approx(2.5 / math.sqrt(8 * 8))
    assert rates[str(tmp_path / "sae")] == pytest.approx(0.4 / math.sqrt(8 * 8))


# -- what cannot work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: BatchTopK(SELF, F, k=3), "whose variant is TopK, and here it is BatchTopK"),
        (lambda: TopK(SELF, F + 1, k=3), f"whose d_sae is {F}, and here it is {F + 1}"),
        (lambda: TopK(Widths.autoencoder(A, 7), F, k=3), "whose d_in is 6, and here it is 7"),
    ],
)
def test_a_saved_dictionary_that_does_not_fit(make: Callable[[], SparseAutoencoder], text: str, tmp_path: Path) -> None:
    save_sae(trained("TopK"), tmp_path / "sae")
    with pytest.raises(ConfigError, match=rf"^start is '.*sae', a saved SAE {text}; .* the same") as error:
        check_start(str(tmp_path / "sae"), make())
    assert "\n" not in str(error.value)


def test_a_saved_transcoder_that_does_not_fit(tmp_path: Path) -> None:
    save_sae(trained("Transcoder"), tmp_path / "sae")
    other = Transcoder(Widths({A: 6}, {B: 5}), F, mechanisms.BatchTopK(3), skip=True)
    with pytest.raises(ConfigError, match="whose d_out is 4, and here it is 5"):
        check_start(str(tmp_path / "sae"), other)
    # Another mechanism is another variant: it has no threshold, and other units of the decoder's rows.
    with pytest.raises(ConfigError, match=r"mechanism.* is BatchTopK, and here it is TopK"):
        check_start(str(tmp_path / "sae"), Transcoder(ACROSS, F, mechanisms.TopK(3), skip=True))


def test_rows_of_other_norms_are_no_start(tmp_path: Path) -> None:
    save_sae(trained("ReLU"), tmp_path / "sae")
    with pytest.raises(ConfigError, match="whose decoder_norm is free, and here it is unit"):
        check_start(str(tmp_path / "sae"), MAKE["ReLU unit"]())


def test_other_settings_may_differ(tmp_path: Path) -> None:
    save_sae(trained("TopK"), tmp_path / "sae")
    sae = TopK(Widths.autoencoder(SiteRef("other", "resid_post.3"), 6), F, k=5, k_aux=2, multi_k=9)
    check_start(str(tmp_path / "sae"), sae)
    start_weights(sae, str(tmp_path / "sae"), {}, "sqrt_d", seed=0)
    torch.testing.assert_close(sae.W_enc, trained("TopK").W_enc)
    assert sae.mechanism.k == 5


@pytest.mark.parametrize(
    ("start", "message"),
    [("tide", r"start is 'tide', which does not exist"), ("datum", "does not exist"), ("empty", "has no 'sae.json'")],
)
def test_a_start_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ConfigError, FormatError), match=message) as error:
        check_start(start, MAKE["TopK"]())
    assert "\n" not in str(error.value)


def test_a_damaged_start(tmp_path: Path) -> None:
    save_sae(trained("TopK"), tmp_path / "sae")
    (tmp_path / "sae" / "sae.json").write_text("{")
    with pytest.raises(FormatError, match="is not valid JSON"):
        check_start(str(tmp_path / "sae"), MAKE["TopK"]())


def test_in_an_entry_the_key_is_the_entrys(tmp_path: Path, activation_file: Callable[..., str]) -> None:
    save_sae(trained("TopK"), tmp_path / "sae")
    entry = Entry(lambda w: TopK(w, F, k=3), start=str(tmp_path / "sae"))
    data = ActivationDataModule(activations=activation_file(100), batch_tokens=16, buffer_tokens=64)
    with refused(ConfigError, r"^model\.saes\.a\.start is '.*', a saved SAE whose d_in is 6"):
        SAEModule(saes={"a": entry}).build(data)
    entry = Entry(lambda w: TopK(w, F, k=3))
    with refused(ConfigError, r"^model\.start is '.*', a saved SAE whose d_in is 6"):
        SAEModule(saes={"a": entry}, start=str(tmp_path / "sae")).build(data)


def test_a_start_that_cannot_work_is_found_before_anything_is_read(tmp_path: Path, quiet: dict[str, Any]) -> None:
    np.save(tmp_path / "acts.npy", np.ones((200, 6), dtype=np.float32))
    data = ActivationDataModule(activations=str(tmp_path / "acts.npy"), batch_tokens=16, buffer_tokens=64)
    module = SAEModule(lambda w: TopK(w, F, k=3), start=str(tmp_path / "nothing"))
    with pytest.raises(FormatError, match="does not exist"):
        module.build(data)


@pytest.mark.parametrize("start", [TIED, DATA])
@pytest.mark.parametrize("value", [0.0, 1.5, -1e6])
def test_rows_that_are_all_the_same(start: str, value: float) -> None:
    widths = Widths.of(8)
    site = next(iter(widths.read))
    for sae in (TopK(widths, 16, k=2), ReLU(widths, 16), JumpReLU(widths, 16)):
        rows = torch.full((64, 8), value)
        with pytest.raises(ActivationError, match="same on all of 64 tokens"):
            start_weights(sae, start, {site: rows}, "sqrt_d", 0)
        rows[3, 2] += 1
        start_weights(sae, start, {site: rows}, "sqrt_d", 0)
        assert all(parameter.isfinite().all() for parameter in sae.parameters())
