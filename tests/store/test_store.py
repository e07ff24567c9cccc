"""`MemoryStore`: documents are returned as they were added, once and complete; others are refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara_core import FingerprintMismatch, Memory, MemoryStore, Record, StoreError
from clara_core.store import writing
from clara_core.store.records import escape, made_id, unescape
from tests.engines import PASSAGES, Counter
from tests.store.conftest import add
from tests.store.memories import FINGERPRINT, HIDDEN, N_MEM, made_memory

LONG = " ".join(f"{text} ({index})" for index in range(6) for text in PASSAGES)


# --- round trips -------------------------------------------------------------------------------------------


def test_documents_come_back_as_they_were_given(store):
    memories = [made_memory(f"text {number}", 1 + number % 3) for number in range(20)]
    metadatas = [{"n": number, "deep": {"list": [1, None, {"x": [True, 0.5]}], "ü": "é"}} for number in range(20)]
    ids = store.add(metadatas=metadatas, memories=memories)
    assert store.count() == len(store) == 20
    expected = [
        Record(id_, memory.text, metadata, memory.spans, memory.source_tokens)
        for id_, memory, metadata in zip(ids, memories, metadatas, strict=True)
    ]
    assert store.get(ids) == list(store) == expected
    assert store.get([ids[7], "unknown", ids[3], ids[7]]) == [expected[7], expected[3], expected[7]]
    for memory, found in zip(memories, store.memories(ids), strict=True):
        assert torch.equal(found.tokens, memory.tokens)
        assert (found.text, found.spans, found.source_tokens, found.fingerprint) == (
            memory.text,
            memory.spans,
            memory.source_tokens,
            FINGERPRINT,
        )


def test_another_object_and_another_process_see_the_same(store):
    add(store, "a", "b", windows=2, metadatas=[{"x": 1}, None])
    again = MemoryStore.open(store.uri, read_only=True)
    assert list(again) == list(store)
    code = (
        "import sys; from clara_core.store import MemoryStore; store = MemoryStore.open(sys.argv[1]); "
        "print([record.id for record in store], store.memories(['b'])[0].tokens.sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code, store.uri], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"['a', 'b'] {made_memory('text of b', 2).tokens.sum().item()}"


def test_a_store_in_memory_is_its_own(store):
    first, second = MemoryStore.open("memory://"), MemoryStore.open("memory://")
    assert first  # an empty store is a store, too
    add(first, "a")
    assert (first.count(), second.count()) == (1, 0)
    first.optimize()
    first.compact()
    assert [record.id for record in first] == ["a"]


def test_a_folder_by_its_other_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = MemoryStore.open("store")
    add(store, "a")
    monkeypatch.chdir(tmp_path.parent)
    add(store, "b")
    assert [record.id for record in MemoryStore.open((tmp_path / "store").as_uri())] == ["a", "b"]
    assert not (tmp_path.parent / "store").exists()
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["memories.lance"]


def test_an_empty_store_is_asked_like_any_other(store):
    assert store.count() == 0
    assert store.count({"x": 1}) == 0
    assert store.get(["a"]) == list(store) == []
    assert "a" not in store
    assert store.delete(["a"]) == 0
    assert store.fingerprint is None
    assert store.stats().documents == 0
    assert store.add([]) == []
    store.optimize()
    store.compact()
    with pytest.raises(KeyError, match="'a'"):
        store.memories(["a"])
    add(store, "a")
    assert store.delete(filter={}) == 1
    assert store.count() == 0
    assert list(store) == []


def test_a_store_that_is_just_being_made_is_an_empty_one(tmp_path):
    """Other processes see this state before the first version, or permanently if the creator is killed then."""
    (tmp_path / "store" / "memories.lance" / "_versions").mkdir(parents=True)
    store = MemoryStore.open(tmp_path / "store")
    assert (store.count(), store.get(["a"]), list(store)) == (0, [], [])
    assert add(store, "one") == ["one"]
    assert MemoryStore.open(tmp_path / "store").count() == 1


def test_words_are_found_in_any_case_before_there_is_an_index_of_them(store):
    add(store, "Passage about the BRIDGE")
    for words in ("bridge", "passage", "PASSAGE"):
        assert len(store.search(words, mode="text")) == 1


def test_int8_takes_half_the_bytes_and_loses_little(tmp_path):
    memories = [made_memory(f"text {number}", shape=(16, 512)) for number in range(10)]
    sizes = {}
    for memory_type in ("bfloat16", "int8"):
        store = MemoryStore.open(tmp_path / memory_type, memory_type=memory_type, key=16)
        ids = store.add(memories=memories)
        sizes[memory_type] = store.stats().bytes_per_document
        found = store.memories(ids)
        cosines = [
            torch.cosine_similarity(one.tokens.flatten().float(), other.tokens.flatten().float(), dim=0)
            for one, other in zip(memories, found, strict=True)
        ]
        assert min(cosines) > 0.9999
        assert MemoryStore.open(store.uri).stats().memory_type == memory_type
    assert sizes["int8"] < 0.6 * sizes["bfloat16"]


ANY_TEXT = st.text(st.characters(codec=None), min_size=1, max_size=30) | st.sampled_from(
    ["\0", "\ud800", "\udfff'", "﷐fdd0", "\ufdd00000", "'; DROP TABLE x --", "a\r\nb", "\\", "%_"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(ANY_TEXT, st.tuples(ANY_TEXT, st.dictionaries(ANY_TEXT, JSON, max_size=3)), min_size=1, max_size=5)
)
def test_any_ids_texts_and_metadata_come_back(documents):
    store = MemoryStore.open("memory://")
    ids = list(documents)
    texts = [text for text, _ in documents.values()]
    metadatas = [metadata for _, metadata in documents.values()]
    memories = [made_memory(text, 1 + index % 2) for index, text in enumerate(texts)]
    for _ in range(2):
        assert store.add(texts, metadatas, ids, memories) == ids
        found = store.get(ids)
        assert [(record.id, record.text, record.metadata) for record in found] == list(
            zip(ids, texts, metadatas, strict=True)
        )
        assert [json.dumps(record.metadata) for record in found] == [json.dumps(each) for each in metadatas]
        assert store.count() == len(ids)
        assert all(id_ in store for id_ in ids)
    assert store.delete(ids[:1]) == 1
    assert [record.id for record in store] == ids[1:]


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_guarded_strings_are_plain_and_different(one, other):
    for text in (one, other):
        assert unescape(escape(text)) == text
        assert "\0" not in escape(text).encode("utf-8").decode()
    assert (escape(one) == escape(other)) == (one == other)


def test_a_blank_page_is_kept_and_not_found(tmp_path, engine):
    store = MemoryStore.open(tmp_path / "store", engine)
    ids = store.add(["", PASSAGES[0], " \n\t"], ids=["empty", "full", "blank"])
    assert [(record.id, record.text, record.spans) for record in store if record.id != "full"] == [
        ("empty", "", ()),
        ("blank", " \n\t", ()),
    ]
    assert [len(memory.tokens) for memory in store.memories(ids)] == [0, 1, 0]
    for mode in ("memory", "text", "hybrid"):
        assert [hit.id for hit in store.search("Weldenia", mode=mode)] == ["full"]
    assert [hit.id for hit in store.search("Weldenia", mode="memory", exact=True)] == ["full"]
    store.add([PASSAGES[1]], ids=["blank"])
    assert len(store.search("Which?", mode="memory")) == 2


def test_vectors_of_another_embedding(tmp_path):
    store = MemoryStore.open(tmp_path / "store", memory_type="float32")
    vectors = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    store.add(["a", "b", "c"], ids=["a", "b", "c"], vectors=[vectors[0].tolist(), vectors[1].numpy(), vectors[2:]])
    assert [hit.id for hit in store.search(vectors[1], k=1)] == ["b"]
    assert store.search(vectors[3], k=1)[0].window == 1
    assert torch.equal(store.memories(["c"])[0].tokens.flatten(1), vectors[2:])
    assert store.search("b", k=1, vectors=vectors[0], mode="hybrid", text_weight=1.0)[0].id == "b"
    store.add(["a"], ids=["a"], vectors=[-vectors[0]])
    assert store.search(vectors[0], k=3)[-1].id == "a"
    for wrong, message in (([0.0] * 7, "zero"), ([float("nan")] * 7, "NaN"), ("text", "numbers"), ([[[1.0]]], "shape")):
        with pytest.raises((TypeError, ValueError), match=message):
            store.add(["d"], vectors=[wrong])
    with pytest.raises(ValueError, match="1 x 7"):
        store.add(["d"], vectors=[[1.0]])


def test_the_home_folder_and_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    store = MemoryStore.open("~/store")
    add(store, "a")
    assert (tmp_path / "store" / "memories.lance").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        MemoryStore.open(tmp_path / "file")


# --- compressing -------------------------------------------------------------------------------------------


def test_texts_are_compressed_once(tmp_path, engine):
    store = MemoryStore.open(tmp_path / "store", engine)
    texts = [*PASSAGES, LONG]
    with Counter(engine.load().model, "encode") as counter:
        ids = store.add(texts, [{"n": number} for number in range(len(texts))])
        compressed = counter.calls
        assert compressed > 0
        version = store.stats().version
        assert store.add(texts, [{"n": number} for number in range(len(texts))]) == ids
        assert store.stats().version == version  # and nothing was written
        store.add(texts, [{"other": number} for number in range(len(texts))], ids)  # metadata alone
        store.add([LONG, PASSAGES[0]], ids=["again", "and again"])  # under other ids
        assert counter.calls == compressed
        store.add(["A changed text."], ids=[ids[0]])
        assert counter.calls > compressed
    assert store.get(ids[1:2])[0].metadata == {"other": 1}
    assert store.get(ids[:1]) == [
        Record(ids[0], "A changed text.", {}, ((0, 15),), store.get(ids[:1])[0].source_tokens)
    ]
    fresh = {memory.text: memory for memory in engine.compress([*texts, "A changed text."])}
    for memory in store.memories([*ids, "again", "and again"]):
        expected = fresh[memory.text]
        # With other texts in the batch a number may be rounded to its neighbour.
        torch.testing.assert_close(
            memory.tokens, expected.tokens.bfloat16().to(memory.tokens.dtype), rtol=2**-7, atol=1e-3
        )
        assert (memory.spans, memory.source_tokens) == (expected.spans, expected.source_tokens)
    assert len(fresh[LONG].spans) > 2


def test_equal_texts_of_a_call_are_compressed_once_and_are_two_documents(tmp_path, engine):
    store = MemoryStore.open(tmp_path / "store", engine)
    ids = store.add(["Twice.", "Twice.", "Once."])
    assert len(set(ids)) == store.count() == 3
    assert ids == [made_id("Twice.", 0), made_id("Twice.", 1), made_id("Once.", 0)]
    assert store.add(["Twice.", "Twice.", "Once."]) == ids
    assert store.count() == 3
    first, second = store.memories(ids[:2])
    assert torch.equal(first.tokens, second.tokens)


@pytest.mark.parametrize("place", ["folder", "memory://"])
def test_fidelity_is_measured_once_where_it_is_asked_for(tmp_path, engine, monkeypatch, place):
    asked = []
    real = engine.fidelity
    monkeypatch.setattr(engine, "fidelity", lambda memories: asked.append(len(memories)) or real(memories))
    uri = place if place == "memory://" else tmp_path / place
    store = MemoryStore.open(uri, engine, memory_type="float32")
    texts, ids, metadatas = [PASSAGES[0], LONG, " "], ["a", "b", "blank"], [{"n": 1}, None, None]
    store.add(texts, metadatas, ids)
    assert [record.metadata for record in store] == [{"n": 1}, {}, {}]
    assert not asked
    for _ in range(2):  # the second time all of it is cached
        store.add(texts, metadatas, ids, fidelity=True)
        kept = [one.kept for one in real(store.memories(ids))]
        assert [record.metadata for record in store.get(ids)] == [
            {"n": 1, "fidelity": kept[0]},
            {"fidelity": kept[1]},
            {"fidelity": 1.0},
        ]
        assert asked == [3, 0][: len(asked)]
    assert store.count({"fidelity": {"$lte": kept[1]}}) >= 1
    store.add(texts[:1], [{"n": 2}], ids[:1])  # without `fidelity` the metadata are unchanged
    assert store.get(["a"])[0].metadata == {"n": 2}


def test_fidelity_needs_the_model(store, engine, tmp_path):
    with pytest.raises(ValueError, match="fidelity=True reads memories back with their model"):
        add(store, "a", fidelity=True)
    with pytest.raises(ValueError, match="got vectors of other embeddings"):
        MemoryStore.open(tmp_path / "vectors", engine).add(["a"], vectors=[[1.0]], fidelity=True)
    assert store.count() == 0


def test_the_generator_reads_what_comes_out(tmp_path, engine):
    store = MemoryStore.open(tmp_path / "store", engine)
    ids = store.add(list(PASSAGES))
    kept = store.memories(ids[:2])
    answer = engine.answer("How long is the bridge?", kept, max_tokens=8)
    assert answer.completion_tokens > 0
    assert answer.memory_tokens == 2 * engine.n_mem


def test_any_number_of_documents_in_bounded_memory(tmp_path, monkeypatch):
    """Only as many batches are in progress as are compressed ahead, whatever the iterators could return."""
    monkeypatch.setattr(writing, "_BATCH_MOST", 10)
    store = MemoryStore.open(tmp_path / "store")
    given = 0

    def memories():
        nonlocal given
        for number in range(200):
            given += 1
            assert given <= store.count() + 10 * (writing._AHEAD + 2)
            yield made_memory(f"text {number}")

    ids = store.add(memories=memories())
    assert [record.id for record in store] == ids == [made_id(f"text {number}", 0) for number in range(200)]


def test_what_was_counted_is_safe_when_the_rest_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_BATCH_MOST", 5)
    store = MemoryStore.open(tmp_path / "store")

    def memories():
        yield from (made_memory(f"text {number}") for number in range(12))
        raise OSError("the source has ended")

    with pytest.raises(OSError, match=r"^the source has ended$"):
        store.add(memories=memories())
    count = store.count()
    assert count % 5 == 0
    assert count <= 10
    assert list(store) == store.get([made_id(f"text {number}", 0) for number in range(count)])


# --- replacing and deleting --------------------------------------------------------------------------------


def test_a_document_takes_the_place_of_the_one_with_its_id(store):
    add(store, "a", "b", "c", windows=3)
    for windows in (1, 4, 2):
        text = f"another text of {windows}"
        store.add(ids=["b"], memories=[made_memory(text, windows)], metadatas=[{"windows": windows}])
        assert [record.id for record in store] == ["a", "c", "b"]  # replaced documents come last
        [record] = store.get(["b"])
        assert (record.text, len(record.spans), record.metadata) == (text, windows, {"windows": windows})
        assert len(store.memories(["b"])[0].tokens) == windows
        assert store.count() == 3


def test_delete_by_ids_by_filter_and_by_both(store):
    add(store, *"abcdef", windows=2, metadatas=[{"n": number} for number in range(6)])
    assert store.delete(["a", "unknown", "a"]) == 1
    assert store.delete(filter={"n": {"$gte": 4}}) == 2
    assert store.delete(["b", "c"], {"n": 2}) == 1
    assert [record.id for record in store] == ["b", "d"]
    assert store.delete([]) == 0
    assert store.count({"n": {"$in": [1, 3]}}) == 2
    assert store.delete(filter={}) == 2
    assert store.count() == 0
    with pytest.raises(ValueError, match=r"filter=\{\}"):
        store.delete()
    with pytest.raises(ValueError, match=r"\$gt3.*did you mean"):
        store.delete(filter={"n": {"$gt3": 1}})


# --- refused documents -------------------------------------------------------------------------------------


def nan_memory():
    memory = made_memory("bad")
    tokens = memory.tokens.clone()
    tokens[0, 1, 2] = torch.nan
    return Memory(tokens, memory.text, memory.spans, memory.source_tokens, memory.fingerprint)


GOOD = [made_memory("one"), made_memory("two")]
BAD = {
    "nothing": ({}, TypeError, "neither"),
    "one string": ({"texts": "one"}, TypeError, "texts must be several values, got one str"),
    "one memory": ({"memories": GOOD[0]}, TypeError, "memories must be several values, got one Memory"),
    "no text": ({"texts": ["one", None], "memories": GOOD}, TypeError, r"texts\[1\] must be a string, got NoneType"),
    "another text": ({"texts": ["one", "three"], "memories": GOOD}, ValueError, r"memories\[1\].*another text"),
    "lengths": ({"memories": GOOD, "ids": ["a"]}, ValueError, "1 ids, 2 memories"),
    "twice": ({"memories": GOOD, "ids": ["a", "a"]}, ValueError, r"ids\[1\] occurs twice"),
    "id": ({"memories": GOOD, "ids": ["a", 7]}, TypeError, r"ids\[1\] must be a string or None, got int"),
    "metadata": ({"memories": GOOD, "metadatas": [{}, ["x"]]}, TypeError, r"metadatas\[1\] must be a dict, got list"),
    "number": ({"memories": GOOD, "metadatas": [{}, {"a": float("nan")}]}, ValueError, r"metadatas\[1\]\['a'\].*nan"),
    "key": ({"memories": GOOD, "metadatas": [{}, {1: 2}]}, TypeError, r"metadatas\[1\] has the key 1 of int"),
    "nan": ({"memories": [GOOD[0], nan_memory()]}, ValueError, r"memories\[1\] holds NaN"),
    "shape": ({"memories": [GOOD[0], made_memory("two", shape=(2, 64))]}, ValueError, r"memories\[1\].*\[2, 64\]"),
    "model": ({"memories": [GOOD[0], made_memory("two", fingerprint="b")]}, FingerprintMismatch, "aaaaaaaaaaaa"),
    "no memory": ({"memories": [GOOD[0], None]}, TypeError, r"memories\[1\] must be a Memory, got None"),
    "no engine": ({"texts": ["one"]}, ValueError, "engine= or model="),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_and_nothing_is_written(store, name):
    given, error, message = BAD[name]
    with pytest.raises(error, match=message):
        store.add(**given)
    assert store.count() == 0
    add(store, "a")
    version = store.stats().version
    with pytest.raises(error, match=message):
        store.add(**given)
    assert store.stats().version == version


def test_memories_of_another_shape_than_those_that_are_here(store):
    add(store, "a")
    with pytest.raises(ValueError, match=rf"{N_MEM} x {HIDDEN} numbers, the document .* has \[1, 2, 8\]"):
        store.add(memories=[made_memory("b", shape=(2, 8))])
    assert [record.id for record in store] == ["a"]


def test_memories_of_another_model_are_refused_and_texts_are_read(tmp_path, engine, other_engine):
    store = MemoryStore.open(tmp_path / "store", engine)
    ids = store.add(PASSAGES[:2])
    other = MemoryStore.open(store.uri, other_engine)
    both = rf"{engine.fingerprint[:12]}.*{other_engine.fingerprint[:12]}"
    for call in (
        lambda: other.add(["text"]),
        lambda: other.search("question"),
        lambda: other.memories(ids),
        lambda: other.search_mmr("question"),
    ):
        with pytest.raises(FingerprintMismatch, match=both):
            call()
    with pytest.raises(FingerprintMismatch, match="open the store with the model that made them"):
        store.add(memories=other_engine.compress(["text"]))
    with pytest.raises(FingerprintMismatch):
        MemoryStore.open(store.uri).add(memories=other_engine.compress(["text"]))
    assert list(other) == list(store)
    assert other.get(ids) == store.get(ids)
    assert [hit.id for hit in other.search("Weldenia", mode="text")] == ids[:1]
    moved = MemoryStore.open(tmp_path / "moved", other_engine)
    moved.add([record.text for record in other], ids=[record.id for record in other])
    assert moved.search("Which flowers?", k=1, mode="memory")[0].id in ids


def test_a_store_that_is_only_read(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        MemoryStore.open(tmp_path / "store", read_only=True)
    assert not (tmp_path / "store").exists()
    add(MemoryStore.open(tmp_path / "store"), "a")
    store = MemoryStore.open(tmp_path / "store", read_only=True)
    assert store.count() == 1
    for write in (lambda: add(store, "b"), lambda: store.delete(["a"]), store.compact, store.optimize, store.salvage):
        with pytest.raises(StoreError, match="read_only=True"):
            write()
    assert store.count() == 1


def test_what_open_does_not_know(tmp_path, engine):
    with pytest.raises(ValueError, match="not both"):
        MemoryStore.open(tmp_path, engine, model="pocket")
    with pytest.raises(ValueError, match="bfloat16"):
        MemoryStore.open(tmp_path, memory_type="float8")
    with pytest.raises(ValueError, match="length"):
        add(MemoryStore.open(tmp_path, key=1), "a")
