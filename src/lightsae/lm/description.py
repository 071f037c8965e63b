"""What config.json tells about a language model: layers, sites, widths, FLOPs, without its weights.

Axes: B rows, S positions, C channels, H height, W width of an image.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lightsae.errors import ModelError, SiteError, arg
from lightsae.lm.config import has_next_token_head, short, source_of
from lightsae.lm.devices import device_of
from lightsae.lm.hooks import capture, no_cache, reads_images
from lightsae.lm.load import on_shapes
from lightsae.lm.sites import AbsentSite, Site, SiteInfo, absent_sites, find_site, portable_names

logger = logging.getLogger(__name__)
# Of the kernels of attention the counter knows those of GPUs, and shapes are on the CPU.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
}


class ModelDescription:
    """What config.json tells about a language model: layers, sites and widths. Holds no weights; see `describe`.

    Attributes:
        name: As the user wrote it: Hub name, local folder, or `builtin`; or the name by which an SAE knows it.
        loaded_from: As the user wrote it, whatever `name` becomes: where its files are.
        revision: The commit where the Hub told it, otherwise as given.
        model: The transformers model.
        n_layers: Blocks of the whole model.
        max_context: Longest row that the model takes, in tokens; None where nothing limits it.
        has_next_token_head: Whether it predicts the next token. False for encoders such as BERT.
        reads_images: Whether it takes pixel values in the place of tokens, as ViT does.
        shapes_only: Inside of what the forward passes of a model without memory run; None where there are weights.
    """

    def __init__(
        self,
        name: str,
        revision: str | None,
        config: Any,
        model: Any,
        mode: FakeTensorMode | None = None,
        load: Callable[[Sequence[str]], "ModelDescription"] | None = None,
    ) -> None:
        # `mode`, for a model without memory: its forward passes run inside. `load`, for one without weights: loads the
        # model to these sites, if they can't be measured without.
        text = config.get_text_config()
        self.name = self.loaded_from = name
        self.revision = getattr(config, "_commit_hash", None) or revision
        self.model = model
        if not hasattr(text, "num_hidden_layers"):
            raise ModelError(f"{arg('name_or_path')} is {name!r}, and its config.json tells of no blocks.")
        self.n_layers: int = text.num_hidden_layers
        self.max_context: int | None = getattr(text, "max_position_embeddings", None)
        self.has_next_token_head = has_next_token_head(config)
        self.reads_images = reads_images(model)
        self.shapes_only = mode
        self._load = load
        self._sites: dict[str, Site] = {}
        self._widths: dict[str, int] = {}

    @property
    def files(self) -> list[Path]:
        """The files of weights and tokens, where the model is a local folder; none where it is from the Hub."""
        folder = Path(source_of(self.loaded_from))
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

        What cannot be measured from config.json alone is measured on the loaded model.

        Raises:
            SiteError: There is no such site, or it does not hold one vector a token.
            ModelError: The model does not run on tokens alone (or pixel values), or can't be loaded where it has to be.
        """
        self._measure([self.site(site)])
        return self._widths[site]

    def sites(self) -> list[SiteInfo]:
        """List the portable sites of all layers in memory, in the order of computation; empty where none are known."""
        sites = [self.site(name) for name in portable_names(self.model)]
        self._measure(sites)
        return [SiteInfo(s.name, self._widths[s.name], s.path, s.side, s.scale) for s in sites]

    def absent_sites(self) -> list[AbsentSite]:
        """List the portable names that some layers lack, and why; empty where none are known at all."""
        return absent_sites(self.model)

    def _measure(self, sites: list[Site]) -> None:
        new = [site for site in sites if site.name not in self._widths]
        if not new:
            return
        try:
            with nullcontext() if self.shapes_only is None else on_shapes(self.shapes_only):
                captured = capture(self.model, self._small_input(), new)
            self._widths |= {name: activations.shape[-1] for name, activations in captured.items()}
        except SiteError:
            raise
        except Exception as error:  # whatever a modelling file raises at this input alone, and at shapes alone
            if self._load is None:
                given = "pixel values" if self.reads_images else "tokens"
                raise ModelError(
                    f"{arg('name_or_path')} is {self.name!r}, which does not run on {given} alone: {short(error)}"
                ) from None
            logger.info("%s: config.json alone does not tell the widths of its sites; loading it.", self.name)
            loaded = self._load([site.name for site in new])
            self._widths |= {site.name: loaded.width(site.name) for site in new}

    def _small_input(self) -> Tensor:
        """Two of them: a tensor that is the same for all rows, or has its axes swapped, is found out."""
        if not self.reads_images:
            return torch.zeros(2, 3, dtype=torch.long, device=device_of(self.model))
        config = self.model.config
        sides = [config.image_size] * 2 if isinstance(config.image_size, int) else config.image_size
        shape = (2, config.num_channels, *sides)
        return torch.zeros(shape, dtype=self.model.dtype, device=device_of(self.model))


def flops_per_token(model: ModelDescription, sites: Sequence[str], context: int) -> int:
    """Return the FLOPs per token of a pass over rows of `context` tokens; a product of (T, D) with (D, F) counts 2TDF.

    Args:
        model: From `describe`: it has no weights.
        sites: The pass stops at the last of them; with none, it is that of the whole model.
        context: Tokens in a row.
    """
    mode = model.shapes_only
    assert mode is not None, "a loaded model would compute"
    wanted = [model.site(name) for name in sites]
    with on_shapes(mode), torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        tokens = torch.zeros(1, context, dtype=torch.long)
        if wanted:
            capture(model.model, tokens, wanted)
        else:
            model.model(tokens, **no_cache(model.model))
    return int(counter.get_total_flops()) // context
