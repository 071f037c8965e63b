"""Encodes a typed text with the language model and the SAE: what the live page asks for.

Axes: S tokens of the text, D width of what the SAE reads.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightsae.errors import SiteError
from lightsae.lm import LanguageModel
from lightsae.lm.placement import loading_arguments, quantization_of
from lightsae.metrics.conventions import is_sink
from lightsae.sae import SiteRef, SparseAutoencoder, Widths


@dataclass
class LiveEncoder:
    """A language model and an SAE on its sites; `encode` may be called from several threads.

    Attributes:
        lms: The language models by name, as the SAE's sites have it.
        sae: On the same device.
        max_tokens: Longer texts are cut.
        max_features: That are told of each token, the strongest.
        prepend_bos: As in training; None: where the tokenizer has a BOS token.
    """

    lms: Mapping[str, LanguageModel]
    sae: SparseAutoencoder
    max_tokens: int = 512
    max_features: int = 32
    prepend_bos: bool | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(
        cls,
        sae: SparseAutoencoder,
        provenance: Mapping[str, Any],
        device: str | torch.device = "cpu",
        model: str | None = None,
        **options: Any,
    ) -> "LiveEncoder":
        """Load the language models that the SAE reads.

        Args:
            sae: On `device`.
            provenance: Of its export: tells the model's revision, the rows' length and whether they begin with BOS.
            device: Where the models go.
            model: What the SAE's first model is called here; None: as in training.
            options: More of `LanguageModel.from_pretrained`: `revision`, `dtype`, `trust_remote_code`, `quantization`
                (None: as in training, `none`: not at all), `device_map`.

        Raises:
            SiteError: It was trained on activations of no known model.
            ModelError: A model cannot be loaded.
        """
        sites = sae.widths.read
        if any(not ref.model for ref in sites):
            raise SiteError(
                "The SAE was trained on activation files and names no language model, so no text can be encoded; "
                "leave --sae out to see the dictionary alone."
            )
        names = list(dict.fromkeys(ref.model for ref in sites))
        revision = options.pop("revision", None) or provenance.get("model_revision")
        rounded = quantization_of(options.pop("quantization", None), provenance.get("quantization"))
        placed = loading_arguments(rounded, options.pop("device_map", None), device)
        lms = {
            name: LanguageModel.from_pretrained(
                model or name if name == names[0] else name,
                revision=revision if name == names[0] else None,
                sites=[ref.site for ref in sites if ref.model == name],
                **placed,
                **options,
            )
            for name in names
        }
        limits = [lm.max_context for lm in lms.values() if lm.max_context] + [provenance.get("context_size") or 512]
        return cls(lms, sae.eval(), max_tokens=min(limits), prepend_bos=provenance.get("prepend_bos"))

    @property
    def name(self) -> str:
        """The models' names, for people."""
        return ", ".join(self.lms)

    @torch.inference_mode()
    def encode(self, text: str) -> dict[str, Any]:
        """Return what fires on each token of a text.

        Returns:
            {tokens, cut}. A token is {id, text, counted, features: [[feature, activation]...]}, the strongest feature
            first, in normalised units; `counted` is False for special tokens and attention sinks, which the dictionary
            leaves out of its figures. `cut` says that the text was longer than `max_tokens`.
        """
        lm = next(iter(self.lms.values()))
        tokenizer = lm.tokenizer
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        first = [] if self.prepend_bos is False or lm.bos_token_id is None else [lm.bos_token_id]
        # A text that was copied with its BOS has one.
        first = [] if ids[:1] == first else first
        cut = len(first) + len(ids) > self.max_tokens
        ids = [*first, *ids][: self.max_tokens]
        if len(ids) == len(first):
            return {"tokens": [], "cut": False}
        with self._lock:
            x = self._activations(torch.tensor([ids]))
            latents = self.sae.encode_sparse(x)
        counted = ~is_sink(x.norm(dim=1))
        offsets = latents.pattern.offsets.tolist()
        special = set(lm.special_token_ids)
        tokens = []
        for position, token in enumerate(ids):
            values = latents.values[offsets[position] : offsets[position + 1]]
            features = latents.indices[offsets[position] : offsets[position + 1]]
            best = values.argsort(descending=True)[: self.max_features]
            pairs = zip(features[best].tolist(), values[best].tolist(), strict=True)
            tokens.append(
                {
                    "id": token,
                    "text": tokenizer.decode([token], clean_up_tokenization_spaces=False),
                    "counted": bool(counted[position]) and token not in special and position > 0,
                    "features": [[feature, value] for feature, value in pairs if value > 0],
                }
            )
        return {"tokens": tokens, "cut": cut}

    def _activations(self, ids: Tensor) -> Float[Tensor, "S D"]:
        parts: dict[SiteRef, Tensor] = {}
        for name, lm in self.lms.items():
            sites = [ref.site for ref in self.sae.widths.read if ref.model == name]
            captured = lm.capture(ids.to(lm.device), sites)
            parts |= {SiteRef(name, site): captured[site][0].float() for site in sites}
        return Widths.join(parts, self.sae.widths.read)
