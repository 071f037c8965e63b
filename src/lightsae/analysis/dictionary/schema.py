"""The tables of a feature dictionary: names and types of all columns. One row per feature, context, edge or label.

Activations are in the SAE's normalised units; `fires` counts tokens without attention sinks and special tokens.
Columns that a build did not ask for are null.
"""

from collections.abc import Iterable

import pyarrow as pa

from lightsae.activations.roles import ROLES

# 2: labels are rules of at most three patterns, long ones stand beside them as detectors.
SCHEMA_VERSION = 2
# By table, what a dictionary of version 1 lacks; it is null there.
SINCE_2 = {
    "features": ("label_patterns", "detector_patterns", "detector_precision", "detector_recall", "detector_passed"),
    "labels": ("patterns",),
}
# Of the firings of a feature, the share on tokens of each role; null where no text is a conversation. A dictionary of
# this version may lack these columns.
ROLE_SHARES = tuple(f"{role}_share" for role in ROLES)
# A rule's most patterns in a dictionary of version 1, whose words said the most telling of them.
PATTERNS_BEFORE_2 = 64

_TOKEN = pa.struct([("token", pa.int32()), ("text", pa.string()), ("count", pa.int64()), ("share", pa.float32())])
_LOGIT = pa.struct([("token", pa.int32()), ("text", pa.string()), ("logit", pa.float32())])
_NEAR = pa.struct([("feature", pa.int32()), ("cosine", pa.float32())])

FEATURES = pa.schema(
    [
        ("feature", pa.int32()),
        # How often and how strongly.
        ("fires", pa.int64()),
        ("frequency", pa.float64()),  # share of the counted tokens
        ("l0_share", pa.float32()),  # its firings among the firings of all features
        ("mean", pa.float32()),  # over the tokens on which it fires
        ("std", pa.float32()),
        ("max", pa.float32()),
        ("histogram", pa.list_(pa.int64())),  # bins: `histogram_edges` of dictionary.json
        # Where: documents, tokens. `share` of a token: of the feature's firings.
        ("documents", pa.int32()),
        ("document_spread", pa.float32()),  # documents reached, of those that as many random firings would reach
        ("tokens_on", pa.list_(_TOKEN)),
        ("tokens_before", pa.list_(_TOKEN)),
        ("tokens_after", pa.list_(_TOKEN)),
        ("window_coherence", pa.float32()),
        ("document_coherence", pa.float32()),
        *((name, pa.float32()) for name in ROLE_SHARES),
        # What it writes: the direct effect on next-token logits.
        ("promoted", pa.list_(_LOGIT)),
        ("suppressed", pa.list_(_LOGIT)),
        ("logit_kurtosis", pa.float32()),
        ("logit_concentration", pa.float32()),
        ("s_in", pa.float32()),
        ("s_out", pa.float32()),
        # What changes when it is removed, on texts where it fires; nats per token.
        ("ablation_kl", pa.float32()),
        ("ablation_ce", pa.float32()),
        ("ablation_tokens", pa.int32()),
        # What it is close to: decoder rows, and what neurons write; coordinates of the site where these are not known.
        ("nearest", pa.list_(_NEAR)),
        ("neurons", pa.list_(_NEAR)),
        # What it means. `label` is null below the gate: then the interface shows «unlabelled».
        ("label", pa.string()),
        ("label_source", pa.string()),  # rule, llm, human, neuronpedia
        ("precision", pa.float32()),  # of the shown label, by the test that decides: tokens (rule), windows (llm)
        ("recall", pa.float32()),
        ("tier", pa.string()),  # one of TIERS; rare: fires too seldom to be tested
        ("label_patterns", pa.int32()),  # that the shown rule counts for; null for a label that is no rule
        # The longest rule, for monitors: its words are no label. On the same held-out tokens, whether it passed or not.
        ("detector_patterns", pa.int32()),
        ("detector_precision", pa.float32()),
        ("detector_recall", pa.float32()),
        ("detector_passed", pa.bool_()),  # whether it cleared the gate
    ]
)

CONTEXTS = pa.schema(
    [
        ("feature", pa.int32()),
        ("kind", pa.string()),  # top; stratum (a sample of its firings); near_miss (it nearly fired)
        ("stratum", pa.int32()),  # quantile bin of the activation, 0 the weakest; null for the other kinds
        ("rank", pa.int32()),  # from 0, within kind and stratum
        ("score", pa.float32()),  # top, stratum: activation on the peak token; near_miss: its pre-activation
        ("document", pa.int64()),
        ("row", pa.int64()),
        ("position", pa.int32()),  # of the peak, in its row
        ("tokens", pa.list_(pa.int32())),
        ("texts", pa.list_(pa.string())),
        ("values", pa.list_(pa.float32())),  # activation on each token of the window
        ("peak", pa.int32()),  # index of the peak token in the three lists
    ]
)

EDGES = pa.schema(
    [
        ("source", pa.int32()),
        ("target", pa.int32()),
        ("kind", pa.string()),  # cosine (of decoder rows); cofire
        ("weight", pa.float32()),  # cosine; correlation (phi) of the two firing indicators
        ("count", pa.int64()),  # cofire: tokens on which both fire; null for cosine
    ]
)

LABELS = pa.schema(
    [
        ("feature", pa.int32()),
        ("label", pa.string()),
        ("source", pa.string()),  # rule, llm, human, neuronpedia; detector: a long rule, whose words say a part of it
        ("rule", pa.string()),  # rule, detector: the exact test, JSON
        ("patterns", pa.int32()),  # rule, detector: how many it counts for; a list of up to five tokens is one
        ("model", pa.string()),  # llm: which; human: who
        ("made", pa.string()),  # human: when, ISO 8601
        ("evidence", pa.string()),  # what it was made from: kinds and ranks of contexts, prompt hash ...
        ("test", pa.string()),  # tokens (natural frequency), detection, fuzzing, discrimination
        ("negatives", pa.string()),  # natural, random, near, hard
        ("positives_tested", pa.int64()),
        ("negatives_tested", pa.int64()),
        ("balanced_accuracy", pa.float32()),
        ("precision", pa.float32()),
        ("precision_low", pa.float32()),  # 95% interval, by documents
        ("precision_high", pa.float32()),
        ("recall", pa.float32()),
        ("recall_low", pa.float32()),
        ("recall_high", pa.float32()),
        ("passed", pa.bool_()),  # whether it cleared the gate; null where the test does not decide
    ]
)

TABLES = {"features": FEATURES, "contexts": CONTEXTS, "edges": EDGES, "labels": LABELS}
# The column with the feature that a row belongs to; rows are sorted by it.
KEYS = {"features": "feature", "contexts": "feature", "edges": "source", "labels": "feature"}
# withheld: the label passed, but no more of them do than of the floors, so that passing says nothing here.
TIERS = ("high", "medium", "withheld", "unlabelled", "rare", "dead")
# Tiers whose label is shown, and those of features that could not be tested.
SHOWN_TIERS, UNTESTED_TIERS = ("high", "medium", "withheld"), ("rare", "dead")


def tested_and_shown(tiers: Iterable[str]) -> tuple[int, int]:
    """Return how many features were tested, and for how many a label is shown, by their tiers.

    >>> tested_and_shown(["high", "unlabelled", "withheld", "dead"])
    (3, 2)
    """
    known = list(tiers)
    return sum(tier not in UNTESTED_TIERS for tier in known), sum(tier in SHOWN_TIERS for tier in known)


def file_of(table: str) -> str:
    """Return the file name of a table."""
    return f"{table}.parquet"
