"""The frozen language model: its sites, its activations, its next-token logits.

Axes: B rows, S positions, D width of a site, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lightsae.errors import ModelError, SiteError, arg, under
from lightsae.lm.dtypes import choose_dtype
from lightsae.lm.hooks import Intervention, capture, computed_once, hooked, no_cache
from lightsae.lm.load import (
    check_device,
    has_next_token_head,
    load_config,
    load_tokenizer,
    load_weights,
    on_shapes,
    short,
    skeleton,
    source_of,
    truncated,
)
from lightsae.lm.sites import Site, SiteInfo, blocks_before, find_site, portable_names
from lightsae.lm.vocabulary import Vocabulary


class ModelDescription:
    """What config.json tells about a language model: layers, sites and widths. Holds no weights; see `describe`.

    Attributes:
        name: As the user wrote it: Hub name, local folder, or `builtin`.
        revision: The commit where the Hub told it, otherwise as given.
        model: The transformers model.
        n_layers: Blocks of the whole model.
        max_context: Longest row that the model takes, in tokens; None where nothing limits it.
        has_next_token_head: Whether it predicts the next token. False for encoders such as BERT.
        shapes_only: Inside of what the forward passes of a model without memory run; None where there are weights.
    """

    def __init__(
        self, name: str, revision: str | None, config: Any, model: Any, mode: FakeTensorMode | None = None
    ) -> None:
        text = config.get_text_config()
        self.name = name
        self.revision = getattr(config, "_commit_hash", None) or revision
        self.model = model
        if not hasattr(text, "num_hidden_layers"):
            raise ModelError(f"{arg('name_or_path')} is {name!r}, and its config.json tells of no blocks.")
        self.n_layers: int = text.num_hidden_layers
        self.max_context: int | None = getattr(text, "max_position_embeddings", None)
        self.has_next_token_head = has_next_token_head(config)
        self.shapes_only = mode
        self._sites: dict[str, Site] = {}
        self._widths: dict[str, int] = {}

    @property
    def files(self) -> list[Path]:
        """The files of weights and tokens, where the model is a local folder; none where it is from the Hub."""
        folder = Path(source_of(self.name))
        patterns = ("*.safetensors", "pytorch_model*.bin", "tokenizer.json")
        return sorted(path for pattern in patterns for path in folder.glob(pattern))

    def site(self, name: str) -> Site:
        """Find a site by name.

        Args:
            name: Portable name, or module path with `.input` / `.output`.

        Raises:
            SiteError: There is no such site.
        """
        if name not in self._sites:
            self._sites[name] = find_site(self.model, name, model_name=self.name, n_layers=self.n_layers)
        return self._sites[name]

    def width(self, site: str) -> int:
        """Return the width of a site, measured on a few tokens.

        Raises:
            SiteError: There is no such site, or it does not hold one vector a token.
            ModelError: The architecture cannot be measured from its config.json; loaded models always can.
        """
        self._measure([self.site(site)])
        return self._widths[site]

    def sites(self) -> list[SiteInfo]:
        """List the portable sites of all layers in memory, in the order of computation; empty where none are known."""
        n_loaded = self.model.config.get_text_config().num_hidden_layers
        sites = [self.site(name) for name in portable_names(self.model, n_loaded)]
        self._measure(sites)
        return [SiteInfo(s.name, self._widths[s.name], s.path, s.side) for s in sites]

    def _measure(self, sites: list[Site]) -> None:
        new = [site for site in sites if site.name not in self._widths]
        if not new:
            return
        try:
            with nullcontext() if self.shapes_only is None else on_shapes(self.shapes_only):
                # Two rows of three: a tensor that is the same for all rows, or has its axes swapped, is found out.
                rows = torch.zeros(2, 3, dtype=torch.long, device=self.model.device)
                captured = capture(self.model, rows, new)
        except SiteError:
            raise
        except Exception as error:  # whatever a modelling file raises at tokens alone, and at shapes alone
            if self.shapes_only is None:
                raise
            raise ModelError(
                f"{arg('name_or_path')} is {self.name!r}, whose sites cannot be measured from its config.json: "
                f"{short(error)}"
            ) from None
        self._widths |= {name: activations.shape[-1] for name, activations in captured.items()}


class LanguageModel(ModelDescription):
    """A frozen language model in eval mode. Not an nn.Module: no checkpoint and no DDP bucket ever holds it.

    Example:
        lm = LanguageModel.from_pretrained("openai-community/gpt2")
        activations = lm.capture(tokens, ["resid_post.6"])["resid_post.6"]
        with lm.intervene("resid_post.6", lambda x: x + direction):
            logits = lm.logits(tokens)
    """

    def __init__(self, name: str, revision: str | None, config: Any, model: Any, trust_remote_code: bool) -> None:
        super().__init__(name, revision, config, model)
        self.has_next_token_head &= model.get_output_embeddings() is not None
        self._trust_remote_code = trust_remote_code

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str = "builtin",
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        sites: Sequence[str] | None = None,
        trust_remote_code: bool = False,
    ) -> "LanguageModel":
        """Load a model from the Hub, from a local folder, or the one that ships with the package.

        Args:
            name_or_path: Hub name, local folder, or `builtin`. With @random behind it (@random-3: seed 3), the same
                model with random weights; see `random_weights`.
            revision: Branch, tag or commit on the Hub.
            dtype: float32, bfloat16, float16, or auto: bfloat16 on accelerators, and on a CPU that is faster with it
                (which is measured); float32 elsewhere.
            device: Where the model goes.
            sites: Where only these are ever read, the blocks above the last of them and the head are not loaded;
                `logits` is then not available. None loads everything.
            trust_remote_code: Allow code from the model's repository to run.

        Raises:
            ModelError: The model, its weights, the device or the dtype cannot be had.
            SiteError: The model has no such site.
        """
        target = check_device(device)
        torch_dtype = choose_dtype(dtype, target)
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
        model = load_weights(
            name_or_path,
            needed,
            with_head=with_head,
            dtype=torch_dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        return cls(name_or_path, revision, config, model.to(target), trust_remote_code)

    @property
    def device(self) -> torch.device:
        return self.model.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[no-any-return]

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded at first use; `ModelError` where the model comes without one."""
        return load_tokenizer(self.name, self.revision, self._trust_remote_code)

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
            ModelError: This machine lacks the device.
        """
        self.model.to(check_device(device))
        return self

    def capture(self, tokens: Int[Tensor, "B S"], sites: Sequence[str]) -> dict[str, Float[Tensor, "B S _"]]:
        """Return the activations at each site, by name; the forward pass stops at the last of them.

        Args:
            tokens: Token ids on the model's device, rows without padding.
            sites: Names of sites.

        Returns:
            One (B, S, D) tensor a site, in the model's dtype, made under inference mode. Open interventions are seen.

        Raises:
            SiteError: There is no such site.
        """
        return capture(self.model, tokens, [self.site(site) for site in sites])

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
        `self.model` itself, with gradients where the caller wants them. With `generate` and its KV cache `fn` sees the
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
            return new.to(activations.dtype)

        return hooked(self.model, self.site(site), replace)


def describe(name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelDescription:
    """Describe a model from its config.json alone, in well under a second; no weights are read or made.

    Args:
        name_or_path: Hub name, local folder, or `builtin`.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Allow code from the model's repository to run.

    Raises:
        ModelError: There is no such model, or its config.json cannot be used.
    """
    config = load_config(name_or_path, revision, trust_remote_code)
    return ModelDescription(name_or_path, revision, config, *skeleton(name_or_path, config, trust_remote_code))


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
