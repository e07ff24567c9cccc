"""The worker under faults: no memory, failing batches, a dying thread, cancelled calls, questions between batches."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core import ClaraEngine, ClaraError, EngineClosed
from clara_core.engine.requests import EncodeRequest, Limits, SequenceRow, fill_batch
from clara_core.model.checkpoint.config import Role
from clara_core.model.decoder import ClaraModel
from clara_core.model.processor import Kernels, StepThreads
from tests.engines import PASSAGES, Counter, open_engine, wrapped
from tests.tiny import build

LONG = {"max_tokens": 3000}  # an answer that takes much longer than any test waits
CORPUS = [f"{text} {index}" for index in range(40) for text in PASSAGES]
QUESTIONS = ["Where?", "When was the bridge opened?", "Who sailed to Lisbon?", "What does the company make?", "Why?"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ClaraEngine:
    """An engine whose answers never end by themselves."""
    return open_engine(build(tmp_path_factory.mktemp("worker"), "qwen2", window=64, rate=8, seed=5))


@pytest.fixture
def model(engine: ClaraEngine) -> Iterator[ClaraModel]:
    """The loaded model; after the test the engine is idle and works."""
    yield engine.load().model
    wait_until(lambda: not engine.load() or not engine._worker._has_work())
    assert engine.reason(["Where?"]).isfinite().all()


@pytest.fixture(scope="module")
def memories(engine: ClaraEngine):
    return engine.compress(PASSAGES)


@pytest.fixture(scope="module")
def pairs(memories):
    return [(question, memories[: index + 1]) for index, question in enumerate(QUESTIONS)]


def test_small_decode_steps_take_one_thread_and_give_the_others_back(
    engine: ClaraEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def look() -> None:
        torch.set_num_threads(2)  # of this thread
        model = engine.load().model
        few = StepThreads(model.processor.single)
        for rows in (1, model.processor.single + 1):
            with few.step(rows):
                found.append(torch.get_num_threads())
            found.append(torch.get_num_threads())
        monkeypatch.setattr(model, "processor", Kernels(single=0))
        with StepThreads(model.processor.single).step(1):
            found.append(torch.get_num_threads())

    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(look).result()
    torch.set_num_threads(before)
    assert found == [1, 2, 2, 2, 2]


def wait_until(holds, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def sizes_above(limit: int, error: BaseException):
    """Make a method fail if its first argument has more rows than `limit`."""

    def wrap(original, rows, *args, **kwargs):
        if len(rows) > limit:
            raise error
        return original(rows, *args, **kwargs)

    return wrap


# -- out of memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory: 9 bytes")],
)
@pytest.mark.parametrize("limit", [1, 3])
def test_encoding_goes_on_with_half_a_batch(engine, model, memories, caplog, error, limit) -> None:
    expected = engine.reason(QUESTIONS)
    with wrapped(model, "encode", sizes_above(limit, error)), caplog.at_level(logging.WARNING):
        torch.testing.assert_close(engine.reason(QUESTIONS), expected, atol=1e-5, rtol=0)
        again = engine.compress(PASSAGES)
    assert "out of memory with 5 sequences in a batch: going on with half of them" in caplog.text
    for one, other in zip(memories, again, strict=True):
        torch.testing.assert_close(one.tokens, other.tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["prefill", "step"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 2}])
def test_answers_go_on_with_half_a_batch(engine, model, pairs, caplog, name, options) -> None:
    expected = engine.answer_batch(pairs, max_tokens=10, **options)
    error = torch.OutOfMemoryError("CUDA out of memory")
    with wrapped(model, name, sizes_above(1, error)), caplog.at_level(logging.WARNING):
        assert engine.answer_batch(pairs, max_tokens=10, **options) == expected
    assert f"out of memory with {'5 answers' if name == 'step' else '2 prompts'}" in caplog.text


@pytest.mark.parametrize("name, call", [("encode", "reason"), ("prefill", "answer"), ("step", "answer")])
def test_what_does_not_fit_alone_is_the_callers_error(engine, model, name, call) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory")
    with wrapped(model, name, sizes_above(0, error)), pytest.raises(torch.OutOfMemoryError, match="CUDA"):
        getattr(engine, call)(QUESTIONS if call == "reason" else "Where?")


def test_halves_run_after_the_tensors_of_the_whole_are_gone(engine, model) -> None:
    """An exception references its frames, and these reference the tensors of the batch."""
    left: list[weakref.ref[torch.Tensor]] = []

    def wrap(original, rows, *args, **kwargs):
        assert all(ref() is None for ref in left)
        activations = torch.zeros(8)
        if len(rows) > 2:
            left.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(rows, *args, **kwargs)

    with wrapped(model, "encode", wrap):
        assert engine.reason(QUESTIONS).shape[0] == 5
    with wrapped(model, "prefill", wrap):
        engine.answer_batch([(question, []) for question in QUESTIONS], max_tokens=2)
    assert len(left) >= 2


def test_fewer_answers_at_a_time_only_while_it_has_to_be(engine, model, pairs) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory")
    with wrapped(model, "step", sizes_above(1, error)):
        engine.answer_batch(pairs, max_tokens=4)
    rows = []

    def seen(original, tokens, *args):
        rows.append(len(tokens))
        return original(tokens, *args)

    with wrapped(model, "step", seen):
        engine.answer_batch(pairs, max_tokens=4)
    assert max(rows) == len(pairs)


# -- errors ----------------------------------------------------------------------------------------


def test_an_error_reaches_the_callers_of_its_batch_only(engine, model, pairs) -> None:
    expected = engine.reason(QUESTIONS)

    def no_passages(original, rows, roles, **kwargs):
        if Role.COMPRESSOR in roles:
            raise ArithmeticError("broken")
        return original(rows, roles, **kwargs)

    answer = engine.answer(*pairs[0], max_tokens=50)
    with wrapped(model, "encode", no_passages), ThreadPoolExecutor() as pool:
        writing = pool.submit(engine.answer, *pairs[0], max_tokens=50)
        broken = pool.submit(engine.compress, CORPUS[:60])
        torch.testing.assert_close(engine.reason(QUESTIONS), expected, atol=1e-5, rtol=0)
        with pytest.raises(ArithmeticError, match="broken"):
            broken.result()
        assert writing.result() == answer


def test_a_step_that_fails_ends_the_answers_and_nothing_else(engine, model, pairs) -> None:
    def broken(original, tokens, cache):
        raise ArithmeticError("broken")

    with wrapped(model, "step", broken):
        with pytest.raises(ArithmeticError), engine.stream(*pairs[0]) as stream:
            list(stream)
        assert next(stream, None) is None
        assert engine.reason(["Where?"]).shape[0] == 1
    assert engine.answer(*pairs[0], max_tokens=3).completion_tokens == 3


def test_numbers_that_are_not_finite_fail_their_own_row(engine, model, pairs) -> None:
    expected = engine.answer_batch(pairs, max_tokens=6)

    def spoil_first(original, tokens, cache):
        logits = original(tokens, cache)
        if len(logits) == len(pairs):
            logits[0] = float("nan")
        return logits

    with wrapped(model, "step", spoil_first), ThreadPoolExecutor() as pool:
        requests = [engine._chat_request([{"role": "user", "content": q}], m, _six()) for q, m in pairs]
        list(pool.map(engine._submit, requests))
        with pytest.raises(ClaraError, match=r"logits that are not finite in torch.float32.*dtype='bfloat16'"):
            requests[0].future.result(20)
        assert [request.future.result(20) for request in requests[1:]] == expected[1:]

    def spoil_memory(original, *args, **kwargs):
        return original(*args, **kwargs).index_fill(0, torch.tensor([0]), float("inf"))

    with wrapped(model, "encode", spoil_memory), pytest.raises(ClaraError, match="memory tokens that are not finite"):
        engine.reason(["Where?"])


def _six():
    from clara_core.engine.sampling import Sampling

    return Sampling(max_tokens=6)


@pytest.mark.parametrize("name", ["encode", "prefill", "step"])
def test_a_dying_thread_tells_all_who_wait(engine, model, pairs, name, caplog) -> None:
    """All running and queued work fails; the next call starts a new thread."""
    gate = threading.Event()

    def dies(original, *args, **kwargs):
        gate.wait(120)
        raise SystemExit("gone")

    expected = engine.reason(QUESTIONS)
    with ThreadPoolExecutor(8) as pool:
        writing = engine.stream(*pairs[0], **LONG)
        next(writing)
        with wrapped(model, name, dies):
            calls = [pool.submit(engine.reason, QUESTIONS), pool.submit(engine.compress, CORPUS)]
            calls += [pool.submit(engine.answer, *pair) for pair in pairs[:3]]
            wait_until(lambda: engine.stats().waiting + engine.stats().passages > 3)
            gate.set()
            died = 0
            for call in calls:
                # Some requests finished before the thread reached the call that kills it.
                exc = call.exception(20)
                died += isinstance(exc, EngineClosed)
                assert exc is None or "SystemExit: gone" in str(exc)
            assert died >= 3
            with pytest.raises(EngineClosed, match="thread died"):
                list(writing)
    assert "the engine's thread died" in caplog.text
    torch.testing.assert_close(engine.reason(QUESTIONS), expected, atol=1e-5, rtol=0)


# -- cancelled calls -------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["close", "with", "drop"])
def test_leaving_a_stream_stops_the_work(engine, model, pairs, leave) -> None:
    with Counter(model, "step") as steps:
        stream = engine.stream(*pairs[0], **LONG)
        for _ in range(3):
            next(stream)
        if leave == "close":
            stream.close()
            assert list(stream) == []
        elif leave == "with":
            with stream:
                next(stream)
        else:
            del stream
        wait_until(lambda: not engine._worker._has_work())
        assert steps.calls < 1000


def test_a_cancelled_stream_gives_what_it_has(engine, model, pairs) -> None:
    whole = engine.answer(*pairs[0], max_tokens=300).text
    stream = engine.stream(*pairs[0], **LONG)
    pieces = [next(stream).text for _ in range(4)]
    stream.cancel()
    rest = list(stream)
    answer = rest[-1].answer
    assert answer.finish_reason == "cancelled"
    assert answer.text == "".join(pieces) + "".join(chunk.text for chunk in rest)
    assert whole.startswith(answer.text[: len(whole)].rstrip("\ufffd"))


def test_closing_a_compression_stops_the_rest_of_it(engine, model) -> None:
    texts = CORPUS * 3
    with Counter(model, "encode") as encoded:
        stream = engine.compress_stream(texts)
        next(stream)
        stream.close()
        wait_until(lambda: not engine._worker._has_work())
        stopped = encoded.calls
        encoded.calls = 0
        engine.compress(texts)
        assert stopped < encoded.calls


# -- order of work ---------------------------------------------------------------------------------


def test_a_question_passes_a_corpus_between_two_layers(engine, model, pairs) -> None:
    """A question and a whole answer finish before the first batch of the corpus."""
    done: list[str] = []
    begun, queued = threading.Event(), threading.Event()

    def watch(original, rows, roles, *, pause):
        if pause is not None and not begun.is_set():
            begun.set()
            queued.wait(120)
        result = original(rows, roles, pause=pause)
        done.append("question" if pause is None else "corpus")
        return result

    with wrapped(model, "encode", watch), ThreadPoolExecutor() as pool:
        corpus = pool.submit(engine.compress, CORPUS)
        begun.wait(120)
        question = pool.submit(engine.reason, ["Where?"])
        wait_until(lambda: engine._worker._urgent)
        queued.set()
        question.result(20)
        assert not corpus.done()
        assert len(corpus.result(60)) == len(CORPUS)
    assert done[0] == "question"
    assert done.count("corpus") > 5


def test_an_answer_is_written_while_a_corpus_is_compressed(engine, model, pairs) -> None:
    order: list[str] = []
    with ThreadPoolExecutor() as pool, Counter(model, "encode") as encoded:
        corpus = pool.submit(engine.compress, CORPUS)
        corpus.add_done_callback(lambda _: order.append("corpus"))
        encoded.wait_for(1)
        engine.answer(*pairs[2], max_tokens=6)
        order.append("answer")
        corpus.result(60)
    assert order == ["answer", "corpus"]


def test_a_question_does_not_wait_for_a_long_answer(engine, model, pairs) -> None:
    with Counter(model, "step") as steps:
        stream = engine.stream(*pairs[0], **LONG)
        steps.wait_for(5)
        assert engine.reason(QUESTIONS).shape[0] == 5
        assert len(engine.compress(PASSAGES)) == 6
        assert engine.answer(*pairs[1], max_tokens=5).completion_tokens == 5
        assert engine.stats().running
        assert steps.calls < 1000
        stream.close()


def test_questions_without_end_do_not_hold_up_an_answer(engine, model, pairs) -> None:
    """Each finished question submits the next one; the answer must still get its turns."""
    ids = engine.tokenizer.encode_passages(["And then?"])
    asked: list[EncodeRequest] = []

    def asks_again(original, rows, roles, **kwargs):
        if len(asked) < 500:
            asked.append(EncodeRequest(ids, Role.REASONER, urgent=True))
            engine._submit(asked[-1])
        return original(rows, roles, **kwargs)

    with wrapped(model, "encode", asks_again):
        engine.reason(["First?"])
        engine.answer(*pairs[0], max_tokens=5)
        assert len(asked) < 400
        engine.compress(PASSAGES * 20)
    assert all(request.future.result(20).shape[0] == 1 for request in asked)


# -- batches ---------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40), budget=st.integers(1, 600))
@settings(max_examples=200, deadline=None)
def test_batches_hold_the_oldest_row_and_its_neighbours(lengths: list[int], budget: int) -> None:
    request = EncodeRequest([[0] * length for length in lengths], Role.COMPRESSOR, urgent=False)
    rows = [SequenceRow(request, index) for index in range(len(lengths))]
    batch = fill_batch(rows, budget)
    taken = sorted(row.index for row in batch)
    assert 0 in taken
    assert len(set(taken)) == len(taken)
    sizes = sorted(len(row.ids) for row in batch)
    assert len(batch) == 1 or len(batch) * sizes[-1] <= budget
    left = [length for index, length in enumerate(lengths) if index not in taken]
    assert not any(sizes[0] < length < sizes[-1] for length in left)
    # No row that would have fitted was left out.
    assert not any((len(batch) + 1) * max(sizes[-1], length) <= budget for length in left if length <= sizes[-1])


def test_batches_follow_the_token_budget(engine, model) -> None:
    sizes = []

    def seen(original, rows, roles, **kwargs):
        sizes.append(len(rows) * max(map(len, rows)))
        return original(rows, roles, **kwargs)

    with wrapped(model, "encode", seen):
        engine.compress(CORPUS)
    assert max(sizes) <= Limits.of(engine.device).tokens
    assert sum(sizes[:-1]) / len(sizes[:-1]) > 0.7 * Limits.of(engine.device).tokens


def test_a_question_waits_for_one_piece_of_a_long_prompt(engine, model, memories, monkeypatch) -> None:
    """Between the pieces answers continue and short prompts are read, and no answer changes."""
    calls = [("Where is that bridge?", memories * 5), ("Why?", []), ("Who?", memories[:1]), ("When?", memories * 4)]
    expected = [engine.answer(*call, max_tokens=20) for call in calls]
    answers = engine._worker.answers
    monkeypatch.setattr(answers, "limits", Limits(tokens=48, rows=16))
    ids = engine.tokenizer.encode_passages(["And then?"])
    asked: list[EncodeRequest] = []
    order: list[str] = []

    def read(original, *args, **kwargs):
        order.append("piece")
        asked.append(EncodeRequest(ids, Role.REASONER, urgent=True))
        engine._submit(asked[-1])
        return original(*args, **kwargs)

    def note(name):
        return lambda original, *args, **kwargs: (order.append(name), original(*args, **kwargs))[1]

    with (
        wrapped(model, "read_on", read),
        wrapped(model, "encode", note("question")),
        wrapped(model, "prefill", note("prompts")),
        wrapped(model, "step", note("step")),
        ThreadPoolExecutor() as pool,
    ):
        made = [pool.submit(engine.answer, *call, max_tokens=20) for call in calls]
        assert [one.result(60) for one in made] == expected
    lengths = [answer.prompt_tokens + answer.memory_tokens for answer in expected]
    pieces = [-(-length // 48) for length in lengths if length > 48]
    assert order.count("piece") == sum(pieces) > 10
    # A question that arrived during a piece is computed before the next piece and the next short prompts.
    for at, name in enumerate(order):
        if name == "piece":
            behind = order[at + 1 :]
            assert not {"piece", "prompts"} & set(behind[: behind.index("question")])
    assert all(request.future.result(20).shape[0] == 1 for request in asked)
