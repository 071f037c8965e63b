"""What steering did to texts and predictions: effect and cost, one number a prompt.

Axes: n prompts.

    concept     share of generated tokens on which the label's rule holds (`concepts`)
    fires       share of generated tokens on which the feature fires when the untouched model reads the text: above a
                tenth of its maximum
    activation  mean activation there, in units of its maximum
    follows     probability of the tokens that come after it in held-out text, over the unsteered texts
    target      probability of the tokens that its direction promotes, over the unsteered texts
    kl          KL(untouched || steered) over the unsteered texts, nats a token
    ppl_steered, ppl_untouched   perplexity of the steered text under steering, and for the untouched model
    repetition, distinct_1, distinct_2   of the steered text
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightsae.analysis.panels.arms import Steered
from lightsae.analysis.panels.concepts import Concept
from lightsae.analysis.panels.fluency import distinct, repetition
from lightsae.analysis.panels.readings import Reading, in_parts, read, watched
from lightsae.analysis.steering.interventions import Intervention
from lightsae.lm.generate import Samples, Sampling, generate_samples
from lightsae.metrics.intervals import Interval
from lightsae.sae.latent_reader import LatentReader

Values = dict[str, NDArray[np.float64]]
EFFECTS = ("concept", "fires", "activation", "follows", "target")
COSTS = ("kl", "ppl_steered", "ppl_untouched", "repetition", "distinct_1", "distinct_2")
# Perplexities are kept as nats until their interval is known.
_IN_NATS = ("ppl_steered", "ppl_untouched")
_FIRES_ABOVE = 0.1
# Log-probabilities of the unsteered texts that stay in memory: 256 MB.
_KEPT = 2**26


def interval(name: str, values: NDArray[np.float64]) -> Interval:
    """Return the mean of a measure over prompts with its interval; of perplexities, in the geometric sense."""
    found = Interval.over(values)
    return found.exponentiated() if name in _IN_NATS else found


def shift(name: str, values: NDArray[np.float64], plain: NDArray[np.float64]) -> Interval:
    """Return what a measure gained over no steering, prompt by prompt; of perplexities, their ratio."""
    return interval(name, values - plain)


class Meter:
    """Measures arms on the same prompts with the same draws.

    Args:
        steered: The model and its dictionaries.
        vocabulary: (V,) what each token says.
        prompts: Token ids of each.
        samples: Texts a prompt.
        sampling: How they are drawn.
        seed: Of the draws.
        rows_at_once: Texts in one pass.
    """

    def __init__(
        self,
        steered: Steered,
        vocabulary: Sequence[str],
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        sampling: Sampling,
        seed: int,
        rows_at_once: int = 64,
    ) -> None:
        self.steered, self.vocabulary, self.prompts = steered, vocabulary, [list(p) for p in prompts]
        self.samples, self.sampling, self.seed, self.rows_at_once = samples, sampling, seed, rows_at_once
        self._readers: dict[int, LatentReader] = {}
        self._kept: dict[int, Reading] = {}
        self.plain = self.generate(())

    def generate(
        self, interventions: Sequence[Intervention], prompts: Sequence[Sequence[int]] | None = None
    ) -> Samples:
        """Return texts, steered by `interventions`."""
        with self.steered.by(interventions):
            return generate_samples(
                self.steered.model,
                self.prompts if prompts is None else prompts,
                samples=self.samples,
                seed=self.seed,
                sampling=self.sampling,
                rows_at_once=self.rows_at_once,
            )

    def measure(
        self,
        interventions: Sequence[Intervention],
        concept: Concept,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Values, Samples]:
        """Return what an arm does to a concept, by measure, (n,) each; and its texts.

        Args:
            interventions: Of the arm; empty: no steering.
            concept: What is watched.
            prompts: What stands in place of each prompt, for the arm that prompts.
        """
        made = self.generate(interventions, prompts) if interventions or prompts else self.plain
        values = self._of_texts(made, concept) | self._of_predictions(interventions, concept, prompts)
        values |= self._of_steered_texts(interventions, made, concept)
        each = {name: value.reshape(len(self.prompts), self.samples).mean(1) for name, value in values.items()}
        return each, made

    def _of_texts(self, made: Samples, concept: Concept) -> Values:
        before, texts = _flat(made)
        found = {
            "repetition": repetition(texts),
            "distinct_1": distinct(texts, 1),
            "distinct_2": distinct(texts, 2),
        }
        rates = concept.rate(before, texts, self.vocabulary)
        return found if rates is None else found | {"concept": rates}

    def _of_predictions(
        self, interventions: Sequence[Intervention], concept: Concept, prompts: Sequence[Sequence[int]] | None
    ) -> Values:
        """Compare what the model expects along the unsteered texts, steered and not."""
        before, texts = _flat(self.plain)
        asked = before if prompts is None else [list(p) for p in prompts for _ in range(self.samples)]
        names = [name for name in ("follows", "target") if getattr(concept, name)]
        found: dict[str, list[Tensor]] = {name: [] for name in (*names, "kl")}
        for part in in_parts(len(texts), self.rows_at_once):
            clean = self._clean(part, before, texts)
            changed = clean
            if interventions or prompts is not None:
                with self.steered.by(interventions):
                    changed = read(self.steered.model, asked[part], texts[part])
            for name in names:
                found[name].append(changed.mass(getattr(concept, name)))
            found["kl"].append(clean.divergence(changed))
        return {name: _numpy(torch.cat(parts)) for name, parts in found.items()}

    def _clean(self, part: slice, before: list[list[int]], texts: list[list[int]]) -> Reading:
        """Read some of the unsteered texts; all arms of all features ask for it: kept where it is small."""
        if part.start in self._kept:
            return self._kept[part.start]
        found = read(self.steered.model, before[part], texts[part])
        if found.log_probs.numel() * len(texts) <= _KEPT * len(found.tokens):
            self._kept[part.start] = found
        return found

    def _of_steered_texts(self, interventions: Sequence[Intervention], made: Samples, concept: Concept) -> Values:
        """Read the arm's own texts, under steering and by the untouched model."""
        model, (before, texts) = self.steered.model, _flat(made)
        own, plain, activations, fires = [], [], [], []
        sites = [ref.site for ref in self.steered.sae.widths.read]
        for part in in_parts(len(texts), self.rows_at_once):
            with watched(model, sites) as seen:
                clean = read(model, before[part], texts[part])
            plain.append(clean.surprise())
            if interventions:
                with self.steered.by(interventions):
                    own.append(read(model, before[part], texts[part]).surprise())
            else:
                own.append(plain[-1])
            latent = self._latent(seen, concept.feature, clean.tokens.shape[1])
            # The last token is not read: it is what the others lead to.
            there = clean.there[:, 1:]
            counts = there.sum(1).clamp(min=1)
            scale = concept.maximum or 1.0
            fires.append(((latent > _FIRES_ABOVE * scale) & there).sum(1) / counts)
            activations.append((latent * there).sum(1) / counts / scale)
        return {
            "ppl_steered": _numpy(torch.cat(own)),
            "ppl_untouched": _numpy(torch.cat(plain)),
            "fires": _numpy(torch.cat(fires)),
            "activation": _numpy(torch.cat(activations)),
        }

    def _latent(self, seen: dict[str, list[Tensor]], feature: int, length: int) -> Tensor:
        """Return the feature's activation on all generated tokens but the last, (rows, length - 1)."""
        sae, first = self.steered.sae, seen[next(iter(seen))][0]
        # Two passes were made, the prompt's and the text's; a text of one token has no second.
        if length == 1:
            return first.new_zeros(len(first), 0, dtype=torch.float32)
        parts = [seen[ref.site][1].flatten(0, 1).float() for ref in sae.widths.read]
        return self._reader(feature)(torch.cat(parts, 1)).reshape(len(first), length - 1)

    def _reader(self, feature: int) -> LatentReader:
        if feature not in self._readers:
            self._readers = {feature: LatentReader(self.steered.sae, [feature], self.steered.model.device)}
        return self._readers[feature]


def _flat(made: Samples) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompt and the tokens of every text."""
    before = [prompt for prompt, texts in zip(made.prompts, made.tokens, strict=True) for _ in texts]
    return before, [text for texts in made.tokens for text in texts]


def _numpy(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
