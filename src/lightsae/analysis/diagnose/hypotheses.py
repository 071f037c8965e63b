"""All hypotheses about an SAE, each with how well it explains the sample."""

from collections.abc import Iterator
from dataclasses import replace

from lightsae.analysis.diagnose.case import OTHER_BOS, OTHER_MODEL, Alternative, Case, Cause, Sample, Score, score
from lightsae.analysis.diagnose.computations import activations, b_dec, transposed
from lightsae.analysis.diagnose.frames import decoder_norms, scales, thresholds, token_norms
from lightsae.analysis.diagnose.sites import Neighbour, other_sites
from lightsae.progress import Progress
from lightsae.sae import SiteRef

# In the order in which they are listed where figures are equal.
_CAUSES: tuple[Cause, ...] = (scales, b_dec, transposed, thresholds, decoder_norms, token_norms, activations)
# All hypotheses are held against each other on a part of the sample, and the best ones of a cause on all of it.
_SCREENED, _KEPT = 1024, 2


def try_all(
    case: Case,
    said: Score,
    sample: Sample,
    near: dict[SiteRef, list[Neighbour]],
    other_model: str | None,
    progress: Progress,
) -> list[tuple[Alternative, Score]]:
    """Score the hypotheses, and return the best ones of each cause, the least misfit first.

    Args:
        case: The SAE as its file has it.
        said: Its score.
        sample: Holds the activations of all sites.
        near: Other sites that it could be of; see `sites.near_sites`.
        other_model: Name of the other model in the sample; None: there is none.
        progress: Who is told.
    """
    few = {name: text.first(_SCREENED) for name, text in sample.items()}
    alternatives = list(_alternatives(case, sample, near, other_model))
    by_cause: dict[str, list[tuple[float, int]]] = {}
    with progress.stage("hypotheses", len(alternatives)) as report:
        for number, one in enumerate(alternatives):
            if (its := score(one.case, few)) is not None:
                by_cause.setdefault(one.cause, []).append((its.misfit, number))
            report(number + 1)
    kept = [
        alternatives[number]
        for found in by_cause.values()
        for place, (_, number) in enumerate(sorted(found))
        if place < _KEPT or alternatives[number].likely
    ]
    scored = []
    with progress.stage("the best of each", len(kept)) as report:
        for number, one in enumerate(kept):
            # What changes nothing is no hypothesis.
            if (its := score(one.case, sample)) is not None and its != said:
                scored.append((one, its))
            report(number + 1)
    return sorted(scored, key=lambda found: found[1].misfit)


def _alternatives(
    case: Case, sample: Sample, near: dict[SiteRef, list[Neighbour]], other_model: str | None
) -> Iterator[Alternative]:
    yield from other_sites(case, sample, near)
    for cause in _CAUSES:
        yield from cause(case, sample)
    if OTHER_BOS in sample:
        yield Alternative(
            "bos",
            "rows began the other way in training: with BOS, or without",
            "set prepend_bos the other way",
            replace(case, text=OTHER_BOS),
        )
    if OTHER_MODEL in sample:
        yield Alternative(
            "model",
            f"it is of {other_model}",
            f"write model {other_model}",
            replace(case, text=OTHER_MODEL),
        )
