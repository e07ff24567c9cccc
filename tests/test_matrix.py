"""The matrix against a dictionary of vectors and a loop."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clara_core.matrix import VectorMatrix

LENGTH = 6


def vectors(seed, rows):
    return torch.randn(rows, LENGTH, generator=torch.Generator().manual_seed(seed))


def by_hand(entries, question, k):
    """Every entry's best cosine, one by one."""
    scored = [
        (max(float(torch.cosine_similarity(row, question, dim=0)) for row in rows), key)
        for key, (_, rows) in entries.items()
    ]
    return [(key, pytest.approx(score, abs=1e-5)) for score, key in sorted(scored, key=lambda pair: -pair[0])[:k]]


class Twins(RuleBasedStateMachine):
    """Whatever is put and deleted, the matrix finds what a dictionary and a loop find."""

    def __init__(self):
        super().__init__()
        self.matrix, self.twin, self.seed = VectorMatrix(), {}, 0

    @rule(keys=st.lists(st.integers(0, 8), max_size=4), rows=st.integers(1, 3))
    def put(self, keys, rows):
        items = []
        for key in keys:
            self.seed += 1
            items.append((key, self.seed, vectors(self.seed, rows)))
        self.matrix.put(items)
        for key, value, given in {item[0]: item for item in items}.values():
            self.twin.pop(key, None)
            self.twin[key] = (value, given)

    @rule(keys=st.lists(st.integers(0, 8), max_size=6))
    def delete(self, keys):
        assert self.matrix.delete(keys) == len({key for key in keys if self.twin.pop(key, None)})

    @rule()
    def clear(self):
        self.matrix.clear()
        self.twin.clear()

    @rule(k=st.integers(1, 5), seed=st.integers(0, 5))
    def search(self, k, seed):
        question = vectors(seed, 1)[0]
        found = self.matrix.search(question, k)
        assert [(hit.key, hit.score) for hit in found] == by_hand(self.twin, question, k)
        odd = {key: entry for key, entry in self.twin.items() if entry[0] % 2}
        found = self.matrix.search(question, k, lambda value: value % 2)
        assert [(hit.key, hit.score) for hit in found] == by_hand(odd, question, k)

    @invariant()
    def holds_the_same(self):
        assert list(self.matrix) == [(key, value) for key, (value, _) in self.twin.items()]
        assert len(self.matrix) == len(self.twin)
        for key in range(9):
            assert (key in self.matrix) == (key in self.twin)
            got = self.matrix.get(key)
            if key in self.twin:
                assert got[0] == self.twin[key][0] == self.matrix.value(key)
                assert torch.equal(got[1], self.twin[key][1])
            else:
                assert got is self.matrix.value(key) is None


Twins.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestTwins = Twins.TestCase


def test_deleting_gives_rows_back():
    matrix = VectorMatrix()
    matrix.put([(key, key, vectors(key, 2)) for key in range(100)])
    matrix.delete(range(90))
    assert len(matrix._state.rows) < 60
    assert [hit.key for hit in matrix.search(vectors(95, 2)[1], 1)] == [95]


def test_equal_scores_keep_their_order():
    matrix = VectorMatrix()
    matrix.put([(key, None, torch.ones(1, LENGTH)) for key in "dbca"])
    assert [hit.key for hit in matrix.search(torch.ones(LENGTH), 4)] == list("dbca")
    assert all(-1 <= hit.score <= 1 for hit in matrix.search(torch.ones(LENGTH), 4))


def test_a_zero_vector_has_no_cosine_but_breaks_nothing():
    matrix = VectorMatrix()
    matrix.put([("zero", None, torch.zeros(1, LENGTH)), ("one", None, torch.ones(1, LENGTH))])
    assert [(hit.key, hit.score) for hit in matrix.search(torch.ones(LENGTH), 2)] == [
        ("one", pytest.approx(1.0)),
        ("zero", 0.0),
    ]


def test_lengths_that_do_not_belong_together():
    matrix = VectorMatrix()
    assert matrix.length is None
    matrix.put([("a", None, torch.ones(1, LENGTH))])
    assert matrix.length == LENGTH
    with pytest.raises(ValueError, match=f"5 numbers do not belong beside vectors of {LENGTH}"):
        matrix.put([("b", None, torch.ones(1, 5))])
    with pytest.raises(ValueError, match="question of 5 numbers"):
        matrix.search(torch.ones(5), 1)
    assert len(matrix) == 1


def test_copies_are_on_their_own():
    matrix = VectorMatrix()
    matrix.put([("a", [1], vectors(0, 2))])
    for copied in (copy.deepcopy(matrix), pickle.loads(pickle.dumps(matrix))):  # noqa: S301 - made here
        copied.put([("b", [2], vectors(1, 1))])
        copied.value("a").append(3)
        assert (len(copied), len(matrix), matrix.value("a")) == (2, 1, [1])


def test_a_reader_never_misses_what_is_being_replaced():
    """An entry that is replaced again and again is there in every search: the old one or the new one."""
    matrix = VectorMatrix()
    matrix.put([(key, 0, vectors(key, 1)) for key in range(30)])
    stop = threading.Event()

    def replace():
        version = 0
        while not stop.is_set():
            version += 1
            matrix.put([(7, version, vectors(7, 1))])
            matrix.delete([100 + version - 3])
            matrix.put([(100 + version, 0, vectors(1000 + version, 1))])  # never the vector of entry 7

    def read():
        return all(matrix.search(vectors(7, 1)[0], 1)[0].key == 7 for _ in range(300))

    with ThreadPoolExecutor(3) as pool:
        writer = pool.submit(replace)
        readers = [pool.submit(read) for _ in range(2)]
        try:
            assert all(reader.result() for reader in readers)
        finally:
            stop.set()
        writer.result()
