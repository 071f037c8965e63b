"""What `lightsae estimate` predicts against what a run then takes: six runs, each predicted and measured in turn.

    python benchmarks/estimate.py
    python benchmarks/estimate.py topk sweep --clock wall

In CPU seconds of one thread unless `--clock wall` is given: on a machine that others use as well, the clock on the wall
says how much they do. The runs are short, so that `dead_after` is set to what a long run has. Measured is from the
start of the fit to its end, with validations, checkpoints and exports, and without the loading of model and text.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightsae.cli.training.estimating import EstimateCLI, plan_of, watching
from lightsae.cli.training.training_cli import TrainingCLI, quiet_third_parties
from lightsae.estimate import forecast, language_model_costs, probe
from sweep import language_model

QUIET = "--trainer.enable_progress_bar false --trainer.accelerator cpu --model.dead_after 10_000_000"
SYNTHETIC = "--data.dataset synthetic --data.val_tokens 16384 --data.batch_tokens 1024 --data.buffer_tokens 65536"
RUNS = {
    "quickstart": "--config configs/quickstart.yaml --trainer.max_steps 128 --data.val_tokens 16384"
    " --language_model_metrics.max_rows 16",
    "topk": f"{SYNTHETIC} --model.sae TopK --model.sae.d_sae 1024 --model.sae.k 8 --trainer.max_steps 300",
    "relu": f"{SYNTHETIC} --model.sae ReLU --model.sae.d_sae 1024 --trainer.max_steps 300",
    "sweep": "--config configs/sweeps/topk.yaml --trainer.max_steps 32 --data.buffer_tokens 32768"
    " --data.val_tokens 4096 --language_model_metrics.max_rows 8",
    "file": "--data.activations ROWS --data.val_tokens 16384 --data.batch_tokens 2048 --data.buffer_tokens 65536"
    " --model.sae BatchTopK --model.sae.d_sae 2048 --model.sae.k 16 --trainer.max_steps 150",
    "gpt2-shape": "--data.model GPT2 --data.site resid_post.6 --data.dataset builtin --data.batch_tokens 2048"
    " --data.buffer_tokens 8192 --data.val_tokens 2048 --language_model_metrics.max_rows 4 --model.sae TopK"
    " --model.sae.d_sae 6144 --model.sae.k 32 --trainer.max_steps 12",
}
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


class Measured(Callback):
    """Takes the time of a fit, between what comes before it and what comes after it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._clock()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = self._clock() - self._began


def predicted(args: list[str], clock: Callable[[], float]) -> dict[str, Any]:
    """Return the figures of `lightsae estimate`, timed by a clock."""

    class Predict(EstimateCLI):
        result: dict[str, Any]

        def _run_subcommand(self, subcommand: str) -> None:
            config, device = self.config[subcommand], torch.device("cpu")
            plan = plan_of(config, self.model, self.datamodule)
            costs, dtype = language_model_costs(plan, whole=True), self.datamodule.dtype_on(device)
            seconds = probe(plan, self.model, costs, device=device, dtype=dtype, callbacks=watching(), clock=clock)
            self.result = forecast(plan, costs, seconds, device=device, dtype=dtype).as_dict()

    return Predict("estimate", args).result


def measured(args: list[str], clock: Callable[[], float], folder: Path) -> float:
    """Run `lightsae fit`, and return its seconds."""
    watch = Measured(clock)

    class Fit(TrainingCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
            return trainer

        def after_fit(self) -> None:
            pass

    Fit("fit", [*args, "--trainer.default_root_dir", str(folder)])
    return watch.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=list(RUNS), metavar="run", help=", ".join(RUNS))
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    given = parser.parse_args()
    clock = CLOCKS[given.clock]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(200_000, 256)).astype(np.float32))
        if "gpt2-shape" in given.runs:
            language_model("gpt2-shape", folder / "gpt2")
        for name in given.runs:
            words = RUNS[name].replace("ROWS", str(folder / "rows.npy")).replace("GPT2", str(folder / "gpt2"))
            args = [*words.split(), *QUIET.split()]
            with quiet_third_parties():
                before = predicted(args, clock)
                took = measured(args, clock, folder / name)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            parts = json.dumps({part: round(value, 1) for part, value in before["seconds"].items()})
            (report,) = (folder / name).rglob("throughput.json")
            seconds = json.loads(report.read_text())["seconds"]
            print(
                f"{name:12s} predicted {before['total_seconds']:6.1f} s, measured {took:6.1f} s, "
                f"ratio {before['total_seconds'] / took:.2f}; memory {before['memory']['peak'] / 2**30:.2f} GiB, "
                f"the process so far {peak / 2**30:.2f} GiB; {parts}; "
                f"the run's own clock on the wall: {seconds}",
                flush=True,
            )


if __name__ == "__main__":
    main()
