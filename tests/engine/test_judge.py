"""Log-probabilities of a given text with hidden windows, compared with single passes; and their effect on others."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest
import torch

from clara_core import ClaraEngine, ClaraError, EngineClosed
from clara_core.engine.answer_options import Wanted
from clara_core.engine.requests import GenerateRequest, JudgeRequest, JudgeRow, take_rows
from clara_core.engine.sampling import Sampling
from tests.engines import PASSAGES, Counter, open_engine, wrapped
from tests.parity_data import PARITY
from tests.reference import PlainKernel, Reference
from tests.tiny import FAMILIES, Tiny, build

QUESTION = "When was the bridge over the river Aln opened?"
HIDDEN = [frozenset[int](), *(frozenset({window}) for window in range(4)), frozenset({1, 3}), frozenset(range(4))]


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("judge"), request.param, seed=11)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> ClaraEngine:
    return open_engine(tiny)


@pytest.fixture(params=[None, PlainKernel()], ids=["padded", "packed"])
def kernel(engine: ClaraEngine, request: pytest.FixtureRequest) -> Iterator[None]:
    model = engine.load().model
    model.kernel = request.param
    yield
    model.kernel = None


def make(engine: ClaraEngine, said: str = "in 1907", hidden=HIDDEN, texts=PASSAGES[:4]) -> JudgeRequest:
    memories = engine.remember(texts)
    messages = [{"role": "user", "content": QUESTION}]
    ids = engine.tokenizer.chat_prompt(messages, len(memories))
    tokens = [memory.tokens.flatten(0, 1) for memory in memories]
    return JudgeRequest(
        ids=ids,
        slots=engine.tokenizer.is_slot(ids),
        memories=torch.cat(tokens) if tokens else torch.zeros(0, 0),
        windows=engine.tokenizer.window_spans(ids),
        continuation=engine.tokenizer.continuation_ids(messages, len(memories), said),
        hidden=hidden,
    )


def plainly(reference: Reference, request: JudgeRequest) -> torch.Tensor:
    rows = [reference.judge(request.ids, request.memories, request.continuation, sorted(few)) for few in request.hidden]
    return torch.stack(rows)


def judged(engine: ClaraEngine, *requests: JudgeRequest) -> list[torch.Tensor]:
    return engine._wait(requests)


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_each_row_is_what_reading_it_alone_gives(tiny: Tiny, engine: ClaraEngine, kernel: None) -> None:
    request = make(engine)
    [found] = judged(engine, request)
    expected = plainly(tiny.reference(), request)
    assert_alike(found, expected)
    assert (expected[0] - expected[-1]).abs().max() > 1e-3  # hiding changes the result


def test_neighbours_of_other_lengths_change_nothing(tiny: Tiny, engine: ClaraEngine, kernel: None) -> None:
    requests = [make(engine, said, texts=PASSAGES[:n]) for said, n in (("yes", 4), ("Captain Ada Quill of Bristol", 4))]
    requests.append(make(engine, "no documents", [frozenset()], texts=()))
    reference = tiny.reference()
    for found, request in zip(judged(engine, *requests), requests, strict=True):
        assert_alike(found, plainly(reference, request))


def test_a_request_longer_than_a_pass_is_cut_into_several(tiny: Tiny, engine: ClaraEngine) -> None:
    hidden = [frozenset({row % 4}) for row in range(60)]
    request = make(engine, hidden=hidden)
    with Counter(engine.load().model, "judge") as passes:
        [found] = judged(engine, request)
    assert passes.calls > 1
    expected = plainly(tiny.reference(), make(engine, hidden=hidden[:4]))
    assert_alike(found, expected.repeat(15, 1))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_of_transformers_takes_the_same_as_a_mask(tiny: Tiny, attention: str) -> None:
    other = open_engine(tiny, attn_implementation=attention)
    requests = [make(other), make(other, "yes")]
    reference = tiny.reference()
    for found, request in zip(judged(other, *requests), requests, strict=True):
        assert_alike(found, plainly(reference, request))
    other.unload()


@pytest.mark.parametrize("name", ["e2e", "instruct", "base"])
def test_the_recorded_checkpoints(name: str) -> None:
    folder = PARITY / name
    engine = ClaraEngine.from_pretrained(
        str(folder / "checkpoint"), base_model=str(folder / "base"), dtype="float32", device="cpu"
    )
    request = make(engine)
    [found] = judged(engine, request)
    assert_alike(found, plainly(Reference.load(folder / "checkpoint", folder / "base"), request))
    engine.unload()


def test_what_was_written_is_as_probable_as_when_it_was_written(engine: ClaraEngine) -> None:
    memories = engine.remember(PASSAGES[:4])
    messages = [{"role": "user", "content": QUESTION}]
    asked = engine._chat_request(messages, memories, Sampling(max_tokens=12, recorded=0))
    [answer] = engine._wait([asked])
    request = make(engine, hidden=[frozenset()])
    request.continuation = asked.sequence.ids
    [found] = judged(engine, request)
    assert_alike(found[0], torch.tensor([token.logprob for token in answer.logprobs]))


# -- heads that the KV cache still has ---------------------------------------------------------------


def answered(engine: ClaraEngine, texts=PASSAGES[:4]) -> GenerateRequest:
    """A finished answer whose prompt has been kept."""
    asked = engine._chat_request(
        [{"role": "user", "content": QUESTION}], engine.remember(texts), Sampling(max_tokens=6)
    )
    engine._prepare_evidence(asked, Wanted(citations=True))
    engine._wait([asked])
    return asked


def after(asked: GenerateRequest, request: JudgeRequest) -> JudgeRequest:
    request.kept = asked.kept
    return request


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("kernel", [None, PlainKernel()], ids=["padded", "packed"])
def test_a_kept_head_gives_what_a_computed_one_gives(tiny: Tiny, kernel: PlainKernel | None, attention: str) -> None:
    other, reference = open_engine(tiny, attn_implementation=attention), tiny.reference()
    other.load().model.kernel = kernel
    first, second = answered(other), answered(other, PASSAGES[2:4])
    requests = [
        after(first, make(other)),
        make(other, "yes"),
        after(second, make(other, "a captain", [frozenset(), frozenset({1})], PASSAGES[2:4])),
    ]
    for found, request in zip(judged(other, *requests), requests, strict=True):
        assert_alike(found, plainly(reference, request))
        tails = len(request.hidden) * (len(request.ids) - request.head + len(request.continuation) - 1)
        computed = request.positions - tails
        assert computed == 0 if request.kept else computed >= request.head  # each pass computes it again
    other.unload()


def test_a_head_whose_pages_were_needed_is_computed_again(tiny: Tiny) -> None:
    small = open_engine(tiny)
    asked = answered(small)
    memory = small._worker.answers.memory
    everything = memory.open(memory.columns)
    assert everything is not None, "a kept head stands in the way of a row"
    for layer in range(memory.shape.layers):
        memory.both(layer)[:] = torch.inf
    request = after(asked, make(small))
    [found] = judged(small, request)
    assert_alike(found, plainly(tiny.reference(), request))
    small.unload()


def test_a_head_outlives_neither_the_evidence_nor_the_cache(tiny: Tiny) -> None:
    other = open_engine(tiny)
    asked = answered(other)
    worker = other._worker
    kept, memory = asked.kept, worker.answers.memory
    assert memory.used_bytes == 0
    assert memory.read_head(kept) is not None
    worker.answers.drain()
    request = after(asked, make(other))
    [found] = judged(other, request)
    assert request.positions > request.head
    assert_alike(found, plainly(tiny.reference(), request))
    again = answered(other)
    assert worker.answers.memory.read_head(kept) is None
    del again
    gc.collect()
    assert worker.answers.memory.open(worker.answers.memory.columns) is not None
    other.unload()


def test_an_answer_without_evidence_keeps_nothing(engine: ClaraEngine) -> None:
    asked = engine._chat_request([{"role": "user", "content": QUESTION}], engine.remember(PASSAGES[:2]), Sampling())
    engine._prepare_evidence(asked, Wanted())
    engine._wait([asked])
    assert asked.kept is None


# -- passes and waiting ----------------------------------------------------------------------------


def test_a_pass_takes_what_fits_and_always_something(engine: ClaraEngine) -> None:
    request = make(engine)
    rows = [JudgeRow(request, index) for index in range(len(request.hidden))]
    own, head = rows[0].positions, rows[0].request.head
    assert take_rows(rows, 1) == take_rows(rows, 2 * head + own)
    assert 1 <= len(take_rows(rows, 1)) < len(rows)
    assert take_rows(rows, 10_000) == rows
    assert head + len(take_rows(rows, head + 5 * own)) * own <= max(head + 5 * own, 2 * head + own)


def test_it_is_served_between_the_layers_of_a_corpus(engine: ClaraEngine) -> None:
    model = engine.load().model
    served = threading.Event()
    request = make(engine)

    def asks(original, sequences, roles, *, pause=None):
        if pause is not None and not served.is_set():

            def first() -> None:
                if not served.is_set():
                    served.set()
                    engine._submit(request)
                pause()
                assert request.future.done()

            return original(sequences, roles, pause=first)
        return original(sequences, roles, pause=pause)

    with wrapped(model, "encode", asks):
        engine.compress([" ".join(PASSAGES) * 3] * 8)
    assert served.is_set()
    assert request.future.result(120).shape == (len(HIDDEN), len(request.continuation))


def test_one_that_is_cancelled_is_not_computed(engine: ClaraEngine) -> None:
    model = engine.load().model
    request, other = make(engine), make(engine, "yes")
    seen: list[int] = []

    def cancels(original, prompts, memories):
        seen.append(len(prompts))
        other.cancel()
        return original(prompts, memories)

    with wrapped(model, "judge", cancels):
        engine._submit(request)
        request.future.result(120)
        engine._submit(other)
        with pytest.raises(CancelledError):
            other.future.result(120)
        assert engine.answer("Where?", max_tokens=2).completion_tokens >= 0  # the thread still works
    assert set(seen) == {1}


def test_numbers_that_are_none_fail_that_request_alone(engine: ClaraEngine) -> None:
    model = engine.load().model
    spoiled, sound = make(engine, "yes", [frozenset()]), make(engine, "no", [frozenset()])

    def spoil(original, prompts, memories):
        return [
            part * float("nan") if prompt.continuation == spoiled.continuation else part
            for prompt, part in zip(prompts, original(prompts, memories), strict=True)
        ]

    with wrapped(model, "judge", spoil):
        engine._submit_all([spoiled, sound])
        with pytest.raises(ClaraError, match="log-probabilities that are not finite"):
            spoiled.future.result(120)
        assert sound.future.result(120).isfinite().all()


def test_an_error_reaches_only_its_request(engine: ClaraEngine) -> None:
    model = engine.load().model
    bad, good = make(engine, "yes", [frozenset()]), make(engine, "no", [frozenset()])

    def breaks(original, prompts, memories):
        if any(prompt.continuation == bad.continuation for prompt in prompts):
            raise ArithmeticError("broken")
        return original(prompts, memories)

    with wrapped(model, "judge", breaks):
        engine._submit_all([bad, good])
        with pytest.raises(ArithmeticError):
            bad.future.result(120)
        assert good.future.result(120).isfinite().all()


def test_unloading_tells_those_who_wait(engine: ClaraEngine) -> None:
    model = engine.load().model
    entered, go = threading.Event(), threading.Event()

    def stands(original, prompts, memories):
        entered.set()
        go.wait(120)
        return original(prompts, memories)

    with wrapped(model, "judge", stands):
        first = make(engine)
        engine._submit(first)
        assert entered.wait(120)
        waiting = make(engine, "yes")
        engine._submit(waiting)
        closing = threading.Thread(target=engine.unload)
        closing.start()
        go.set()
        closing.join(120)
        with pytest.raises(EngineClosed):
            waiting.future.result(120)


def test_what_cannot_be_judged_is_refused(engine: ClaraEngine) -> None:
    with pytest.raises(ValueError, match="needs tokens and rows, got 0 tokens"):
        make(engine, said="")
    with pytest.raises(ValueError, match=r"windows \[7\] cannot be hidden: the prompt has 4"):
        make(engine, hidden=[frozenset({7})])
