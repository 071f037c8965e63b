"""All that is found out about features beyond counting: how coherent their texts are, what they do, what they are near.

Axes: F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightsae.analysis.effects.ablation import AblationEffects, ablation_effects
from lightsae.analysis.effects.coherence import Coherence, document_coherence, window_coherence
from lightsae.analysis.effects.directions import Neighbours, aligned_neurons, directions, nearest_by_cosine
from lightsae.analysis.effects.final_norm import final_norm_scale, mean_site_norm
from lightsae.analysis.effects.logits import LogitEffects, direct_logits
from lightsae.analysis.effects.roles import TOKENS, input_scores, output_scores
from lightsae.analysis.reading.firings import Windows
from lightsae.analysis.reading.text import TextRows
from lightsae.lm import LanguageModel
from lightsae.progress import Progress
from lightsae.sae import SparseAutoencoder

# Rows that scales are measured on, tokens of the prompt of S_out, neighbours per feature.
_ROWS, _PROMPT_TOKENS, NEAREST = 32, 16, 8


@dataclass
class Effects:
    """What is known of each feature; None where a stage does not apply or was not asked for.

    Attributes:
        window_coherence, document_coherence: How alike its texts are.
        logits: What it adds to the logits directly.
        s_in, s_out: (F,) whether it stands for what is read, or for what is written.
        ablation: What changes when it is removed.
        nearest, neurons: Features, and neurons or coordinates of the site, that its direction is close to.
        manifest: Scales that the effects were measured with.
    """

    window_coherence: Coherence
    document_coherence: Coherence
    logits: LogitEffects | None = None
    s_in: NDArray[np.float32] | None = None
    s_out: NDArray[np.float32] | None = None
    ablation: AblationEffects | None = None
    nearest: Neighbours | None = None
    neurons: Neighbours | None = None
    manifest: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_windows(cls, windows: Windows, vocabulary: Sequence[str], seed: int) -> "Effects":
        """Return what the strongest windows say by themselves, of whatever source the features are."""
        n = len(vocabulary)
        return cls(window_coherence(windows, n, seed=seed), document_coherence(windows, n, seed=seed))

    def add_those_of(
        self,
        sae: SparseAutoencoder,
        model: LanguageModel,
        windows: Windows,
        text: TextRows,
        ablation_windows: int,
        progress: Progress,
    ) -> None:
        """Add what the latents of an SAE do and what they are near to.

        Args:
            sae: In eval mode.
            model: The main model of its sites.
            windows: The strongest windows of each latent.
            text: Scales are measured on rows from all over it.
            ablation_windows: Windows per latent that it is removed on; 0: none.
            progress: Receives the stages.
        """
        widths = sae.widths
        self.nearest = nearest_by_cosine(sae.W_dec.detach(), NEAREST)
        if widths.read == widths.predicted and len(widths.predicted) == 1:
            self.neurons = aligned_neurons(sae.W_dec.detach(), NEAREST)
        written = [site for site in widths.predicted if site.model == model.name]
        if not written or not model.has_next_token_head:
            return
        site = written[-1]
        rows = torch.from_numpy(text.spread(_ROWS).tokens.astype(np.int64)).to(model.device)
        with progress.stage("effects on logits", 1):
            scale = final_norm_scale(model, rows)
            self.logits = direct_logits(sae, model, site=site, norm_scale=scale)
            if (wide := direct_logits(sae, model, site=site, norm_scale=scale, top=TOKENS)) is not None:
                norm, prompt = mean_site_norm(model, rows, site.site), rows[0, :_PROMPT_TOKENS]
                added = directions(sae, site)
                self.s_in = input_scores(windows, wide.promoted)
                self.s_out = output_scores(model, added, wide.promoted, prompt, site=site.site, mean_norm=norm)
                self.manifest |= {"final_norm_scale": scale, "mean_site_norm": norm}
        if ablation_windows and all(ref.model == model.name for ref in widths.read):
            with progress.stage("effects of ablation", 1):
                self.ablation = ablation_effects(model, sae, windows, site=site, per_feature=ablation_windows)
