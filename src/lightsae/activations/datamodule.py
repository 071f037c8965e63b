"""ActivationDataModule: text and a language model, or activation files, become batches of activations.

What the user configures under `data:`. The language model lives here, on the data side: it enters no checkpoint.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor

from lightsae.activations.batch import ActivationBatch
from lightsae.activations.checks import check_numbers
from lightsae.activations.corpus.rows import CorpusConfig
from lightsae.activations.sources import (
    DTYPES,
    FileOrigin,
    HeldOut,
    Origin,
    SyntheticOrigin,
    TextOrigin,
    union,
)
from lightsae.activations.stream import ActivationStream, Schedule
from lightsae.activations.synthetic.config import SyntheticConfig
from lightsae.activations.synthetic.world import SyntheticWorld
from lightsae.activations.timing import Timings
from lightsae.compat import set_max_steps
from lightsae.errors import ConfigError, LightsaeError, arg, section
from lightsae.lm import LanguageModel
from lightsae.sae import SiteRef, Widths

SiteNames = str | list[str] | None


@contextmanager
def _site_called(name: str, *, handed_in: bool) -> Iterator[None]:
    """Call the site in an error `name`: one of the data, as all other arguments are, unless it was `handed_in`."""

    def change(of: str, argument: str) -> tuple[str, str]:
        if argument != "site":
            return of or "data", argument
        return of or ("" if handed_in else "data"), name

    try:
        yield
    except LightsaeError as error:
        error.rename(change)
        raise


class ActivationDataModule(LightningDataModule):
    """Serves a language model's activations, made while training, in shuffled batches.

    Args:
        model: Language model: a Hub name, a local folder, or `builtin`.
        site: Where to read: `resid_post.6`, `mlp_out.3`, ... or a module path; `lightsae sites MODEL` lists them. For a
            crosscoder a list. Entries of model.saes may name their own.
        dataset: Text: a Hub name, a .txt / .jsonl / .json / .parquet file, a folder or glob of such files, a
            `save_to_disk` folder, or `builtin`. A column `input_ids` is taken as text that is tokenised already. Or
            `synthetic`: sums of known features, no language model; see data.synthetic.
        activations: Instead of a model and text: a .npy or .safetensors file of (rows, width), or a folder of them.
        target_site: What a transcoder predicts; null: what it reads.
        batch_tokens: Tokens in a training batch of one device.
        buffer_tokens: Tokens of a fill: what the model is run over at once, then shuffled and served. More mixes better
            and costs buffer_tokens * width * bytes of memory on the device.
        training_tokens: Length of the run over all devices; or give trainer.max_steps.
        val_tokens: Held-out tokens that a validation runs over.
        context_size: Tokens in a row of the language model's input.
        normalisation: `sqrt_d`: mean norm sqrt(width); `unit`: mean squared norm 1; `none`: raw.
        skip_special_tokens: Leave special tokens (attention sinks, mostly) out of training.
        skip_positions: Leave the first positions of each row out of training.
        text_column: Column that holds the text.
        dataset_config: Configuration of a Hub dataset.
        dataset_split: Split to train on.
        dataset_revision: Revision of a Hub dataset.
        validation_split: Split to validate on; None: hold out a share of the documents.
        validation_fraction: That share.
        streaming: Read a Hub dataset over the network as it is needed, rather than downloading it.
        prepend_bos: Begin each row with the BOS token; None: if the model's tokenizer has one.
        shuffle_tokens: Rows are shuffled within blocks of this many tokens before the model sees them.
        model_revision: Revision of a Hub model.
        more_models: Further models over the same tokens, by short names: {chat: PATH}. Their sites are written
            chat:resid_post.6.
        synthetic: The world of `dataset: synthetic`: how many features fire how often, and together.
        dtype: Of the language model and the buffer: `auto` (bfloat16 on accelerators, float32 on CPU), `float32`,
            `bfloat16`, `float16`.
        model_batch_tokens: Tokens in one forward pass of the language model.
        num_workers: Processes that tokenise; 0: none but this one.
        seed: Of every draw of the stream; None: seed_everything's.
        trust_remote_code: Run code that a Hub model brings along.
    """

    @section("data")
    def __init__(
        self,
        model: str = "builtin",
        site: str | list[str] | None = None,
        dataset: str | None = None,
        activations: str | None = None,
        target_site: str | list[str] | None = None,
        batch_tokens: int = 4096,
        buffer_tokens: int = 262_144,
        training_tokens: int | None = None,
        val_tokens: int = 262_144,
        context_size: int = 128,
        normalisation: Literal["sqrt_d", "unit", "none"] = "sqrt_d",
        skip_special_tokens: bool = False,
        skip_positions: int = 0,
        text_column: str = "text",
        dataset_config: str | None = None,
        dataset_split: str = "train",
        dataset_revision: str | None = None,
        validation_split: str | None = None,
        validation_fraction: float = 0.05,
        streaming: bool = True,
        prepend_bos: bool | None = None,
        shuffle_tokens: int = 4_194_304,
        model_revision: str | None = None,
        more_models: dict[str, str] | None = None,
        synthetic: SyntheticConfig | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        model_batch_tokens: int = 8192,
        num_workers: int = 2,
        seed: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.site, self.dataset, self.activations = model, site, dataset, activations
        self.target_site, self.more_models = target_site, dict(more_models or {})
        self.batch_tokens, self.buffer_tokens = batch_tokens, buffer_tokens
        self.training_tokens, self.val_tokens, self.context_size = training_tokens, val_tokens, context_size
        self.normalisation = normalisation
        self.skip_special_tokens, self.skip_positions = skip_special_tokens, skip_positions
        self.shuffle_tokens, self.validation_fraction = shuffle_tokens, validation_fraction
        self.model_revision, self.dtype, self.model_batch_tokens = model_revision, dtype, model_batch_tokens
        self.num_workers, self.trust_remote_code = num_workers, trust_remote_code
        self.seed = seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self.corpus = CorpusConfig(
            dataset=dataset or "",
            dataset_config=dataset_config,
            dataset_split=dataset_split,
            dataset_revision=dataset_revision,
            validation_split=validation_split,
            text_column=text_column,
            streaming=streaming,
            validation_fraction=validation_fraction,
            context_size=context_size,
            prepend_bos=prepend_bos,
            num_workers=num_workers,
        )
        self.language_models: dict[str, LanguageModel] = {}
        check_numbers(self, ("auto", *DTYPES))
        self.origin = self._make_origin(synthetic)
        self.timings = Timings()
        self.run_tokens: int | None = None
        self._stream: ActivationStream | None = None
        self._validation: HeldOut | None = None

    def _make_origin(self, synthetic: SyntheticConfig | None) -> Origin:
        if self.activations is not None:
            return FileOrigin(self, self.activations)
        if self.dataset == "synthetic":
            return SyntheticOrigin(self, synthetic or SyntheticConfig())
        if synthetic is not None:
            raise ConfigError(
                f"{arg('synthetic')} is set, but {arg('dataset')} is {self.dataset!r}; "
                f"write {arg('dataset')} synthetic."
            )
        return TextOrigin(self)

    # -- what is known before anything is loaded --------------------------------------------------------------------

    @section("data")
    def preflight(self) -> None:
        """Check that models, sites and data exist and fit, without loading weights or text."""
        self.origin.preflight()

    @property
    def language_model(self) -> LanguageModel | None:
        """The model named by `model`, once it is loaded; None where no model is run."""
        return self.language_models.get(self.model)

    @property
    def synthetic_world(self) -> SyntheticWorld | None:
        """What makes synthetic activations, with the true features; None for others."""
        return self.origin.world if isinstance(self.origin, SyntheticOrigin) else None

    def widths_at(self, site: SiteNames = None, target_site: SiteNames = None) -> Widths:
        """Return the sites and widths of an SAE that reads `site` and predicts `target_site`.

        Args:
            site: Name or names as the user writes them; None: the data's own.
            target_site: None: what is read, or the data's own where `site` is the data's own too.

        Raises:
            SiteError: There is no such site. Where the names were handed in, the caller knows where they were written.
            ConfigError: A site is named twice, or is missing.
            ModelError: The model's description cannot be had.
        """
        target = self.target_site if site is None and target_site is None else target_site
        with _site_called("site", handed_in=site is not None):
            read = self._widths_of(site if site is not None else self.site)
        with _site_called("target_site", handed_in=target_site is not None):
            return Widths(read, self._widths_of(target) if target is not None else read)

    def _widths_of(self, names: SiteNames) -> dict[SiteRef, int]:
        sites = [self.origin.site(name) for name in (names if isinstance(names, list) else [names])]
        if len(set(sites)) < len(sites):
            raise ConfigError(f"{arg('site')} names a site twice: {names}.")
        return {site: self.origin.width(site) for site in sites}

    # -- set-up -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        assert trainer is not None
        sites = self._sites_of_the_run()
        with section("data"):
            self._set_up(stage, trainer, sites)

    def _set_up(self, stage: str, trainer: Trainer, sites: tuple[SiteRef, ...]) -> None:
        device = trainer.strategy.root_device
        if stage == "fit" and self._stream is None:
            batches = self._set_run_length(trainer)
            fill_rows, fill_tokens = self.origin.fill_size(trainer.world_size)
            schedule = Schedule(
                batch_tokens=self.batch_tokens,
                batches_per_fill=max(1, fill_tokens // self.batch_tokens),
                total_batches=batches,
                seed=self.seed,
                rank=trainer.global_rank,
                world=trainer.world_size,
            )
            fills = self.origin.fills(schedule, sites, fill_rows, device)
            self._stream = ActivationStream(fills, schedule, self.timings)
        if self._validation is None:
            self._validation = self.origin.held_out(sites, device, trainer.global_rank, trainer.world_size)

    def _sites_of_the_run(self) -> tuple[SiteRef, ...]:
        """Return every site that some dictionary of the run reads or predicts: one forward pass serves them all."""
        places = getattr(getattr(self.trainer, "lightning_module", None), "places", None)
        widths = [self.widths_at(*place) for place in places()] if places is not None else [self.widths_at()]
        return union([(*each.read, *each.predicted) for each in widths])

    def _set_run_length(self, trainer: Trainer) -> int:
        """Return the batches of the run (of an epoch, where the run is measured in epochs) on one device."""
        accumulated, epoch_tokens = trainer.accumulate_grad_batches, self.origin.epoch_tokens()
        if trainer.max_steps > 0:
            batches = trainer.max_steps * accumulated
        elif self.training_tokens is not None:
            batches = max(1, self.training_tokens // (self.batch_tokens * trainer.world_size))
            set_max_steps(trainer, max(1, batches // accumulated))
        elif epoch_tokens is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
            batches = max(1, epoch_tokens // (self.batch_tokens * trainer.world_size))
        else:
            length = f"{arg('max_steps', 'trainer')} or {arg('training_tokens')}"
            raise ConfigError(f"How long is the run? Give {length}.")
        epochs = trainer.max_epochs if trainer.max_steps < 0 and trainer.max_epochs and trainer.max_epochs > 0 else 1
        self.run_tokens = batches * epochs * self.batch_tokens * trainer.world_size
        return batches

    # -- what Lightning calls -----------------------------------------------------------------------------------------

    def train_dataloader(self) -> ActivationStream:
        assert self._stream is not None
        return self._stream

    def val_dataloader(self) -> HeldOut:
        assert self._validation is not None
        return self._validation

    def transfer_batch_to_device(
        self, batch: ActivationBatch, device: torch.device, dataloader_idx: int
    ) -> ActivationBatch:
        return batch if batch.tokens.device == device else batch.to(device)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._stream is None else self._stream.state_dict()

    @section("data")
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stream is not None and state_dict:
            self._stream.load_state_dict(state_dict)

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self._stream is not None:
            self._stream.close()
            self._stream = None  # the next fit begins at the beginning

    # -- what the module and the callbacks ask for --------------------------------------------------------------------

    def sample_without_sinks(self, sites: Collection[SiteRef]) -> dict[SiteRef, Tensor]:
        """Return the present fill's activations at some sites, of tokens that are an attention sink at none of them."""
        assert self._stream is not None
        everything = self._stream.sample()
        keep = ~everything.sinks_at(sites)
        return {site: everything.activations[site][keep] for site in sites}

    def describe(self) -> dict[str, Any]:
        """Return where the activations come from, in plain values, for the files that are exported."""
        return self.origin.describe()
