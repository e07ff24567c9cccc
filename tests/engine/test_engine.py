"""The shared engine: one object, lazy loading, failures, unloading, and the contracts of its calls."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from clara_core import (
    CheckpointError,
    ClaraEngine,
    ContextOverflow,
    EngineClosed,
    FingerprintMismatch,
    RoleError,
    WindowOverflow,
)
from clara_core.model.checkpoint.config import Role
from clara_core.model.tokenizer import ANSWER_SYSTEM
from tests.engines import PASSAGES, Counter, open_engine, wrapped
from tests.tiny import FAMILIES, Tiny, build

LONG_TEXT = " ".join(f"{text} ({index})" for index in range(4) for text in PASSAGES)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("engine"), "mistral", seed=3)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> ClaraEngine:
    return open_engine(tiny)


@pytest.fixture(scope="module")
def memories(engine: ClaraEngine):
    return engine.compress(PASSAGES)


# -- one object ------------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_object_from_any_thread(tmp_path: Path) -> None:
    start = threading.Barrier(12)

    def make(_: int) -> ClaraEngine:
        start.wait()
        return ClaraEngine.from_pretrained(str(tmp_path / "nowhere"), device="cpu")

    with ThreadPoolExecutor(12) as pool:
        assert len({id(engine) for engine in pool.map(make, range(12))}) == 1


def test_what_is_resolved_counts(tiny: Tiny, engine: ClaraEngine, monkeypatch) -> None:
    monkeypatch.chdir(tiny.folder.parent)
    assert open_engine(tiny, device=torch.device("cpu")) is engine
    base = str(tiny.base)
    assert ClaraEngine.from_pretrained("checkpoint", base_model="base", dtype="float32", device="cpu") is engine
    assert ClaraEngine.from_pretrained(tiny.folder, base_model=base, dtype="float32", device="cpu") is engine
    assert open_engine(tiny, dtype="bfloat16") is not engine
    assert open_engine(tiny, reasoner="encoder") is not engine


def test_copies_and_pickles_are_the_object_itself(engine: ClaraEngine) -> None:
    assert copy.copy(engine) is engine
    assert copy.deepcopy({"held": [engine]})["held"][0] is engine
    assert pickle.loads(pickle.dumps(engine)) is engine  # noqa: S301 - pickled here


def test_an_access_token_is_no_part_of_it_but_the_newest_is_used(tmp_path: Path) -> None:
    first = ClaraEngine.from_pretrained(str(tmp_path), device="cpu")
    again = ClaraEngine.from_pretrained(str(tmp_path), device="cpu", token="hf_secret")
    assert again is first
    assert first.arguments.token == "hf_secret"
    assert ClaraEngine.from_pretrained(str(tmp_path), device="cpu").arguments.token == "hf_secret"
    assert b"hf_secret" not in pickle.dumps(first)
    assert "hf_secret" not in repr(first) + repr(first.arguments)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"dtype": "bfloat"}, "dtype must be one of .* got 'bfloat'; did you mean 'bfloat16'"),
        ({"attn_implementation": "flash"}, "attn_implementation"),
        ({"quantization": "int4"}, "did you mean 'int8'"),
        ({"reasoner": "encodr"}, "did you mean 'encoder'"),
        ({"device": "gpu9"}, "device must be 'auto' or a torch device"),
    ],
)
def test_arguments_that_no_engine_can_have(tiny: Tiny, arguments, said) -> None:
    with pytest.raises(ValueError, match=said):
        open_engine(tiny, **arguments)


# -- life ------------------------------------------------------------------------------------------


def test_weights_load_at_first_use(tmp_path: Path) -> None:
    engine = open_engine(build(tmp_path))
    assert "not loaded" in repr(engine)
    assert (engine.n_mem, engine.hidden, engine.dimension, engine.window) == (8, 64, 512, 64)
    assert (engine.dtype, engine.device) == (torch.float32, torch.device("cpu"))
    assert engine.count_tokens("Where is it?") > 2
    assert engine._loaded is None
    engine.compress(["text"])
    assert ", loaded)" in repr(engine)
    assert engine.roles == tuple(Role)


def test_a_load_that_failed_may_be_tried_again(tmp_path: Path) -> None:
    """The files appear one after the other, and the last one comes with another config."""
    tiny = build(tmp_path / "real", rate=16)
    engine = ClaraEngine.from_pretrained(str(tmp_path / "late"), base_model=str(tiny.base), device="cpu")
    with pytest.raises(CheckpointError, match="late"):
        engine.compress(["text"])
    (tmp_path / "late").mkdir()
    shutil.copy(tiny.folder / "config.json", tmp_path / "late")
    with pytest.raises(CheckpointError, match="adapters"):
        engine.compress(["text"])
    assert engine.n_mem == 4
    other = build(tmp_path / "other", rate=8)
    shutil.copytree(other.folder, tmp_path / "late", dirs_exist_ok=True)
    with pytest.raises(CheckpointError):  # the config that was read before does not belong to these files
        engine.compress(["text"])
    assert engine.compress(["text"])[0].tokens.shape == (1, 8, 64)


def test_unloading_while_others_wait(engine: ClaraEngine, memories) -> None:
    """Waiting callers get `EngineClosed`; the next call loads the model again and gives the same numbers."""
    expected = engine.reason(["Where?"])
    gate, inside = threading.Event(), threading.Event()

    def slow(original, *args, **kwargs):
        inside.set()
        gate.wait(120)
        return original(*args, **kwargs)

    worker = engine._worker
    with wrapped(engine.load().model, "encode", slow), ThreadPoolExecutor() as pool:
        stream = engine.stream("Where?", memories, max_tokens=3000)
        next(stream)
        begun = pool.submit(engine.reason, ["Where?"])
        inside.wait(120)
        waiting = pool.submit(engine.compress, PASSAGES * 30)
        while not worker._bulk:
            threading.Event().wait(0.005)
        unloading = pool.submit(engine.unload)
        while worker.alive:
            threading.Event().wait(0.005)
        gate.set()
        assert torch.equal(begun.result(20), expected)
        with pytest.raises(EngineClosed, match="unloaded while this call was waiting"):
            waiting.result(20)
        with pytest.raises(EngineClosed):
            list(stream)
        unloading.result(20)
    assert torch.equal(engine.reason(["Where?"]), expected)
    engine.unload()
    engine.unload()
    assert "not loaded" in repr(engine)
    assert engine.answer("Where?", memories, max_tokens=2).completion_tokens == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_makes_its_own_worker(engine: ClaraEngine) -> None:
    """The worker thread of the parent does not exist in the child: a call there must not wait for it."""
    expected = engine.reason(["Where?"])
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # kills a child that hangs
        os._exit(0 if torch.allclose(engine.reason(["Where?"]), expected, atol=1e-5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(engine.reason(["Where?"]), expected)


# -- documents -------------------------------------------------------------------------------------


def test_long_texts_become_the_windows_that_their_pieces_would(engine: ClaraEngine) -> None:
    [memory] = engine.compress([LONG_TEXT])
    assert memory.text == LONG_TEXT
    assert memory.n_windows == len(memory.spans) > 3
    pieces = [LONG_TEXT[start:end] for start, end in memory.spans]
    assert "".join(pieces) == LONG_TEXT
    alone = torch.cat([piece.tokens for piece in engine.compress(pieces)])
    torch.testing.assert_close(memory.tokens, alone, atol=1e-5, rtol=0)
    assert memory.source_tokens == sum(engine.tokenizer.count(piece) for piece in pieces)
    ranked = engine.rank("Who sailed?", [memory])
    scores = [hit.score for piece in engine.compress(pieces) for hit in engine.rank("Who sailed?", [piece])]
    assert ranked[0].score == pytest.approx(max(scores), abs=1e-5)
    assert ranked[0].window == scores.index(max(scores))


def test_overflow_error_and_truncate(engine: ClaraEngine, caplog) -> None:
    n_tokens = engine.tokenizer.count(LONG_TEXT)
    with pytest.raises(WindowOverflow, match=rf"{n_tokens} tokens\) does not fit the window of 64 tokens"):
        engine.compress(["short", LONG_TEXT], overflow="error")
    with pytest.warns(UserWarning, match=rf"truncated a text of {len(LONG_TEXT)} characters to its first \d+"):
        [memory] = engine.compress([LONG_TEXT], overflow="truncate")
    assert "truncated a text" in caplog.text
    [(start, end)] = memory.spans
    assert (start, memory.text) == (0, LONG_TEXT)
    assert 60 < memory.source_tokens <= 65
    assert 100 < end < len(LONG_TEXT)
    for overflow in ("error", "truncate"):
        assert engine.compress(["short"], overflow=overflow)[0].spans == ((0, 5),)
    for texts in ([], ["short"], [LONG_TEXT]):
        with pytest.raises(ValueError, match=r"overflow must be one of .* got 'spilt'; did you mean 'split'"):
            engine.compress(texts, overflow="spilt")


def test_questions_that_are_cut_say_so(engine: ClaraEngine) -> None:
    with pytest.warns(UserWarning, match=r"truncated questions\[1\] of \d+ tokens to a window of 64 tokens"):
        cut = engine.reason(["Where?", LONG_TEXT])
    assert cut.shape == (2, 8, 64)


def test_a_stream_reads_ahead_only_so_far(engine: ClaraEngine) -> None:
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield f"passage {read}"

    stream = engine.compress_stream(endless())
    assert read == 0
    assert next(stream).text == "passage 1"
    assert read <= 512
    for _ in range(600):
        memory = next(stream)
    assert memory.text == "passage 601"
    assert read <= 601 + 512
    assert memory.tokens.untyped_storage().nbytes() == memory.nbytes  # the iterator does not keep a whole block
    stream.close()


def test_the_kind_of_the_iterable_does_not_matter(engine: ClaraEngine, memories) -> None:
    for given in (tuple(PASSAGES), iter(PASSAGES), dict.fromkeys(PASSAGES)):
        for one, other in zip(engine.compress(given), memories, strict=True):
            torch.testing.assert_close(one.tokens, other.tokens, atol=1e-5, rtol=0)


def test_progress_is_drawn_only_when_asked_for(engine: ClaraEngine, capfd) -> None:
    engine.compress(PASSAGES)
    assert capfd.readouterr() == ("", "")
    engine.compress(PASSAGES, show_progress=True)
    shown = capfd.readouterr().err
    assert "compressing" in shown
    assert "6/6" in shown


def test_other_dtypes(tiny: Tiny, memories) -> None:
    engine = open_engine(tiny, dtype="bfloat16")
    [memory, *_] = engine.compress(PASSAGES)
    assert memory.tokens.dtype == torch.bfloat16
    assert memory.fingerprint == memories[0].fingerprint  # engines of both types read each other's memories
    scores = engine.score(["Where?"], memories)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, open_engine(tiny).score(["Where?"], memories), atol=0.02, rtol=0)
    assert engine.answer("Where?", memories[:2], max_tokens=3).completion_tokens <= 3


# -- questions and answers -------------------------------------------------------------------------


def test_candidates_fewer_than_asked_for_and_none(engine: ClaraEngine, memories) -> None:
    ranked = engine.rank("Where?", memories, top_k=99)
    assert sorted(hit.index for hit in ranked) == list(range(len(memories)))
    assert ranked == engine.rank("Where?", memories)
    assert engine.rank("Where?", [], top_k=5) == []
    assert engine.score(["Where?", "Who?"], []).shape == (2, 0)
    assert engine.score([], memories).shape == (0, len(memories))
    assert engine.reason([]).shape == (0, 8, 64)
    assert engine.compress([]) == engine.answer_batch([]) == []


def test_no_documents_is_plain_generation(engine: ClaraEngine) -> None:
    answer = engine.answer("Where?", max_tokens=5)
    assert (answer.memory_tokens, answer.source_tokens) == (0, 0)
    assert answer == engine.chat([{"role": "user", "content": "Where?"}], max_tokens=5)
    ids = engine.tokenizer.chat_prompt([{"role": "user", "content": "Where?"}], 0)
    assert "Background" not in engine.tokenizer.decode(ids)
    assert answer.prompt_tokens == len(ids)


def test_ragged_batches_equal_one_by_one(engine: ClaraEngine, memories) -> None:
    questions = ["Where?", "Who sailed to Lisbon and when?", "", "Why?" * 20, "What?"]
    pairs = [(question, memories[:n]) for question, n in zip(questions, (0, 6, 1, 3, 2), strict=True)]
    alone = [engine.answer(*pair, max_tokens=12) for pair in pairs]
    assert engine.answer_batch(pairs, max_tokens=12) == alone
    assert engine.answer_batch([list(pair) for pair in pairs], max_tokens=12) == alone


def test_more_documents_than_fit_is_an_error_with_both_numbers(engine: ClaraEngine, memories) -> None:
    many = memories * 80
    needed = len(engine.tokenizer.answer_prompt("Where?", len(many)))
    assert needed > 4096
    with pytest.raises(ContextOverflow, match=rf"takes {needed} positions \(480 documents .* context holds 4096"):
        engine.answer("Where?", many)
    with pytest.raises(ContextOverflow):
        engine.answer("Where? " * 5000)
    with pytest.raises(ContextOverflow):
        engine.answer_batch([("Where?", memories), ("Where?", many)])


def test_an_answer_ends_where_the_context_does(engine: ClaraEngine, memories) -> None:
    per_document = engine.n_mem + 1
    fixed = len(engine.tokenizer.answer_prompt("Where?", 1)) - per_document
    n = (4096 - 5 - fixed) // per_document
    room = 4096 - fixed - n * per_document
    answer = engine.answer("Where?", (memories * 100)[:n], max_tokens=500)
    assert (answer.finish_reason, answer.completion_tokens) == ("length", room)


def test_memories_of_another_model_are_refused(engine: ClaraEngine, memories, tmp_path: Path) -> None:
    other = open_engine(build(tmp_path, seed=99))
    [foreign] = other.compress(["text"])
    own, strange = engine.fingerprint[:12], other.fingerprint[:12]
    calls = (
        lambda given: engine.answer("Where?", given),
        lambda given: engine.rank("Where?", given),
        lambda given: engine.score(["Where?"], given),
        lambda given: engine.paraphrase(given[-1]),
        lambda given: engine.stream("Where?", given),
    )
    for call in calls:
        with pytest.raises(FingerprintMismatch, match=rf"memories\[\d\] was made by the model {strange}.* is {own}"):
            call([memories[0], foreign])


def test_roles_that_a_checkpoint_lacks(tmp_path: Path) -> None:
    tiny = build(tmp_path, roles=("encoder_adapter", "decoder_adapter"))
    engine = open_engine(tiny)
    assert engine.roles == (Role.COMPRESSOR, Role.GENERATOR)
    found = engine.compress(PASSAGES[:2])
    for call in (engine.reason, lambda given: engine.rank(given[0], found), lambda given: engine.score(given, found)):
        with pytest.raises(RoleError, match=r"stage1_2.* has no query reasoner: it holds compressor, generator"):
            call(["Where?"])
    assert engine.answer("Where?", found, max_tokens=2).completion_tokens == 2


@pytest.mark.parametrize(
    "odd, merged",
    [
        ("user:a user:b", "user:a\nb"),
        ("user:a system:s assistant:b user:c system:t", "system:s\nt user:a assistant:b user:c"),
        ("assistant:a user:b", "user: assistant:a user:b"),
        ("user:a assistant:b assistant:c user:d", "user:a assistant:b\nc user:d"),
        ("system:s", "user:s"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)  # the chat template of "llama" refuses turns that do not alternate
def test_conversations_of_odd_shapes(tmp_path_factory, family, odd, merged) -> None:
    engine = open_engine(build(tmp_path_factory.mktemp(family), family))

    def turns(text: str) -> list[dict[str, str]]:
        pairs = (turn.partition(":") for turn in text.split(" "))
        return [{"role": role, "content": content} for role, _, content in pairs]

    read = engine.compress(PASSAGES[:2])
    answer = engine.chat(turns(odd), read, max_tokens=3)
    assert answer == engine.chat(turns(merged), read, max_tokens=3)
    assert list(engine.stream_chat(turns(odd), read, max_tokens=3))[-1].answer == answer
    assert answer.memory_tokens == 2 * engine.n_mem


@pytest.mark.parametrize("turns", [[], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]])
def test_what_cannot_be_answered(engine: ClaraEngine, turns) -> None:
    with pytest.raises(ValueError, match=r"no message to answer|model's own"):
        engine.chat(turns)


def test_conversations(engine: ClaraEngine, memories) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Where?"},
    ]
    kept = copy.deepcopy(turns)
    answer = engine.chat(turns, memories[:2], max_tokens=6)
    assert turns == kept
    prompt = engine.tokenizer._tokenizer.decode(engine.tokenizer.chat_prompt(turns, 2))
    assert ANSWER_SYSTEM not in prompt
    assert (
        prompt.index("Hello") < prompt.index("Background:") < prompt.index("<MEM0>") < prompt.index("Question:Where?")
    )
    assert "".join(chunk.text for chunk in engine.stream_chat(turns, memories[:2], max_tokens=6)) == answer.text
    assert engine.chat_batch([(turns, memories[:2]), (turns[:2], [])], max_tokens=6)[0] == answer


def test_sixteen_threads_mixing_everything_equal_one(engine: ClaraEngine, memories) -> None:
    questions = ["Where?", "Who sailed?", "How high is it?", "What does it make?"]
    expected = {
        "tokens": engine.reason(questions),
        "scores": engine.score(questions, memories),
        "ranks": [[hit.index for hit in engine.rank(question, memories)] for question in questions],
        "answers": [engine.answer(question, memories[:2], max_tokens=8) for question in questions],
        "paraphrase": engine.paraphrase(memories[0], max_tokens=8),
    }
    end = threading.Event()
    threading.Timer(3.0, end.set).start()

    def close(one: torch.Tensor, other: torch.Tensor) -> None:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)

    def work(seed: int) -> int:
        rounds = 0
        while rounds < 7 or not end.is_set():
            at = (seed + rounds) % 4
            kind = (seed + rounds) % 7
            if kind == 0:
                close(engine.reason(questions[at:]), expected["tokens"][at:])
            elif kind == 1:
                close(engine.score(questions, memories[: at + 1]), expected["scores"][:, : at + 1])
            elif kind == 2:
                assert [hit.index for hit in engine.rank(questions[at], memories)] == expected["ranks"][at]
            elif kind == 3:
                assert engine.answer(questions[at], memories[:2], max_tokens=8) == expected["answers"][at]
            elif kind == 4:
                pieces = [chunk.text for chunk in engine.stream(questions[at], memories[:2], max_tokens=8)]
                assert "".join(pieces) == expected["answers"][at].text
            elif kind == 5:
                for one, other in zip(engine.compress(PASSAGES * 3), memories * 3, strict=True):
                    close(one.tokens, other.tokens)
            else:
                assert engine.paraphrase(memories[0], max_tokens=8) == expected["paraphrase"]
            rounds += 1
        return rounds

    with Counter(engine.load().model, "step") as steps, ThreadPoolExecutor(16) as pool:
        rounds = list(pool.map(work, range(16)))
    assert min(rounds) >= 7
    assert steps.calls > 10
