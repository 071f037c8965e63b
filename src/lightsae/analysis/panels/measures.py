"""What steering did to texts and predictions: effect and cost, one number per prompt.

Axes:    n prompts; in `distinct` and `repetition`, n texts.
Source:  distinct-n of Li et al. 2016, arXiv:1510.03055; the share of repeated n-grams of Welleck et al. 2020,
         arXiv:1908.04319 (seq-rep-n).

    concept     share of generated tokens on which the label's rule holds (`concepts`)
    fires       share of generated tokens on which the feature fires when the untouched model reads the text: above a
                tenth of its maximum
    activation  mean activation there, in units of its maximum
    follows     probability of the tokens that come after it in held-out text, over the unsteered texts
    target      probability of the tokens that its direction promotes, over the unsteered texts
    kl          KL(untouched || steered) over the unsteered texts, nats per token
    ppl_steered, ppl_untouched   perplexity of the steered text under steering, and for the untouched model
    repetition  share of the steered text's 4-grams that stood in it before
    distinct_1, distinct_2   share of different tokens, and of different pairs of tokens, in the steered text
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightsae.analysis.panels.arms import Steered
from lightsae.analysis.panels.concepts import Concept
from lightsae.analysis.panels.readings import Reading, in_parts, read, watched
from lightsae.analysis.steering.interventions import Intervention
from lightsae.lm.generate import Samples, Sampling, generate_samples
from lightsae.metrics.conventions import FIRES_ABOVE
from lightsae.metrics.intervals import Interval
from lightsae.sae import Widths
from lightsae.sae.latent_reader import LatentReader

Values = dict[str, NDArray[np.float64]]
# Log-probabilities of the unsteered texts that stay in memory: 256 MB.
_KEPT = 2**26


class Measure(StrEnum):
    """A measure; its value is its name in reports.

    Attributes:
        words: Its row in a terminal; empty if it is not shown there.
        caption: Title of its pane in a figure over doses.
        is_effect: Whether it is wanted; the others are costs.
        in_nats: A perplexity: kept as nats until its interval is known.
    """

    words: str
    caption: str
    is_effect: bool
    in_nats: bool

    def __new__(cls, value: str, words: str = "", caption: str = "", is_effect: bool = True) -> "Measure":
        measure = str.__new__(cls, value)
        measure._value_, measure.words, measure.caption, measure.is_effect = value, words, caption, is_effect
        measure.in_nats = value.startswith("ppl_")
        return measure

    CONCEPT = "concept", "label holds on the text", "label holds on the text: gain"
    FIRES = "fires", "fires on it, untouched model", "it fires on the text, untouched model: gain"
    ACTIVATION = "activation", "activation there, x maximum"
    TARGET = "target", "P(what it promotes)", "probability of what it promotes: gain"
    FOLLOWS = "follows", "P(what follows it)", "probability of what follows it: gain"
    KL = "kl", "KL to untouched model, nats", "KL to the untouched model (nats)", False
    PPL_STEERED = "ppl_steered", "perplexity, as steered", "", False
    PPL_UNTOUCHED = "ppl_untouched", "perplexity, untouched model", "perplexity, untouched model: ratio", False
    REPETITION = "repetition", "repeated 4-grams", "", False
    DISTINCT_1 = "distinct_1", "", "", False
    DISTINCT_2 = "distinct_2", "distinct 2-grams", "", False


EFFECTS = tuple(measure for measure in Measure if measure.is_effect)


def interval(name: str, values: NDArray[np.float64]) -> Interval:
    """Return the mean of a measure over prompts with its interval; the geometric mean of perplexities."""
    mean = Interval.over(values)
    return mean.exponentiated() if Measure(name).in_nats else mean


def shift(name: str, values: NDArray[np.float64], plain: NDArray[np.float64]) -> Interval:
    """Return what a measure gained over no steering, prompt by prompt; for perplexities, their ratio."""
    return interval(name, values - plain)


def distinct(texts: Sequence[Sequence[int]], n: int) -> NDArray[np.float64]:
    """Return the share of different n-grams among each text's n-grams; 1 if it has none.

    Example:
        >>> distinct([[5, 6, 5, 6], [7]], 2).round(3).tolist()
        [0.667, 1.0]
    """
    grams = [[tuple(text[start : start + n]) for start in range(len(text) - n + 1)] for text in texts]
    return np.array([len(set(each)) / len(each) if each else 1.0 for each in grams])


def repetition(texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return the share of each text's 4-grams that stood in it before."""
    return 1 - distinct(texts, 4)


class Meter:
    """Measures arms on the same prompts with the same draws.

    Args:
        steered: The model and the SAE.
        vocabulary: (V,) what each token says.
        prompts: Token ids of each.
        samples: Texts per prompt.
        sampling: How they are drawn.
        seed: Seed of the draws.
        rows_at_once: Texts per pass.
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
            interventions: What the arm writes; empty: no steering.
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
        rates = concept.rate(before, texts, self.vocabulary)
        fluency = {
            "repetition": repetition(texts),
            "distinct_1": distinct(texts, 1),
            "distinct_2": distinct(texts, 2),
        }
        return fluency if rates is None else fluency | {"concept": rates}

    def _of_predictions(
        self, interventions: Sequence[Intervention], concept: Concept, prompts: Sequence[Sequence[int]] | None
    ) -> Values:
        """Compare what the model expects along the unsteered texts, steered and not."""
        before, texts = _flat(self.plain)
        read_after = before if prompts is None else [list(p) for p in prompts for _ in range(self.samples)]
        token_sets = {name: ids for name in ("follows", "target") if (ids := getattr(concept, name))}
        parts: dict[str, list[Tensor]] = {name: [] for name in (*token_sets, "kl")}
        for part in in_parts(len(texts), self.rows_at_once):
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
