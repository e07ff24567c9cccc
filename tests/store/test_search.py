"""Searching a store: two-step search equals exact search, filters are applied first, words find names."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara_core import MemoryStore
from clara_core.engine.quoting.answerability import answer_shares
from clara_core.retrieval.filters import matches
from clara_core.retrieval.ranking import diversify, rank_memories, score_memories
from clara_core.store import maintenance, on_lance, windows
from clara_core.store.scan import KeyScan
from clara_core.store.schema import Layout
from clara_core.store.table import Table
from tests.engines import PASSAGES
from tests.store.conftest import told
from tests.store.memories import HIDDEN, N_MEM, made_memory

COUNT = 300
KINDS = ("bridge", "clock", "map")


@pytest.fixture(scope="module")
def memories():
    return [made_memory(f"The {KINDS[i % 3]} number{i} of Aln", 1 + i % 4 // 2) for i in range(COUNT)]


@pytest.fixture(scope="module")
def store(memories, tmp_path_factory):
    store = MemoryStore.open(tmp_path_factory.mktemp("search") / "store", key=128)
    metadatas = [{"n": number, "kind": KINDS[number % 3]} for number in range(COUNT)]
    for start in range(0, COUNT, 60):
        part = slice(start, start + 60)
        ids = [str(number) for number in range(start, start + 60)]
        store.add(memories=memories[part], ids=ids, metadatas=metadatas[part])
    return store


@pytest.fixture(scope="module")
def questions(memories):
    generator = torch.Generator().manual_seed(5)
    about = torch.cat([memories[number].tokens[-1:] for number in range(0, COUNT, 20)]).float()
    return about + 0.7 * torch.randn(about.shape, generator=generator)


def expected(question, memories, k):
    return [(str(found.index), found.score, found.window) for found in rank_memories(question, memories, k)]


def found(hits):
    return [(hit.id, pytest.approx(hit.score, abs=1e-5), hit.window) for hit in hits]


# --- by memory ---------------------------------------------------------------------------------------------


def test_exact_search_is_the_ranking_of_all_memories(store, memories, questions):
    hits = store.search(questions, k=7, exact=True)
    assert [found(own) for own in hits] == [expected(question, memories, 7) for question in questions]
    scores = score_memories(questions, memories)
    assert [hit.score for hit in hits[3]] == pytest.approx(scores[3].topk(7).values.tolist(), abs=1e-5)


def test_two_steps_find_what_exact_search_finds(store, memories, questions):
    hits = store.search(questions, k=5, oversample=40)
    assert [found(own) for own in hits] == [expected(question, memories, 5) for question in questions]
    for index, question in enumerate(questions):
        assert told(store.search(question.flatten(), k=5, oversample=40)) == told(hits[index])
    few = store.search(questions, k=1, oversample=1)  # the best key may not belong to the best memory
    right = sum(
        own[0].id == expected(question, memories, 1)[0][0] for own, question in zip(few, questions, strict=True)
    )
    assert right >= 0.7 * len(questions)


def test_shapes_of_questions(store, questions):
    flat = questions.flatten(1)
    one = store.search(flat[0], k=3)
    assert [told(own) for own in store.search(flat, k=3)] == [told(own) for own in store.search(questions, k=3)]
    assert told(one) == told(store.search(flat[:1], k=3)[0])
    assert told(one) == told(store.search(100 * flat[0].double(), k=3))
    assert store.search(flat[:0], k=3) == []
    with pytest.raises(ValueError, match=rf"{N_MEM} x {HIDDEN} = {N_MEM * HIDDEN} numbers, got the shape \[1, 8\]"):
        store.search(torch.ones(8))
    with pytest.raises(ValueError, match="NaN"):
        store.search(torch.full((N_MEM * HIDDEN,), torch.nan))


def test_more_than_there_is(store, memories, questions):
    hits = store.search(questions[0].flatten(), k=10_000)
    assert len(hits) == COUNT
    assert sorted(hit.id for hit in hits) == sorted(map(str, range(COUNT)))
    assert found(hits) == expected(questions[0], memories, COUNT)
    assert len(store.search(questions[0].flatten(), k=10_000, exact=True)) == COUNT


def test_many_windows_of_one_document_do_not_crowd_out_the_others(tmp_path):
    store = MemoryStore.open(tmp_path / "store")
    long = made_memory("long", 200)
    tokens = long.tokens[:1] + 0.01 * torch.randn(long.tokens.shape, generator=torch.Generator().manual_seed(1))
    long = type(long)(tokens.bfloat16(), long.text, long.spans, 3, long.fingerprint)
    others = [made_memory(f"other {number}") for number in range(10)]
    store.add(memories=[long, *others], ids=["long", *(f"other {number}" for number in range(10))])
    hits = store.search(long.tokens[5].flatten(), k=4, oversample=2)
    assert found(hits)[1:] == [
        (f"other {each.index - 1}", pytest.approx(each.score, abs=1e-5), 0)
        for each in rank_memories(long.tokens[5], [long, *others], 4)[1:]
    ]
    assert (hits[0].id, hits[0].window, hits[0].text) == ("long", 5, "long")


def test_scores_lie_between_minus_one_and_one(store, memories):
    question = memories[4].tokens[0]
    assert store.search(question.flatten(), k=1)[0].score == pytest.approx(1.0, abs=1e-6)
    assert store.search(question.flatten(), k=1)[0].score <= 1.0
    opposite = store.search(-question.flatten(), k=COUNT)
    assert (opposite[-1].id, opposite[-1].score) == ("4", pytest.approx(-1.0, abs=1e-6))
    assert opposite[-1].score >= -1.0


def test_equal_scores_keep_the_order_of_the_table(tmp_path):
    store = MemoryStore.open(tmp_path / "store")
    same = made_memory("same")
    for name in "cab":
        store.add(ids=[name], memories=[same])
    for exact in (True, False):
        assert [hit.id for hit in store.search(same.tokens.flatten(), k=3, exact=exact)] == list("cab")


def test_search_in_parts_gives_the_same(store, questions, monkeypatch):
    whole = [told(own) for own in store.search(questions, k=4)]
    monkeypatch.setattr(windows, "_BLOCK_BYTES", 7 * 128 * 2)
    monkeypatch.setattr(on_lance, "_SCAN_BYTES", 3 * N_MEM * HIDDEN * 2)
    monkeypatch.setattr(on_lance, "_NEAR_BYTES", 2 * N_MEM * HIDDEN * 4)
    again = MemoryStore.open(store.uri)
    assert [told(own) for own in again.search(questions, k=4)] == whole
    assert [told(own) for own in again.search(questions, k=4, exact=True)] == [
        told(own) for own in store.search(questions, k=4, exact=True)
    ]


def test_mmr_is_the_choice_among_the_best(store, memories, questions):
    question = questions[2]
    best = expected(question, memories, 20)
    vectors = torch.stack([memories[int(id_)].tokens[window].flatten() for id_, _, window in best])
    for balance in (0.0, 0.3, 1.0):
        chosen = diversify(question.flatten(), vectors, 6, balance)
        hits = store.search_mmr(question.flatten(), k=6, fetch_k=20, lambda_mult=balance, exact=True)
        assert found(hits) == [best[index] for index in chosen]
    assert len(store.search_mmr(question.flatten(), k=30, fetch_k=5)) == 30
    assert store.search_mmr(question.flatten(), filter={"n": -1}) == []
    for wrong in ({"k": 0}, {"lambda_mult": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            store.search_mmr(question.flatten(), **wrong)
    with pytest.raises(ValueError, match="one question"):
        store.search_mmr(questions)


# --- filters -----------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(-5, COUNT + 5), st.sampled_from(KINDS), st.integers(0, 14), st.booleans())
def test_filters_come_before_the_search(store, memories, questions, bound, kind, index, exact):
    condition = {"$or": [{"n": {"$lt": bound}, "kind": kind}, {"n": {"$gte": COUNT - 2}}]}
    passing = [number for number in range(COUNT) if matches(condition, {"n": number, "kind": KINDS[number % 3]})]
    best = rank_memories(questions[index], [memories[number] for number in passing], 6)
    hits = store.search(questions[index].flatten(), k=6, filter=condition, exact=exact, oversample=40)
    assert found(hits) == [(str(passing[each.index]), each.score, each.window) for each in best]
    words = store.search("number1 number2 Aln", k=COUNT, filter=condition, mode="text")
    assert sorted(int(hit.id) for hit in words) == passing
    assert store.count(condition) == len(passing)


def test_a_filter_that_nothing_passes(store, questions):
    for mode in ("memory", "text"):
        question = "clock" if mode == "text" else questions[0].flatten()
        assert store.search(question, filter={"n": "none"}, mode=mode) == []
    assert store.search(questions, filter={"n": "none"}, exact=True) == [[] for _ in questions]
    assert len(store.search(questions[0].flatten(), k=3, filter={})) == 3


def test_what_is_no_filter_or_no_search(store, questions):
    question = questions[0].flatten()
    for wrong, error, message in (
        ({"filter": {"n": {"$lessthan": 3}}}, ValueError, r"\$lessthan"),
        ({"filter": "n = 3"}, TypeError, "a filter must be a dict, got str"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"mode": "words"}, ValueError, "'words'"),
        ({"mode": "text"}, ValueError, "needs the words"),
        ({"oversample": 0}, ValueError, "oversample"),
        ({"text_weight": 1.5}, ValueError, "text_weight"),
        ({"rerank": -1}, ValueError, "rerank must be at least 0, got -1"),
    ):
        with pytest.raises(error, match=message):
            store.search(question, **wrong)
    with pytest.raises(ValueError, match="engine= or model="):
        store.search("What is it?", mode="memory")
    with pytest.raises(TypeError, match=r"question\[1\] must be a string, got int"):
        store.search(["a", 1])


# --- words -------------------------------------------------------------------------------------------------


def test_words_find_names_and_numbers(store):
    assert [hit.id for hit in store.search("where is number217", mode="text")] == ["217"]
    hits = store.search("the clock", mode="text", k=COUNT)
    assert {hit.id for hit in hits[:100]} == {str(number) for number in range(1, COUNT, 3)}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.window == 0 for hit in hits)
    assert len(store.search("the clock", mode="text", k=2)) == 2
    assert [len(own) for own in store.search(["number3", "nothing", "number5"], mode="text")] == [1, 0, 1]
    for nothing in ("", "   ", "?!", "xyzzy"):
        assert store.search(nothing, mode="text") == []


def test_words_do_not_depend_on_the_index(tmp_path):
    texts = ["She runs the bridges", "the runner", "He ran", "The THE the", "Ünï is 3,776 m high", "a 42b c-7"]
    store = MemoryStore.open(tmp_path / "store")
    store.add(memories=[made_memory(text) for text in texts], ids=list("abcdef"))
    queries = ["run", "runs", "the", "bridge", "BRIDGES", "3,776", "42b", "c 7", "ran OR the", 'the AND "ran"']
    before = [[hit.id for hit in store.search(query, mode="text", k=9)] for query in queries]
    store.optimize()
    assert [[hit.id for hit in store.search(query, mode="text", k=9)] for query in queries] == before
    assert before[:2] == [["c", "a", "b"]] * 2  # "ran" is a form of "run", and "runner" of the same root
    assert before[3:5] == [["a"], ["a"]]
    assert sorted(before[2]) == ["a", "b", "d"]


# --- both --------------------------------------------------------------------------------------------------


def test_both_rankings_are_fused(tmp_path, engine):
    store = MemoryStore.open(tmp_path / "store", engine)
    ids = store.add(PASSAGES)
    question = "How long is the bridge over the river Aln?"
    memory = [hit.id for hit in store.search(question, k=6, mode="memory", exact=True)]
    text = [hit.id for hit in store.search(question, k=6, mode="text")]
    assert text[0] == ids[1]
    cosines = {hit.id: hit.relevance for hit in store.search(question, k=6, mode="memory", exact=True)}
    words = {hit.id: hit.relevance for hit in store.search(question, k=6, mode="text")}
    for weight in (0.0, 0.3, 0.5, 1.0):
        hits = store.search(question, k=6, mode="hybrid", text_weight=weight)
        scores = {id_: (1 - weight) * cosines[id_] + weight * words.get(id_, 0.0) for id_ in memory}
        assert {hit.id: hit.score for hit in hits} == pytest.approx(scores, abs=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.id for hit in store.search(question, k=2, mode="hybrid", text_weight=1.0)] == text[:2]
    several = store.search([question, "Weldenia"], k=3, mode="hybrid")
    assert told(several[0]) == told(store.search(question, k=3, mode="hybrid"))
    assert store.search([], k=3) == []


def test_the_best_are_ranked_again_by_whether_they_hold_an_answer(tmp_path, engine):
    texts = [
        "The bakery on Kettle Street, the bakery of all bakeries.",
        "The Kettle Street bakery was founded by Rosalind Ashby.",
        "A boat.",
    ]
    question = "Who founded the Kettle Street bakery?"
    for uri in (str(tmp_path / "store"), "memory://"):
        store = MemoryStore.open(uri, engine)
        ids = store.add(texts)
        fused = {hit.id: hit.score for hit in store.search(question, k=3)}
        hits = store.search(question, k=3, rerank=10)
        parts = [
            {hit.id: hit.relevance for hit in store.search(question, k=3, mode=mode)} for mode in ("memory", "text")
        ]
        relevances = [(parts[0][id_], parts[1].get(id_, 0.0)) for id_ in fused]
        found = answer_shares(question, [store.get([id_])[0].text for id_ in fused], relevances)
        shares = dict(zip(fused, found, strict=True))
        assert {hit.id: hit.score for hit in hits} == pytest.approx(
            {id_: (score + shares[id_]) / 2 for id_, score in fused.items()}
        )
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert hits[0].id == ids[1]
        assert [hit.relevance for hit in hits] == [hit.score for hit in hits]
        [first, *_] = fused
        assert store.search(question, k=3, rerank=1)[0].id == first
        assert store.search(question, k=1, rerank=10)[0].id == ids[1]


def test_a_question_is_read_by_the_engine(tmp_path, engine):
    store = MemoryStore.open(tmp_path / "store", engine)
    ids = store.add(PASSAGES)
    question = "Which plants flower?"
    ranked = engine.rank(question, store.memories(ids))
    hits = store.search(question, k=6, mode="memory")
    assert [hit.id for hit in hits] == [ids[each.index] for each in ranked]
    assert [hit.score for hit in hits] == pytest.approx([each.score for each in ranked], abs=1e-5)
    assert told(store.search(engine.reason([question]), k=6)[0]) == told(hits)


def test_an_empty_question_is_a_question_like_any_other(tmp_path, engine):
    store = MemoryStore.open(tmp_path / "store", engine)
    assert store.search("", k=3) == store.search_mmr("") == []
    store.add(PASSAGES)
    assert len(store.search("", k=3, mode="memory")) == len(store.search("", k=3)) == 3
    assert store.search("", k=3, mode="text") == []


def test_relevance_is_a_number_from_zero_to_one_in_the_order_of_the_search(tmp_path, engine):
    store = MemoryStore.open(tmp_path / "store", engine)
    store.add([*PASSAGES, ""])
    for question in (PASSAGES[1], "How long is the bridge?", "xyzzy", "Aln Aln Aln", ""):
        for mode in ("memory", "text", "hybrid"):
            found = [hit.relevance for hit in store.search(question, k=9, mode=mode)]
            assert found == sorted(found, reverse=True)
            assert all(0.0 <= each <= 1.0 for each in found)
    assert store.search(PASSAGES[1], k=1, mode="text")[0].relevance > 0.8
    assert store.search(PASSAGES[1], k=1, mode="hybrid")[0].text == PASSAGES[1]


def test_what_stands_in_one_document_alone_comes_first(store, memories):
    """A code, a name or a number in the words decides, whatever the memory of the question is."""
    asked = [7, 50, 123, 217, 299]
    vectors = torch.stack([memories[(number + 100) % COUNT].tokens[0] for number in asked])
    hits = store.search([f"Who knows number{number}?" for number in asked], k=3, vectors=vectors)
    assert [own[0].id for own in hits] == [str(number) for number in asked]


def test_unspaced_scripts_long_words_and_codes_are_found(tmp_path):
    store = MemoryStore.open(tmp_path / "store")
    texts = [
        "北京大学在中国",
        "橋は東京にある",
        "โลกใบนี้",
        "w" * 120 + " and more",
        "part AB-1234/9 of it",
        "parts AB and 1234 and 9",
    ]
    store.add(memories=[made_memory(text) for text in texts], ids=list("abcdef"))
    for words, id_ in (("中国", "a"), ("橋", "b"), ("東京", "b"), ("โลก", "c"), ("W" * 120, "d"), ("ab-1234/9", "e")):
        assert store.search(words, mode="text")[0].id == id_, words


# --- keys --------------------------------------------------------------------------------------------------


def test_an_index_over_keys_finds_the_same_and_what_came_after_it(tmp_path, memories, questions, monkeypatch):
    monkeypatch.setattr(maintenance, "INDEX_ROWS", 256)
    store = MemoryStore.open(tmp_path / "store", key=64)
    store.add(memories=memories[:-20], ids=[str(number) for number in range(COUNT - 20)])
    store.optimize()
    assert store.stats().key_index_rows == COUNT - 20
    store.add(memories=memories[-20:], ids=[str(number) for number in range(COUNT - 20, COUNT)])
    assert store.stats().key_index_rows < store.count()
    monkeypatch.setattr(KeyScan, "at", None)  # it is not needed
    hits = store.search(questions, k=5, oversample=40)
    right = [{id_ for id_, _, _ in expected(question, memories, 5)} for question in questions]
    same = [len(want & {hit.id for hit in own}) for own, want in zip(hits, right, strict=True)]
    assert sum(same) >= 0.9 * 5 * len(questions)
    assert [hit.id for hit in store.search(memories[-3].tokens[0].flatten(), k=1)] == [str(COUNT - 3)]
    only = store.search(questions[0].flatten(), k=3, filter={"none": 1})
    assert only == []
    store.delete([hits[0][0].id])
    assert hits[0][0].id not in [hit.id for hit in store.search(questions[0].flatten(), k=5)]


def test_keys_follow_the_table(tmp_path):
    """After every change of the files, the keys in memory equal those that are read again."""
    rng = random.Random(3)
    store = MemoryStore.open(tmp_path / "store", key=16)
    table, kept = Table(store.uri), KeyScan()
    names = [str(number) for number in range(40)]
    store.add(memories=[made_memory("first")])
    for step in range(40):
        chosen = rng.sample(names, rng.randint(1, 8))
        action = rng.random()
        if action < 0.6:
            store.add(ids=chosen, memories=[made_memory(f"{name} {step}", 1 + step % 3) for name in chosen])
        elif action < 0.85:
            store.delete(chosen)
        else:
            store.compact()
        dataset = table.latest()
        layout = Layout.of(dataset.schema, store.uri)
        keys, fresh = kept.at(dataset, layout), KeyScan().at(dataset, layout)
        assert fresh.alive.all()
        order = np.argsort(keys.rows[keys.alive])
        assert keys.rows[keys.alive][order].tolist() == sorted(fresh.rows.tolist())
        own, again = np.concatenate(keys.blocks)[keys.alive], np.concatenate(fresh.blocks)
        np.testing.assert_array_equal(own[order], again[np.argsort(fresh.rows)])
        assert len(keys.rows) <= 3 * len(fresh.rows) + 64  # removed rows do not accumulate
