"""SAEModule in real fits: against a plain loop in torch, over resumes, and with everything that only observes."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from helpers.errors import refused
from lightsae.activations.datamodule import ActivationDataModule
from lightsae.callbacks import (
    DeadLatentResampling,
    ExportSAE,
    FinalValidation,
    ReconstructionMetrics,
    Throughput,
    TrainingCurves,
    TrainingProgressBar,
)
from lightsae.errors import ActivationError, CheckpointError, ConfigError
from lightsae.lm.dtypes import warn_if_slow
from lightsae.sae import LatentUsage, ReLU, SparseAutoencoder, TopK, Widths
from lightsae.training.checkpoint_io import AtomicCheckpointIO
from lightsae.training.entries import Entry, merge_coefficients
from lightsae.training.module import SAEModule
from lightsae.training.schedules import Schedule

BATCH, F = 64, 24
Make = Callable[[Widths], SparseAutoencoder]


def relu(widths: Widths) -> SparseAutoencoder:
    return ReLU(widths, d_sae=F, decoder_norm="unit")


def relu_free(widths: Widths) -> SparseAutoencoder:
    return ReLU(widths, d_sae=F)


def top_k(widths: Widths) -> SparseAutoencoder:
    return TopK(widths, d_sae=F, k=3, k_aux=4)


@pytest.fixture
def path(activation_file: Callable[..., str]) -> str:
    return activation_file(2000)


class Fit:
    """A fit in a fraction of a second."""

    def __init__(
        self,
        path: str,
        quiet: dict[str, Any],
        sae: Make = top_k,
        steps: int = 20,
        callbacks: Sequence[Callback] = (),
        ckpt_path: Path | None = None,
        data: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        **trainer: Any,
    ) -> None:
        defaults: dict[str, Any] = {"batch_tokens": BATCH, "buffer_tokens": 512, "seed": 3}
        self.module = SAEModule(sae, **({"lr": 0.01} | (model or {})))
        self.data = ActivationDataModule(**({"activations": path} | defaults | (data or {})))
        self.trainer = Trainer(
            **(quiet | {"max_steps": steps, "callbacks": list(callbacks), "plugins": [AtomicCheckpointIO()]} | trainer)
        )
        self.trainer.fit(self.module, self.data, ckpt_path=ckpt_path)

    @property
    def sae(self) -> SparseAutoencoder:
        return self.module.each_sae()["sae"]

    @property
    def state(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "optimizer": self.trainer.optimizers[0].state_dict()}


def same(a: Any, b: Any, where: str = "") -> None:
    """Assert that two nested states agree in every bit."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for place, (left, right) in enumerate(zip(a, b, strict=True)):
            same(left, right, f"{where}[{place}]")
    else:
        assert a == b, where


