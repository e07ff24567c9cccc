"""A store with killed processes, full disks and broken files, without any simulation."""

from __future__ import annotations

import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core import MemoryStore, StoreError
from clara_core.store.maintenance import drop_versions, held
from clara_core.store.schema import FORMAT
from clara_core.store.table import Table
from tests.store.writers import IDS, add, memory_of, text_of

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 600.0  # seconds after which a test fails; every step takes less than one


class Writers:
    """The parent of the writing processes, and their messages."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.store.writers"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.hear("ready")

    def _listen(self):
        for line in self.process.stdout:
            self.said.put(json.loads(line))

    def hear(self, kind):
        """The next message, which must be of this kind."""
        pid, found, what = self.said.get(timeout=PATIENCE)
        assert found == kind, (pid, found, what)
        return what

    def start(self, **arguments):
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        heard = []
        while not heard or heard[-1][1] != "started":
            heard.append(self.said.get(timeout=PATIENCE))
        for early in heard[:-1]:  # a message of the child, which may arrive before that of its parent
            self.said.put(early)
        return heard[-1][2]

    def end(self, pid):
        """Wait until a process ends; returns all its messages."""
        print(json.dumps({"wait": pid}), file=self.process.stdin, flush=True)
        heard = []
        while not heard or heard[-1][1:] != ["ended", pid]:
            heard.append(self.said.get(timeout=PATIENCE))
        return heard[:-1]


@pytest.fixture(scope="module")
def writers():
    writers = Writers()
    yield writers
    writers.process.stdin.close()
    writers.process.wait(PATIENCE)


def replay(said, versions):
    """The expected contents after these steps, and the step that was in progress, if any."""
    under_way = None
    for _, kind, what in said:
        if kind == "will":
            under_way = what
        elif kind == "done":
            under_way = None
            if "add" in what:
                versions = versions | what["add"]
            elif "delete" in what:
                versions = {name: version for name, version in versions.items() if name not in what["delete"]}
    return versions, under_way


def version_in(record):
    """The version of a document in a record; all parts must belong to it."""
    version = record.metadata["version"]
    memory = memory_of(record.id, version)
    assert record.metadata == {"version": version, "name": record.id}
    assert (record.text, record.spans, record.source_tokens) == (memory.text, memory.spans, memory.source_tokens)
    return version


def contents(store):
    """Version of every document; checks that each is complete, exists once, and is found."""
    found = {}
    for record in store:
        assert record.id not in found
        found[record.id] = version_in(record)
    names = list(found)
    assert store.count() == len(names)
    assert [record.id for record in store.get(names)] == names
    for name, memory in zip(names, store.memories(names), strict=True):
        expected = memory_of(name, found[name])
        assert torch.equal(memory.tokens.float(), expected.tokens)
        assert memory.text == expected.text
    if names:
        windows = [(name, window) for name in names for window in memory_of(name, found[name]).tokens]
        hits = store.search(torch.stack([window for _, window in windows]), k=1)
        assert [hit.id for [hit] in hits] == [name for name, _ in windows]
        assert all(hit.score > 0.999 for [hit] in hits)
    return found


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


# --- full disks --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte; skips the test if mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount") or pytest.skip("needs the program mount")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip().splitlines()[0]}")
    yield folder
    subprocess.run([shutil.which("umount"), "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_and_loses_nothing(small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(300_000))
    store = MemoryStore.open(small_disk / "store")
    versions = {}

    def fill():
        for number in range(10_000):
            batch = {f"document {number} {part}": number for part in range(20)}
            add(store, batch)
            versions.update(batch)

    with pytest.raises(StoreError, match=r"(?i)no space left"):
        fill()
    assert len(versions) > 100
    assert contents(store) == versions
    assert contents(MemoryStore.open(store.uri)) == versions
    filler.unlink()
    add(store, {"after": 1})
    assert contents(MemoryStore.open(store.uri)) == versions | {"after": 1}


def test_a_file_that_may_not_grow_is_said_and_loses_nothing(writers, tmp_path):
    """The same without mounting: a writer with a limit on the size of files."""
    uri = str(tmp_path / "store")
    first = writers.start(uri=uri, seed=6, versions={}, steps=8)
    versions, _ = replay(writers.end(first), {})
    bounded = writers.start(uri=uri, seed=7, versions=versions, name="later", largest_file=700)
    said = writers.end(bounded)
    assert said[-1][1] == "failed", said
    assert "File too large" in said[-1][2][1]
    assert contents(MemoryStore.open(uri)) == replay(said, versions)[0]
    versions, _ = replay(said, versions)
    last = writers.start(uri=uri, seed=8, versions=versions, steps=5)
    versions, _ = replay(writers.end(last), versions)
    assert contents(MemoryStore.open(uri)) == versions


# --- broken files ------------------------------------------------------------------------------------------


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def garbled(path):
    """Replace the first half of a file with noise; its size and end do not change."""
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(random.Random(1).randbytes(half) + content[half:])


def without_end(path):
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes(100))


@pytest.fixture
def three_files(tmp_path):
    """A store of three files with ten documents each."""
    store = MemoryStore.open(tmp_path / "store")
    for start in (0, 10, 20):
        add(store, {f"document {number}": 2 for number in range(start, start + 10)})
    return store


def data_files(store):
    return sorted(Path(store.uri, "memories.lance", "data").iterdir(), key=lambda path: path.stat().st_mtime_ns)


CALLS = {
    "get": lambda store: store.get(["document 12"]),
    "memories": lambda store: store.memories(["document 12"]),
    "iterate": list,
    "search": lambda store: store.search(memory_of("document 12", 2).tokens[:1], k=30),
    "search exactly": lambda store: store.search(memory_of("document 12", 2).tokens[:1], k=30, exact=True),
    "search words": lambda store: store.search("document 12", mode="text", k=30),
    "add": lambda store: add(store, {"document 12": 3}),
    "compact": lambda store: store.compact(),
}


@pytest.mark.parametrize("break_", [truncated, emptied, garbled, without_end, Path.unlink])
def test_a_broken_file_is_named_and_the_others_are_read_after_it_is_taken_out(break_, three_files):
    broken = data_files(three_files)[1]
    break_(broken)
    for name, call in CALLS.items():
        with pytest.raises(StoreError, match=broken.name) as failure:
            call(MemoryStore.open(three_files.uri))
        assert "salvage()" in str(failure.value), name
    store = MemoryStore.open(three_files.uri)
    assert [Path(file.path).name for file in store.check()] == [broken.name]
    [found] = store.salvage()
    assert Path(found.path).name == broken.name
    assert found.rows == 10
    assert [file.rows for file in store.check()] == []
    assert store.salvage() == []
    whole = {f"document {number}": 2 for number in (*range(10), *range(20, 30))}
    assert contents(store) == whole
    add(store, {"document 12": 3})
    store.compact()
    assert contents(MemoryStore.open(store.uri)) == whole | {"document 12": 3}


def test_a_broken_manifest_is_said(three_files):
    newest = min(Path(three_files.uri, "memories.lance", "_versions").glob("*.manifest"))  # they count downwards
    truncated(newest)
    with pytest.raises(StoreError, match="cannot be opened"):
        MemoryStore.open(three_files.uri)


# --- other versions ----------------------------------------------------------------------------------------


def covered(store, **changes):
    """Change the metadata of the schema."""
    dataset = lance.dataset(f"{store.uri}/memories.lance")
    settings = json.loads(dataset.schema.metadata[b"clara.store"]) | changes
    dataset.update_schema_metadata({"clara.store": json.dumps(settings)})


def test_a_store_of_a_newer_version_is_refused_with_what_to_do(three_files):
    covered(three_files, format=FORMAT + 1)
    with pytest.raises(StoreError, match=rf"format {FORMAT + 1}.*pip install -U clara-rag"):
        MemoryStore.open(three_files.uri)


def test_a_store_of_an_older_version_is_refused_with_what_to_do(three_files):
    covered(three_files, format=FORMAT - 1)
    with pytest.raises(StoreError, match=rf"format {FORMAT - 1}.*index its texts again"):
        MemoryStore.open(three_files.uri)


def test_a_table_of_somebody_else_is_refused(tmp_path):
    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / "memories.lance"))
    with pytest.raises(StoreError, match="not written by a MemoryStore"):
        MemoryStore.open(tmp_path)


# --- hostile strings ---------------------------------------------------------------------------------------

HOSTILE = [
    "'; DROP TABLE memories; --",
    "' OR '1'='1",
    '"quoted" and `ticked`',
    "../../etc/passwd",
    "C:\\con\\..\\nul",
    "a/b/c",
    "%s {0} $HOME ${HOME} $(id) `id`",
    "null",
    "NaN",
    "",
    " ",
    "\n\r\t\0\x1b[31m",
    "\ufeffnaïve 🙂 \u202eabc\u202c e\u0301",
    "\ud800",
    "\ufdd00000",
    "x" * 10_000,
    "_rowid",
    "id IS NOT NULL",
    "\\' \\u0027",
    "%_%",
]


def test_ids_and_metadata_are_data(tmp_path):
    store = MemoryStore.open(tmp_path / "store")
    memories = {id_: memory_of(str(number), number) for number, id_ in enumerate(HOSTILE)}
    metadatas = [{"name": id_, f"key {id_}": {"in": [id_]}} for id_ in HOSTILE]
    store.add(memories=list(memories.values()), ids=HOSTILE, metadatas=metadatas)
    store = MemoryStore.open(tmp_path / "store")
    assert [record.id for record in store.get(HOSTILE)] == HOSTILE
    assert [record.metadata for record in store.get(HOSTILE)] == metadatas
    assert sorted(record.id for record in store) == sorted(HOSTILE)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    for number, id_ in enumerate(HOSTILE):
        assert [record.id for record in store.get([id_])] == [id_]
        assert store.count({"name": id_}) == 1
        assert store.count({"name": {"$in": [id_, "nobody"]}}) == 1
        [hit] = store.search(memories[id_].tokens[:1], k=3, filter={"name": id_})[0]
        assert (hit.id, hit.metadata) == (id_, metadatas[number])
    for number, id_ in enumerate(HOSTILE):
        assert store.delete(ids=[id_]) == 1
        assert store.count() == len(HOSTILE) - number - 1


@given(
    ids=st.lists(st.text(st.characters(codec=None), max_size=12), min_size=1, max_size=6, unique=True),
    value=st.text(st.characters(codec=None), max_size=12),
)
@settings(max_examples=25, deadline=None)
def test_any_string_is_an_id_and_a_value(ids, value):
    store = MemoryStore.open("memory://")
    memories = [memory_of(str(number), number) for number in range(len(ids))]
    store.add(memories=memories, ids=ids, metadatas=[{"value": value}] * len(ids))
    assert [record.id for record in store.get(ids)] == ids
    assert store.count({"value": value}) == len(ids)
    assert store.count({"value": value + "'"}) == 0
    assert store.delete(ids=ids[:1], filter={"value": value}) == 1
    assert [record.id for record in store] == ids[1:]


def test_words_of_a_search_are_data(tmp_path):
    store = MemoryStore.open(tmp_path / "store")
    add(store, {"document 1": 1})
    for words in HOSTILE:
        if words.strip():
            assert isinstance(store.search(words, mode="text"), list)


@pytest.mark.parametrize("filter_", [{"$where": "1=1"}, {"name": {"$regex": "("}}, {"name": {"$drop": 1}}])
def test_what_is_no_filter_is_refused(filter_, three_files):
    with pytest.raises((ValueError, TypeError)):
        three_files.count(filter_)
    with pytest.raises((ValueError, TypeError)):
        three_files.delete(filter=filter_)
    assert three_files.count() == 30


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
