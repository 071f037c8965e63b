"""A made-up feature dictionary with every column filled: for tests of what reads one.

The strings are chosen to break careless code: HTML and script, quotes, newlines, SQL, other scripts, a lone bidi mark.
Features: every 8th is dead, every 8th is rare, every 4th is unlabelled; the rest have labels. Fast at 30,000 features.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from lightsae.analysis.dictionary.schema import TABLES
from lightsae.analysis.reading.firings import BEFORE, WIDTH

HISTOGRAM_EDGES = [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
TOKENS = 20_000
# Position is token id.
VOCABULARY = [
    "<bos>",
    "the",
    " cat",
    "</td><script>alert('x')</script>",
    '" onmouseover="alert(1)',
    "'; DROP TABLE features; --",
    "\n",
    "\t",
    " naïve",
    "日本",
    "🙂",
    "\u202e",
    " return",
    "def",
    "&amp;",
    "<b>",
    "100%",
    "_under",
    "\\n",
    "\ufffd",
]
MEANINGS = [
    "«return» before a call",
    "digits inside a string",
    'the word "cat" <b>in</b> a story',
    "<script>alert('label')</script>",
    "日本 in a name; line\nbreak",
    "O'Brien & 50%_off",
]
SITE = {"model": "builtin", "site": "resid_post.2", "width": 16}


def fake_tables(n_features: int, seed: int = 0) -> dict[str, pa.Table]:
    """Return the four tables of a dictionary with features 0..n-1; 2 top, 2 stratum and 1 near-miss contexts each."""
    draw = np.random.default_rng(seed)
    tiers = [tier_of(i) for i in range(n_features)]
    rows = [_feature(i, tiers[i], n_features, draw) for i in range(n_features)]
    alive = [i for i in range(n_features) if tiers[i] != "dead"]
    contexts = [context for i in alive for context in _contexts(i, draw)]
    edges = [edge for i in alive for edge in _edges(i, n_features, draw)]
    labels = [label for i in alive if tiers[i] != "rare" for label in _labels(i, tiers[i])]
    return {
        name: pa.Table.from_pylist(table, schema=TABLES[name])
        for name, table in {"features": rows, "contexts": contexts, "edges": edges, "labels": labels}.items()
    }


def fake_manifest(n_features: int) -> dict[str, Any]:
    """Return what `dictionary.json` says, without what the writer adds (schema_version, files, id)."""
    tiers = [tier_of(i) for i in range(n_features)]
    return {
        "sae": {
            "variant": "TopK",
            "sha256": "5a" * 32,
            "d_sae": n_features,
            "read": [SITE],
            "predicted": [SITE],
        },
        "model": {"name": "builtin", "revision": None},
        "tokenizer": {"name": "builtin", "vocabulary_sha256": "7e" * 32},
        "corpus": {"name": "made up <b>corpus</b>", "fingerprint": "c0" * 32},
        "tokens": {"contexts": TOKENS, "scores": 5_000},
        "seeds": {"contexts": 0, "scores": 1},
        "code_version": "0.1.0",
        "histogram_edges": HISTOGRAM_EDGES,
        "labels": {
            "offline": {"gate": 0.7, "most_patterns": 3},
            "llm": {"model": "a-model", "prompts": {"explain": "ab" * 32}},
        },
        "summary": {
            "features": n_features,
            "alive": n_features - tiers.count("dead"),
            "labelled": tiers.count("high") + tiers.count("medium"),
            "floors": {"shuffled_labels": 0.03, "random_sae": 0.05},
        },
    }


def tier_of(i: int) -> str:
    return ("high", "medium", "unlabelled", "high", "dead", "medium", "unlabelled", "rare")[i % 8]


def _token(t: int, count: int) -> dict[str, Any]:
    return {"token": t, "text": VOCABULARY[t], "count": count, "share": count / 10}


def _logit(t: int, logit: float) -> dict[str, Any]:
    return {"token": t, "text": VOCABULARY[t], "logit": logit}


def _feature(i: int, tier: str, n: int, draw: np.random.Generator) -> dict[str, Any]:
    fires = {"dead": 0, "rare": 3}.get(tier, 10 + int(draw.integers(0, 2000)))
    a, b, c = (int(t) for t in draw.integers(1, len(VOCABULARY), 3))
    labelled = tier in ("high", "medium")
    row: dict[str, Any] = {
        "feature": i,
        "fires": fires,
        "frequency": fires / TOKENS,
        "tier": tier,
        "promoted": [_logit(a, 2.5), _logit(b, 1.5)],
        "suppressed": [_logit(c, -2.0)],
        "logit_kurtosis": 3.0 + float(draw.random()),
        "logit_concentration": 0.2,
        "s_in": 0.3,
        "s_out": 0.6,
        "nearest": [{"feature": (i + 1) % n, "cosine": 0.5}],
        "neurons": [{"feature": i % SITE["width"], "cosine": 0.4}],
        "label": f"{MEANINGS[i % len(MEANINGS)]} ({i})" if labelled else None,
        "label_source": ("rule", "llm", "human")[i % 3] if labelled else None,
        "precision": {"high": 0.95, "medium": 0.75}.get(tier),
        "recall": {"high": 0.9, "medium": 0.72}.get(tier),
    }
    if fires:
        counts = draw.multinomial(fires, np.full(len(HISTOGRAM_EDGES) - 1, 1 / (len(HISTOGRAM_EDGES) - 1)))
        row |= {
            "l0_share": 1 / n,
            "mean": 1.0,
            "std": 0.5,
            "max": 2.0 + i / n,
            "histogram": counts.tolist(),
            "documents": min(fires, 40),
            "document_spread": 0.8,
            "tokens_on": [_token(a, 6), _token(b, 4)],
            "tokens_before": [_token(c, 5)],
            "tokens_after": [_token(b, 2)],
            "window_coherence": 0.4 + 0.5 * float(draw.random()),
            "document_coherence": 0.1,
            "ablation_kl": 0.01,
            "ablation_ce": 0.005,
            "ablation_tokens": fires,
        }
    return row


def _contexts(i: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    told = []
    kinds = [("top", None, 0), ("top", None, 1), ("stratum", 0, 0), ("stratum", 1, 0), ("near_miss", None, 0)]
    for number, (kind, stratum, rank) in enumerate(kinds):
        # The second one starts at the row's first tokens: a shorter window, with another peak.
        start = 10 if number == 1 else 0
        tokens = draw.integers(0, len(VOCABULARY), WIDTH - start).tolist()
        peak = BEFORE - start
        values = [0.0] * len(tokens)
        score = 2.0 + i / 100_000 - 0.3 * number
        if kind != "near_miss":
            values[peak], values[peak - 1] = score, score / 2
        told.append(
            {
                "feature": i,
                "kind": kind,
                "stratum": stratum,
                "rank": rank,
                "score": score,
                "document": 100 * number + i % 50,
                "row": number,
                "position": peak if number == 1 else 40 + number,
                "tokens": tokens,
                "texts": [VOCABULARY[t] for t in tokens],
                "values": values,
                "peak": peak,
            }
        )
    return told


def _edges(i: int, n: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    other = int((i + 1 + draw.integers(0, max(1, n - 1))) % n)
    return [
        {"source": i, "target": (i + 1) % n, "kind": "cosine", "weight": 0.5, "count": None},
        {"source": i, "target": other, "kind": "cofire", "weight": 0.2, "count": 7},
    ]


def _labels(i: int, tier: str) -> list[dict[str, Any]]:
    good = tier in ("high", "medium")
    row = {
        "feature": i,
        "label": f"{MEANINGS[i % len(MEANINGS)]} ({i})",
        "source": ("rule", "llm", "human")[i % 3],
        "rule": '{"token": ["<b>"]}' if i % 3 == 0 else None,
        "model": (None, "a-model", "A. <i>Person</i>")[i % 3],
        "made": "2026-01-02T03:04:05Z" if i % 3 == 2 else None,
        "evidence": "top 0-4",
        "positives_tested": 40,
        "negatives_tested": 4000,
        "balanced_accuracy": 0.9 if good else 0.6,
        "precision": {"high": 0.95, "medium": 0.75}.get(tier, 0.3),
        "precision_low": 0.2,
        "precision_high": 0.99,
        "recall": {"high": 0.9, "medium": 0.72}.get(tier, 0.3),
        "recall_low": 0.2,
        "recall_high": 0.99,
        "passed": good,
    }
    return [
        {**row, "test": "tokens", "negatives": "natural"},
        {**row, "test": "detection", "negatives": "near", "passed": None},
    ]
