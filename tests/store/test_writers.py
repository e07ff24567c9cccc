"""Processes and threads that write, read and maintain one store at the same time, and writers that are killed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from clara_core import MemoryStore
from clara_core.store.maintenance import drop_versions, held
from clara_core.store.table import Table
from tests.store.watched import PATIENCE, contents, replay, version_in
from tests.store.writers import IDS, add, memory_of, text_of

# --- killed ------------------------------------------------------------------------------------------------


def test_a_writer_that_is_killed_again_and_again_loses_nothing(writers, tmp_path):
    """Kills at random moments while a store is created, written and maintained; the next writer continues."""
    rng = random.Random(2026)
    uri = str(tmp_path / "store")
    versions, interrupted, acknowledged = {}, 0, 0
    for attempt in range(12):
        pid = writers.start(uri=uri, seed=attempt, versions=versions)
        steps = rng.randint(0, 3)
        said = [writers.said.get(timeout=PATIENCE)]  # it begins its first step
        while sum(kind == "done" for _, kind, _ in said) < steps:
            said.append(writers.said.get(timeout=PATIENCE))
        time.sleep(rng.uniform(0, 0.04))
        os.kill(pid, signal.SIGKILL)
        said += writers.end(pid)
        expected, under_way = replay(said, versions)
        interrupted += under_way is not None
        acknowledged += sum(kind == "done" for _, kind, _ in said)

        found = contents(MemoryStore.open(uri))
        maybe = dict.fromkeys((under_way or {}).get("delete", ())) | (under_way or {}).get("add", {})
        assert found.keys() | maybe.keys() == expected.keys() | maybe.keys()
        for name in expected.keys() | maybe.keys():
            allowed = {expected.get(name), maybe[name]} if name in maybe else {expected[name]}
            assert found.get(name) in allowed
        versions = found
    assert interrupted > 3  # otherwise nothing was tested
    assert acknowledged > 8


# --- concurrent writers ------------------------------------------------------------------------------------


def test_two_processes_that_write_lose_nothing(writers, tmp_path):
    uri = str(tmp_path / "store")
    pids = [writers.start(uri=uri, seed=seed, versions={}, name=name, steps=25) for seed, name in ((1, "a"), (2, "b"))]
    said = [line for pid in pids for line in writers.end(pid)]
    expected = {}
    for pid in pids:
        own = [line for line in said if line[0] == pid]
        assert [kind for _, kind, _ in own] == ["will", "done"] * 25, own[-2:]
        expected |= replay(own, {})[0]
    assert contents(MemoryStore.open(uri)) == expected


def test_two_processes_that_write_the_same_documents_leave_one_of_each(writers, tmp_path):
    uri = str(tmp_path / "store")
    pids = [writers.start(uri=uri, seed=seed, versions={}, steps=25) for seed in (3, 4)]
    said = [line for pid in pids for line in writers.end(pid)]
    assert [kind for _, kind, _ in said].count("done") == 50, said[-1]
    written = {}
    for _, kind, what in said:
        if kind == "done":
            for name, version in what.get("add", {}).items():
                written.setdefault(name, set()).add(version)
    deleted = {name for _, _, what in said for name in what.get("delete", ())}
    found = contents(MemoryStore.open(uri))
    assert all(version in written[name] for name, version in found.items())
    assert written.keys() - deleted <= found.keys()


@pytest.mark.parametrize("indexed", [False, True])
def test_threads_that_put_in_the_same_new_document_leave_one(tmp_path, indexed):
    """Each thread has its own store object; also with an index of the ids."""
    uri = str(tmp_path / "store")
    add(MemoryStore.open(uri), {"document 0": 0})
    if indexed:
        MemoryStore.open(uri).optimize()
    rounds, barrier = 15, threading.Barrier(2, timeout=PATIENCE)

    def put(version):
        store = MemoryStore.open(uri)
        for number in range(1, rounds + 1):
            barrier.wait()
            add(store, {f"document {number}": version, f"own {version} {number}": 0})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(put, [1, 2]))
    found = contents(MemoryStore.open(uri))
    assert len(found) == 1 + 3 * rounds


def test_readers_see_whole_documents_while_others_write_and_compact(writers, tmp_path):
    uri = str(tmp_path / "store")
    add(MemoryStore.open(uri), {f"document {number}": 0 for number in range(IDS)})
    pid = writers.start(uri=uri, seed=5, versions={f"document {number}": 0 for number in range(IDS)}, steps=60)
    reader = MemoryStore.open(uri, read_only=True)
    question = memory_of("document 1", 0).tokens[0].flatten()
    seen, reads, said = set(), 0, []
    while sum(kind == "done" for _, kind, _ in said) < 60:
        versions = {}
        for record in reader:
            assert record.id not in versions
            versions[record.id] = version_in(record)
        seen.add(tuple(sorted(versions.items())))
        hits = reader.search(question, k=5)
        assert [hit.text for hit in hits] == [text_of(hit.id, hit.metadata["version"]) for hit in hits]
        reads += 1
        while not writers.said.empty():
            said.append(writers.said.get())
        assert "failed" not in [kind for _, kind, _ in said]
    said += writers.end(pid)
    assert reads > 3
    assert len(seen) > 2  # it noticed the change of the store
    expected, _ = replay(said, {f"document {number}": 0 for number in range(IDS)})
    assert contents(reader) == expected


def test_a_reader_goes_on_with_what_it_began_while_all_of_it_is_replaced(tmp_path):
    store, reader = (MemoryStore.open(tmp_path / "store") for _ in range(2))
    names = [f"document {number}" for number in range(30)]
    for start in range(0, 30, 5):
        add(store, dict.fromkeys(names[start : start + 5], 0))
    begun = iter(reader)
    first = next(begun)
    add(store, dict.fromkeys(names, 1))
    store.compact()
    assert {version_in(record) for record in (first, *begun)} == {0}
    assert {version_in(record) for record in reader} == {1}


# --- versions ----------------------------------------------------------------------------------------------


def test_versions_are_dropped_while_readers_come_and_go(tmp_path):
    """A tag that its reader releases after the tags are listed and before they are read is not an error."""
    uri = str(tmp_path / "store")
    add(MemoryStore.open(uri), {"document 1": 0})
    table, stop = Table(uri), threading.Event()

    def read():
        while not stop.is_set():
            with held(Table(uri).latest()):
                pass

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(300):
            drop_versions(table, timedelta(hours=1))
    finally:
        stop.set()
        for reader in readers:
            reader.join()


def test_several_processes_drop_versions_at_once(tmp_path):
    """A version that another one deletes after the versions are listed and before they are read is not an error."""
    uri = str(tmp_path / "store")
    add(MemoryStore.open(uri), {"document 1": 0})
    tables, stop = [Table(uri) for _ in range(3)], threading.Event()

    def write():
        while not stop.is_set():
            tables[0].change(lambda own: own.update_schema_metadata({"time": str(time.time_ns())}))

    def drop(table):
        for _ in range(60):
            drop_versions(table, timedelta(0))

    with ThreadPoolExecutor(3) as pool:
        writing = pool.submit(write)
        try:
            list(pool.map(drop, tables[1:]))
        finally:
            stop.set()
        writing.result()
