"""Bulk jobs: the same store by every way, completely or not at all, and resumable after any interruption."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clara_core import ClaraEngine, DataError, FingerprintMismatch, MemoryStore, StoreError
from clara_core.engine.options import EngineArguments
from clara_core.store.bulk import (
    BatchCompressor,
    Columns,
    FragmentWriter,
    commit_written,
    compress_dataset,
    prepare_store,
)
from clara_core.store.bulk import job as bulk
from clara_core.store.bulk.fragments import WRITTEN, digests, first_of_each
from clara_core.store.bulk.progress import Progress
from clara_core.store.table import Table
from tests.tiny import TEXTS, build

ROOT = Path(__file__).parent.parent.parent
COLUMNS = Columns(id="id")
N = 60


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    tiny = build(tmp_path_factory.mktemp("tiny"))
    return EngineArguments(model=str(tiny.folder), base_model=str(tiny.base), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def engine(arguments):
    return ClaraEngine.from_pretrained(**arguments.public())


@pytest.fixture(scope="module")
def table():
    """Documents of one to a few windows, with metadata of several types."""
    texts = [f"{number}. " + " ".join(TEXTS[: 1 + number % 5]) for number in range(N)]
    return pa.table(
        {
            "id": [f"doc 'n\"{number}" for number in range(N)],
            "text": texts,
            "year": list(range(1900, 1900 + N)),
            "tags": [[f"t{number % 3}", None] for number in range(N)],
        }
    )


@pytest.fixture
def source(table, tmp_path):
    path = tmp_path / "corpus.parquet"
    pq.write_table(table, path, row_group_size=5)
    return str(path)


def contents(uri):
    """The contents of a store, by id."""
    store = MemoryStore.open(uri)
    found = {record.id: record for record in store}
    memories = dict(zip(found, store.memories(list(found)), strict=True))
    assert store.count() == len(found)
    return {id_: (record, memories[id_].tokens, memories[id_].spans) for id_, record in found.items()}


def assert_equal(one, other):
    """Assert equality; texts are in other batches than in `add`, so a number may differ by one step of bfloat16."""
    assert one.keys() == other.keys()
    for id_, (record, tokens, spans) in one.items():
        assert (record, spans) == (other[id_][0], other[id_][2])
        torch.testing.assert_close(tokens, other[id_][1], rtol=2**-7, atol=1e-3)


@pytest.fixture(scope="module")
def added(engine, table, tmp_path_factory):
    """The store that `MemoryStore.add` writes from the table."""
    folder = tmp_path_factory.mktemp("added")
    rows = table.to_pylist()
    MemoryStore.open(folder, engine=engine).add(
        [row["text"] for row in rows],
        ids=[row["id"] for row in rows],
        metadatas=[{"year": row["year"], "tags": row["tags"]} for row in rows],
    )
    return contents(folder)


# --- many strings ------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcdefgh")), st.lists(st.sampled_from("abcdefgh")))
def test_sets_of_digests_are_sets(known, found):
    assert np.isin(digests(found), digests(known)).tolist() == [string in known for string in found]
    assert first_of_each(digests(found)).tolist() == [string not in found[:n] for n, string in enumerate(found)]


# --- the functions -----------------------------------------------------------------------------------------


def test_batches_of_texts_become_the_rows_that_add_writes(arguments, table, added, tmp_path):
    """As Spark would call it: pickled, with an iterator of batches of any size, one task at a time."""
    uri = str(tmp_path / "store")
    schema = prepare_store(uri, table["text"].to_pylist()[:20], arguments)
    assert MemoryStore.open(uri).count() == 0
    compress_batches = pickle.loads(pickle.dumps(BatchCompressor(schema, arguments, COLUMNS)))  # noqa: S301 - our own
    batches = table.to_batches(max_chunksize=7)
    parts = [iter(batches[:3]), iter(batches[3:]), iter([])]
    written = []
    for part in parts:
        rows = list(compress_batches(part))
        assert all(batch.schema == schema for batch in rows)
        [note] = FragmentWriter(uri)(iter(rows))
        assert note.schema == WRITTEN
        written.append(note)
    assert MemoryStore.open(uri).count() == 0  # readers do not see it yet
    assert commit_written(uri, written) == N
    assert_equal(contents(uri), added)
    assert commit_written(uri, written) == N  # repeated: the same documents replace themselves
    assert_equal(contents(uri), added)


@pytest.mark.parametrize("first", ["bulk", "add"])
def test_a_document_that_bulk_and_add_put_in_at_the_same_moment_is_there_once(
    first, arguments, engine, table, tmp_path, monkeypatch
):
    """One commits while the other is running; the document of the later commit stays."""
    uri = str(tmp_path / "store")
    schema = prepare_store(uri, ["a text"], arguments)
    written = list(FragmentWriter(uri)(BatchCompressor(schema, arguments, COLUMNS)(iter(table.to_batches()))))
    ids = table["id"].to_pylist()[:2]
    memories = engine.compress(["another text"] * 2)
    orders = {
        "bulk": lambda: commit_written(uri, written),
        "add": lambda: MemoryStore.open(uri).add(ids=ids, memories=memories),
    }
    meanwhile, change = [orders[first]], Table.change

    def interrupted(self, work):
        def later(dataset):
            if meanwhile:
                meanwhile.pop()()
            return work(dataset)

        return change(self, later)

    monkeypatch.setattr(Table, "change", interrupted)
    orders["add" if first == "bulk" else "bulk"]()
    assert not meanwhile
    store = MemoryStore.open(uri)
    assert sorted(record.id for record in store) == sorted(table["id"].to_pylist())
    expected = ["another text"] * 2 if first == "bulk" else table["text"].to_pylist()[:2]
    assert [record.text for record in store.get(ids)] == expected


def test_any_number_of_batches_takes_bounded_memory(arguments, table, tmp_path, monkeypatch):
    """Rows are returned while texts are still read."""
    monkeypatch.setattr("clara_core.store.bulk.fragments._BATCH_BYTES", 1)
    schema = prepare_store(str(tmp_path / "store"), [], arguments)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield table.to_batches()[0]

    rows = BatchCompressor(schema, arguments, COLUMNS)(endless())
    assert next(rows)["id"].to_pylist()[0] == table["id"][0].as_py()
    assert taken < 30


def test_an_access_token_does_not_travel(arguments):
    compress = BatchCompressor(pa.schema([]), arguments.model_copy(update={"token": "secret"}), COLUMNS)
    assert b"secret" not in pickle.dumps(compress)
    assert compress.engine.token is None
    assert BatchCompressor(pa.schema([]), EngineArguments()).engine.device == "auto"  # noticed by the worker


def test_another_engine_than_the_stores_is_refused(arguments, table, tmp_path, tmp_path_factory):
    schema = prepare_store(str(tmp_path / "store"), ["a text"], arguments)
    tiny = build(tmp_path_factory.mktemp("other"), seed=1)
    other = EngineArguments(model=str(tiny.folder), base_model=str(tiny.base), dtype="float32", device="cpu")
    with pytest.raises(FingerprintMismatch, match="the store is for memories of the model"):
        list(BatchCompressor(schema, other, COLUMNS)(iter(table.to_batches())))


def test_an_id_that_is_written_twice_is_refused(arguments, table, tmp_path):
    uri = str(tmp_path / "store")
    compress = BatchCompressor(prepare_store(uri, ["a text"], arguments), arguments, COLUMNS)
    twice = [*table.slice(0, 2).to_batches(), *table.slice(1, 1).to_batches()]
    with pytest.raises(DataError, match="1 ids were written twice"):
        commit_written(uri, FragmentWriter(uri)(compress(iter(twice))))
    assert MemoryStore.open(uri).count() == 0


def test_a_store_has_to_be_prepared(table, tmp_path):
    with pytest.raises(StoreError, match="call prepare_store first"):
        list(FragmentWriter(str(tmp_path / "store"))(iter([])))


# --- whole datasets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_per_shard", [5, 1000])
def test_a_dataset_becomes_what_add_makes_of_it(source, arguments, added, rows_per_shard, tmp_path):
    uri = str(tmp_path / "store")
    assert compress_dataset(source, uri, arguments, COLUMNS, rows_per_shard=rows_per_shard) == N
    assert_equal(contents(uri), added)
    store = MemoryStore.open(uri)
    version = store.stats().version
    assert compress_dataset(source, uri, arguments, COLUMNS) == 0  # complete
    assert store.stats().version == version
    assert [path.name for path in Path(uri).iterdir() if path.name == "bulk"] == []


def test_only_what_changed_is_compressed(source, table, arguments, engine, tmp_path, monkeypatch):
    uri = str(tmp_path / "store")
    store = MemoryStore.open(uri, engine=engine)
    rows = table.to_pylist()
    store.add(
        ["another text", *(row["text"] for row in rows[1:40])],
        ids=[row["id"] for row in rows[:40]],
        metadatas=[{"year": row["year"], "tags": row["tags"]} for row in rows[:40]],
    )
    store.add(["not in the dataset"], ids=["own"])
    compressed = []
    original = ClaraEngine.compress_stream
    monkeypatch.setattr(
        ClaraEngine,
        "compress_stream",
        lambda self, texts: original(self, (compressed.append(text) or text for text in texts)),
    )
    assert compress_dataset(source, uri, arguments, COLUMNS, rows_per_shard=5) == 21
    assert compressed == [rows[0]["text"], *(row["text"] for row in rows[40:])]
    found = contents(uri)
    assert found.keys() == {"own", *(row["id"] for row in rows)}
    assert [found[row["id"]][0].text for row in rows] == [row["text"] for row in rows]


def test_equal_texts_without_ids_are_one_document(arguments, engine, tmp_path):
    path = tmp_path / "corpus.jsonl"
    texts = ["one", "two", "one", "three", "two"]
    path.write_text("".join(json.dumps({"text": text, "n": n}) + "\n\n" for n, text in enumerate(texts)))
    uri = str(tmp_path / "store")
    assert compress_dataset(str(path), uri, arguments, rows_per_shard=2) == 3
    found = list(MemoryStore.open(uri))
    assert [(record.text, record.metadata) for record in found] == [
        ("one", {"n": 0}),
        ("two", {"n": 1}),
        ("three", {"n": 3}),
    ]
    store = MemoryStore.open(uri, engine=engine)
    assert store.add(["two"], [{"n": 1}]) == [found[1].id]  # ids are those of `add`
    assert store.count() == 3


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            ['{"id": "a", "text": "x"}', '{"id": "b", "text": "y"}', '{"id": "a", "text": "z"}'],
            "the id 'a' occurs again",
        ),
        (['{"id": "a", "text": null}'], "column 'text' must hold strings, got None"),
        (['{"id": "a", "text": "x", "n": NaN}'], "must be a finite number"),
        (['{"id": "a"'], "a line is not JSON"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_compressed(lines, message, arguments, tmp_path, monkeypatch):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(lines))
    monkeypatch.setattr(bulk.ShardWorker, "__call__", lambda *_: pytest.fail("began to compress"))
    with pytest.raises(DataError, match=message):
        compress_dataset(str(path), str(tmp_path / "store"), arguments, COLUMNS)


def test_dates_and_blank_texts_are_kept(arguments, tmp_path):
    import datetime as dt

    path = tmp_path / "corpus.parquet"
    days = [dt.date(2026, 1, number) for number in range(1, 6)]
    pq.write_table(pa.table({"text": ["", "x", " ", "y", "\n"], "day": days}), path)
    uri = str(tmp_path / "store")
    assert compress_dataset(str(path), uri, arguments) == 5
    found = list(MemoryStore.open(uri))
    assert [(record.text, len(record.spans)) for record in found] == [("", 0), ("x", 1), (" ", 0), ("y", 1), ("\n", 0)]
    assert [record.metadata["day"] for record in found] == days


def test_a_job_needs_a_store_that_others_can_reach(source, arguments):
    with pytest.raises(ValueError, match="a folder or an object store"):
        compress_dataset(source, "memory://", arguments)


# --- interrupted and resumed -------------------------------------------------------------------------------


def test_finished_shards_are_kept(source, arguments, added, tmp_path, monkeypatch):
    """Every third shard fails at first; the next call continues with these, and reads no finished shard again."""
    uri = str(tmp_path / "store")
    original, calls = bulk.FragmentWriter.__call__, []

    def failing(self, rows):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise RuntimeError("killed")
        return original(self, rows)

    monkeypatch.setattr(bulk.FragmentWriter, "__call__", failing)
    attempts = 0
    while attempts < 10:
        attempts += 1
        try:
            total = compress_dataset(source, uri, arguments, COLUMNS, rows_per_shard=5)
            break
        except RuntimeError:
            assert MemoryStore.open(uri).count() == 0
    assert total == N
    assert attempts == 6
    assert len(calls) == 12 + 5  # each shard once, and failed ones once more
    assert_equal(contents(uri), added)


def test_a_job_that_ended_before_it_could_say_so_is_committed_once(source, arguments, added, tmp_path, monkeypatch):
    uri = str(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "end", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compress_dataset(source, uri, arguments, COLUMNS, rows_per_shard=20)
    assert_equal(contents(uri), added)
    assert compress_dataset(source, uri, arguments, COLUMNS, rows_per_shard=20) == N
    assert_equal(contents(uri), added)
    MemoryStore.open(uri).compact()
    assert_equal(contents(uri), added)


def test_another_job_at_the_same_store_is_refused(source, arguments, tmp_path, monkeypatch):
    uri = str(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(bulk.FragmentWriter, "__call__", lambda self, rows: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError):
            compress_dataset(source, uri, arguments, COLUMNS)
    with pytest.raises(StoreError, match="another unfinished bulk job with other columns: finish that one"):
        compress_dataset(source, uri, arguments, Columns(id="id", metadata=("year",)))
    with pytest.raises(StoreError, match="with other shards"):
        compress_dataset(source, uri, arguments, COLUMNS, rows_per_shard=5)
    assert compress_dataset(source, uri, arguments, COLUMNS) == N


def test_a_shard_that_kills_every_worker_is_given_up(source, arguments, tmp_path):
    uri = str(tmp_path / "store")
    [shard] = bulk.plan_shards(source, 1000)
    compress = BatchCompressor(prepare_store(uri, ["a text"], arguments), arguments, COLUMNS)
    progress = Progress(uri)
    for tries in range(5):
        assert progress.tried(shard.name, "run") == tries
    with pytest.raises(StoreError, match="5 workers died of Shard"):
        bulk.ShardWorker(source, uri, compress, "run", 0)(bulk.Task(shard, 0, ()))
    assert bulk.ShardWorker(source, uri, compress, "another", 0)(bulk.Task(shard, 0, ())) == N


def test_a_note_that_is_not_whole_counts_as_none(tmp_path):
    progress = Progress(str(tmp_path))
    note = pa.RecordBatch.from_pylist([{"files": [], "ids": b"", "documents": 0}], WRITTEN)
    progress.finish("shard", note)
    assert progress.written("shard") == note
    path = tmp_path / "bulk" / "shard.arrow"
    for size in (0, 10, path.stat().st_size // 2):
        path.write_bytes(path.read_bytes()[:size])
        assert progress.written("shard") is None
        progress.finish("shard", note)


# --- the command, killed -----------------------------------------------------------------------------------


def command(source, uri, *options):
    return [sys.executable, "-m", "clara_core.cli", "bulk", source, uri, "--id-column", "id", *options]


@pytest.mark.slow
def test_the_command_goes_on_after_it_was_killed(source, added, arguments, clara, tmp_path):
    uri = str(tmp_path / "store")
    options = ["--model", arguments.model, "--base-model", arguments.base_model, "--rows-per-shard", "5"]
    process = subprocess.Popen(command(source, uri, *options), cwd=ROOT, stderr=subprocess.PIPE)
    notes = Path(uri) / "bulk"
    while process.poll() is None and len(list(notes.glob("*.arrow"))) < 3:
        time.sleep(0.005)  # leaves the processor to the child
    assert process.poll() is None, process.stderr.read()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    kept = {path.name: path.stat().st_mtime_ns for path in notes.glob("[!.]*.arrow")}
    assert 3 <= len(kept) < 12
    assert MemoryStore.open(uri).count() == 0
    code, out, _ = clara("bulk", source, uri, "--id-column", "id", *options)
    assert (code, out) == (0, f"{N} documents of {source} -> {uri}\n")
    assert_equal(contents(uri), added)


def test_the_command_says_what_is_wrong_in_one_line(source, tmp_path):
    done = subprocess.run(
        command(source, str(tmp_path / "store"), "--text-column", "txt", "--model", "pocket"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("clara: columns ['txt'] are not among ['id', 'text', 'year', 'tags']")
    assert done.stderr.count("\n") == 1
