"""Rules: planted concepts are learned as what they are, and what does not hold on other documents is dropped."""

import sys
from collections.abc import Callable

import numpy as np
import pytest

from lightsae.activations.roles import ROLES
from lightsae.analysis.labels.gate import Gate
from lightsae.analysis.labels.learning import LIMITS, learn_rules
from lightsae.analysis.labels.patterns import KINDS, PatternKeys, class_of, needs_roles
from lightsae.analysis.labels.rule_search import DETECTOR_PATTERNS, LABEL_PATTERNS, LIST_TOKENS
from lightsae.analysis.labels.rules import PatternPlaces, PatternTable, Rule
from lightsae.analysis.labels.scoring import Scores, token_scores
from lightsae.analysis.labels.stage import has_several_roles
from lightsae.analysis.labels.wording import in_words, names_of
from lightsae.analysis.reading.firing_lists import FiringLists
from lightsae.analysis.reading.text import TextRows

TEXTS = [" cat", " dog", " red", " sun", "1", "2", "3", "(", ")", " Ant", " Bee", "\n"]
CAT, DOG, RED, SUN, OPEN = 0, 1, 2, 3, 7
# Three words are frequent, so that also their triples are.
CHANCES = [0.2, 0.1, 0.2, 0.2, *[0.0375] * 8]
ROWS, CONTEXT = 120, 30
Fires = Callable[[np.ndarray], np.ndarray]


def text(seed: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(TEXTS), (rows, CONTEXT), p=CHANCES).astype(np.int32)


def all_counted(tokens: np.ndarray) -> np.ndarray:
    return np.ones(tokens.size, bool)


def firing_lists(fires: list[np.ndarray], counted: np.ndarray, tokens_read: int | None = None) -> FiringLists:
    """Lists of the tokens where each feature's boolean array is set, as a collector would make them."""
    tokens_read = len(counted) if tokens_read is None else tokens_read
    places = [np.flatnonzero(f.ravel() & counted & (np.arange(len(counted)) < tokens_read)) for f in fires]
    starts = np.cumsum([0, *map(len, places)])
    return FiringLists(np.concatenate(places).astype(np.int32), starts, counted, tokens_read)


def learn(
    concepts: list[Fires], choosing: list[Fires] | None = None, limit: int = LABEL_PATTERNS
) -> tuple[list[Rule], PatternKeys]:
    """Learn rules of features that fire as the functions say, on one text, chosen on another."""
    first, second = text(1), text(2)
    keys = PatternKeys(first, TEXTS)
    table = PatternTable(keys, all_counted(first))
    places = PatternPlaces(table, PatternKeys(second, TEXTS), all_counted(second))
    mined = firing_lists([f(first) for f in concepts], all_counted(first))
    chosen = firing_lists([f(second) for f in choosing or concepts], all_counted(second))
    return [rules[limit] for rules in learn_rules(table, mined, places, chosen)], keys


def before(tokens: np.ndarray, by: int = 1) -> np.ndarray:
    moved = np.full_like(tokens, -1)
    moved[:, by:] = tokens[:, :-by]
    return moved


CLASS = np.array([class_of(t) for t in TEXTS])
CONCEPTS: dict[str, tuple[Fires, set[str]]] = {
    "a token": (lambda t: t == CAT, {"token"}),
    "a set of tokens": (lambda t: np.isin(t, [CAT, SUN]), {"token"}),
    "after a token": (lambda t: (t == CAT) & (before(t) == RED), {"after"}),
    "after two": (lambda t: (t == CAT) & (before(t) == RED) & (before(t, 2) == SUN), {"after_two"}),
    "two before": (lambda t: (t == DOG) & (before(t, 2) == SUN), {"two_before"}),
    "a class after a token": (lambda t: (CLASS[t] == class_of("1")) & (before(t) == OPEN), {"class_after"}),
    "after a class": (lambda t: (t == CAT) & (CLASS[before(t)] == class_of("1")), {"after_class"}),
    "before a token": (lambda t: (t == CAT) & (-before(-t[:, ::-1])[:, ::-1] == RED), {"before"}),
}


