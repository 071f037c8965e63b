"""Which hypothesis explains the data, if one does: how far its error has to fall below that of the SAE as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightsae.analysis.diagnose.alternative import Alternative
from lightsae.analysis.diagnose.case import Score

# A cause is named where it leaves at most this share of the error: by default, and where it is searched for by
# numbers that the file does not say, so that some improvement has to be expected of it.
_SHARE_LEFT, _SEARCHED_LEFT = 0.85, 0.6
_SEARCHED = ("scale", "activation")
# Below this nothing is explained.
_LEAST_FVE = 0.1
# Others whose error is at most so much larger than the least could be it as well.
_AS_GOOD = 1.03
# Sinks of which at most this share is explained were not seen in training, where other tokens are explained better.
_SINKS_UNSEEN = 0.5


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
    best = best_of_causes(tried)
    enough = {cause: found for cause, found in best.items() if _explains(cause, said, found[1])}
    if enough:
        ranked = sorted(enough.values(), key=lambda found: _error(*found))
        alternative, score = ranked[0]
        near = [one.cause for one, its in ranked[1:] if _error(one, its) <= _AS_GOOD * _error(alternative, score)]
        return Verdict(alternative.cause, alternative.what, alternative.mend, tuple(near))
    if sees_bos is not False and said.fve_of_sinks < min(_SINKS_UNSEEN, said.fve_no_sinks - (1 - _SINKS_UNSEEN) / 2):
        return Verdict(
            "bos",
            "the first tokens of rows were left out of training",
            "leave attention sinks out where the SAE is used, and say skip_positions: 1",
        )
    return Verdict(None, "nothing that was tried explains the data better than the SAE as it is", "")


def best_of_causes(tried: Sequence[tuple[Alternative, Score]]) -> Mapping[str, tuple[Alternative, Score]]:
    """Return the hypothesis with the least error of each cause, the one with the least of all first."""
    best: dict[str, tuple[Alternative, Score]] = {}
    for alternative, score in sorted(tried, key=lambda found: _error(*found)):
        best.setdefault(alternative.cause, (alternative, score))
    return best


def _error(alternative: Alternative, score: Score) -> float:
    return 1 - score.fve_no_sinks


def _explains(cause: str, said: Score, score: Score) -> bool:
    share = _SEARCHED_LEFT if cause in _SEARCHED else _SHARE_LEFT
    return score.fve_no_sinks >= _LEAST_FVE and 1 - score.fve_no_sinks <= share * (1 - said.fve_no_sinks)