class Watch(Callback):
    """Keep what every step saw: batches, learning rate, losses, weights."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []
        self.lr: list[float] = []
        self.losses: list[float] = []
        self.norms: list[Tensor] = []
        self.silent: list[Tensor] = []
        self.tokens: list[int] = []
        self.start: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = copy.deepcopy(pl_module.saes["sae"].state_dict())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.lr.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ):
        self.batches.append(next(iter(batch.activations.values())).clone())
        self.losses.append(float(outputs["loss"]))
        self.norms.append(pl_module.saes["sae"].W_dec.detach().norm(dim=1))
        self.silent.append(pl_module.usage["sae"].silent_tokens.clone())
        self.tokens.append(pl_module.tokens_seen)


# -- it is the training that the papers describe ---------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.3, None], ids=["clipped", "normalised"])
@pytest.mark.parametrize("unit", [True, False])
def test_a_fit_is_the_plain_loop(path: str, quiet: dict[str, Any], unit: bool, clip: float | None) -> None:
    """Bricken et al. and the April update, written out with dense tensors and torch's own Adam."""
    steps, lr, l1 = 40, 0.01, 0.05
    watch = Watch()
    coefficients = {"l1": Schedule(l1, warm_up=10.0)}
    fit = Fit(
        path,
        quiet,
        relu if unit else relu_free,
        steps,
        [watch],
        model={"coefficients": coefficients, "lr": lr, "lr_warm_up": 0.1, "lr_decay": 0.25},
        gradient_clip_val=clip,
    )
    w = {name: nn.Parameter(watch.start[name].clone()) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    scale = watch.start["input_scale"]
    adam = torch.optim.Adam(w.values(), lr=lr)
    clipped = 0
    for step, batch in enumerate(watch.batches):
        x = batch * scale
        latents = ((x - w["b_dec"] if unit else x) @ w["W_enc"] + w["b_enc"]).relu()
        error = x - latents @ w["W_dec"] - w["b_dec"]
        weight = l1 * min(1, (step + 1) / 10)
        if unit:
            loss = error.square().mean() + weight * latents.sum(1).mean()
        else:
            loss = error.square().sum(1).mean() + weight * (latents * w["W_dec"].norm(dim=1)).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        assert watch.losses[step] == pytest.approx(loss.item(), rel=1e-3)
        if unit:
            rows = w["W_dec"].detach()
            w["W_dec"].grad -= (w["W_dec"].grad * rows).sum(1, keepdim=True) * rows
        norm = torch.stack([p.grad.norm() for p in w.values()]).norm()
        clipped += clip is None or bool(norm > clip)
        for p in w.values():
            p.grad *= 1 / float(p.grad.norm()) if clip is None else min(1.0, clip / float(norm))
        adam.param_groups[0]["lr"] = lr * min(1, (step + 1) / 4, (steps - step) / 10)
        assert watch.lr[step] == pytest.approx(adam.param_groups[0]["lr"], rel=1e-6)
        adam.step()
        if unit:
            with torch.no_grad():
                w["W_dec"] /= w["W_dec"].norm(dim=1, keepdim=True)
    assert 0 < clipped
    for name, value in w.items():
        torch.testing.assert_close(getattr(fit.sae, name), value, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("sae", [relu, relu_free, top_k])
def test_the_loss_falls(path: str, quiet: dict[str, Any], sae: Make) -> None:
    watch = Watch()
    Fit(path, quiet, sae, 150, [watch], model={"coefficients": {"l1": 0.01}} if sae is not top_k else None)
    assert sum(watch.losses[-10:]) < 0.5 * sum(watch.losses[:10])


def test_it_starts_from_the_data(path: str, quiet: dict[str, Any]) -> None:
    watch = Watch()
    fit = Fit(path, quiet, steps=1, callbacks=[watch])
    x = torch.cat([b for b in watch.batches])
    assert (x * watch.start["input_scale"]).norm(dim=1).mean().item() == pytest.approx(8**0.5, rel=0.1)
    assert (watch.start["b_dec"] / watch.start["output_scale"] - x.mean(0)).abs().max() < 0.7
    assert torch.equal(fit.sae.input_scale, watch.start["input_scale"]), "measured once"


def test_the_start_follows_from_the_seed_alone(path: str, quiet: dict[str, Any]) -> None:
    starts = []
    for global_seed, seed in ((0, 3), (1, 3), (0, 4)):
        torch.manual_seed(global_seed)
        watch = Watch()
        Fit(path, quiet, steps=1, callbacks=[watch], data={"seed": seed})
        starts.append(watch.start["W_dec"])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


# -- learning rate and coefficients ----------------------------------------------------------------------------------


def test_learning_rate_of_every_step(path: str, quiet: dict[str, Any]) -> None:
    watch = Watch()
    Fit(path, quiet, steps=20, callbacks=[watch], model={"lr": 1.0, "lr_warm_up": 0.1, "lr_decay": 5.0})
    assert watch.lr == pytest.approx([0.5, 1.0, *[1.0] * 14, 0.8, 0.6, 0.4, 0.2])


def test_learning_rate_moves_with_steps_not_batches(path: str, quiet: dict[str, Any]) -> None:
    watch = Watch()
    Fit(
        path, quiet, steps=4, callbacks=[watch], accumulate_grad_batches=3,
        model={"lr": 1.0, "lr_warm_up": 2.0, "lr_decay": 2.0},
    )  # fmt: skip
    assert watch.lr == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_default_learning_rate_follows_from_the_width_and_the_length_of_the_run(
    path: str, quiet: dict[str, Any]
) -> None:
    watch = Watch()
    fit = Fit(path, quiet, steps=2, callbacks=[watch], model={"lr": None, "lr_warm_up": 0.0, "lr_decay": 0.0})
    assert watch.lr == [fit.sae.default_lr(2)] * 2
    group = fit.trainer.optimizers[0].param_groups[0]
    assert (group["eps"], group["betas"]) == (6.25e-10, (0.9, 0.999))


def test_a_longer_run_keeps_the_rate_that_it_was_begun_with(path: str, quiet: dict[str, Any], tmp_path: Path) -> None:
    model = {"lr": None, "lr_decay": 0.0}
    sae = lambda widths: TopK(widths, d_sae=F, k=3)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightsae.sae.mechanisms.base.HIGHEST_LR", 1.0)
        first = Fit(path, quiet, sae, 4, model=model)
        first.trainer.save_checkpoint(tmp_path / "last.ckpt")
        watch = Watch()
        longer = Fit(path, quiet, sae, 8, [watch], tmp_path / "last.ckpt", model=model)
        assert watch.lr == pytest.approx([first.sae.default_lr(4)] * 4)
        assert longer.module.learning_rate("sae") == first.sae.default_lr(4) != first.sae.default_lr(8)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_defaults_beat_raw_gradients_at_the_published_rate(
    tmp_path: Path, quiet: dict[str, Any], seed: int
) -> None:
    """A hundred features in 32 dimensions, 300 steps: the error is less than three quarters of what it was before."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((100, 32)) / 32**0.5
    active = (random.random((30000, 100)) < 0.04) * random.exponential(size=(30000, 100))
    np.save(tmp_path / "x.npy", (active @ features + random.standard_normal(32)).astype(np.float32))
    errors = []
    before = {"lr": 2e-4 * (2**14 / 128) ** 0.5, "lr_warm_up": 0.02}
    for model, clip in (({"lr": None}, None), (before, 1e9)):
        watch = Watch()
        Fit(
            str(tmp_path / "x.npy"), quiet, lambda widths: TopK(widths, d_sae=128, k=4), 300, [watch],
            data={"batch_tokens": 256, "buffer_tokens": 4096, "seed": seed}, model=model, gradient_clip_val=clip,
        )  # fmt: skip
        errors.append(sum(watch.losses[-10:]) / 10)
    assert errors[0] < 0.75 * errors[1], errors


def test_logged_coefficients_and_terms_make_the_loss(path: str, quiet: dict[str, Any]) -> None:
    logged: list[dict[str, float]] = []

    class Read(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    coefficients = {"l1": Schedule(0.5, warm_up=4.0, decay=2.0)}
    Fit(path, quiet, relu, 12, [Read()], model={"coefficients": coefficients}, log_every_n_steps=1)
    assert [m["train/coefficient/l1"] for m in logged] == pytest.approx(
        [0.125, 0.25, 0.375, 0.5, *[0.5] * 7, 0.25], rel=1e-6
    )
    for figures in logged:
        expected = figures["train/mse"] + figures["train/coefficient/l1"] * figures["train/l1"]
        assert figures["train/loss"] == pytest.approx(expected, rel=1e-5)
        assert {"train/lr", "train/coefficient/mse"} <= figures.keys()


def test_given_coefficients_and_defaults() -> None:
    sae = ReLU(Widths.of(4), 8)
    assert merge_coefficients(sae, {}) == {"mse": Schedule(1.0), "l1": Schedule(5.0, 0.05)}
    assert merge_coefficients(sae, {"l1": 2.0})["l1"] == Schedule(2.0, 0.05), "a number keeps the default's warm-up"
    assert merge_coefficients(sae, {"l1": Schedule(2.0)})["l1"] == Schedule(2.0)
    with pytest.raises(
        ConfigError, match=r"^coefficients\.l2: ReLU has the loss terms mse, l1, kl\. Did you mean 'l1'"
    ):
        merge_coefficients(sae, {"l2": 2.0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"lr": 0.0}, "model.lr is 0"), ({"lr": -1.0}, "model.lr is -1"), ({"dead_after": 0}, "model.dead_after is 0")],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with refused(ConfigError, message) as error:
        SAEModule(top_k, **settings)
    assert str(error.value).startswith(message.removeprefix("model.")), "somebody in a notebook has no sections"


@pytest.mark.parametrize(
    ("steps", "dead_after", "expected"), [(100, None, 64), (4, None, 2), (10**8, None, 10**7), (100, 77, 77)]
)
def test_dead_after(path: str, quiet: dict[str, Any], steps: int, dead_after: int | None, expected: int) -> None:
    module = SAEModule(top_k, dead_after=dead_after)
    trainer = Trainer(**quiet, max_steps=steps)
    data = ActivationDataModule(activations=path, batch_tokens=BATCH)
    trainer.datamodule, data.trainer = data, trainer
    data.setup("fit")
    module.trainer = trainer
    module.configure_model()
    assert module.latent_usage("sae").dead_after == expected


# -- one step --------------------------------------------------------------------------------------------------------


def test_rows_are_of_unit_norm_after_every_step(path: str, quiet: dict[str, Any]) -> None:
    for sae in (relu, top_k):
        watch = Watch()
        Fit(path, quiet, sae, 10, [watch])
        for norms in watch.norms:
            torch.testing.assert_close(norms, torch.ones(F), rtol=0, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_each_dictionary_is_clipped_by_itself(path: str, quiet: dict[str, Any], algorithm: str) -> None:
    options = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm, "max_steps": 5}
    norms: list[list[float]] = []

    class Norms(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            grads = [[p.grad for p in sae.parameters()] for sae in pl_module.saes.values()]
            size = torch.stack if algorithm == "norm" else None
            norms.append(
                [float(size([g.norm() for g in gs]).norm() if size else max(g.abs().max() for g in gs)) for gs in grads]
            )

    alone = Fit(path, quiet, top_k, **options)
    loud = Entry(top_k, coefficients={"mse": 1000.0, "auxk": 0.0})
    module = SAEModule(saes={"quiet": Entry(top_k), "loud": loud}, lr=0.01)
    data = ActivationDataModule(activations=path, batch_tokens=BATCH, buffer_tokens=512, seed=3)
    Trainer(**(quiet | options), callbacks=[Norms()]).fit(module, data)
    for name, value in alone.sae.named_parameters():
        assert torch.equal(module.saes["quiet"].get_parameter(name), value), name
    for both in norms:
        assert both == pytest.approx([1e-3, 1e-3], rel=1e-3)


class ScaledLoss(MixedPrecision):
    """What 16-mixed does to gradients, on a CPU and without half precision."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3))

    def autocast_context_manager(self) -> Any:
        return nullcontext()


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("clip", [1e-2, 1e-1, 1e6, None])
def test_a_scaled_loss_changes_nothing_in_clipping(
    path: str, quiet: dict[str, Any], algorithm: str, clip: float | None
) -> None:
    options = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm, "steps": 10}
    scaled = Fit(path, quiet, relu, plugins=[AtomicCheckpointIO(), ScaledLoss()], **options)
    plain = Fit(path, quiet, relu, **options)
    assert scaled.trainer.precision_plugin.scaler.get_scale() > 2.0**12, "it grew, so that it was at work"
    for name, value in plain.sae.named_parameters():
        torch.testing.assert_close(scaled.sae.get_parameter(name), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [0.1, None], ids=["clipped", "normalised"])
def test_a_step_with_a_gradient_that_overflows_is_left_out(
    path: str, quiet: dict[str, Any], clip: float | None
) -> None:
    class Overflow(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.global_step == 3:
                pl_module.saes["sae"].W_dec.grad[0, 0] = torch.inf

    watch = Watch()
    plugins = [AtomicCheckpointIO(), ScaledLoss()]
    fit = Fit(path, quiet, relu, 6, [Overflow(), watch], plugins=plugins, gradient_clip_val=clip)
    assert all(parameter.isfinite().all() for parameter in fit.sae.parameters())
    assert fit.trainer.optimizers[0].state[fit.sae.W_dec]["step"] == 5


def test_accumulated_batches_are_one_large_batch(activation_file: Callable[..., str], quiet: dict[str, Any]) -> None:
    path, small, large = activation_file(6000), Watch(), Watch()
    # Fills of the same rows in the same order: two batches of 64 are one of 128.
    accumulated = Fit(path, quiet, relu, 10, [small], accumulate_grad_batches=2, data={"buffer_tokens": 1024})
    whole = Fit(path, quiet, relu, 10, [large], data={"batch_tokens": 128, "buffer_tokens": 1024})
    assert torch.equal(torch.cat(small.batches), torch.cat(large.batches))
    for name, value in whole.sae.named_parameters():
        torch.testing.assert_close(accumulated.sae.get_parameter(name), value, rtol=1e-2, atol=1e-4)
    assert torch.equal(
        accumulated.module.latent_usage("sae").silent_tokens, whole.module.latent_usage("sae").silent_tokens
    )
    assert accumulated.module.tokens_seen == whole.module.tokens_seen == 1280


def test_counts_and_constraints_move_at_real_steps_only(path: str, quiet: dict[str, Any]) -> None:
    watch, calls = Watch(), []

    class Counting(ReLU):
        def constrain(self) -> None:
            calls.append("constrain")
            super().constrain()

        def before_step(self) -> None:
            calls.append("before_step")
            super().before_step()

    class Forget(Callback):
        def on_train_start(self, *_: Any) -> None:
            calls.clear()

    Fit(path, quiet, lambda w: Counting(w, F, "unit"), 4, [watch, Forget()], accumulate_grad_batches=3)
    assert calls == ["before_step", "constrain"] * 4
    assert watch.tokens == [0, 0, 192, 192, 192, 384, 384, 384, 576, 576, 576, 768]
    for batch, silent in enumerate(watch.silent):
        if (batch + 1) % 3:
            assert torch.equal(silent, watch.silent[batch - 1] if batch else torch.zeros(F, dtype=torch.long))
    assert all(int(silent.max()) <= 192 * (step + 1) for step, silent in enumerate(watch.silent[2::3]))


@pytest.mark.parametrize("sae", [relu, relu_free, top_k])
def test_bf16_mixed(path: str, quiet: dict[str, Any], sae: Make) -> None:
    watch, exact = Watch(), Watch()
    options: dict[str, Any] = {"model": {"dead_after": 64, "coefficients": {"mse": 1.0}}, "gradient_clip_val": 1.0}
    fit = Fit(path, quiet, sae, 60, [watch], precision="bf16-mixed", **options)
    Fit(path, quiet, sae, 60, [exact], **options)
    assert all(p.dtype == torch.float32 for p in fit.sae.parameters())
    assert all(s["exp_avg"].dtype == torch.float32 for s in fit.trainer.optimizers[0].state.values())
    assert sum(watch.losses[-10:]) == pytest.approx(sum(exact.losses[-10:]), rel=0.1)


# -- checkpoints -----------------------------------------------------------------------------------------------------


class Keep(Callback):
    """Save a checkpoint after every step, to choose from. Stands last, where Lightning puts its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(self.at(trainer.global_step))

    def at(self, step: int) -> Path:
        return self.folder / f"step={step}.ckpt"


class Silence(Callback):
    """The first nine latents start far too low to fire."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            with torch.no_grad():
                pl_module.saes["sae"].b_enc[:9] = -20


RESAMPLING = {
    "sae": relu,
    "model": {"dead_after": 128, "coefficients": {"l1": Schedule(0.05, warm_up=10.0)}},
    "resampled": (9, 14, 21),
}
AUXK = {"sae": lambda widths: TopK(widths, d_sae=96, k=2, k_aux=4), "model": {"dead_after": 64}, "resampled": ()}


@pytest.fixture
def quick_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentUsage, "REFRESH_STEPS", 4)


@pytest.mark.usefixtures("quick_refresh")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("case", ["resampling", "auxk"])
def test_a_resumed_fit_ends_in_the_same_bits(
    path: str, quiet: dict[str, Any], tmp_path: Path, case: str, accumulate: int
) -> None:
    setup = RESAMPLING if case == "resampling" else AUXK
    revived: list[int] = []
    auxk: list[float] = []

    class Count(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            revived.append(int(pl_module.usage["sae"].dead.sum()))
            if case == "auxk":
                auxk.append(float(trainer.callback_metrics["train/auxk"]))

    def fit(callbacks: list[Callback], **more: Any) -> Fit:
        torch.manual_seed(len(callbacks))  # the global generator must not matter
        resampling = [Silence(), DeadLatentResampling(setup["resampled"], at_most=3)] if setup["resampled"] else []
        return Fit(
            path, quiet, setup["sae"], 26, [Count(), *resampling, *callbacks], model=setup["model"],
            gradient_clip_val=1.0, accumulate_grad_batches=accumulate, log_every_n_steps=1, **more,
        )  # fmt: skip

    keep = Keep(tmp_path)
    whole = fit([keep])
    if case == "auxk":
        assert sum(value > 0 for value in auxk) > 10, "AuxK was at work"
    else:
        assert all(revived[step * accumulate - 1] > 0 for step in setup["resampled"]), "there was something to resample"
    for step in (1, 7, 9, 13, 25):
        revived.clear()
        resumed = fit([], ckpt_path=keep.at(step))
        assert len(revived) == (26 - step) * accumulate
        same(resumed.state, whole.state)
        assert resumed.module.tokens_seen == whole.module.tokens_seen == 26 * 64 * accumulate
        same(resumed.data.state_dict(), whole.data.state_dict())


@pytest.mark.parametrize(("num_workers", "kl"), [(0, None), (2, None), (2, Schedule(1.0, begin=8.0))])
def test_a_resumed_fit_on_text_ends_in_the_same_bits(
    tiny_text: Any, quiet: dict[str, Any], tmp_path: Path, num_workers: int, kl: Schedule | None
) -> None:
    data = {
        "model": tiny_text.model, "site": "resid_post.0", "dataset": tiny_text.corpus, "context_size": 8,
        "batch_tokens": 32, "buffer_tokens": 64, "shuffle_tokens": 256, "val_tokens": 16, "num_workers": num_workers,
        "activations": None, "skip_special_tokens": True,
    }  # fmt: skip
    model: dict[str, Any] = {"dead_after": 100, "coefficients": {} if kl is None else {"kl": kl}}
    keep = Keep(tmp_path)
    whole = Fit("", quiet, steps=23, callbacks=[keep], data=data, model=model)
    for step in (3, 16):
        resumed = Fit("", quiet, steps=23, data=data, model=model, ckpt_path=keep.at(step))
        same(resumed.state, whole.state)


def test_a_resumed_fit_over_epochs(path: str, quiet: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": -1, "max_epochs": 3, "data": {"batch_tokens": 256}}
    keep = Keep(tmp_path)
    whole = Fit(path, quiet, callbacks=[keep], **options)
    per_epoch = 1900 // 256
    assert whole.trainer.global_step == 3 * per_epoch
    for step in (per_epoch - 1, per_epoch, per_epoch + 1):
        resumed = Fit(path, quiet, ckpt_path=keep.at(step), **options)
        assert resumed.trainer.global_step == 3 * per_epoch
        same(resumed.state, whole.state)


def test_a_checkpoint_from_before_the_saes_were_called_so_resumes_in_the_same_bits(
    path: str, quiet: dict[str, Any], tmp_path: Path
) -> None:
    keep = Keep(tmp_path)
    whole = Fit(path, quiet, steps=6, callbacks=[keep])
    checkpoint = torch.load(keep.at(3), weights_only=True)
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key.replace("saes.", "dictionaries."): value for key, value in state.items()}
    assert {key.partition(".")[0] for key in checkpoint["state_dict"]} == {"dictionaries", "usage"}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    same(Fit(path, quiet, steps=6, ckpt_path=tmp_path / "old.ckpt").state, whole.state)


def test_a_checkpoint_holds_plain_values_and_loads_without_unpickling(
    path: str, quiet: dict[str, Any], tmp_path: Path
) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=5)
    callbacks = [checkpoints, DeadLatentResampling([3]), FinalValidation(), ReconstructionMetrics()]
    Fit(path, quiet, relu, 6, callbacks, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "kept" / "step=5.ckpt", weights_only=True)
    plain = (str, int, float, bool, type(None), Tensor)

    def check(value: Any, where: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                assert type(key) in (str, int), where
                check(inner, f"{where}.{key}")
        elif isinstance(value, list | tuple):
            for inner in value:
                check(inner, where)
        else:
            assert type(value) in plain, f"{where}: {type(value)}"

    check(checkpoint, "")
    assert "hyper_parameters" not in checkpoint
    assert checkpoint["lightsae"]["tokens_seen"] == 5 * 64
    assert checkpoint["ActivationDataModule"]["served_batches"] == 5, "served, not fetched ahead"


def test_a_checkpoint_of_step_n_holds_constrained_weights(path: str, quiet: dict[str, Any], tmp_path: Path) -> None:
    keep = Keep(tmp_path)
    Fit(path, quiet, relu, 3, [keep])
    for step in (1, 2, 3):
        state = torch.load(keep.at(step), weights_only=True)["state_dict"]
        norms = state["saes.sae.W_dec"].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(F), rtol=0, atol=1e-6)
        assert state["usage.sae.pending_tokens"] == 0


@pytest.mark.parametrize(
    ("sae", "text"),
    [
        (lambda w: TopK(w, d_sae=F + 1, k=3, k_aux=4), "d_sae is 24 in the checkpoint and 25"),
        (lambda w: TopK(w, d_sae=F, k=4, k_aux=4), "k is 3 in the checkpoint and 4"),
        (lambda w: TopK(w, d_sae=F, k=3), "k_aux is 4 in the checkpoint and None"),
        (relu, "variant is 'TopK' in the checkpoint and 'ReLU'"),
    ],
)
def test_a_checkpoint_that_does_not_fit(path: str, quiet: dict[str, Any], tmp_path: Path, sae: Make, text: str) -> None:
    keep = Keep(tmp_path)
    Fit(path, quiet, steps=2, callbacks=[keep])
    with pytest.raises(CheckpointError, match=text) as error:
        Fit(path, quiet, sae, 4, ckpt_path=keep.at(2))
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_width_or_site(
    path: str, quiet: dict[str, Any], tmp_path: Path, activation_file: Callable[..., str]
) -> None:
    keep = Keep(tmp_path)
    Fit(path, quiet, steps=2, callbacks=[keep])
    other = activation_file(name="other.npy")
    with pytest.raises(CheckpointError, match=r"read is \['acts'\] in the checkpoint and \['other'\]"):
        Fit(other, quiet, steps=4, ckpt_path=keep.at(2))
    narrow = tmp_path / "narrow" / "acts.npy"
    narrow.parent.mkdir()
    np.save(narrow, np.load(path)[:, :5])
    with pytest.raises(CheckpointError, match="d_in is 8 in the checkpoint and 5"):
        Fit(str(narrow), quiet, steps=4, ckpt_path=keep.at(2))


def test_a_checkpoint_of_something_else(path: str, quiet: dict[str, Any], tmp_path: Path) -> None:
    keep = Keep(tmp_path)
    Fit(path, quiet, steps=2, callbacks=[keep])
    checkpoint = torch.load(keep.at(2), weights_only=True)
    del checkpoint["lightsae"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="not written by lightsae fit"):
        Fit(path, quiet, steps=4, ckpt_path=tmp_path / "other.ckpt")


def test_validation_of_a_checkpoint_reads_its_weights(path: str, quiet: dict[str, Any], tmp_path: Path) -> None:
    keep = Keep(tmp_path)
    trained = Fit(path, quiet, steps=5, callbacks=[keep])
    module = SAEModule(top_k)
    data = ActivationDataModule(activations=path, batch_tokens=BATCH, buffer_tokens=512, seed=3)
    trainer = Trainer(**(quiet | {"limit_val_batches": 1.0}), plugins=[AtomicCheckpointIO()])
    trainer.validate(module, data, ckpt_path=keep.at(5), verbose=False)
    same(module.each_sae()["sae"].state_dict(), trained.sae.state_dict())
    with pytest.raises(CheckpointError, match="k is 3 in the checkpoint and 2"):
        trainer.validate(SAEModule(lambda w: TopK(w, d_sae=F, k=2, k_aux=4)), data, ckpt_path=keep.at(5), verbose=False)


def test_nan_in_the_data_stops_the_fit(path: str, quiet: dict[str, Any]) -> None:
    values = np.load(path)
    values[1000, 3] = float("nan")
    np.save(path, values)
    with pytest.raises(ActivationError, match="acts holds NaN or infinity on 1 of"):
        Fit(path, quiet, steps=60)


# -- observers -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_refresh")
@pytest.mark.parametrize("case", ["resampling", "auxk"])
def test_what_observes_changes_no_bit(path: str, quiet: dict[str, Any], tmp_path: Path, case: str) -> None:
    setup = RESAMPLING if case == "resampling" else AUXK

    def fit(*observers: Callback, **options: Any) -> dict[str, Any]:
        acting = [Silence(), DeadLatentResampling(setup["resampled"], at_most=3)] if setup["resampled"] else []
        return Fit(path, quiet, setup["sae"], 24, [*observers, *acting], model=setup["model"], **options).state

    silent = fit()
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    validation = {"limit_val_batches": 1.0, "val_check_interval": 5, "check_val_every_n_epoch": None}
    observers = (
        ReconstructionMetrics(every_n_steps=2), ExportSAE(), Throughput(every_n_steps=3), TrainingCurves(),
        FinalValidation(), TrainingProgressBar(),
    )  # fmt: skip
    same(fit(logger=logger, log_every_n_steps=1), silent)
    same(fit(**validation), silent)
    same(fit(num_sanity_val_steps=2, **(validation | {"val_check_interval": 1})), silent)
    same(fit(*observers, logger=logger, enable_progress_bar=True, log_every_n_steps=3, **validation), silent)


# -- in a notebook ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_ten_lines_in_a_notebook(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    import lightsae

    trainer = Trainer(max_steps=30, accelerator="cpu")
    module = SAEModule(lambda widths: TopK(widths, d_sae=32, k=4))
    trainer.fit(module, ActivationDataModule(activations=path, batch_tokens=64, buffer_tokens=512))
    sae = module.each_sae()["sae"]
    lightsae.save_sae(sae, "my_sae")
    loaded = lightsae.load_sae("my_sae")
    x = torch.randn(5, 8)
    assert torch.equal(loaded(x).x_hat, sae(x).x_hat)


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*")
def test_without_a_datamodule(quiet: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs an ActivationDataModule"):
        Trainer(**quiet, max_steps=3).fit(SAEModule(top_k), torch.utils.data.DataLoader(torch.randn(64, 8)))


# -- several processes -----------------------------------------------------------------------------------------------


class Report(Callback):
    """Every process writes down where it ended."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, set[int]()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= 3:
            self.rows |= set(batch.rows.tolist())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        end = {"state": pl_module.state_dict(), "tokens": pl_module.tokens_seen, "rows": sorted(self.rows)}
        torch.save(end, self.folder / f"rank{trainer.global_rank}.pt")


@pytest.mark.usefixtures("quick_refresh")
@pytest.mark.parametrize("case", ["resampling", "auxk"])
def test_two_processes_end_with_the_same_weights(path: str, quiet: dict[str, Any], tmp_path: Path, case: str) -> None:
    setup = RESAMPLING if case == "resampling" else AUXK
    acting = [Silence(), DeadLatentResampling(setup["resampled"], at_most=3)] if setup["resampled"] else []
    Fit(
        path, quiet, setup["sae"], 24, [*acting, Report(tmp_path)], model=setup["model"],
        data={"buffer_tokens": 256}, strategy="ddp_fork", devices=2, plugins=[],
    )  # fmt: skip
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    same(first["state"], second["state"])
    assert first["tokens"] == second["tokens"] == 24 * BATCH * 2
    assert not set(first["rows"]) & set(second["rows"])


@pytest.mark.parametrize(
    ("precision", "times", "warns"), [("bf16-mixed", 0.05, True), ("bf16-mixed", 3.0, False), ("32-true", 0.05, False)]
)
def test_mixed_precision_is_warned_of_where_it_is_slow(
    precision: str,
    times: float,
    warns: bool,
    path: str,
    quiet: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_if_slow.cache_clear()
    monkeypatch.setattr("lightsae.lm.dtypes.bfloat16_speedup", lambda: times)
    for _ in range(2):
        Fit(path, quiet, steps=1, precision=precision)
    said = "precision is 'bf16-mixed', but bfloat16 is 20.0 times slower than float32 here; write 32-true."
    assert [r.getMessage() for r in caplog.records if r.name == "lightsae.lm.dtypes"] == ([said] if warns else [])
    warn_if_slow.cache_clear()
