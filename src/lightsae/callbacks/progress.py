"""What a user sees while training: tokens, speed, and the figures that say whether it goes well."""

import shutil
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightsae.training.module import SAEModule

FIGURES = {"loss": "train/loss", "FVE": "train/fve", "L0": "train/l0", "dead": "train/dead_fraction"}
REFRESH_SECONDS = 0.5
QUIET_SECONDS = 300.0


class TrainingProgressBar(TQDMProgressBar):
    """Show tokens, tokens per second, loss, FVE, L0 and the dead share on stderr. Observes only.

    In a terminal: one bar, redrawn twice a second at most. Elsewhere (a log file, a pipe): a plain line at each tenth
    of the run, and after five minutes without one. The figures are the last ones logged; of several dictionaries, those
    of the first. Tokens per second leave validation out.
    """

    BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self) -> None:
        super().__init__()
        self._first_tokens = self._drawn_tokens = 0
        self._began = self._drawn = self._paused = 0.0
        self._tenths = 0

    @property
    def in_terminal(self) -> bool:
        return sys.stderr.isatty()

    def init_train_tqdm(self) -> Tqdm:
        return self._bar("tokens", leave=True, unit_scale=True)

    def init_sanity_tqdm(self) -> Tqdm:
        return self._bar("sanity check", leave=False)

    def init_validation_tqdm(self) -> Tqdm:
        return self._bar("validation", leave=False, position=int(self.trainer.state.fn != "validate"))

    def _bar(self, description: str, **settings: Any) -> Tqdm:
        return Tqdm(
            desc=description,
            disable=self.is_disabled or not self.in_terminal,
            # Not tqdm's own measure, which draws nothing in a terminal of unknown size.
            ncols=shutil.get_terminal_size().columns,
            nrows=shutil.get_terminal_size().lines,
            file=sys.stderr,
            bar_format=self.BAR_FORMAT,
            **settings,
        )

    def on_train_start(self, *hook: Any) -> None:
        super().on_train_start(*hook)
        _, module = hook
        assert isinstance(module, SAEModule)
        self._first_tokens = module.tokens_seen
        self._began = self._drawn = time.monotonic()
        total = self._total_tokens()
        self._tenths = 10 * module.tokens_seen // total if total else 0
        self.train_progress_bar.total = total
        self.train_progress_bar.initial = module.tokens_seen

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Leave the bar alone: it counts the tokens of the run, not the batches of an epoch."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SAEModule)
        if self.is_enabled and self._due(pl_module.tokens_seen):
            self._draw(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar alone, as at an epoch's start."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._paused = time.monotonic()

    def on_validation_batch_start(self, *hook: Any, **named: Any) -> None:
        super().on_validation_batch_start(*hook, **named)
        self.val_progress_bar.set_description("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began += time.monotonic() - self._paused
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()

    def on_train_end(self, *hook: Any) -> None:
        trainer, module = hook
        if self.is_enabled and self._drawn_tokens != module.tokens_seen:
            self._draw(trainer, module)
        super().on_train_end(*hook)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:  # type: ignore[override]
        """Return what is shown, by its label."""
        assert isinstance(pl_module, SAEModule)
        seconds = max(time.monotonic() - self._began, 1e-9)
        shown = {"tokens/s": Tqdm.format_sizeof((pl_module.tokens_seen - self._first_tokens) / seconds)}
        names = list(pl_module.saes)
        if len(names) > 1:
            shown["of"] = names[0]
        logged = trainer.callback_metrics
        for label, tag in FIGURES.items():
            value = logged.get(pl_module.tag(names[0], tag))
            if value is not None:
                shown[label] = f"{float(value):.1%}" if label == "dead" else f"{float(value):.4g}"
        return shown

    def _due(self, tokens: int) -> bool:
        since = time.monotonic() - self._drawn
        if self.in_terminal:
            return since >= REFRESH_SECONDS
        total = self._total_tokens()
        tenths = 10 * tokens // total if total else 0
        due = tenths > self._tenths or since >= QUIET_SECONDS
        self._tenths = max(tenths, self._tenths)
        return due

    def _draw(self, trainer: Trainer, module: SAEModule) -> None:
        self._drawn, self._drawn_tokens = time.monotonic(), module.tokens_seen
        figures = self.get_metrics(trainer, module)
        if self.in_terminal:
            bar = self.train_progress_bar
            bar.n, bar.ncols = module.tokens_seen, shutil.get_terminal_size().columns
            bar.set_postfix(figures)
            return
        total = self._total_tokens()
        of_total = f" of {Tqdm.format_sizeof(total)}" if total else ""
        words = ", ".join(f"{label} {value}" for label, value in figures.items())
        print(f"{Tqdm.format_sizeof(module.tokens_seen)}{of_total} tokens, {words}", file=sys.stderr, flush=True)

    def _total_tokens(self) -> int | None:
        total: int | None = getattr(getattr(self.trainer, "datamodule", None), "run_tokens", None)
        return total
