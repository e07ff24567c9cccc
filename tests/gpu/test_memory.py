"""Out of memory on the simulated device: every caller gets a result or an error, and the engine continues."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from clara_core import Answer, ClaraEngine, ContextOverflow, EngineClosed
from clara_core.model.fixed_steps import GraphCapture
from clara_core.model.kernels import PAGE
from tests.engines import PASSAGES, open_engine
from tests.gpu.device import STATS
from tests.tiny import Tiny, build

# Interval of the allocations that fail: 1 tests all of them, a larger one each kind in the time of CI.
STRIDE = int(os.environ.get("CLARA_TEST_STRIDE", "29"))
QUESTIONS = [f"Who crossed bridge {number}?" for number in range(40)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("gpu"), "qwen2", seed=5)  # answers never end by themselves


@pytest.fixture(autouse=True)
def stats() -> Iterator[type[STATS]]:
    STATS.reset()
    STATS.limit = STATS.fail_at = None
    yield STATS
    STATS.limit = STATS.fail_at = None


def fresh(tiny: Tiny, **options: object) -> ClaraEngine:
    """An engine that no other test shares, without settings of other tests."""
    shared = open_engine(tiny, device="cuda:0", dtype="bfloat16")
    return ClaraEngine(shared.arguments.model_copy(update={"kv_cache_bytes": None, **options}))


def ask_all(engine: ClaraEngine, questions: list[str], memories: list, **options: object) -> dict[str, object]:
    """Answers or errors, by question; every thread must end."""
    results: dict[str, object] = {}

    def ask(question: str) -> None:
        try:
            results[question] = engine.answer(question, memories, **options)
        except Exception as exc:  # noqa: BLE001 - the test inspects it
            results[question] = exc

    threads = [threading.Thread(target=ask, args=(question,), daemon=True) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert not any(thread.is_alive() for thread in threads), "a request hangs"
    return results


def test_forty_requests_wait_for_room_for_four(tiny: Tiny, stats) -> None:
    engine = fresh(tiny)
    memories = engine.compress(PASSAGES)
    shape = engine.load().model.kv_shape()
    engine.unload()
    engine.arguments = engine.arguments.model_copy(update={"kv_cache_bytes": 4 * shape.page_bytes})
    step, most = engine.load().model.step, 0

    def watch(tokens, cache):
        nonlocal most
        most = max(most, len(tokens))
        return step(tokens, cache)

    engine.load().model.step = watch
    results = ask_all(engine, QUESTIONS, memories[:2], max_tokens=3)
    assert Counter(type(result).__name__ for result in results.values()) == {"Answer": 40}
    assert all(result.completion_tokens == 3 for result in results.values())
    assert 1 < most <= 4
    now = engine.stats()
    assert (now.kv_total_bytes, now.kv_used_bytes, now.waiting, now.running) == (4 * shape.page_bytes, 0, 0, 0)
    engine.unload()


def test_what_can_never_fit_is_refused_with_both_numbers(tiny: Tiny) -> None:
    engine = fresh(tiny, kv_cache_bytes=1)  # a part of a page is one page
    memories = engine.compress(PASSAGES)
    with pytest.raises(
        ContextOverflow, match=rf"up to 500 tokens take \d+ positions, but the KV cache holds {PAGE} \("
    ):
        engine.answer("Where?", memories, max_tokens=500)
    assert engine.answer("Where?", memories, max_tokens=2).completion_tokens == 2
    engine.unload()


def test_a_batch_that_does_not_fit_is_halved(tiny: Tiny, stats) -> None:
    engine = fresh(tiny)
    texts = [f"{text} {number}" for number in range(6) for text in PASSAGES]
    weights = (engine.load(), stats.live)[1]
    stats.peak = stats.live
    expected = engine.compress(texts)
    stats.limit = weights + (stats.peak - weights) // 3
    for one, other in zip(engine.compress(texts), expected, strict=True):
        torch.testing.assert_close(one.tokens.float(), other.tokens.float(), atol=0.1, rtol=0)
    assert stats.peak <= weights + 3 * (stats.limit - weights) + 3
    engine.unload()


def test_what_does_not_fit_alone_is_the_callers_error(tiny: Tiny, stats) -> None:
    engine = fresh(tiny)
    engine.load()
    stats.limit = stats.live + 4000
    results = ask_all(engine, QUESTIONS[:3], [], max_tokens=2)
    assert {type(result) for result in results.values()} == {torch.OutOfMemoryError}
    with pytest.raises(torch.OutOfMemoryError):
        engine.reason(["Where?"])
    stats.limit = None
    assert engine.answer("Where?", max_tokens=2).completion_tokens == 2
    engine.unload()


@pytest.mark.parametrize("together", [False, True], ids=["batch", "threads"])
def test_the_kv_memory_makes_room_when_the_device_shrinks(tiny: Tiny, stats, together: bool) -> None:
    """Another process took the free memory: unused pages are freed, and every caller gets an answer."""
    engine = fresh(tiny)
    memories = engine.compress(PASSAGES)
    pairs = [(question, memories[:2]) for question in QUESTIONS[:12]]
    weights = stats.live
    expected = engine.answer_batch(pairs, max_tokens=3)
    before = engine.stats().kv_total_bytes
    stats.limit = weights + before // 3
    assert stats.live > stats.limit
    if together:
        results = ask_all(engine, [question for question, _ in pairs], memories[:2], max_tokens=3)
        answers = [results[question] for question, _ in pairs]
    else:
        answers = engine.answer_batch(pairs, max_tokens=3)
    assert [getattr(answer, "completion_tokens", answer) for answer in answers] == [3] * len(expected)
    now = engine.stats()
    assert 0 < now.kv_total_bytes < before // 3
    assert (now.waiting, now.running, now.kv_used_bytes) == (0, 0, 0)
    engine.unload()


def test_a_question_waits_for_the_memory_of_answers(tiny: Tiny, stats) -> None:
    """The question does not fit beside the KV cache, so it is computed once the running answers have ended."""
    engine = fresh(tiny)
    expected = engine.reason(QUESTIONS[:1])
    weights = stats.live
    with engine.stream(QUESTIONS[0], max_tokens=60) as stream:
        next(iter(stream))
        assert engine.stats().running == 1
        stats.limit = weights + (stats.live - weights) // 2
        # From now on the steps of the answer fail, too, and it is continued later.
        torch.testing.assert_close(engine.reason(QUESTIONS[:1]).float(), expected.float(), atol=0.1, rtol=0)
        chunks = list(stream)
    assert chunks[-1].answer is not None
    assert chunks[-1].answer.completion_tokens == 60
    engine.unload()


@pytest.mark.parametrize("graphs", ["off", "auto"])
def test_no_allocation_that_fails_loses_a_request(tiny: Tiny, stats, graphs: str) -> None:
    """The n-th allocation fails, for many n: two answers and a compression end, and the engine still works."""
    engine = fresh(tiny, cuda_graphs=graphs)
    tokens = 2 if graphs == "off" else 5
    memories = engine.compress(PASSAGES[:2])
    expected = [engine.answer(question, memories[:1], max_tokens=tokens) for question in QUESTIONS[:2]]
    captured = 0

    def scenario() -> list[object]:
        """Two concurrent answers and a compression: results, or the errors of the callers."""
        if graphs == "auto":  # with the KV cache, too, and steps that are plain, captured and repeated
            engine._worker.answers.memory = None
            engine.load().model.capture = GraphCapture(engine.device)
        ended: list[object] = []
        calls = [
            lambda: engine.answer_batch([(question, memories[:1]) for question in QUESTIONS[:2]], max_tokens=tokens),
            lambda: engine.compress(PASSAGES[:2]),
        ]
        for call in calls:
            try:
                ended += call()
            except torch.OutOfMemoryError as exc:
                ended.append(exc)
        return ended

    stats.allocations = 0
    scenario()
    count = stats.allocations
    assert count > 100
    failed = 0
    for number in range(1, count + 1, STRIDE):
        stats.allocations, stats.fail_at = 0, number
        ended = scenario()
        assert stats.allocations >= number
        captured += graphs == "auto" and engine.load().model.capture.works
        stats.fail_at = None
        failed += sum(isinstance(result, Exception) for result in ended)
        assert engine.load() and engine._worker.alive  # noqa: PT018
        assert engine.stats().kv_used_bytes == 0
        answers = [result for result in ended if isinstance(result, Answer)]
        assert [answer.completion_tokens for answer in answers] == [tokens] * len(answers)
    assert (captured > 0) is (graphs == "auto")
    # One failure is handled by halving the batch or by another try, so no caller gets an error.
    assert failed == 0
    assert [engine.answer(question, memories[:1], max_tokens=tokens) for question in QUESTIONS[:2]] == expected
    engine.unload()


def test_a_broken_context_closes_the_engine_and_says_so(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fresh(tiny)
    memories = engine.compress(PASSAGES[:1])
    model = engine.load().model

    def asserts(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")

    model.step = asserts
    with pytest.raises(RuntimeError, match="device-side assert"):  # the context still works
        engine.answer("Where?", memories, max_tokens=5)
    assert engine.reason(["Where?"]).isfinite().all()
    monkeypatch.setattr(torch.cuda, "synchronize", asserts)
    with pytest.raises(EngineClosed, match=r"context of cuda:0 is broken .*device-side assert triggered.*restart the"):
        engine.answer("Where?", memories, max_tokens=5)
    with pytest.raises(EngineClosed, match="restart the process"):
        engine.reason(["Where?"])
    del model
    engine.unload()
