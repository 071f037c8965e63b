"""The frozen language model: its sites, its activations, its next-token logits.

Axes: B rows, S positions, D width of a site, V vocabulary.
"""

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property, partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightsae.errors import ModelError, SiteError, arg, under
from lightsae.lm.config import has_next_token_head, load_config, truncated
from lightsae.lm.description import ModelDescription
from lightsae.lm.devices import device_of, exchange_on, is_fixed
from lightsae.lm.dtypes import choose_dtype
from lightsae.lm.hooks import Intervention, capture, computed_once, hooked, no_cache
from lightsae.lm.load import load_tokenizer, load_weights, skeleton, told_of
from lightsae.lm.placement import DeviceMap, Placement, check_device
from lightsae.lm.sites import Site, blocks_before, find_site
from lightsae.lm.vocabulary import Vocabulary


class LanguageModel(ModelDescription):
    """A frozen language model in eval mode. Not an nn.Module: no checkpoint and no DDP bucket ever holds it.

    Example:
        lm = LanguageModel.from_pretrained("openai-community/gpt2")
        activations = lm.capture(tokens, ["resid_post.6"])["resid_post.6"]
        with lm.intervene("resid_post.6", lambda x: x + direction):
            logits = lm.logits(tokens)
    """

    def __init__(
        self,
        name: str,
        revision: str | None,
        config: Any,
        model: Any,
        trust_remote_code: bool,
        output_device: torch.device | None = None,
    ) -> None:
        super().__init__(name, revision, config, model)
        self._device = None if output_device == device_of(model) else output_device
        if self._device is not None:
            exchange_on(model, self._device)
        self.has_next_token_head &= model.get_output_embeddings() is not None
        self._trust_remote_code = trust_remote_code

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str = "builtin",
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        sites: Sequence[str] | None = None,
        trust_remote_code: bool = False,
        quantization: str | None = None,
        device_map: DeviceMap | None = None,
        output_device: str | torch.device | None = None,
    ) -> "LanguageModel":
        """Load a model from the Hub, from a local folder, or the one that ships with the package.

        Args:
            name_or_path: Hub name, local folder, or `builtin`. With @random behind it (@random-3: seed 3), the same
                model with random weights; see `random_weights`.
            revision: Branch, tag or commit on the Hub.
            dtype: float32, bfloat16, float16, or auto: bfloat16 on accelerators, and on a CPU that is faster with it
                (which is measured); float32 elsewhere.
            device: Where the model goes; None: to the CPU, or as `device_map` says.
            sites: Where only these are ever read, the blocks above the last of them and the head are not loaded;
                `logits` is then not available. None loads everything.
            trust_remote_code: Allow code from the model's repository to run.
            quantization: Round the weights of the blocks' matrices while they are read: `8bit` or `4bit`. The rest and
                the activations have `dtype`. Needs bitsandbytes; a model that was saved rounded needs no setting.
            device_map: Spread the model over devices: `auto`, `balanced`, `sequential`, or a mapping of modules to
                devices, `cpu` or `disk`, as transformers takes it. Needs accelerate.
            output_device: Where activations and logits go; None: where the model begins. Tokens may be anywhere.

        Raises:
            ConfigError: Of `quantization`, `device` and `device_map` one is none that is known, or they contradict.
            ModelError: The model, its weights, a device, the dtype or a package cannot be had.
            SiteError: The model has no such site.
        """
        placement = Placement.of(quantization, device, device_map)
        target = None if output_device is None else check_device(output_device, "output_device")
        torch_dtype = choose_dtype(dtype, placement.device)
        config = load_config(name_or_path, revision, trust_remote_code)
        needed, with_head = config, has_next_token_head(config)
        if sites:
            outline = ModelDescription(
                name_or_path, revision, config, *skeleton(name_or_path, config, trust_remote_code)
            )
            layers = [outline.site(site).layer for site in sites]
            known = [layer for layer in layers if layer is not None]
            if len(known) == len(layers):
                needed, with_head = truncated(config, max(known) + 1), False
        shared: dict[str, Any] = {"with_head": with_head, "dtype": torch_dtype, "trust_remote_code": trust_remote_code}
        told = told_of(placement, name_or_path, needed, config, **shared)
        with ExitStack() as stack:
            if device_map is not None:
                told["offload_folder"] = stack.enter_context(TemporaryDirectory(prefix="lightsae-weights-"))
            model = load_weights(name_or_path, needed, revision=revision, told=told, **shared)
            # What lies there is read as long as the model is in use.
            weakref.finalize(model, stack.pop_all().close)
        model = model if told else model.to(placement.device)
        return cls(name_or_path, revision, config, model, trust_remote_code, target)

    @property
    def device(self) -> torch.device:
        """Where activations and logits are, and tokens best come from."""
        return device_of(self.model) if self._device is None else self._device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[no-any-return]

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded at first use; `ModelError` where the model comes without one, or reads images."""
        if self.reads_images:
            raise ModelError(f"{arg('name_or_path')} is {self.name!r}, which reads images, and has no tokenizer.")
        return load_tokenizer(self.loaded_from, self.revision, self._trust_remote_code)

    @property
    def bos_token_id(self) -> int | None:
        """The token that opens a row: the tokenizer's BOS or CLS, or the config's BOS where there is no tokenizer."""
        return self.vocabulary.bos

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a document: the tokenizer's EOS or SEP, or the config's EOS without a tokenizer."""
        return self.vocabulary.eos

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, ascending."""
        tokenizer = self.vocabulary.tokenizer
        ids = (self.bos_token_id, self.eos_token_id) if tokenizer is None else tokenizer.all_special_ids
        return tuple(sorted({token for token in ids if token is not None}))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Its token ids; with `tokenizer` None where the model comes without one."""
        size = self.model.get_input_embeddings().num_embeddings
        try:
            return Vocabulary.of(self.tokenizer, size)
        except ModelError:
            text = self.model.config.get_text_config()
            tokens = (getattr(text, name, None) for name in ("bos_token_id", "eos_token_id"))
            single = (token[0] if isinstance(token, list) else token for token in tokens)
            # A config made by hand keeps the ids of its class, of a larger vocabulary.
            bos, eos = (token if token is not None and 0 <= token < size else None for token in single)
            return Vocabulary(None, bos, eos, size)

    def to(self, device: str | torch.device) -> "LanguageModel":
        """Move the model.

        Raises:
            ModelError: This machine lacks the device; or the model is spread over devices, or rounded.
        """
        target = check_device(device)
        if is_fixed(self.model) or self._device is not None:
            raise ModelError(
                f"{self.name!r} stays where it was loaded, for its weights are rounded or it lies on several devices. "
                "Load it where it is to be."
            )
        self.model.to(target)
        return self

    def capture(
        self, tokens: Int[Tensor, "B S"] | Float[Tensor, "B C H W"], sites: Sequence[str]
    ) -> dict[str, Float[Tensor, "B S _"]]:
        """Return the activations at each site, by name; the forward pass stops at the last of them.

        Args:
            tokens: Token ids, rows without padding; of a model that reads images (`reads_images`)
                the pixel values, as the model's image processor makes them.
            sites: Names of sites.

        Returns:
            One (B, S, D) tensor a site, on the model's `device`, in its dtype, made under inference mode; of images S
            counts patches and class token. Open interventions are seen.

        Raises:
            SiteError: There is no such site.
        """
        return capture(self.model, tokens, [self.site(site) for site in sites], self.device)

    @torch.inference_mode()
    def logits(self, tokens: Int[Tensor, "B S"]) -> Float[Tensor, "B S V"]:
        """Return the logits of the next token at each position, in the model's dtype. Open interventions are seen.

        Raises:
            ModelError: The model has no next-token head, or was loaded for its sites alone.
        """
        if not self.has_next_token_head:
            raise ModelError(f"{self.name!r} is in memory without a next-token head, so it gives no logits.")
        return self.model(tokens, **no_cache(self.model)).logits  # type: ignore[no-any-return]

    def computed_once(self, sites: Sequence[str]) -> AbstractContextManager[None]:
        """While open, the blocks before all of the sites compute in the first forward pass alone.

        For passes over the same tokens that differ in interventions at these sites: the same bits for less work.

        Raises:
            SiteError: There is no such site.
        """
        return computed_once(blocks_before(self.model, [self.site(site) for site in sites]))

    def intervene(self, site: str, fn: Intervention) -> AbstractContextManager[None]:
        """While open, what `fn` returns takes the place of the (B, S, D) at `site` in every forward pass.

        Interventions stack: at one site they run in the order in which they were opened. They also hold for
        `self.model` itself, with gradients where the caller wants them. `fn` sees activations on the model's `device`,
        wherever the site's block computes. With `generate` and its KV cache `fn` sees the
        prompt in the first call, and one new position in each later one. The result is cast to the model's dtype.

        Raises:
            SiteError: There is no such site, or (in the forward pass) `fn` changed the shape.
        """

        def replace(activations: Tensor) -> Tensor:
            new = fn(activations)
            if new.shape != activations.shape:
                raise SiteError(
                    f"the intervention at {site!r} returned shape {tuple(new.shape)}; "
                    f"it was given {tuple(activations.shape)} and must keep it."
                )
            # A copy: some blocks (Falcon, Llama 4) add to it in place, and the caller may use its own tensor again.
            return new if new is activations else new.to(activations.dtype, copy=True)

        return hooked(self.model, self.site(site), replace, self.device)


