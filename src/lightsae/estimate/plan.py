"""What a run does, in numbers: they follow from its settings alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from lightsae.activations.datamodule import ActivationDataModule
from lightsae.sae import SiteRef, SparseAutoencoder


@dataclass(frozen=True)
class RunPlan:
    """The length of a run and what it holds.

    Attributes:
        data: Its data module, of which nothing was set up.
        saes: Its SAEs by name, without storage.
        steps: Optimiser steps.
        devices: Processes that train together, each with its own batches.
        accumulated: Batches of one device in a step.
        validations: How often it validates.
        saves: How often it writes a checkpoint and an export.
        log_every: Steps between logged figures.
        spliced_rows: Rows on which each validation splices the language model, on one device; 0: none.
        spliced_batch_rows: Rows in one of those passes.
    """

    data: ActivationDataModule
    saes: Mapping[str, SparseAutoencoder]
    steps: int
    devices: int = 1
    accumulated: int = 1
    validations: int = 1
    saves: int = 1
    log_every: int = 10
    spliced_rows: int = 0
    spliced_batch_rows: int = 8

    @property
    def batches(self) -> int:
        """Batches of one device."""
        return self.steps * self.accumulated

    @property
    def tokens(self) -> int:
        """Training tokens over all devices."""
        return self.batches * self.data.batch_tokens * self.devices

    @property
    def fill_tokens(self) -> int:
        """Tokens of a fill of one device, among them those that training leaves out."""
        data = self.data
        if data.reads_text:
            return data.buffer_tokens // data.context_size * data.context_size
        return data.source.fill_tokens(self.devices)

    @property
    def fills(self) -> int:
        """Fills that one device makes."""
        served = max(1, self.data.source.fill_tokens(self.devices) // self.data.batch_tokens)
        return -(-self.batches // served)

    @property
    def validation_tokens(self) -> int:
        """Held-out tokens of one validation on one device."""
        return max(1, self.data.val_tokens // self.devices)

    @property
    def sites(self) -> dict[SiteRef, int]:
        """Every site that some SAE reads or predicts, with its width."""
        return {
            site: width
            for sae in self.saes.values()
            for site, width in (*sae.widths.read.items(), *sae.widths.predicted.items())
        }
