"""A store with full disks, broken files and hostile strings, without any simulation."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core import MemoryStore, StoreError
from clara_core.store.schema import FORMAT
from tests.store.watched import contents, replay
from tests.store.writers import add, memory_of

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
