"""Measures arms on the same prompts with the same draws: generates, and reads what was generated.

Axes: n prompts, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightsae.analysis.panels.arms import Steered
from lightsae.analysis.panels.concepts import Concept, Generated
from lightsae.analysis.panels.measures import Values, distinct, repetition
from lightsae.analysis.panels.readings import Reading, in_parts, read, watched
from lightsae.analysis.panels.settings import SweepSettings
from lightsae.analysis.steering.interventions import Add, Intervention
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
        as_steered: Whether texts are read under steering too (`ppl_steered`).
    """

    def __init__(
        self,
        steered: Steered,
        vocabulary: Sequence[str],
        prompts: Sequence[Sequence[int]],
        settings: SweepSettings,
        as_steered: bool = True,
    ) -> None:
        self.steered, self.vocabulary, self.settings, self.as_steered = steered, vocabulary, settings, as_steered
        self.prompts = [list(prompt) for prompt in prompts]
        self._readers: dict[tuple[int, ...], LatentReader] = {}
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
        """Return what an arm does to a concept, by measure, (n,) each; and its texts. See `measure_all`."""
        (values,), made = self.measure_all(interventions, [concept], prompts)
        return values, made

    def measure_all(
        self,
        interventions: Sequence[Intervention],
        concepts: Sequence[Concept],
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> tuple[list[Values], Samples]:
        """Return what an arm does to some concepts, by measure, (n,) each; and its texts.

        Args:
            interventions: What the arm writes; empty: no steering. Of several, `target` is of the first.
            concepts: What is watched; texts and passes are the same for all of them.
            prompts: What stands in place of each prompt, for the arm that prompts.
        """
        made = self.generate(interventions, prompts) if interventions or prompts else self.plain
        common, follows = self._of_predictions(interventions, concepts, prompts)
        surprise, latents = self._of_steered_texts(interventions, made, concepts)
        common |= surprise | self._of_texts(made)
        texts, each = Generated(*_flat(made), self.vocabulary), []
        for concept, after, latent in zip(concepts, follows, latents, strict=True):
            values = common | after | latent
            if (rates := concept.rate(texts)) is not None:
                values["concept"] = rates
            each.append({name: self._by_prompt(value) for name, value in values.items()})
        return each, made

    def _by_prompt(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = values.reshape(len(self.prompts), self.settings.samples).mean(1)
        return means

    def _of_texts(self, made: Samples) -> Values:
        _, texts = _flat(made)
        return {"repetition": repetition(texts), "distinct_1": distinct(texts, 1), "distinct_2": distinct(texts, 2)}

    def _of_predictions(
        self,
        interventions: Sequence[Intervention],
        concepts: Sequence[Concept],
        prompts: Sequence[Sequence[int]] | None,
    ) -> tuple[Values, list[Values]]:
        """Compare what the model expects along the unsteered texts, steered and not; by concept, what follows it."""
        before, texts = _flat(self.plain)
        read_after = before if prompts is None else [list(p) for p in prompts for _ in range(self.settings.samples)]
        promoted = self._promoted(interventions, prompts)
        common: dict[str, list[Tensor]] = {"kl": []} if promoted is None else {"kl": [], "target": []}
        follows: list[list[Tensor]] = [[] for _ in concepts]
        for part in in_parts(len(texts), self.settings.rows_at_once):
            clean = self._clean(part, before, texts)
            changed = clean
            if interventions or prompts is not None:
                with self.steered.by(interventions):
                    changed = read(self.steered.model, read_after[part], texts[part])
            for masses, concept in zip(follows, concepts, strict=True):
                masses.append(changed.mass(concept.follows))
            common["kl"].append(clean.divergence(changed))
            if promoted is not None:
                common["target"].append(changed.mass(promoted) - clean.mass(promoted))
        after = [{"follows": _numpy(m)} if c.follows else {} for m, c in zip(follows, concepts, strict=True)]
        return {name: _numpy(tensors) for name, tensors in common.items()}, after

    def _promoted(
        self, interventions: Sequence[Intervention], prompts: Sequence[Sequence[int]] | None
    ) -> tuple[int, ...] | None:
        """Return the tokens that an arm's own direction promotes; None if there are none, as for a prompt."""
        if prompts is not None:
            return None
        # Where nothing is written no token rises, whichever are asked about.
        return self.steered.promoted(interventions[0] if interventions else Add(0, 0.0)) or None

    def _clean(self, part: slice, before: list[list[int]], texts: list[list[int]]) -> Reading:
        """Read some of the unsteered texts; all arms of all features ask for them: kept if they are small."""
        if part.start in self._kept:
            return self._kept[part.start]
        reading = read(self.steered.model, before[part], texts[part])
        if reading.log_probs.numel() * len(texts) <= _KEPT * len(reading.tokens):
            self._kept[part.start] = reading
        return reading

    def _of_steered_texts(
        self, interventions: Sequence[Intervention], made: Samples, concepts: Sequence[Concept]
    ) -> tuple[Values, list[Values]]:
        """Read the arm's own texts, under steering and by the untouched model; and by concept, whether it fires."""
        model, (before, texts) = self.steered.model, _flat(made)
        names = ("ppl_untouched", "ppl_steered") if self.as_steered else ("ppl_untouched",)
        surprise: dict[str, list[Tensor]] = {name: [] for name in names}
        fires, activations = [], []
        maxima = torch.tensor([concept.maximum or 1.0 for concept in concepts], device=model.device)
        sites = [ref.site for ref in self.steered.sae.widths.read]
        for part in in_parts(len(texts), self.settings.rows_at_once):
            with watched(model, sites) as seen:
                clean = read(model, before[part], texts[part])
            surprise["ppl_untouched"].append(clean.surprise())
            if self.as_steered:
                with self.steered.by(interventions):
                    own = read(model, before[part], texts[part]) if interventions else clean
                surprise["ppl_steered"].append(own.surprise())
            latents = self._latents(seen, [concept.feature for concept in concepts], clean.tokens.shape[1])
            # The last token is not read: it is what the others lead to.
            there = clean.there[:, 1:, None]
            counts = there.sum(1).clamp(min=1)
            fires.append(((latents > FIRES_ABOVE * maxima) & there).sum(1) / counts)
            activations.append((latents * there).sum(1) / counts / maxima)
        each = [
            {"fires": own_fires, "activation": own_activations}
            for own_fires, own_activations in zip(_numpy(fires).T, _numpy(activations).T, strict=True)
        ]
        return {name: _numpy(tensors) for name, tensors in surprise.items()}, each

    def _latents(self, seen: dict[str, list[Tensor]], features: list[int], length: int) -> Tensor:
        """Return features' activations on all generated tokens but the last, (rows, length - 1, features)."""
        sae, first = self.steered.sae, seen[next(iter(seen))][0]
        # Two passes were made, the prompt's and the text's; a text of one token has no second.
        if length == 1:
            return first.new_zeros(len(first), 0, len(features), dtype=torch.float32)
        x = Widths.join({ref: seen[ref.site][1].flatten(0, 1).float() for ref in sae.widths.read}, sae.widths.read)
        return self._reader(tuple(features))(x).reshape(len(first), length - 1, len(features))

    def _reader(self, features: tuple[int, ...]) -> LatentReader:
        if features not in self._readers:
            self._readers = {features: LatentReader(self.steered.sae, list(features), self.steered.model.device)}
        return self._readers[features]


def _flat(made: Samples) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompt and the tokens of every text."""
    before = [prompt for prompt, texts in zip(made.prompts, made.tokens, strict=True) for _ in texts]
    return before, [text for texts in made.tokens for text in texts]


def _numpy(parts: Sequence[Tensor]) -> NDArray[np.float64]:
    return torch.cat(list(parts)).double().cpu().numpy()