@pytest.mark.parametrize("limit", [LABEL_PATTERNS, DETECTOR_PATTERNS])
@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_planted_concept_is_learned_as_what_it_is(concept: str, limit: int) -> None:
    fires, kinds = CONCEPTS[concept]
    ((rule,), keys) = learn([fires], limit=limit)
    assert {kind for kind, _ in rule.patterns} == kinds, [keys.pattern(*p) for p in rule.patterns]
    unseen = text(3)
    table = PatternTable(keys, all_counted(text(1)))
    found = PatternPlaces(table, PatternKeys(unseen, TEXTS), all_counted(unseen)).of_rule(rule)
    assert np.array_equal(found, np.flatnonzero(fires(unseen).ravel()))
    assert sum(rule.shares) == pytest.approx(1)
    assert list(rule.shares) == sorted(rule.shares, reverse=True)


def test_features_are_labelled_each_for_itself() -> None:
    fires = [concept for concept, _ in CONCEPTS.values()]
    together, _ = learn(fires)
    assert together == [learn([one])[0][0] for one in fires]


def test_a_feature_that_never_fires_or_at_random_has_no_good_rule() -> None:
    draw = np.random.default_rng(5)
    (dead, chance), keys = learn([lambda t: t < 0, lambda t: draw.random(t.shape) < 0.05])
    assert dead == Rule((), ())
    # What there is was seen by chance, and is worth as little on text that it was not made from.
    unseen = text(3)
    fires = firing_lists([draw.random(unseen.shape) < 0.05], all_counted(unseen))
    table = PatternTable(keys, all_counted(text(1)))
    places = PatternPlaces(table, PatternKeys(unseen, TEXTS), all_counted(unseen))
    (score,) = token_scores([chance], places, fires)
    assert score.recall is not None
    assert score.recall < 0.2
    assert (score.precision or 0) < 0.2


def test_a_pattern_that_does_not_hold_on_other_documents_is_dropped() -> None:
    # SUN belongs to the feature in the mining text alone.
    both: Fires = lambda t: np.isin(t, [CAT, SUN])  # noqa: E731
    ((rule,), keys) = learn([both], choosing=[lambda t: t == CAT])
    assert [keys.pattern(*p).token for p in rule.patterns] == [CAT]
    ((neither,), _) = learn([both], choosing=[lambda t: t == OPEN])
    assert neither == Rule((), ())


def test_a_rule_keeps_within_its_bounds() -> None:
    # A feature of hundreds of pairs: no rule tells them all.
    odd: Fires = lambda t: (t * 7 + before(t) * 5 + before(t, 2) * 3) % 4 == 0  # noqa: E731
    for limit in LIMITS:
        ((rule,), _) = learn([odd], limit=limit)
        assert 0 < rule.size <= limit
        assert len(rule.patterns) == len(set(rule.patterns)) == len(rule.shares)
        # One list may stand for one pattern, and no longer one.
        assert len(rule.patterns) <= limit + (LIST_TOKENS - 1 if limit <= LABEL_PATTERNS else 0)


def test_processes_share_the_features_and_their_order_is_kept() -> None:
    concepts = [fires for fires, _ in CONCEPTS.values()] * 6
    first, second = text(1), text(2)
    table = PatternTable(PatternKeys(first, TEXTS), all_counted(first))
    places = PatternPlaces(table, PatternKeys(second, TEXTS), all_counted(second))
    mined, chosen = (firing_lists([f(t) for f in concepts], all_counted(t)) for t in (first, second))
    done: list[int] = []
    alone = learn_rules(table, mined, places, chosen, processes=1)
    assert learn_rules(table, mined, places, chosen, done.append, processes=2) == alone
    assert done == sorted(done)
    assert done[-1] == len(concepts) == len(alone)
    assert len({rules[LABEL_PATTERNS].patterns for rules in alone}) > 3


