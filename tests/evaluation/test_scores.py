"""Measures of answers and rankings, compared with values computed by hand, and properties of all measures."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_core.evaluation import (
    cover_match,
    exact_match,
    f1,
    hit_rate,
    mrr,
    ndcg_at_k,
    normalize_answer,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    score_answers,
    score_rankings,
)

ANSWER_MEASURES = (exact_match, cover_match, f1)
RANKING_MEASURES = (recall_at_k, hit_rate, precision_at_k, reciprocal_rank, ndcg_at_k)

texts = st.text(max_size=40) | st.lists(
    st.sampled_from(["the", "a", "no", "yes", "North", "1,200", "m.", "Orvane", "river"]), max_size=6
).map(" ".join)
rankings = st.lists(st.integers(0, 30), unique=True, max_size=20)
relevants = st.sets(st.integers(0, 30), min_size=1, max_size=6)


# --- answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text,normal",
    [
        ("The River Orvane.", "river orvane"),
        ("  an  apple,\ta pear and\nthe plum ", "apple pear and plum"),
        ("1,200 metres", "1200 metres"),
        ("theatre and banana", "theatre and banana"),  # articles inside words are kept
        ("co-op's", "coops"),
        ("a-b", "ab"),  # punctuation is removed before articles
        ("ÉCOLE", "école"),
        ("«oak»", "«oak»"),  # only ASCII punctuation is removed
        ("The", ""),
        ("", ""),
    ],
)
def test_normalisation(text, normal):
    assert normalize_answer(text) == normal


def test_normalisation_keeps_what_is_not_english_punctuation():
    assert normalize_answer("東京、 大阪") == "東京、 大阪"


@pytest.mark.parametrize(
    "prediction,gold,exact,cover,overlap",
    [
        ("the River Orvane", "River Orvane.", 1, 1, 1),
        ("River Orvane in Sarn", "River Orvane", 0, 1, 2 * 2 / 6),
        ("Orvane the long river", "River Orvane", 0, 1, 2 * 2 / 5),  # the order does not count
        ("River", "River Orvane", 0, 0, 2 / 3),
        ("Sarn", "River Orvane", 0, 0, 0),
        ("north", "no", 0, 0, 0),
        ("no, never", "no", 0, 1, 0),  # a part of "no" is not an answer
        ("no", "no", 1, 1, 1),
        ("True", "yes", 1, 1, 1),
        ("False", "no", 1, 1, 1),
        ("It is True", "yes", 0, 0, 0),
        ("red red blue", "red blue blue", 0, 1, 4 / 6),  # common: red once, blue once
        ("", "red", 0, 0, 0),
        ("red", "the", 0, 0, 0),  # a gold answer without words is not covered by every text
        ("a", "the", 1, 1, 1),
    ],
)
def test_answers_by_hand(prediction, gold, exact, cover, overlap):
    assert exact_match(prediction, gold) == exact
    assert cover_match(prediction, gold) == cover
    assert f1(prediction, gold) == pytest.approx(overlap)


def test_the_best_of_several_gold_answers_counts():
    golds = ["twelve", "12 ships", "12"]
    assert [measure("12", golds) for measure in ANSWER_MEASURES] == [1, 1, 1]
    assert [measure("12 ships or so", golds) for measure in ANSWER_MEASURES] == [0, 1, pytest.approx(4 / 6)]


@pytest.mark.parametrize("measure", ANSWER_MEASURES)
def test_no_gold_answer_is_an_error(measure):
    with pytest.raises(ValueError, match="at least one gold answer"):
        measure("red", [])


def test_means_of_answers():
    scores = score_answers(["red", "the blue sea", "no"], ["Red.", ["blue", "green"], "yes"])
    assert scores == pytest.approx({"exact_match": 1 / 3, "cover_match": 2 / 3, "f1": (1 + 2 / 3) / 3})


def test_means_need_questions_and_equal_numbers():
    with pytest.raises(ValueError, match="empty"):
        score_answers([], [])
    with pytest.raises(ValueError, match=r"\(1\).*\(2\)"):
        score_answers(["red"], ["red", "blue"])
    with pytest.raises(ValueError, match=r"\(2\).*\(1\)"):
        score_rankings([[1], [2]], [{1}])
    with pytest.raises(ValueError, match="empty"):
        mrr([], [])


@given(texts)
def test_normalisation_changes_nothing_twice_and_adds_nothing(text):
    normal = normalize_answer(text)
    assert normal == " ".join(normal.split())
    assert not any(word in ("a", "an", "the") for word in normal.split())
    assert len(normal) <= len(text.lower())


@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_answers_lie_in_bounds_and_order(prediction, golds):
    exact, cover, overlap = (measure(prediction, golds) for measure in ANSWER_MEASURES)
    assert {exact, cover} <= {0.0, 1.0}
    assert exact <= overlap <= 1.0
    assert exact <= cover
    assert all(measure(golds[0], golds) == 1.0 for measure in ANSWER_MEASURES)


@given(texts, texts)
def test_f1_is_symmetric(left, right):
    assert f1(left, right) == f1(right, left)


@given(texts, st.lists(texts, min_size=1, max_size=3), texts)
def test_another_gold_answer_never_hurts(prediction, golds, more):
    assert all(measure(prediction, [*golds, more]) >= measure(prediction, golds) for measure in ANSWER_MEASURES)


# --- rankings --------------------------------------------------------------------------------------------

RANKED, RELEVANT = ["d", "a", "c", "b"], {"a", "b", "x"}


def test_rankings_by_hand():
    assert [recall_at_k(RANKED, RELEVANT, k) for k in (1, 2, 4, 9)] == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])
    assert [hit_rate(RANKED, RELEVANT, k) for k in (1, 2, 9)] == [0, 1, 1]
    assert [precision_at_k(RANKED, RELEVANT, k) for k in (1, 2, 4, 8)] == pytest.approx([0, 1 / 2, 1 / 2, 1 / 4])
    assert reciprocal_rank(RANKED, RELEVANT) == 1 / 2
    assert reciprocal_rank(RANKED, RELEVANT, k=1) == 0
    assert reciprocal_rank(RANKED, {"x"}) == 0


def test_ndcg_by_hand():
    # Hits at ranks 2 and 4; the best ranking has three in the first three places.
    gain = 1 / math.log2(3) + 1 / math.log2(5)
    best = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg_at_k(RANKED, RELEVANT, 4) == pytest.approx(gain / best)
    # At k = 2 the best ranking has two places only.
    assert ndcg_at_k(RANKED, RELEVANT, 2) == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert ndcg_at_k(RANKED, {"d"}, 10) == 1
    assert ndcg_at_k(["a", "b"], {"a", "b"}, 10) == 1


def test_means_of_rankings():
    scores = score_rankings([[1, 2, 3], [2, 1, 3]], [{1}, {1, 9}], ks=(1, 2))
    second = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    assert scores == pytest.approx(
        {
            "recall@1": 0.5,
            "recall@2": (1 + 0.5) / 2,
            "hit@1": 0.5,
            "hit@2": 1,
            "precision@1": 0.5,
            "precision@2": 0.5,
            "mrr": 0.75,
            "ndcg@10": (1 + second) / 2,
        }
    )
    assert mrr([[1, 2, 3], [2, 1, 3]], [{1}, {1, 9}]) == 0.75
    assert mrr([[1, 2, 3], [2, 1, 3]], [{1}, {1, 9}], k=1) == 0.5


def test_an_empty_ranking_finds_nothing():
    assert all(measure([], {1}, 5) == 0 for measure in RANKING_MEASURES)
    assert reciprocal_rank([], {1}) == 0


@pytest.mark.parametrize("measure", RANKING_MEASURES)
def test_bad_rankings_are_errors(measure):
    with pytest.raises(ValueError, match="at least one relevant id"):
        measure([1, 2], set(), 5)
    with pytest.raises(ValueError, match="got 0"):
        measure([1, 2], {1}, 0)
    with pytest.raises(ValueError, match="2 more than once"):
        measure([1, 2, 2], {1}, 5)


@given(rankings, relevants, st.integers(1, 25))
def test_rankings_lie_in_bounds_and_agree(ranked, relevant, k):
    recall, hit, precision, reciprocal, ndcg = (measure(ranked, relevant, k) for measure in RANKING_MEASURES)
    assert all(0 <= value <= 1 + 1e-12 for value in (recall, hit, precision, reciprocal, ndcg))
    assert recall * len(relevant) == pytest.approx(precision * k)  # both have the same hits
    assert (hit == 1) == (recall > 0) == (reciprocal > 0) == (ndcg > 0)
    assert recall_at_k(ranked, relevant, k + 1) >= recall


@given(rankings, relevants, st.integers(1, 25))
def test_relevant_first_is_best(ranked, relevant, k):
    best = [*sorted(relevant), *(id_ for id_ in ranked if id_ not in relevant)]
    assert ndcg_at_k(best, relevant, k) == pytest.approx(1)
    assert reciprocal_rank(best, relevant) == 1
    for measure in RANKING_MEASURES:
        assert measure(best, relevant, k) >= measure(ranked, relevant, k) - 1e-12


def test_nothing_heavy_is_imported():
    code = "import sys, clara_core.evaluation; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
