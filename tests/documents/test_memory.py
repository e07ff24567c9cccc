"""The cache of memories: exact texts, a limit in bytes, least recently used out first, concurrent threads."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core import ClaraEngine
from clara_core.data.memory import Memory, MemoryCache, content_key
from tests.engines import PASSAGES, Counter, open_engine
from tests.tiny import build

PRINT = "a" * 64


def memory(text: str, fingerprint: str = PRINT, windows: int = 1) -> Memory:
    spans = tuple((0, len(text)) for _ in range(windows))
    return Memory(torch.zeros(windows, 2, 8), text, spans, len(text), fingerprint)


ONE = 2 * 8 * 4  # bytes of the tokens of one window


def test_hits_misses_and_clear() -> None:
    cache = MemoryCache()
    kept = memory("text")
    assert cache.get("text", PRINT) is None
    cache.put(kept)
    assert cache.get("text", PRINT) is kept
    assert cache.get("text", "b" * 64) is None
    assert cache.get("text ", PRINT) is None
    assert (cache.hits, cache.misses, len(cache)) == (1, 3, 1)
    cache.clear()
    assert (cache.hits, cache.misses, cache.nbytes, len(cache)) == (0, 0, 0, 0)


def test_the_oldest_used_goes_first() -> None:
    weight = _one_weight()
    cache = MemoryCache(max_bytes=3 * weight)
    for text in "abc":
        cache.put(memory(text))
    cache.get("a", PRINT)
    cache.put(memory("d"))
    assert [cache.get(text, PRINT) is not None for text in "abcd"] == [True, False, True, True]
    cache.put(memory("c"))  # stored again, so it is the newest now
    cache.put(memory("e"))
    assert [cache.get(text, PRINT) is not None for text in "acde"] == [False, True, True, True]
    assert cache.nbytes == 3 * weight


def _one_weight() -> int:
    cache = MemoryCache()
    cache.put(memory("a"))
    assert cache.nbytes > ONE
    return cache.nbytes


def test_the_bound_counts_texts_too_and_holds_for_giants() -> None:
    cache = MemoryCache(max_bytes=4 * ONE)
    cache.put(memory("kept"))
    cache.put(memory("giant", windows=5))
    cache.put(memory("x" * 10 * ONE))
    assert len(cache) == 1
    cache = MemoryCache(max_bytes=8 * ONE)
    cache.put(memory("🙂" * ONE))  # four bytes each
    cache.put(memory("🙃" * ONE))
    assert len(cache) == 1
    assert cache.nbytes <= cache.max_bytes


def test_no_room_at_all() -> None:
    cache = MemoryCache(max_bytes=0)
    cache.put(memory("a"))
    assert len(cache) == 0
    with pytest.raises(ValueError, match="max_bytes must be at least 0, got -1"):
        MemoryCache(max_bytes=-1)


@given(st.text(), st.text(), st.sampled_from(["\ud800", "\udfff", "", "\x00"]))
@settings(max_examples=200, deadline=None)
def test_keys_are_those_of_the_exact_text(one: str, other: str, odd: str) -> None:
    assert (content_key(one + odd, PRINT) == content_key(other + odd, PRINT)) == (one == other)
    assert content_key(one, PRINT) != content_key(one, "b" * 64)


def test_lookalikes_are_other_texts() -> None:
    cache = MemoryCache()
    texts = ["é", "e\u0301", "\ud83d\ude42", "🙂", "a\x00", "a", "\ud800", "\udc00", "\ufffd"]
    for text in texts:
        assert cache.get(text, PRINT) is None
        cache.put(memory(text))
    assert all((found := cache.get(text, PRINT)) is not None and found.text == text for text in texts)


def test_threads_never_break_the_books() -> None:
    cache = MemoryCache(max_bytes=20 * _one_weight())

    def work(seed: int) -> int:
        rng = random.Random(seed)
        wrong = 0
        for _ in range(1500):
            text = chr(rng.randrange(0x21, 0x5B))
            if rng.random() < 0.5:
                cache.put(memory(text))
            elif (found := cache.get(text, PRINT)) is not None:
                wrong += found.text != text
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
    assert cache.nbytes == len(cache) * _one_weight() <= cache.max_bytes
    assert len(cache) == 20


# -- through an engine -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ClaraEngine:
    return open_engine(build(tmp_path_factory.mktemp("memory"), window=32, rate=8))


def test_remembered_texts_cost_nothing(engine: ClaraEngine) -> None:
    engine.cache.clear()
    texts = [*PASSAGES[:3], PASSAGES[0], "\ud800 odd", ""]
    first = engine.remember(texts)
    assert [found.text for found in first] == texts
    assert first[0] is first[3]
    assert (engine.cache.hits, engine.cache.misses) == (0, 5)
    with Counter(engine.load().model, "encode") as encoded:
        again = engine.remember(iter(texts))
        assert encoded.calls == 0
        assert all(one is other for one, other in zip(first, again, strict=True))
        changed = engine.remember([PASSAGES[0] + " "])[0]
        assert encoded.calls == 1
    assert changed.text == PASSAGES[0] + " "


async def test_remembering_while_others_wait(engine: ClaraEngine) -> None:
    engine.cache.clear()
    made = await engine.aremember(PASSAGES)
    known = engine.remember(PASSAGES)
    assert all(one is other for one, other in zip(made, known, strict=True))
    assert await engine.aremember([]) == []
