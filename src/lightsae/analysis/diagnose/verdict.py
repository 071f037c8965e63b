"""Which hypothesis explains the data, if one does: how far its misfit has to fall below that of the SAE as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightsae.analysis.diagnose.case import Alternative, Score

# A cause is named where it leaves at most this share of the misfit: by default; where it is about what the SAE is of,
# whose neighbours are alike; and where it is searched for by numbers that the file does not say, so that some
# improvement has to be expected of it.
_SHARE_LEFT, _PLACE_LEFT, _SEARCHED_LEFT = 0.95, 0.97, 0.85
# With as few latents as the SAE as it is, less is enough: no other choice of them is better than the one that was
# learned.
_CHOICES = ("threshold", "activation", "decoder_norms")
_SHARE_LEFT_WITH_AS_FEW, _AS_FEW = 0.985, 1.01
# What the file itself speaks for has to explain the data about as well.
_SHARE_LEFT_WHERE_LIKELY = 1.05
_PLACES = ("site", "norm", "gain", "model")
# What a misfit is multiplied by where causes are ranked: a free number of latents, chosen for the least misfit, must
# not take the place of a fault that explains nearly as much without.
_HANDICAP = {"activation": 1.25}
# Above this nothing is explained. A choice of fewer latents has hardly any bias or gradient where nothing was learned,
# and may not leave so many times as much error.
_MOST_ERROR, _MORE_ERROR = 0.9, 1.2
# Others whose misfit is at most so much larger than the least could be it as well.
_AS_GOOD = 1.02
# A sink is hardly more than one vector, which is explained before all else: also after 4 steps of training sinks have
# the higher FVE. Where theirs is lower by this, and the others' is not poor itself, training did not see them. Of 88
# sound SAEs that saw them the most was 0.03, of those that did not the least 0.08.
_SINKS_BEHIND, _NOT_POOR = 0.05, 0.3


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        cause: Of `alternative.CAUSES`; None: no hypothesis explains the data clearly better than the SAE as it is.
        what: In words.
        mend: What to do.
        as_good: Other causes that explain it as well.
    """

    cause: str | None
    what: str
    mend: str
    as_good: tuple[str, ...] = ()


def judge(said: Score, tried: Sequence[tuple[Alternative, Score]], sees_bos: bool | None) -> Verdict:
    """Return the verdict on an SAE.

    Args:
        said: As its file has it.
        tried: Hypotheses.
        sees_bos: Whether the file says that first tokens were seen in training.
    """
    enough = best_of_causes([found for found in tried if _explains(found[0], said, found[1])])
    if enough:
        ranked = list(enough.values())
        alternative, score = ranked[0]
        near = [one.cause for one, its in ranked[1:] if _rank(one, its) <= _AS_GOOD * _rank(alternative, score)]
        return Verdict(alternative.cause, alternative.what, alternative.mend, tuple(near))
    behind = said.fve_no_sinks >= _NOT_POOR and said.fve_of_sinks < said.fve_no_sinks - _SINKS_BEHIND
    if sees_bos is not False and behind:
        return Verdict(
            "bos",
            "the first tokens of rows were left out of training",
            "leave attention sinks out where the SAE is used, and say skip_positions: 1",
        )
    return Verdict(None, "nothing that was tried explains the data better than the SAE as it is", "")


def best_of_causes(tried: Sequence[tuple[Alternative, Score]]) -> Mapping[str, tuple[Alternative, Score]]:
    """Return the hypothesis with the least misfit of each cause, the one with the least of all first."""
    best: dict[str, tuple[Alternative, Score]] = {}
    for alternative, score in sorted(tried, key=lambda found: _rank(*found)):
        best.setdefault(alternative.cause, (alternative, score))
    return best


def _rank(alternative: Alternative, score: Score) -> float:
    return score.misfit * _HANDICAP.get(alternative.cause, 1.0)


def _explains(alternative: Alternative, said: Score, score: Score) -> bool:
    share = _PLACE_LEFT if alternative.cause in _PLACES else _SHARE_LEFT
    if alternative.cause in _CHOICES and score.l0 <= _AS_FEW * said.l0:
        share = _SHARE_LEFT_WITH_AS_FEW
    if alternative.searched:
        share = _SEARCHED_LEFT
        if score.error > _MORE_ERROR * said.error:
            return False
    if alternative.likely:
        return score.error <= _MOST_ERROR and score.misfit <= _SHARE_LEFT_WHERE_LIKELY * said.misfit
    # What lets more latents fire explains more of sound SAEs as well, but leaves their predictions off on average.
    return score.error <= _MOST_ERROR and score.misfit <= share * said.misfit and score.bias <= said.bias
