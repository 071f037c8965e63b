"""Whether a feature stands for what is read (S_in) or for what is written (S_out).

Axes:    F features, t tokens that the direction points to, k windows, S positions of a prompt, V vocabulary.
Source:  Arad et al. 2025, arXiv:2505.20063, sec. 3. T are the t = 20 tokens of softmax(unembed(norm(d_i))): with an
         RMSNorm these are the most promoted ones of `direct_logits`, whose order no positive scale changes (with a
         LayerNorm they are, but for its bias, which is the same for all features).

The dose. The paper adds ten times the largest latent of the prompt's last token to the feature's activation, at that
token. So the dose depends on the prompt and on how long decoder rows are; here all directions are of one length,
`strength` mean norms of the activations at the site. On the built-in model the paper's dose is 3 to 5 of them.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lightsae.analysis.reading.firings import BEFORE, Windows
from lightsae.lm import LanguageModel

TOKENS = 20
STRENGTH = 4.0


@torch.inference_mode()
def output_scores(
    model: LanguageModel,
    directions: Float[Tensor, "F D"],
    promoted: NDArray[np.int32],
    prompt: Int[Tensor, " S"],
    *,
    site: str,
    mean_norm: float,
    strength: float = STRENGTH,
    rows_at_once: int = 64,
) -> NDArray[np.float32]:
    """Return S_out: (1 - min rank(T) / V) * max p(T) at the end of a neutral prompt, the direction added to its end.

    Args:
        model: With its head in memory.
        directions: What the features write at `site`; only where they point counts.
        promoted: (F, t) the tokens T of each, as `direct_logits(..., top=TOKENS).promoted`.
        prompt: Token ids of one neutral prompt, with BOS where the model wants it.
        site: Where the direction is added, at the last position.
        mean_norm: Mean norm of the activations there: `mean_site_norm`.
        strength: Length of what is added, in units of `mean_norm`.
        rows_at_once: Features that are steered in one pass.

    Returns:
        (F,) from 0 to 1; rank 0 is the likeliest token. NaN where a direction is zero.

    Raises:
        SiteError: There is no such site.
        ModelError: The model is in memory without a next-token head.
    """
    scores = np.full(len(directions), np.nan, np.float32)
    pushes = (F.normalize(directions.float()) * (strength * mean_norm)).to(model.device)
    pointing = directions.any(1).nonzero()[:, 0].cpu()
    for some in pointing.split(rows_at_once):
        push = pushes[some.to(pushes.device)]

        def steer(x: Tensor, push: Tensor = push) -> Tensor:
            x = x.clone()
            x[:, -1] += push.to(x.dtype)
            return x

        with model.intervene(site, steer):
            logits = model.logits(prompt.to(model.device).expand(len(some), -1))[:, -1].float()
        best = logits.gather(1, torch.from_numpy(promoted[some.numpy()]).long().to(logits.device)).max(1).values
        # The likeliest of T also has the least rank.
        rank = (logits > best[:, None]).sum(1)
        score = (1 - rank / logits.shape[1]) * (best - logits.logsumexp(1)).exp()
        scores[some.numpy()] = score.cpu().numpy()
    return scores


def input_scores(windows: Windows, promoted: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return S_in: the share of a feature's top windows whose peak token is one of its promoted tokens T.

    Args:
        windows: The strongest windows of each feature.
        promoted: (F, t) the tokens T.

    Returns:
        (F,) from 0 to 1; NaN where a feature has no window.
    """
    peaks = windows.tokens[:, :, BEFORE]
    inside = (peaks[:, :, None] == promoted[:, None, :]).any(2) & windows.there
    counts = windows.there.sum(1)
    shares = np.full(len(counts), np.nan)
    np.divide(inside.sum(1), counts, out=shares, where=counts > 0)
    return shares.astype(np.float32)
