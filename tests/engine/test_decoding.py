"""Answers in a small KV cache: they wait, are preempted and continued, and equal the answers of single requests."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from benchmarks.pressure import run
from clara_core import ClaraEngine, ContextOverflow
from clara_core.engine.sampling import Chunk
from clara_core.model.kernels import PAGE
from tests.engines import PASSAGES, Counter, open_engine, wrapped
from tests.tiny import Tiny, build


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A checkpoint whose answers never end by themselves."""
    return build(tmp_path_factory.mktemp("answers"), "qwen2", seed=5)


def with_pages(tiny: Tiny, pages: int) -> ClaraEngine:
    """The engine, with this number of pages."""
    engine = open_engine(tiny)
    page = engine.load().model.kv_shape().page_bytes
    engine.unload()
    engine.arguments = engine.arguments.model_copy(update={"kv_cache_bytes": pages * page})
    return engine


@pytest.mark.slow
def test_the_youngest_makes_room_and_comes_back(tiny: Tiny) -> None:
    """Each answer needs three pages in the end, and there are four."""
    engine = with_pages(tiny, 40)
    story = "The bridge over the river Aln was opened in 1907 and is 214 metres long. " * 8  # most of the first page
    questions = [story + asked for asked in ("Where?", "When was the bridge opened, by whom, and why?", "Who?")]
    alone = [engine.answer(question, max_tokens=PAGE + 40) for question in questions]
    drawn = engine.answer(questions[0], max_tokens=PAGE + 30, temperature=0.9, seed=4)
    assert all(one.prompt_tokens + one.completion_tokens > 2 * PAGE for one in (*alone, drawn))
    engine = with_pages(tiny, 4)
    with ThreadPoolExecutor() as pool:
        together = pool.map(lambda question: engine.answer(question, max_tokens=PAGE + 40), questions)
        sampled = pool.submit(engine.answer, questions[0], max_tokens=PAGE + 30, temperature=0.9, seed=4)
        assert list(together) == alone
        assert sampled.result() == drawn
    stats = engine.stats()
    assert stats.preempted > 0
    assert (stats.kv_used_bytes, stats.waiting, stats.running) == (0, 0, 0)


def test_who_can_never_fit_is_told_and_holds_up_nobody(tiny: Tiny) -> None:
    engine = with_pages(tiny, 2)
    with ThreadPoolExecutor() as pool:
        too_large = pool.submit(engine.answer, "Where?", max_tokens=2 * PAGE)
        fits = pool.submit(engine.answer, "Where?", max_tokens=PAGE)
        with pytest.raises(ContextOverflow, match=rf"the KV cache holds {2 * PAGE} \([\d,]+ bytes\); lower max_tokens"):
            too_large.result(120)
        assert fits.result(120).completion_tokens == PAGE


def test_rows_are_admitted_in_order_and_wait_for_pages(tiny: Tiny) -> None:
    engine = with_pages(tiny, 2)
    model, rows = engine.load().model, []

    def seen(original, tokens, cache):
        rows.append(len(tokens))
        return original(tokens, cache)

    with wrapped(model, "step", seen):
        answers = engine.answer_batch([("Where?", [])] * 5, max_tokens=4)
    assert [answer.completion_tokens for answer in answers] == [4] * 5
    assert max(rows) == 2


