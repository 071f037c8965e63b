"""What a user sees while training: tokens, speed, and the figures that say whether it goes well."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightsae.progress import LINE_SECONDS, Heartbeat
from lightsae.training.module import SAEModule

FIGURES = {"loss": "train/loss", "FVE": "train/fve", "L0": "train/l0", "dead": "train/dead_fraction"}
REFRESH_SECONDS = 0.5


class TrainingProgressBar(TQDMProgressBar):
    """Show tokens, tokens per second, loss, FVE, L0 and the dead share on stderr. Observes only.

    In a terminal: one bar, redrawn twice a second at most. Elsewhere (a log file, a pipe): a line at each tenth of the
    run and at least every 30 seconds, also while the language model fills the buffer and during validation. The figures
    are the last ones logged, read only when a line is due; of several SAEs, those of the first. Tokens per second and
    the time left do not count validation.

    Args:
        line_seconds: Most seconds between two lines if no terminal is attached.
        clock: Gives seconds.
    """

    BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self, line_seconds: float = LINE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._line_seconds = clock, line_seconds
        self._first_tokens = self._drawn_tokens = 0
        self._began = self._drawn = 0.0
        self._validation_began: float | None = None
        self._validated = self._tenths = 0
        self._all_read = False
        self._figures: dict[str, str] = {}
        self._heartbeat: Heartbeat | None = None
        self._module: SAEModule | None = None

    @property
    def in_terminal(self) -> bool:
        return sys.stderr.isatty()

    # -- bars -----------------------------------------------------------------------------------------------------

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

    # -- hooks ----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, SAEModule)
        self._module = pl_module
        self._began = self._clock()
        self._first_tokens = pl_module.tokens_seen
        self._validation_began = self._began if stage == "validate" else None
        if self.is_enabled and not self.in_terminal:
            self._heartbeat = Heartbeat(self._write_line, self._line_seconds, self._clock).__enter__()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._end_lines()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end_lines()

    def on_train_start(self, *hook: Any) -> None:
        super().on_train_start(*hook)
        _, module = hook
        self._first_tokens = module.tokens_seen
        self._began = self._drawn = self._clock()
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
        self._validated, self._all_read, self._validation_began = 0, False, self._clock()

    def on_validation_batch_start(self, *hook: Any, **named: Any) -> None:
        super().on_validation_batch_start(*hook, **named)
        self.val_progress_bar.set_description("validation")

    def on_validation_batch_end(self, *hook: Any, **named: Any) -> None:
        super().on_validation_batch_end(*hook, **named)
        self._validated += 1
        if self._heartbeat is not None and self._heartbeat.due():
            self._heartbeat.beat()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._validation_began is not None
        self._began += self._clock() - self._validation_began
        self._validation_began = None
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()

    def on_train_end(self, *hook: Any) -> None:
        trainer, module = hook
        if self.is_enabled and self._drawn_tokens != module.tokens_seen:
            self._draw(trainer, module)
        super().on_train_end(*hook)

    # -- what is shown ----------------------------------------------------------------------------------------------

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:  # type: ignore[override]
        """Return what is shown, by its label. Waits for the device, hence not called in every step."""
        assert isinstance(pl_module, SAEModule)
        figures = {"tokens/s": Tqdm.format_sizeof(self._tokens_per_second(pl_module))}
        names = list(pl_module.saes)
        if len(names) > 1:
            figures["of"] = names[0]
        logged = trainer.callback_metrics
        for label, tag in FIGURES.items():
            value = logged.get(pl_module.tag(names[0], tag))
            if value is not None:
                figures[label] = f"{float(value):.1%}" if label == "dead" else f"{float(value):.4g}"
        return figures

    def _tokens_per_second(self, module: SAEModule) -> float:
        now = self._clock() if self._validation_began is None else self._validation_began
        return (module.tokens_seen - self._first_tokens) / max(now - self._began, 1e-9)

    def _due(self, tokens: int) -> bool:
        if self._heartbeat is None:
            return self._clock() - self._drawn >= REFRESH_SECONDS
        total = self._total_tokens()
        tenths = 10 * tokens // total if total else 0
        due = tenths > self._tenths or self._heartbeat.due()
        self._tenths = max(tenths, self._tenths)
        return due

    def _draw(self, trainer: Trainer, module: SAEModule) -> None:
        self._drawn, self._drawn_tokens = self._clock(), module.tokens_seen
        self._figures = self.get_metrics(trainer, module)
        if self._heartbeat is not None:
            self._heartbeat.beat()
            return
        bar = self.train_progress_bar
        bar.n, bar.ncols = module.tokens_seen, shutil.get_terminal_size().columns
        bar.set_postfix(self._figures)

    def _write_line(self) -> None:
        """Write a line from numbers of Python alone: a thread may do it while the device is at work."""
        words = self._training_words() if self._validation_began is None else self._validation_words()
        print(f"{time.strftime('%H:%M:%S')}  {', '.join(words)}", file=sys.stderr, flush=True)

    def _training_words(self) -> list[str]:
        assert self._module is not None
        tokens, total, steps = self._module.tokens_seen, self._total_tokens(), self.trainer.max_steps
        rate = self._tokens_per_second(self._module)
        words = [
            f"step {self.trainer.global_step:,}" + (f" of {steps:,}" if steps > 0 else ""),
            Tqdm.format_sizeof(tokens) + (f" of {Tqdm.format_sizeof(total)}" if total else "") + " tokens",
            f"{Tqdm.format_sizeof(rate)} tokens/s",
        ]
        if total and rate:
            words.append(f"{Tqdm.format_interval((total - tokens) / rate)} left")
        return words + [f"{label} {value}" for label, value in self._figures.items() if label != "tokens/s"]

    def _validation_words(self) -> list[str]:
        assert self._validation_began is not None
        batches = self._validated
        # Which loader it is, and so how many batches, is known from the first batch on.
        total = self.total_val_batches_current_dataloader if batches else float("inf")
        if total == float("inf"):
            return [f"validation, batch {batches:,}"]
        elapsed = self._clock() - self._validation_began
        if batches == total and self._all_read:
            # It has been said once; what other callbacks measure after the last batch may take as long as the batches.
            return [f"validation, all {batches:,} batches read", f"{Tqdm.format_interval(elapsed)} so far"]
        self._all_read = batches == total
        seconds = elapsed / batches * (total - batches)
        return [f"validation, batch {batches:,} of {total:,}", f"{Tqdm.format_interval(seconds)} left"]

    def _end_lines(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None

    def _total_tokens(self) -> int | None:
        total: int | None = getattr(getattr(self.trainer, "datamodule", None), "run_tokens", None)
        return total
