"""What a hypothesis says: another way to read the same SAE, in words and as what is then computed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from lightsae.analysis.diagnose.case import Case, Sample

CAUSES: Mapping[str, str] = {
    "site": "it is of another layer or another place of the layer",
    "norm": "it is of the other side of a norm",
    "gain": "it is of a norm's output without its gain, or with it",
    "scale": "activations were scaled in training, and the scale is not in the weights, or is in them twice",
    "b_dec": "b_dec is subtracted from the input where it was not in training, or the other way round",
    "transposed": "a matrix was read in the other order of its axes",
    "threshold": "thresholds are in another unit than the pre-activations, or are logarithms",
    "token_norm": "each token was normalised by itself in training, or was not",
    "activation": "the latents are chosen in another way",
    "decoder_norms": "latents are in units of their decoder rows' norms on one side alone",
    "bos": "rows began in another way in training, or their first tokens were left out",
    "model": "it is of the other model",
}


@dataclass(frozen=True)
class Alternative:
    """One hypothesis.

    Attributes:
        cause: One of `CAUSES`.
        what: What is supposed, in words: "it reads resid_post.1".
        mend: What to do if it is so.
        case: What is then computed.
        searched: Whether its number is searched for, so that some improvement has to be expected of it.
    """

    cause: str
    what: str
    mend: str
    case: Case
    searched: bool = False


# Gives the alternatives of one cause. The sample is what scales are measured on.
Cause = Callable[[Case, Sample], Iterator[Alternative]]