def test_a_part_of_the_firings_teaches_the_same() -> None:
    # Only the first quarter was listened to: the counts of patterns are of the whole text.
    first, second = text(1), text(2)
    table = PatternTable(PatternKeys(first, TEXTS), all_counted(first))
    places = PatternPlaces(table, PatternKeys(second, TEXTS), all_counted(second))
    for fires, _ in CONCEPTS.values():
        parts = [firing_lists([fires(t)], all_counted(t), tokens_read=t.size // 4) for t in (first, second)]
        wholes = [firing_lists([fires(t)], all_counted(t)) for t in (first, second)]
        (part,) = learn_rules(table, parts[0], places, parts[1])
        (whole,) = learn_rules(table, wholes[0], places, wholes[1])
        for limit in LIMITS:
            assert set(part[limit].patterns) <= set(whole[limit].patterns)
            assert part[limit].patterns


def test_places_are_those_of_the_keys() -> None:
    first, second = text(1, rows=4), text(2, rows=5)
    counted = np.random.default_rng(0).random(second.size) < 0.7
    keys = PatternKeys(second, TEXTS)
    places = PatternPlaces(PatternTable(PatternKeys(first, TEXTS), all_counted(first)), keys, counted)
    for kind in KINDS:
        for key in np.unique(keys.of(kind)).tolist():
            assert np.array_equal(places.of(kind, key), np.flatnonzero((keys.of(kind) == key) & counted))
    assert len(places.of("token", len(TEXTS) + 5)) == 0
    rule = Rule((("token", CAT), ("token", SUN), ("token", CAT)), (1.0, 0.5, 0.0))
    assert np.array_equal(places.of_rule(rule), np.flatnonzero(np.isin(second.ravel(), [CAT, SUN]) & counted))
    assert len(places.of_rule(Rule((), ()))) == 0


def test_only_counted_tokens_count_in_the_table() -> None:
    tokens = text(1, rows=6)
    counted = np.random.default_rng(0).random(tokens.size) < 0.5
    table = PatternTable(PatternKeys(tokens, TEXTS), counted)
    for token in range(len(TEXTS)):
        at = np.flatnonzero(table.known["token"] == token)
        assert table.counts["token"][at].tolist() == [int(((tokens.ravel() == token) & counted).sum())]


def scored(rule: Rule, keys: PatternKeys, fires: Fires) -> Scores:
    """Test a rule on text that it was not made from."""
    unseen = text(3)
    table = PatternTable(keys, all_counted(text(1)))
    places = PatternPlaces(table, PatternKeys(unseen, TEXTS), all_counted(unseen))
    (score,) = token_scores([rule], places, firing_lists([fires(unseen)], all_counted(unseen)))
    return score


def test_three_patterns_make_a_label_and_its_words_are_all_of_it() -> None:
    fires: Fires = lambda t: (t == DOG) | ((t == CAT) & (before(t) == RED)) | ((t == SUN) & (before(t) == OPEN))  # noqa: E731
    ((rule,), keys) = learn([fires])
    assert rule.size == len(rule.patterns) == 3
    assert scored(rule, keys, fires).f1 == 1
    words = in_words(keys.patterns(rule.patterns), names_of(TEXTS))
    assert sorted(words.split("; ")) == ["` cat` after ` red`", "` dog`", "` sun` after `(`"]


def test_a_list_of_five_tokens_counts_as_one_pattern_and_a_sixth_as_a_further_one() -> None:
    five = [DOG, CAT, 4, OPEN, 9]  # of every class a part
    ((rule,), keys) = learn([lambda t: np.isin(t, five)], limit=1)
    assert (rule.size, len(rule.patterns)) == (1, 5)
    assert "; " not in in_words(keys.patterns(rule.patterns), names_of(TEXTS))
    ((six,), _) = learn([lambda t: np.isin(t, [*five, SUN])])
    assert (six.size, len(six.patterns)) == (2, 6)


def test_a_feature_of_thirty_patterns_has_a_detector_and_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    # Thirty pairs, all as frequent: a label says three of them, or a list after one token.
    monkeypatch.setattr(sys.modules[__name__], "CHANCES", [1 / len(TEXTS)] * len(TEXTS))
    draw = np.random.default_rng(2)
    pairs = draw.permutation(144)[:30]
    fires: Fires = lambda t: (before(t) >= 0) & np.isin(12 * before(t) + t, pairs)  # noqa: E731
    gate = Gate()
    by_limit = {}
    for limit in (LABEL_PATTERNS, DETECTOR_PATTERNS):
        ((rule,), keys) = learn([fires], limit=limit)
        by_limit[limit] = rule, scored(rule, keys, fires)
    label, detector = by_limit[LABEL_PATTERNS], by_limit[DETECTOR_PATTERNS]
    assert label[0].size <= LABEL_PATTERNS
    assert not gate.passed(label[1])
    assert 20 <= detector[0].size <= DETECTOR_PATTERNS
    assert gate.passed(detector[1])


def test_the_search_knows_its_limit() -> None:
    # The first patterns of a long rule are not the best short one: those cover many firings each, and all miss half.
    fires: Fires = lambda t: np.isin(t, [CAT, RED, SUN]) & (before(t) != CAT) | (t == DOG)  # noqa: E731
    ((label,), keys), ((detector,), _) = learn([fires]), learn([fires], limit=DETECTOR_PATTERNS)
    cut = Rule(detector.patterns[: len(label.patterns)], detector.shares[: len(label.patterns)])
    assert scored(label, keys, fires).lower >= scored(cut, keys, fires).lower
    assert scored(label, keys, fires).lower <= scored(detector, keys, fires).lower


def test_whose_words_a_token_is_is_a_concept_where_several_speak():
    user, assistant = ROLES.index("user"), ROLES.index("assistant")
    spoken = [np.where(np.arange(ROWS * CONTEXT).reshape(ROWS, CONTEXT) // 7 % 2, assistant, user) for _ in range(2)]
    texts = [text(1), text(2)]
    keys = [PatternKeys(t, TEXTS, roles=s.astype(np.uint8)) for t, s in zip(texts, spoken, strict=True)]
    table = PatternTable(keys[0], all_counted(texts[0]))
    places = PatternPlaces(table, keys[1], all_counted(texts[1]))
    fires = [[(t == CAT) & (s == assistant), s == user, t == DOG] for t, s in zip(texts, spoken, strict=True)]
    mined, chosen = (firing_lists(f, all_counted(t)) for f, t in zip(fires, texts, strict=True))
    rules = [rules[LABEL_PATTERNS] for rules in learn_rules(table, mined, places, chosen)]
    words = [in_words(keys[0].patterns(rule.patterns), names_of(TEXTS)) for rule in rules]
    assert words == ["` cat` in an assistant's message", "anything in a user's message", "` dog`"]
    assert [needs_roles(rule.patterns) for rule in rules] == [True, True, False]
    # Of a text of which nobody knows it, no such pattern holds.
    plain = PatternPlaces(table, PatternKeys(texts[1], TEXTS), all_counted(texts[1]))
    assert [len(plain.of_rule(rule)) for rule in rules] == [0, 0, int((texts[1] == DOG).sum())]


def test_one_role_is_no_concept():
    tokens = text(1, 2)
    one = np.full(tokens.shape, ROLES.index("user"), np.uint8)
    both = one.copy()
    both[:, :3] = ROLES.index("assistant")
    documents, numbers = np.zeros(tokens.shape, np.int64), np.arange(2)
    assert not has_several_roles(TextRows(tokens, documents, numbers), all_counted(tokens))
    assert not has_several_roles(TextRows(tokens, documents, numbers, one), all_counted(tokens))
    assert has_several_roles(TextRows(tokens, documents, numbers, both), all_counted(tokens))
    assert not has_several_roles(TextRows(tokens, documents, numbers, both), (both == one[0, 0]).ravel())
