"""Maintenance of a store: compacting, fitting keys again, building indexes, statistics."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from clara_core import MemoryStore
from clara_core.data.memory import content_key
from clara_core.store import maintenance
from clara_core.store.backend import Entry
from clara_core.store.keys import Key
from clara_core.store.schema import FIT_ROWS, Layout
from clara_core.store.table import Table
from tests.store.conftest import add, told
from tests.store.memories import FINGERPRINT, HIDDEN, N_MEM, made_memory


def test_compacting_leaves_everything_in_order_in_one_file(store):
    for number in range(12):
        add(store, f"{number}", windows=1 + number % 2)
    store.delete(["3", "4"])
    add(store, "5", metadatas=[{"new": True}])
    before, size = list(store), store.stats().bytes
    assert store.stats().fragments > 5
    store.compact()
    stats = store.stats()
    assert (stats.fragments, stats.documents) == (1, 10)
    assert stats.bytes < size
    assert list(store) == list(MemoryStore.open(store.uri)) == before
    assert [record.id for record in before][-1] == "5"


def test_keys_are_fitted_again_once_there_are_enough(tmp_path):
    store = MemoryStore.open(tmp_path / "store", key=128)
    reader = MemoryStore.open(tmp_path / "store")
    question = made_memory("text of 7").tokens.flatten()
    for start in range(0, FIT_ROWS + 40, 40):
        add(store, *(str(number) for number in range(start, start + 40)))
        assert reader.search(question, k=1)[0].id == "7" if start else True
    table = Table(store.uri)
    layout = Layout.of(table.latest().schema, store.uri)
    assert layout.fitted_to >= FIT_ROWS
    assert set(table.latest().to_table(columns=["key_version"])["key_version"].to_pylist()) == {layout.key_version}
    assert [record.id for record in store] == [str(number) for number in range(FIT_ROWS + 64)]
    exact = told(reader.search(question, k=5, exact=True))
    assert told(reader.search(question, k=5)) == exact
    # A writer without the new settings: readers compute the keys of its rows again, and `optimize` stores them.
    old = replace(layout, key=Key(N_MEM * HIDDEN, 128))
    late = entry("late", made_memory("text of 7", 2))
    table.merge(pa.Table.from_batches([old.rows([late], serial=time.time_ns())]))
    assert {hit.id for hit in reader.search(question, k=2)} == {"7", "late"}
    before = list(store)
    store.optimize()
    assert set(table.latest().to_table(columns=["key_version"])["key_version"].to_pylist()) == {layout.key_version}
    assert list(store) == before
    assert {hit.id for hit in reader.search(question, k=2)} == {"7", "late"}


def entry(id_, memory):
    return Entry(id_, memory.text, "{}", content_key(memory.text, FINGERPRINT), memory)


def test_optimize_makes_indexes_that_what_comes_later_does_not_need(store, monkeypatch):
    monkeypatch.setattr(maintenance, "INDEX_ROWS", 20)
    add(store, *(str(number) for number in range(30)))
    assert (store.stats().word_index_rows, store.stats().key_index_rows) == (None, None)
    before = [(hit.id, hit.score) for hit in store.search("text of 7", mode="text", k=40)]
    store.optimize()
    assert store.stats().word_index_rows == 30
    assert {hit.id for hit in store.search("text of 7", mode="text", k=40)} == {id_ for id_, _ in before}
    assert store.search("text of 7", mode="text")[0].id == "7"
    add(store, "new", windows=2)
    store.add(ids=["3"], memories=[made_memory("other words", 2)])
    assert store.stats().word_index_rows == 29  # of the remaining documents
    assert store.search("text of new", mode="text", k=1)[0].id == "new"
    assert [hit.id for hit in store.search("other", mode="text")] == ["3"]
    assert "3" not in [hit.id for hit in store.search("text 3", mode="text", k=40)]
    store.delete(["5"])
    assert "5" not in [hit.id for hit in store.search("text of 5", mode="text", k=40)]
    store.optimize()
    store.compact()
    assert store.stats().word_index_rows == store.count() == 30
    assert [hit.id for hit in store.search("other", mode="text")] == ["3"]


def test_the_index_finds_synonyms_in_the_order_of_a_scan(store, monkeypatch):
    monkeypatch.setattr(maintenance, "INDEX_ROWS", 2)
    texts = ["the rubbish is here", "the trash can is here", "the garbage is there"]
    store.add(ids=list("abc"), memories=[made_memory(text, 2) for text in texts])
    scanned = store.search("trash here", mode="text")
    store.optimize()
    assert store.stats().word_index_rows == 3
    indexed = store.search("trash here", mode="text")
    assert [hit.id for hit in indexed] == [hit.id for hit in scanned] == ["b", "a", "c"]
    assert store.search("trash", mode="text", k=3)[1].score < store.search("trash", mode="text", k=3)[0].score


def test_many_small_writes_leave_few_files(tmp_path, monkeypatch):
    """While documents are added, files are merged and old versions removed, except those that a reader uses."""
    monkeypatch.setattr(maintenance, "EVERY", 4)
    monkeypatch.setattr(maintenance, "_SUPERSEDED", timedelta(0))
    store = MemoryStore.open(tmp_path / "store")
    for number in range(40):
        add(store, str(number))
    reader = iter(MemoryStore.open(tmp_path / "store"))
    seen = [next(reader).id]
    for number in range(40, 80):
        add(store, str(number))
        store.delete([str(number - 40)])
        store._backend._maintenance.wait()
    files = [path for path in Path(store.uri).rglob("*") if path.is_file()]
    assert store.stats().fragments <= 16
    assert len(files) < 80  # of 120 commits
    assert [record.id for record in store] == [str(number) for number in range(40, 80)]
    assert seen + [record.id for record in reader] == [str(number) for number in range(40)]


def test_statistics_say_what_is_there(store):
    add(store, "a", "b", windows=2)
    stats = store.stats()
    assert (stats.documents, stats.fragments) == (2, 1)
    assert stats.fingerprint == store.fingerprint == FINGERPRINT
    assert stats.bytes == 2 * stats.bytes_per_document > 4 * N_MEM * HIDDEN * 2
    assert (stats.memory_type, stats.key_length) == ("bfloat16", N_MEM * HIDDEN)


def test_lancedb_opens_the_table(store):
    lancedb = pytest.importorskip("lancedb")
    add(store, "a", "b", metadatas=[{"x": 1}, {}])
    table = lancedb.connect(store.uri).open_table("memories")
    assert table.count_rows() == 2
    assert table.search().where("id = 'a'").to_list()[0]["metadata"] == '{"x":1}'
