"""Log-probabilities of generated tokens: against the full distribution, at any temperature, streamed, as bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara_core import ClaraEngine, UnknownOption
from clara_core.engine.logprobs import TokenLog
from tests.engines import PASSAGES, open_engine
from tests.tiny import FAMILIES, Tiny, build

QUESTION = "When was the bridge opened?"


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("logprobs"), request.param, seed=5)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> ClaraEngine:
    return open_engine(tiny)


def written(engine: ClaraEngine, **options) -> tuple[list[int], object]:
    """The token ids of an answer from two passages, and the answer."""
    from clara_core.engine.answer_options import read_options

    sampling, _ = read_options(options)
    memories = engine.remember(PASSAGES[:2])
    request = engine._chat_request([{"role": "user", "content": QUESTION}], memories, sampling)
    [answer] = engine._wait([request])
    return request, answer


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_they_are_of_the_models_own_distribution(tiny: Tiny, engine: ClaraEngine, temperature: float) -> None:
    options = {"max_tokens": 12, "temperature": temperature, "top_p": 0.9 if temperature else 1.0, "seed": 3}
    request, answer = written(engine, logprobs=True, top_logprobs=3, **options)
    plain = tiny.reference().judge(request.ids, request.memories, request.sequence.ids)
    found = torch.tensor([token.logprob for token in answer.logprobs])
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)
    for token in answer.logprobs:
        assert [one.logprob for one in token.top] == sorted((one.logprob for one in token.top), reverse=True)
        assert len(token.top) == 3
        assert token.logprob <= token.top[0].logprob + 1e-6
        if not temperature:
            assert (token.bytes, token.logprob) == (token.top[0].bytes, pytest.approx(token.top[0].logprob))


def test_asking_for_them_changes_nothing_else(engine: ClaraEngine) -> None:
    memories = engine.remember(PASSAGES[:2])
    for options in ({}, {"temperature": 0.8, "seed": 1}):
        plain = engine.answer(QUESTION, memories, max_tokens=10, **options)
        logged = engine.answer(QUESTION, memories, max_tokens=10, logprobs=True, **options)
        assert plain.logprobs is None
        assert logged.text == plain.text
        assert len(logged.logprobs) == logged.completion_tokens == plain.completion_tokens


def test_streamed_they_are_the_same_and_none_is_missing(engine: ClaraEngine) -> None:
    memories = engine.remember(PASSAGES[:2])
    whole = engine.answer(QUESTION, memories, max_tokens=12, logprobs=True)
    with engine.stream(QUESTION, memories, max_tokens=12, logprobs=True) as stream:
        chunks = list(stream)
    assert tuple(one for chunk in chunks for one in chunk.logprobs) == whole.logprobs == chunks[-1].answer.logprobs
    with engine.stream(QUESTION, memories, max_tokens=4) as stream:
        assert {chunk.logprobs for chunk in stream} == {None}


@given(text=st.text(max_size=60))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_joined_are_the_text(engine: ClaraEngine, text: str) -> None:
    tokenizer = engine.tokenizer
    ids = tokenizer.encode_plain(text)
    joined = b"".join(tokenizer.token_bytes.join(ids))
    assert joined.decode("utf-8", "replace") == tokenizer.decode(ids)


def test_bytes_of_a_log_joined_are_the_text_whatever_the_tokens(engine: ClaraEngine) -> None:
    tokenizer = engine.tokenizer
    for text in ("富士山 is 3,776 m high 🙂", " leading", "naïve — “quoted”\n\nnext"):
        ids = tokenizer.encode_plain(text)
        log = TokenLog(tokenizer.token_bytes)
        for token in [*tokenizer.memory_ids[:1], *ids]:  # a special token is not text, at any place
            log.record(token, -1.0)
        assert b"".join(entry.bytes for entry in log.entries).decode() == tokenizer.decode(ids)
        assert len(log.entries) == len(ids) + 1


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"logprobs": 1}, TypeError, "logprobs must be True or False, got int: 1"),
        ({"top_logprobs": 2}, ValueError, "top_logprobs=2 needs logprobs=True"),
        ({"logprobs": True, "top_logprobs": 21}, ValueError, "between 0 and 20, got 21"),
        ({"logprobs": True, "top_logprobs": "3"}, TypeError, "top_logprobs must be an integer, got str"),
        ({"logprob": True}, UnknownOption, "did you mean 'logprobs'"),
        ({"read": "agian"}, ValueError, "did you mean 'again'"),
        ({"min_confidence": 2}, ValueError, "between 0 and 1, got 2"),
        ({"min_confidence": "high"}, TypeError, "min_confidence must be a number or None"),
        ({"citations": "atention"}, TypeError, "citations must be True, False or 'attention'"),
        ({"scores": "high"}, TypeError, "scores must be numbers"),
        ({"scores": [0.5, float("nan")]}, ValueError, "scores must be finite"),
        ({"scores": [0.5]}, ValueError, "one number a document: got 1 for 2"),
    ],
)
def test_what_cannot_be_is_refused(engine: ClaraEngine, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        engine.answer(QUESTION, engine.remember(PASSAGES[:2]), **options)