def test_memory_that_cannot_be_had_is_asked_for_by_halves(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    engine = with_pages(tiny, 8)
    model = engine.load().model

    def none_above_three(original, pages):
        if pages > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(pages)

    with wrapped(model, "kv_memory", none_above_three), caplog.at_level(logging.WARNING):
        assert engine.answer("Where?", max_tokens=3).completion_tokens == 3
    assert engine.stats().kv_total_bytes == 2 * model.kv_shape().page_bytes
    assert caplog.text.count("bytes: going on with half") == 2


def test_one_row_that_fails_does_not_fail_its_batch(tiny: Tiny) -> None:
    engine = with_pages(tiny, 8)
    model = engine.load().model
    questions = ["Where?", "When?", "Who sailed to Lisbon?"]
    expected = [engine.answer(question, max_tokens=6) for question in questions]
    unlucky: list[int] = []

    def breaks(original, tokens, cache):
        unlucky[:] = unlucky or [cache.rows[1].pages[0]] if len(tokens) == 3 else unlucky
        if any(row.pages[0] in unlucky for row in cache.rows):
            raise ArithmeticError("broken")
        return original(tokens, cache)

    with wrapped(model, "step", breaks):
        requests = [engine._chat_request([{"role": "user", "content": q}], [], _options(6)) for q in questions]
        with Counter(model, "prefill"):
            engine._submit_all(requests)
            ended = [request.future.exception(120) for request in requests]
    assert [type(error) for error in ended].count(ArithmeticError) == 1
    for request, error, answer in zip(requests, ended, expected, strict=True):
        assert error is not None or request.future.result() == answer


def _options(tokens: int):
    from clara_core.engine.sampling import Sampling

    return Sampling(max_tokens=tokens)


def test_stats_say_what_is_there(tiny: Tiny) -> None:
    engine = with_pages(tiny, 4)
    assert engine.stats().loaded is False
    engine.remember(PASSAGES[:2])
    stats = engine.stats()
    assert stats.loaded
    assert stats.weights_bytes > sum(weight.nbytes for weight in tiny.model.parameters())  # with adapters, too
    assert (stats.compressed, stats.cached, stats.kv_total_bytes) == (2, 2, 0)
    assert stats.cached_bytes > 0
    with engine.stream("Where?", max_tokens=500) as stream:
        next(stream)
        stats = engine.stats()
        assert stats.running == 1
        assert 0 < stats.kv_used_bytes <= stats.kv_total_bytes
    engine.unload()
    assert engine.stats().kv_total_bytes == 0


@pytest.mark.parametrize("requests", [16, pytest.param(60, marks=pytest.mark.heavy)])
def test_many_requests_in_little_memory_get_what_they_would_get_alone(requests: int) -> None:
    outcome = run(requests=requests, threads=8, pool_size=12, places=1)
    assert sum(outcome.ended.values()) == requests
    assert set(outcome.ended) <= {"answered", "left"}
    assert outcome.wrong == []
    assert 0 < outcome.most_bytes <= outcome.bound


def test_tokens_that_are_read_late_are_the_same(tiny: Tiny) -> None:
    """As on a GPU: the next step begins before the host has read the tokens, so an answer runs one step too long."""
    asked = [
        ("Where?", {"max_tokens": 30}),
        ("Who?", {"max_tokens": 1}),
        ("When was the bridge opened?", {"max_tokens": 25, "stop": ["e", "a"]}),
        ("How long?", {"max_tokens": 40, "temperature": 0.9, "top_p": 0.9, "seed": 3}),
        ("Where to?", {"max_tokens": PAGE + 20}),
        ("By whom?", {"max_tokens": 12, "logprobs": True, "top_logprobs": 2}),
    ]

    def told(chunk: Chunk) -> tuple[object, ...]:
        """The fields of an answer that do not depend on the batch size in their last digits."""
        logged = [(one.token, [other.token for other in one.top]) for one in chunk.logprobs or ()]
        return chunk.text, logged, chunk.answer and replace(chunk.answer, logprobs=None)

    def everything(engine: ClaraEngine) -> list[list[object]]:
        memories = engine.compress(PASSAGES)
        with ThreadPoolExecutor() as pool:
            streams = pool.map(
                lambda pair: list(engine.stream(pair[0], memories[: len(pair[0]) % 4], **pair[1])), asked
            )
            return [[told(chunk) for chunk in stream] for stream in streams]

    engine = with_pages(tiny, 40)
    expected = everything(engine)
    for pages in (40, 3):  # with room for all answers, and with so little that some are preempted
        late = with_pages(tiny, pages)
        late.load()
        late._worker.answers._reads_late = True
        assert everything(late) == expected
        stats = late.stats()
        assert (stats.kv_used_bytes, stats.waiting, stats.running) == (0, 0, 0)
