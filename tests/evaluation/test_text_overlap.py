"""BLEU, ROUGE, names and numbers, compared with other packages and with values computed by hand."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

from clara_core.evaluation import bleu, entities, entity_preservation, rouge, score_paraphrases
from clara_core.evaluation.rankings import with_gold
from clara_core.evaluation.text_overlap import lost_entities
from clara_core.retrieval.bm25 import Bm25

PASSAGE = "The bridge over the river Aln was opened in 1907 and is 214.5 metres long, said Ada Quill."
AGAIN = "Ada Quill opened the bridge over the Aln, 214 metres long, in 1907."

ascii_texts = st.text(alphabet="abc dEF,.19\n-'", max_size=60)


# --- BLEU and ROUGE --------------------------------------------------------------------------------------


def test_bleu_is_that_of_sacrebleu():
    said, golds = [AGAIN, "a dog runs in the park now"], [PASSAGE, "the dog runs in the park"]
    assert bleu(said, golds) == pytest.approx(corpus_bleu(said, [golds]).score / 100)
    assert 0.1 < bleu(said, golds) < 0.9


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples; no run of four is right, which sacrebleu smooths to 1 / (2 * 3).
    precisions = [5 / 6, 3 / 5, 1 / 4, 1 / 6]
    expected = math.exp(sum(map(math.log, precisions)) / 4)
    assert bleu(["the cat is on the mat"], ["the cat sat on the mat"]) == pytest.approx(expected)


def test_bleu_of_short_answers_and_several_golds():
    assert bleu(["1907", "Ada Quill"], [["1908", "1907"], "Ada Quill"]) == 1
    assert bleu(["1907"], ["1908"]) == 0
    assert bleu(["two words", "one"], [["two words", "2 words"], ["one"]]) == 1  # ragged


def test_bleu_needs_gold_texts():
    with pytest.raises(ValueError, match="at least one gold text"):
        bleu(["a"], [[]])
    with pytest.raises(ValueError, match=r"\(1\).*\(2\)"):
        bleu(["a"], ["a", "b"])


@given(ascii_texts, ascii_texts)
def test_rouge_is_that_of_rouge_score_on_ascii(gold, said):
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(gold, said)
    assert rouge(said, gold) == {name: score.fmeasure for name, score in theirs.items()}


def test_rouge_by_hand():
    # Common words: a, c; common pairs: none; longest common run in order: "a c".
    assert rouge("a c", "a b c") == pytest.approx({"rouge1": 4 / 5, "rouge2": 0, "rougeL": 4 / 5})


def test_rouge_knows_other_letters():
    assert rouge("École élevée", "École élevée") == {"rouge1": 1, "rouge2": 1, "rougeL": 1}
    assert rouge("山 川", "山 海")["rouge1"] == 0.5


@pytest.mark.parametrize(
    "module, call",
    [
        ("sacrebleu.metrics.bleu", lambda: bleu(["a"], ["a"])),
        ("rouge_score.rouge_scorer", lambda: rouge("a", "a")),
    ],
)
def test_a_missing_package_is_named_with_the_pip_line(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'clara-rag\[train\]'"):
        call()


# --- names and numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, found",
    [
        (PASSAGE, ["aln", "1907", "214.5", "ada quill"]),
        ("In May she met Captain Ada Quill, for 1,200,000 francs.", ["may", "captain ada quill", "1200000"]),
        ("From Bristol, Lisbon and Aln", ["bristol", "lisbon", "aln"]),  # a comma separates names
        ("Old books are lost. Kotul is big. The mayor of Kotul is old.", ["kotul"]),
        ("Kotul's mayor is Pelfa Torel's son in Kotul", ["kotul", "pelfa torel"]),
        ("J. K. Rowling left at 12:30 on 3/4", ["j k rowling", "12:30", "3/4"]),
        ("However, I was there.", []),
        ("富士山 is 3,776 m high", ["3776"]),
        ("", []),
    ],
)
def test_entities(text, found):
    assert entities(text) == found


def test_preservation_by_hand():
    assert lost_entities(PASSAGE, AGAIN) == ["214.5"]  # 214 is another number
    assert entity_preservation(PASSAGE, AGAIN) == 3 / 4
    assert entity_preservation(PASSAGE, "quill ada") == 0  # a part, or another order, is not a match
    assert entity_preservation("nothing to keep", "at all") is None


@example("Aᾶ")  # the second letter has two characters in lower case
@given(st.text(max_size=80))
def test_a_text_preserves_itself(text):
    assert entity_preservation(text, text) in (None, 1)
    assert entity_preservation(text, "") in (None, 0)


def test_means_of_paraphrases():
    passages, again = [PASSAGE, "nothing to keep"], [AGAIN, "nothing"]
    scores = score_paraphrases(passages, again)
    for name in ("rouge1", "rouge2", "rougeL"):
        each = [rouge(said, passage)[name] for said, passage in zip(again, passages, strict=True)]
        assert scores[name] == pytest.approx(sum(each) / 2)
    assert scores["bleu"] == pytest.approx(corpus_bleu(again, [passages]).score / 100)
    assert scores["entities"] == 3 / 4  # over the only passage with names
    assert "entities" not in score_paraphrases(["nothing to keep"], ["nothing"])


# --- baseline rankings -----------------------------------------------------------------------------------


def test_bm25_by_hand():
    texts = ["cats and cats", "cats chase birds", "birds"]
    # "cats": twice in the shorter text, once in the other; "birds": the shortest text that has it.
    assert Bm25(texts).rank(["cats?", "birds"]) == [[0, 1, 2], [2, 1, 0]]


def test_bm25_keeps_the_order_where_nothing_is_known():
    assert Bm25(["one thing", "two things"]).rank(["", "the of", "unheard"]) == [[0, 1]] * 3
    assert Bm25(["!!!", "the"]).rank(["thing"]) == [[0, 1]]


@pytest.mark.parametrize(
    "gold, k, chosen",
    [
        ({9}, 3, [3, 1, 9]),  # 9 takes the place of 4
        ({1}, 3, [3, 1, 4]),  # nothing to do
        ({9, 5}, 3, [3, 5, 9]),
        ({9, 5, 4}, 2, [4, 5]),  # more gold passages than places: those that rank best
        ({3}, 1, [3]),
        ({9}, 1, [9]),
        ({9}, 20, [3, 1, 4, 5, 9]),
    ],
)
def test_gold_is_put_among_what_is_read(gold, k, chosen):
    assert with_gold([3, 1, 4, 5, 9], gold, k) == chosen
