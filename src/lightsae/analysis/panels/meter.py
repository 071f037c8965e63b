"""Measures arms on the same prompts with the same draws: generates, and reads what was generated.

Axes: n prompts, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightsae.analysis.panels.arms import Steered
from lightsae.analysis.panels.concepts import Concept
from lightsae.analysis.panels.measures import Values, distinct, repetition
from lightsae.analysis.panels.readings import Reading, in_parts, read, watched
from lightsae.analysis.panels.settings import SweepSettings
from lightsae.analysis.steering.interventions import Intervention
from lightsae.lm.generate import Samples, generate_samples
from lightsae.metrics.conventions import FIRES_ABOVE
from lightsae.sae import Widths
from lightsae.sae.latent_reader import LatentReader

# Log-probabilities of the unsteered texts that stay in memory: 256 MB.
_KEPT = 2**26


class Meter:
    """Measures arms on the same prompts with the same draws.

    Args:
        steered: The model and the SAE.
        vocabulary: (V,) what each token says.
        prompts: Token ids of each.
        settings: Samples and how they are drawn; `rows_at_once` is of reading too.
    """

    def __init__(
        self, steered: Steered, vocabulary: Sequence[str], prompts: Sequence[Sequence[int]], settings: SweepSettings
    ) -> None:
        self.steered, self.vocabulary, self.settings = steered, vocabulary, settings
        self.prompts = [list(prompt) for prompt in prompts]
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
                samples=self.settings.samples,
                seed=self.settings.seed,
                sampling=self.settings.sampling,
                rows_at_once=self.settings.rows_at_once,
            )

    def measure(
        self,
        interventions: Sequence[Intervention],
        concept: Concept,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Values, Samples]:
        """Return what an arm does to a concept, by measure, (n,) each; and its texts.

        Args:
            interventions: What the arm writes; empty: no steering.
            concept: What is watched.
            prompts: What stands in place of each prompt, for the arm that prompts.
        """
        made = self.generate(interventions, prompts) if interventions or prompts else self.plain
        values = self._of_texts(made, concept) | self._of_predictions(interventions, concept, prompts)
        values |= self._of_steered_texts(interventions, made, concept)
        each = {name: value.reshape(len(self.prompts), self.settings.samples).mean(1) for name, value in values.items()}
        return each, made

    def _of_texts(self, made: Samples, concept: Concept) -> Values:
        before, texts = _flat(made)
        rates = concept.rate(before, texts, self.vocabulary)
        values = {"repetition": repetition(texts), "distinct_1": distinct(texts, 1), "distinct_2": distinct(texts, 2)}
        return values if rates is None else values | {"concept": rates}

    def _of_predictions(
        self, interventions: Sequence[Intervention], concept: Concept, prompts: Sequence[Sequence[int]] | None
    ) -> Values:
        """Compare what the model expects along the unsteered texts, steered and not."""
        before, texts = _flat(self.plain)
        read_after = before if prompts is None else [list(p) for p in prompts for _ in range(self.settings.samples)]
        token_sets = {name: ids for name in ("follows", "target") if (ids := getattr(concept, name))}
        parts: dict[str, list[Tensor]] = {name: [] for name in (*token_sets, "kl")}
        for part in in_parts(len(texts), self.settings.rows_at_once):
            clean = self._clean(part, before, texts)
            changed = clean
            if interventions or prompts is not None:
                with self.steered.by(interventions):
                    changed = read(self.steered.model, read_after[part], texts[part])
            for name, ids in token_sets.items():
                parts[name].append(changed.mass(ids))
            parts["kl"].append(clean.divergence(changed))
        return {name: _numpy(tensors) for name, tensors in parts.items()}

    def _clean(self, part: slice, before: list[list[int]], texts: list[list[int]]) -> Reading:
        """Read some of the unsteered texts; all arms of all features ask for them: kept if they are small."""
        if part.start in self._kept:
            return self._kept[part.start]
        reading = read(self.steered.model, before[part], texts[part])
        if reading.log_probs.numel() * len(texts) <= _KEPT * len(reading.tokens):
            self._kept[part.start] = reading
        return reading

    def _of_steered_texts(self, interventions: Sequence[Intervention], made: Samples, concept: Concept) -> Values:
        """Read the arm's own texts, under steering and by the untouched model."""
        model, (before, texts) = self.steered.model, _flat(made)
        own, plain, activations, fires = [], [], [], []
        sites = [ref.site for ref in self.steered.sae.widths.read]
        for part in in_parts(len(texts), self.settings.rows_at_once):
            with watched(model, sites) as seen:
                clean = read(model, before[part], texts[part])
            plain.append(clean.surprise())
            with self.steered.by(interventions):
                own.append(read(model, before[part], texts[part]).surprise() if interventions else plain[-1])
            latent = self._latent(seen, concept.feature, clean.tokens.shape[1])
            # The last token is not read: it is what the others lead to.
            there = clean.there[:, 1:]
            counts = there.sum(1).clamp(min=1)
            scale = concept.maximum or 1.0
            fires.append(((latent > FIRES_ABOVE * scale) & there).sum(1) / counts)
            activations.append((latent * there).sum(1) / counts / scale)
        return {
            "ppl_steered": _numpy(own),
            "ppl_untouched": _numpy(plain),
            "fires": _numpy(fires),
            "activation": _numpy(activations),
        }

    def _latent(self, seen: dict[str, list[Tensor]], feature: int, length: int) -> Tensor:
        """Return the feature's activation on all generated tokens but the last, (rows, length - 1)."""
        sae, first = self.steered.sae, seen[next(iter(seen))][0]
        # Two passes were made, the prompt's and the text's; a text of one token has no second.
        if length == 1:
            return first.new_zeros(len(first), 0, dtype=torch.float32)
        read = Widths.join({ref: seen[ref.site][1].flatten(0, 1).float() for ref in sae.widths.read}, sae.widths.read)
        return self._reader(feature)(read).reshape(len(first), length - 1)

    def _reader(self, feature: int) -> LatentReader:
        if feature not in self._readers:
            self._readers = {feature: LatentReader(self.steered.sae, [feature], self.steered.model.device)}
        return self._readers[feature]


def _flat(made: Samples) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompt and the tokens of every text."""
    before = [prompt for prompt, texts in zip(made.prompts, made.tokens, strict=True) for _ in texts]
    return before, [text for texts in made.tokens for text in texts]


def _numpy(parts: Sequence[Tensor]) -> NDArray[np.float64]:
    return torch.cat(list(parts)).double().cpu().numpy()