def describe(name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelDescription:
    """Describe a model from its config.json alone, in well under a second; no weights are read or made.

    Widths that config.json alone does not tell are measured on the loaded model when they are asked for.

    Args:
        name_or_path: Hub name, local folder, or `builtin`.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Allow code from the model's repository to run.

    Raises:
        ModelError: There is no such model, or its config.json cannot be used.
    """
    config = load_config(name_or_path, revision, trust_remote_code)
    load = partial(_load_to, name_or_path, revision, trust_remote_code)
    return ModelDescription(name_or_path, revision, config, *skeleton(name_or_path, config, trust_remote_code), load)


def _load_to(name: str, revision: str | None, trust_remote_code: bool, sites: Sequence[str]) -> LanguageModel:
    return LanguageModel.from_pretrained(name, revision=revision, sites=sites, trust_remote_code=trust_remote_code)


def name_of(model: Any) -> str:
    """Return what a language model calls itself; empty where it does not."""
    return model.name if isinstance(model, LanguageModel) else str(getattr(model, "name_or_path", "") or "")


def revision_of(model: Any) -> str | None:
    """Return the revision of a language model, where it is known."""
    return model.revision if isinstance(model, LanguageModel) else getattr(model.config, "_commit_hash", None)


def site_in(model: Any, name: str) -> Site:
    """Find a site in a LanguageModel or a transformers model.

    Raises:
        SiteError: There is no such site.
    """
    with under(site="the SAE's site"):
        if isinstance(model, LanguageModel):
            return model.site(name)
        layers = model.config.get_text_config().num_hidden_layers
        return find_site(model, name, model_name=name_of(model) or type(model).__name__, n_layers=layers)


def vocabulary_of(model: LanguageModel) -> list[str]:
    """Return what each token id says; ids that the tokenizer does not know say nothing."""
    size = model.model.get_input_embeddings().num_embeddings
    known = min(size, len(model.tokenizer))
    texts = model.tokenizer.batch_decode([[token] for token in range(known)], clean_up_tokenization_spaces=False)
    return [*texts, *[""] * (size - known)]
