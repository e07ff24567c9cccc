"""Options, decoding of tokens, stop strings and sampling, first as functions and then through an engine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core import CheckpointError, ClaraEngine, UnknownOption
from clara_core.engine.sampling import Sampling, SequenceState
from clara_core.model.sampler import Draw, Ends
from tests.engines import PASSAGES, open_engine
from tests.model.test_tokenizer import tokenizer_of
from tests.tiny import build

EOS = 0
ALPHABET = ["", "a", "b", "ab", "ba", " ", "x", "abc", "\n", "é"]


def letters(ids: list[int]) -> str:
    return "".join(ALPHABET[index] for index in ids)


def write(ids: list[int], sampling: Sampling, decode=letters, byte_ids: frozenset[int] = frozenset(), room=1000):
    """The pieces of text that a sequence emits for these tokens, and the sequence."""
    sequence = SequenceState(decode, sampling, Ends(frozenset({EOS})), room, byte_ids)
    pieces = []
    for token in ids:
        pieces.append(sequence.feed(token))
        if sequence.finish_reason is not None:
            break
    return pieces, sequence


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, said",
    [
        ({"max_token": 3}, UnknownOption, "an answer has no option 'max_token'; did you mean 'max_tokens'"),
        ({"temprature": 0.5}, UnknownOption, "did you mean 'temperature'"),
        ({"zzz": 1}, UnknownOption, "known: max_tokens, stop, temperature, top_p, seed"),
        ({"max_tokens": 0}, ValueError, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 2.5}, TypeError, "max_tokens must be an integer, got float: 2.5"),
        ({"max_tokens": None}, TypeError, "max_tokens must be an integer, got NoneType"),
        ({"max_tokens": True}, TypeError, "max_tokens must be an integer, got bool"),
        ({"temperature": -0.1}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"temperature": float("inf")}, ValueError, "temperature"),
        ({"temperature": "warm"}, TypeError, "temperature must be a number, got str: 'warm'"),
        ({"top_p": 0}, ValueError, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.01}, ValueError, "top_p"),
        ({"seed": "x"}, TypeError, "seed must be an integer or None, got str: 'x'"),
        ({"seed": 2**64}, ValueError, "seed must be an integer of 64 bits"),
        ({"stop": ""}, ValueError, "strings that are not empty"),
        ({"stop": ["a", ""]}, ValueError, "strings that are not empty"),
        ({"stop": ["a", 5]}, TypeError, r"stop\[1\] must be a string, got int: 5"),
        ({"stop": 5}, TypeError, "stop must be a string or several, got int: 5"),
        ({"stop": b"a"}, TypeError, r"stop\[0\] must be a string, got int"),
    ],
)
def test_options_are_checked_before_any_work(options, error, said) -> None:
    with pytest.raises(error, match=said):
        Sampling.of(options)


def test_options_have_the_documented_defaults() -> None:
    assert Sampling.of({}) == Sampling(max_tokens=128, stop=(), temperature=0.0, top_p=1.0, seed=None)
    assert Sampling.of({"stop": "end"}).stop == ("end",)
    assert Sampling.of({"stop": ["a", "b"]}).stop == ("a", "b")
    assert Sampling.of({"stop": None}).stop == ()


# -- text from tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids, stop, text",
    [
        ([6, 1, 2, 6], ["ab"], "x"),  # across two tokens
        ([6, 7, 6], ["b"], "xa"),  # in the middle of a token
        ([1, 2, 6], ["ab"], ""),  # at the very beginning
        ([1, 1, 2, 6], ["aab", "ab"], ""),  # two stops begin: the earlier one wins
        ([1, 2, 1, 2, 6], ["abab", "bx"], ""),
        ([1, 1, 1, 2], ["ab"], "aa"),  # the beginning of a stop is repeated
        ([3, 3, 6, 1], ["abx"], "ab"),
        ([6, 1, 0], ["ab"], "xa"),  # text that was held back is emitted at the end
        ([6, 1, 6, 6], ["ab"], "xaxx"),
    ],
)
def test_stop_strings(ids, stop, text) -> None:
    pieces, sequence = write(ids, Sampling(max_tokens=len(ids), stop=tuple(stop)))
    assert sequence.text == text
    assert "".join(pieces) == text


@given(
    ids=st.lists(st.integers(1, len(ALPHABET) - 1), min_size=1, max_size=12),
    stops=st.lists(st.text("abx é\n", min_size=1, max_size=4), max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_a_stream_is_its_answer_whatever_stops_it(ids: list[int], stops: list[str]) -> None:
    pieces, sequence = write(ids, Sampling(max_tokens=len(ids), stop=tuple(stops)))
    assert "".join(pieces) == sequence.text
    whole = letters(ids)
    hits = [at for stop in stops if (at := whole.find(stop)) >= 0]
    if not hits:
        assert (sequence.text, sequence.finish_reason) == (whole, "length")
    else:
        assert sequence.finish_reason == "stop"
        assert whole.startswith(sequence.text)
        assert not any(stop in sequence.text for stop in stops)


@pytest.mark.parametrize("family", ["llama2", "llama3"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_streams_of_bytes_never_show_half_a_character(family: str, data: st.DataObject) -> None:
    """Tokens that are bytes, valid and invalid ones, with stop strings among them."""
    tokens = tokenizer_of(family)
    words = data.draw(
        st.lists(st.sampled_from(["富士山", "🙂", "é", "ab", " the", "\x00", "שלום", "👩\u200d🚀"]), max_size=6)
    )
    ids = tokens.encode_markup_batch(["".join(words)])[0]
    if family == "llama2":
        wrong = sorted(tokens.byte_ids)[0x80:]
    else:
        wrong = [tokens._plain.encode("é").ids[0], *tokens._plain.encode("富").ids]
    n_wrong = data.draw(st.integers(0, 3))
    for _ in range(n_wrong):
        ids.insert(data.draw(st.integers(0, len(ids))), data.draw(st.sampled_from(wrong)))
    ids = ids or wrong[:1]
    stop = data.draw(st.sampled_from([(), ("士",), ("b the",), ("ab富",), ("🙂é", "山")]))
    sequence = SequenceState(
        tokens.decode, Sampling(max_tokens=len(ids), stop=stop), Ends(frozenset()), 1000, tokens.byte_ids
    )
    pieces = []
    for token in ids:
        pieces.append(sequence.feed(token))
        if sequence.finish_reason:
            break
        assert n_wrong or "\ufffd" not in pieces[-1]
    assert "".join(pieces) == sequence.text
    if not any(mark in tokens.decode(ids) for mark in stop) and sequence.finish_reason == "length":
        assert sequence.text == tokens.decode(ids)


def test_an_unfinished_character_cannot_hide_the_beginning_of_a_stop() -> None:
    tokens = tokenizer_of("llama3")
    ids = tokens._plain.encode("ab富x").ids
    pieces, sequence = write(ids, Sampling(stop=("ab富",)), tokens.decode)
    assert (sequence.text, pieces) == ("", [""] * len(pieces))


def test_ends_and_limits() -> None:
    assert write([1, 2, EOS, 1], Sampling())[1].finish_reason == "stop"
    assert write([EOS], Sampling())[1].text == ""
    _, sequence = write([1, 2, 1, 1], Sampling(max_tokens=3))
    assert (sequence.text, sequence.finish_reason, len(sequence.ids)) == ("aba", "length", 3)
    assert write([1, 2, 1, 1], Sampling(max_tokens=3), room=2)[1].text == "ab"


# -- drawn tokens ----------------------------------------------------------------------------------


def test_an_answer_says_how_its_next_token_is_drawn() -> None:
    assert write([1], Sampling())[1].draw() is None
    _, sequence = write([1, 2, 6], Sampling(temperature=0.5, top_p=0.9, seed=-1))
    assert sequence.draw() == Draw(0.5, 0.9, seed=-1, position=3)
    fresh = {write([1], Sampling(temperature=1.0))[1].draw().seed for _ in range(3)}
    assert len(fresh) == 3


# -- through an engine -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ClaraEngine:
    return open_engine(build(tmp_path_factory.mktemp("generation"), "qwen2", window=32, rate=8, seed=5))


@pytest.fixture(scope="module")
def memories(engine: ClaraEngine):
    return engine.compress(PASSAGES)


def test_greedy_is_reproducible_and_a_stream_is_the_answer(engine: ClaraEngine, memories) -> None:
    for question in ("Where?", "Who sailed?", ""):
        answer = engine.answer(question, memories[:2], max_tokens=24)
        assert engine.answer(question, memories[:2], max_tokens=24) == answer
        chunks = list(engine.stream(question, memories[:2], max_tokens=24))
        assert "".join(chunk.text for chunk in chunks) == answer.text
        assert chunks[-1].answer == answer
        assert [chunk.answer for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_stop_strings_cut_real_answers(engine: ClaraEngine, memories) -> None:
    whole = engine.answer("Where?", memories[:2], max_tokens=24).text
    for start, length in ((0, 2), (3, 1), (5, 4), (len(whole) // 2, 3)):
        stop = whole[start : start + length]
        if "\ufffd" in stop:
            continue
        cut = engine.answer("Where?", memories[:2], max_tokens=24, stop=[stop, "never there"])
        assert cut.text == whole[: whole.index(stop)]
        assert cut.finish_reason == "stop"
        chunks = engine.stream("Where?", memories[:2], max_tokens=24, stop=stop)
        assert "".join(chunk.text for chunk in chunks) == cut.text


def test_a_seed_holds_whoever_shares_the_batch(engine: ClaraEngine, memories) -> None:
    options = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.95, "seed": 3}
    pairs = [("Where?", memories[:1]), ("Who?", memories[1:4]), ("Why is it so?", []), ("Where?", memories[:1])]
    alone = [engine.answer(*pair, **options) for pair in pairs]
    assert alone[0] == alone[3]
    assert engine.answer_batch(pairs, **options) == alone
    assert engine.answer(*pairs[0], **{**options, "seed": 4}).text != alone[0].text


def test_usage_counts(engine: ClaraEngine, memories) -> None:
    answer = engine.answer("Where?", memories[:3], max_tokens=5)
    assert answer.memory_tokens == 3 * engine.n_mem
    assert answer.source_tokens == sum(memory.source_tokens for memory in memories[:3])
    assert answer.source_tokens == sum(engine.count_tokens(memory.text) for memory in memories[:3])
    prompt = engine.tokenizer.answer_prompt("Where?", 3)
    assert answer.prompt_tokens == len(prompt) - answer.memory_tokens
    assert (answer.completion_tokens, answer.finish_reason) == (5, "length")


def test_every_end_token_of_the_base_ends_an_answer(engine: ClaraEngine, memories) -> None:
    """The generation config of this base has two end tokens."""
    model = engine.load().model
    ends = model.ends.ids | engine.tokenizer.eos_ids
    assert len(ends) == 2
    head = model.head
    for end in ends:

        def only(states: torch.Tensor, end: int = end) -> torch.Tensor:
            return head(states).index_fill(-1, torch.tensor([end]), 1e4)

        model.head = only
        try:
            answer = engine.answer("Where?", memories[:1], max_tokens=4)
        finally:
            del model.head
        assert (answer.text, answer.finish_reason, answer.completion_tokens) == ("", "stop", 0)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_no_answer_ends_before_the_min_new_tokens_of_the_generation_config(
    engine: ClaraEngine, memories, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine.load().model
    head, ends = model.head, torch.tensor(sorted(model.ends.ids | engine.tokenizer.eos_ids))
    monkeypatch.setattr(model, "head", lambda states: head(states).index_fill(-1, ends, 50.0))
    options = {"temperature": temperature, "seed": 3, "max_tokens": 6}
    assert engine.answer("Where?", memories[:1], **options).completion_tokens == 0
    for fewest, written in ((1, 1), (3, 3), (9, 6)):
        monkeypatch.setattr(model.decoder.generation_config, "min_new_tokens", fewest)
        pairs = [("Where?", memories[:1]), ("Who sailed?", memories[:2])]
        answers = engine.answer_batch(pairs, **options)
        assert [answer.completion_tokens for answer in answers] == [written, written]
        assert [answer.finish_reason for answer in answers] == ["stop" if fewest < 6 else "length"] * 2
        assert [engine.answer(*pair, **options) for pair in pairs] == answers
        assert not any(mark in answer.text for answer in answers for mark in ("</s>", "<unk>"))


@pytest.mark.parametrize("fewest", [-1, 1.5, "2", True])
def test_min_new_tokens_must_be_a_number_of_tokens(
    engine: ClaraEngine, memories, fewest: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.load().model.decoder.generation_config, "min_new_tokens", fewest)
    with pytest.raises(CheckpointError, match=r"min_new_tokens.*generation_config\.json.*whole number of at least 0"):
        engine.answer("Where?", memories[:1])
