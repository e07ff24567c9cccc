"""The awaitable calls: same results, an event loop that is never blocked, and work that stops if nobody waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, suppress

import pytest
import torch

from clara_core import ClaraEngine, FingerprintMismatch, RoleError
from tests import event_loop
from tests.engines import PASSAGES, Counter, open_engine, wrapped
from tests.event_loop import LoopWitness
from tests.tiny import build

LONG = {"max_tokens": 3000}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ClaraEngine:
    """An engine whose answers never end by themselves."""
    return open_engine(build(tmp_path_factory.mktemp("async"), "qwen2", window=64, rate=8, seed=5))


@pytest.fixture(scope="module")
def memories(engine: ClaraEngine):
    return engine.compress(PASSAGES)


@pytest.fixture(autouse=True)
def idle(engine: ClaraEngine) -> Iterator[None]:
    """After each test the engine soon becomes idle, and works."""
    yield
    engine.load()
    end = time.monotonic() + 120
    while engine._worker._has_work():
        assert time.monotonic() < end, "something goes on that nobody waits for"
        time.sleep(0.005)
    assert engine.reason(["Where?"]).isfinite().all()


async def test_the_same_results(engine: ClaraEngine, memories) -> None:
    def close(one: torch.Tensor, other: torch.Tensor) -> None:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)

    made = await engine.acompress(iter(PASSAGES))
    for one, other in zip(made, memories, strict=True):
        close(one.tokens, other.tokens)
        assert (one.text, one.spans, one.source_tokens, one.fingerprint) == (
            other.text,
            other.spans,
            other.source_tokens,
            other.fingerprint,
        )
    close(await engine.areason(["Where?", "Who?"]), engine.reason(["Where?", "Who?"]))
    close(await engine.ascore(["Where?"], memories), engine.score(["Where?"], memories))
    ranked = await engine.arank("Where?", memories, top_k=3)
    assert [hit.index for hit in ranked] == [hit.index for hit in engine.rank("Where?", memories, top_k=3)]
    answer = engine.answer("Where?", memories[:2], max_tokens=9, stop=["zzz"])
    assert await engine.aanswer("Where?", memories[:2], max_tokens=9, stop=["zzz"]) == answer
    pairs = [("Where?", memories[:2]), ("Who?", [])]
    assert await engine.aanswer_batch(pairs, max_tokens=9) == engine.answer_batch(pairs, max_tokens=9)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    assert await engine.achat(turns, memories[:1], max_tokens=9) == engine.chat(turns, memories[:1], max_tokens=9)
    chunks = [chunk async for chunk in engine.astream("Where?", memories[:2], max_tokens=9)]
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert chunks[-1].answer == answer


async def test_nothing_to_do(engine: ClaraEngine, memories) -> None:
    assert await engine.acompress([]) == await engine.aanswer_batch([]) == []
    assert (await engine.areason([])).shape == (0, 8, 64)
    assert (await engine.ascore([], memories)).shape == (0, 6)
    assert await engine.arank("Where?", [], top_k=3) == []


async def test_many_texts_and_many_callers(engine: ClaraEngine) -> None:
    texts = [f"{text} {index}" for index in range(25) for text in PASSAGES]
    parts = await asyncio.gather(*(engine.acompress(texts[at::5]) for at in range(5)))
    assert sorted(memory.text for part in parts for memory in part) == sorted(texts)


async def test_errors_reach_the_one_who_awaits(engine: ClaraEngine, memories, tmp_path) -> None:
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got NoneType"):
        await engine.acompress(["text", None])
    with pytest.raises(ValueError, match="did you mean 'split'"):
        await engine.acompress([], overflow="spilt")
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        await engine.aanswer("Where?", max_token=3)
    with pytest.raises(TypeError, match=r"items\[1\] must be a pair"):
        await engine.aanswer_batch([("Where?", []), "Who?"])
    other = open_engine(build(tmp_path, roles=("encoder_adapter", "decoder_adapter")))
    with pytest.raises(RoleError):
        await other.areason(["Where?"])
    for call in (other.aanswer, other.arank):
        with pytest.raises(FingerprintMismatch):
            await call("Where?", memories)

    def broken(original, *args, **kwargs):
        raise ArithmeticError("broken")

    with wrapped(engine.load().model, "step", broken):
        with pytest.raises(ArithmeticError, match="broken"):
            await engine.aanswer("Where?", memories[:1])
        with pytest.raises(ArithmeticError, match="broken"):
            [chunk async for chunk in engine.astream("Where?", memories[:1])]


# -- the loop --------------------------------------------------------------------------------------


async def test_a_call_that_blocks_the_loop_is_seen(engine: ClaraEngine, monkeypatch) -> None:
    """The premise of the tests below: the awaitable calls pass, and the blocking one does not."""
    monkeypatch.setattr(event_loop, "PATIENCE", 0.5)
    with wrapped(engine.load().model, "encode", (witness := LoopWitness()).around):
        engine.reason(["Where?"])
    assert not witness.passed
    with pytest.raises(AssertionError, match="stood still"):
        witness.__exit__(None)


async def test_a_slow_device_does_not_block_the_loop(engine: ClaraEngine, memories) -> None:
    async def read() -> list[str]:
        return [chunk.text async for chunk in engine.astream("Where?", memories[:1], max_tokens=1)]

    model = engine.load().model
    with LoopWitness() as witness, wrapped(model, "encode", witness.around), wrapped(model, "prefill", witness.around):
        calls = [engine.areason(["Where?"]), engine.arank("Where?", memories), engine.ascore(["Where?"], memories)]
        calls += [engine.acompress(PASSAGES), engine.aremember(["new"]), read()]
        calls += [engine.aanswer("Where?", memories[:1], max_tokens=1)]
        await asyncio.gather(*calls)


async def test_slow_tokenizing_loading_and_checking_do_not_block_it(engine: ClaraEngine, memories, monkeypatch) -> None:
    """Each of them happens in a thread, even if other code unloaded the engine meanwhile."""
    from clara_core.engine import runtime

    with LoopWitness() as witness:
        monkeypatch.setattr(runtime, "load_model", witness.before(runtime.load_model))
        for name in ("encode_passages", "chat_prompt"):
            monkeypatch.setattr(engine.tokenizer, name, witness.before(getattr(engine.tokenizer, name)))
        for call in (
            lambda: engine.acompress(PASSAGES),
            lambda: engine.aremember(["another"]),
            lambda: engine.arank("Where?", memories),
            lambda: engine.ascore(["Where?"], memories),
            lambda: engine.aanswer("Where?", memories[:1], max_tokens=1),
        ):
            await asyncio.to_thread(engine.unload)
            await call()

        # The engine is unloaded while the result returns to the loop.
        def leaves(original, *args, **kwargs):
            result = original(*args, **kwargs)
            engine.unload()
            return result

        await asyncio.to_thread(engine.load)
        with wrapped(engine.load().model, "encode", leaves):
            assert len(await engine.acompress(["text"])) == 1


async def test_the_loop_comes_round_under_real_work(engine: ClaraEngine, memories) -> None:
    texts = [f"{text} {index}" for index in range(30) for text in PASSAGES]
    model = engine.load().model
    with LoopWitness() as witness, wrapped(model, "encode", witness.around), wrapped(model, "step", witness.around):
        await asyncio.gather(
            engine.acompress(texts),
            engine.aanswer("Where?", memories, max_tokens=60),
            *(engine.arank(f"Where is {index}?", memories) for index in range(20)),
        )


# -- cancelling ------------------------------------------------------------------------------------


async def test_cancelling_a_task_stops_its_answer(engine: ClaraEngine, memories) -> None:
    with Counter(engine.load().model, "step") as steps:
        task = asyncio.create_task(engine.aanswer("Where?", memories[:1], **LONG))
        await asyncio.to_thread(steps.wait_for, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(idle_now, engine)
        assert steps.calls < 1000


def idle_now(engine: ClaraEngine) -> None:
    while engine._worker._has_work():
        time.sleep(0.005)


async def test_a_timeout_stops_all_answers_of_a_batch(engine: ClaraEngine, memories) -> None:
    with Counter(engine.load().model, "step") as steps:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await engine.aanswer_batch([("Where?", memories[:1])] * 4, **LONG)
        await asyncio.to_thread(idle_now, engine)
        assert steps.calls < 2500


async def test_cancelling_before_anything_was_submitted(engine: ClaraEngine, memories, monkeypatch) -> None:
    """The thread that tokenizes cannot be stopped; the request that it submits afterwards is cancelled."""
    begun, go_on = threading.Event(), threading.Event()
    chat_prompt = engine.tokenizer.chat_prompt

    def slow(*args):
        begun.set()
        go_on.wait(120)
        return chat_prompt(*args)

    monkeypatch.setattr(engine.tokenizer, "chat_prompt", slow)
    with Counter(engine.load().model, "step") as steps:
        task = asyncio.create_task(engine.aanswer("Where?", memories[:1], **LONG))
        await asyncio.to_thread(begun.wait, 120)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await asyncio.sleep(0.1)
        await asyncio.to_thread(idle_now, engine)
        assert steps.calls < 1000


@pytest.mark.parametrize("leave", ["break", "aclose", "cancel"])
async def test_leaving_a_stream_stops_the_work(engine: ClaraEngine, memories, leave) -> None:
    async def read() -> None:
        async for _ in engine.astream("Where?", memories[:1], **LONG):
            pass

    with Counter(engine.load().model, "step") as steps:
        if leave == "break":
            async with aclosing(engine.astream("Where?", memories[:1], **LONG)) as stream:
                async for _ in stream:
                    break
        elif leave == "aclose":
            stream = engine.astream("Where?", memories[:1], **LONG)
            await anext(stream)
            await stream.aclose()
        else:
            task = asyncio.create_task(read())
            await asyncio.to_thread(steps.wait_for, 5)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(idle_now, engine)
        assert steps.calls < 1000


async def test_cancelling_a_compression_stops_the_rest_of_it(engine: ClaraEngine) -> None:
    texts = [f"{text} {index}" for index in range(300) for text in PASSAGES]
    with Counter(engine.load().model, "encode") as encoded:
        task = asyncio.create_task(engine.acompress(texts))
        await asyncio.to_thread(encoded.wait_for, 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(idle_now, engine)
        assert encoded.calls < 100


def test_a_loop_that_is_closed_leaves_no_work_behind(engine: ClaraEngine, memories) -> None:
    """`asyncio.run` ends while a stream has been read only in part."""

    async def half() -> str:
        stream = engine.astream("Where?", memories[:1], **LONG)
        return (await anext(stream)).text

    with Counter(engine.load().model, "step") as steps:
        assert isinstance(asyncio.run(half()), str)
        idle_now(engine)
        assert steps.calls < 1500
