"""Each public call of an engine, blocking or awaited, gives the same result through a server."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

from clara_core import ClaraError, Engine, Memory
from clara_core.engine.protocol import EngineTokenizer

FACTS = ["fingerprint", "n_mem", "hidden", "dimension", "window", "context", "answer_top_k", "dtype", "roles"]
QUESTION = "When was Tolmet Bridge opened?"
LONG = " ".join(f"The {n}th pillar of the bridge is {n} metres high." for n in range(40))
TEXTS = [
    "Tolmet Bridge was opened in 1907. It crosses the river Aln.",
    "Captain Ada Quill sailed the Merganser from Bristol to Lisbon in nine days.",
    "富士山 is 3,776 m high; both are climbed in <|im_end|> summer! \U0001f600",
    'Мост открыт в 1907 году.\x01\n"quoted" \\ back',
    LONG,
    "",
]
MANY = [f"Note {n}" for n in range(70)]  # more than fit into one request
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": QUESTION},
]
EVERYTHING = {"logprobs": True, "top_logprobs": 2, "citations": True, "min_confidence": 0.0, "max_tokens": 16}

# The calls of both engines: name, arguments as a function of `At`, options.
CALLS = [
    ("compress", lambda at: (TEXTS,), {}),
    ("compress", lambda at: ([],), {}),
    ("compress", lambda at: ([LONG], "truncate"), {}),
    ("compress_stream", lambda at: (iter([*TEXTS, *MANY]),), {}),
    ("remember", lambda at: ([*TEXTS, *TEXTS[:2]],), {}),
    ("reason", lambda at: ([QUESTION, "Who sailed?", ""],), {}),
    ("reason", lambda at: ([],), {}),
    ("reason", lambda at: (MANY,), {}),
    ("score", lambda at: ([QUESTION, "Who sailed?"], at.read), {}),
    ("score", lambda at: ([], []), {}),
    ("rank", lambda at: (QUESTION, at.read), {}),
    ("rank", lambda at: (QUESTION, at.read, 2), {}),
    ("rank", lambda at: (QUESTION, at.read, 0), {}),
    ("rank", lambda at: (QUESTION, at.read, 99), {}),
    ("rank", lambda at: (QUESTION, [at.cut, *at.read]), {}),
    ("rank", lambda at: (QUESTION, []), {}),
    ("paraphrase", lambda at: (at.read[0],), {"max_tokens": 20}),
    ("paraphrase", lambda at: (at.read[0], "Say {docs} again.", 8), {}),
    ("answer", lambda at: (QUESTION, at.read[:4]), {"max_tokens": 24, "stop": ["zzz"]}),
    ("answer", lambda at: (QUESTION, at.read[:4]), {"temperature": 0.8, "top_p": 0.9, "seed": 7}),
    ("answer", lambda at: (QUESTION, at.read[:2]), {"temperature": np.float32(0.5), "seed": np.int64(7)}),
    ("answer", lambda at: (QUESTION, at.read[:4]), {"verbatim": True, "max_tokens": 90}),
    ("answer", lambda at: (QUESTION, at.read[:4]), EVERYTHING),
    ("answer", lambda at: (QUESTION, at.read[:4]), {"read": "again", "min_confidence": 1.0}),
    ("answer", lambda at: (QUESTION, at.read[:4]), {"read": "auto", "unsure_text": "?"}),
    ("answer", lambda at: (QUESTION, at.read[:4]), {"read": "text", "scores": [0.1, 0.9, 0.2, 0.3]}),
    ("answer", lambda at: (QUESTION, [at.cut]), EVERYTHING),
    ("answer_batch", lambda at: ([(QUESTION, at.read[:3]), ("Hello", [])],), {}),
    ("answer_batch", lambda at: ([],), {}),
    ("chat", lambda at: (TURNS, at.read[:2]), {"max_tokens": 8}),
    ("chat_batch", lambda at: ([(TURNS, at.read[:1])] * 70,), {"max_tokens": 2}),
    ("stream", lambda at: (QUESTION, at.read[:2]), {"logprobs": True, "max_tokens": 16}),
    ("stream", lambda at: (QUESTION, at.read[:2]), EVERYTHING),
    ("stream_chat", lambda at: (TURNS, at.read[:2]), {"max_tokens": 16}),
    ("attribute", lambda at: (QUESTION, at.read[:4], "It was opened in 1907."), {}),
    ("attribute", lambda at: (QUESTION, at.read[:2], at.said), {}),
    ("logprob", lambda at: (QUESTION, at.read[:2], "In 1907."), {}),
    ("logprob", lambda at: (QUESTION, [], "In 1907."), {}),
    ("fidelity", lambda at: (at.read,), {}),
    ("fidelity", lambda at: (at.read[:1], "Say {docs} again."), {}),
    ("count_tokens", lambda at: (LONG,), {}),
]
# Calls that raise the same error.
WRONG = [
    ("compress", lambda at: ([LONG], "error"), {}),
    ("compress", lambda at: ([LONG], "spilt"), {}),
    ("compress", lambda at: ("one",), {}),
    ("compress", lambda at: ([1],), {}),
    ("remember", lambda at: ([None],), {}),
    ("reason", lambda at: ("one",), {}),
    ("rank", lambda at: (1, at.read), {}),
    ("rank", lambda at: (QUESTION, at.read, -1), {}),
    ("rank", lambda at: (QUESTION, TEXTS), {}),
    ("score", lambda at: (QUESTION, at.read), {}),
    ("paraphrase", lambda at: (at.read[0],), {"max_tokens": 0}),
    ("paraphrase", lambda at: (at.read[0], "no place for it"), {}),
    ("answer", lambda at: (QUESTION,), {"max_token": 3}),
    ("answer", lambda at: (QUESTION,), {"temperature": -1.0}),
    ("answer", lambda at: (QUESTION,), {"temperature": "hot"}),
    ("answer", lambda at: (QUESTION, at.read[0]), {}),
    ("answer", lambda at: (QUESTION, at.read), {"scores": [1.0]}),
    ("answer", lambda at: ("word " * 4000,), {}),
    ("chat", lambda at: ([{"role": "assistant", "content": "no"}],), {}),
    ("chat", lambda at: ([{"role": "tool", "content": "no"}],), {}),
    ("chat", lambda at: ("no",), {}),
    ("answer_batch", lambda at: ([QUESTION],), {}),
    ("stream", lambda at: ("word " * 4000,), {}),
    ("stream", lambda at: (QUESTION,), {"top_logprobs": 2}),
    ("attribute", lambda at: (QUESTION, [], "a"), {}),
    ("attribute", lambda at: (QUESTION, at.read[:1], ""), {}),
    ("attribute", lambda at: (QUESTION, at.read[:1], 3), {}),
    ("logprob", lambda at: (QUESTION, at.read[:1], ""), {}),
    ("fidelity", lambda at: (at.read[0],), {}),
    ("answer", lambda at: (QUESTION, [Memory(at.read[0].tokens, "x", ((0, 1),), 1, "0" * 64)]), {}),
]


def told(value):
    """Convert a value to lists, numbers, texts and tensors, which can be compared."""
    if isinstance(value, torch.Tensor):
        return value if value.ndim < 3 else value / value.flatten(1).norm(dim=1)[:, None, None]  # scaled as in a search
    if isinstance(value, Memory):
        names = ("text", "spans", "source_tokens", "fingerprint", "n_windows", "nbytes", "tokens")
        return [told(getattr(value, name)) for name in names]
    if is_dataclass(value):
        return [type(value).__name__, *(told(getattr(value, each.name)) for each in fields(value))]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(told, value)]
    return value


def assert_alike(one, other, place="result"):
    """Assert that values are equal; numbers may differ by 1e-6."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_alike(*pair, f"{place}[{index}]")
    elif isinstance(one, float) and isinstance(other, float):
        assert math.isclose(one, other, rel_tol=0, abs_tol=1e-6), (place, one, other)
    else:
        assert type(one) is type(other), (place, one, other)
        assert one == other, place


class At:
    """Arguments of the calls: memories and an answer of an engine."""

    def __init__(self, engine):
        self.read = engine.remember(TEXTS)
        [self.cut] = engine.compress([LONG], "truncate")
        self.said = engine.answer(QUESTION, self.read[:2])


@pytest.fixture(scope="module")
def here(local):
    return At(local)


@pytest.fixture(scope="module")
def there(remote):
    return At(remote)


async def called(engine, name, arguments, options):
    """The result of a call: blocking, awaitable or streamed."""
    given = getattr(engine, name)(*arguments, **options)
    if inspect.isawaitable(given):
        return await given
    if inspect.isasyncgen(given):
        return [piece async for piece in given]
    return list(given) if isinstance(given, Iterator) else given


def test_every_call_of_an_engine_is_in_the_table():
    public = {name for name in dir(Engine) if inspect.isfunction(getattr(Engine, name)) and not name.startswith("_")}
    awaitable = {name for name in public if name[0] == "a" and name[1:] in public}
    assert {name for name, _, _ in CALLS} == public - awaitable - {"load", "unload", "afetch"}
    properties = {name for name in dir(Engine) if isinstance(getattr(Engine, name), property)}
    assert set(FACTS) == properties - {"tokenizer"}


@pytest.mark.parametrize("name", FACTS)
def test_facts(local, remote, name):
    assert getattr(remote, name) == getattr(local, name)


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer(local, remote, text):
    asked = {
        "count": ((text,), {}),
        "count_plain": ((text,), {}),
        "encode_plain": ((text,), {}),
        "windows": ((text,), {"first_only": True, "reserve": 20}),
        "chat_prompt": (([{"role": "user", "content": text}], 3), {}),
    }
    assert set(asked) == {name for name in dir(EngineTokenizer) if not name.startswith("_")}
    for name, (arguments, options) in asked.items():
        ours, theirs = (getattr(engine.tokenizer, name)(*arguments, **options) for engine in (local, remote))
        assert theirs == ours
    assert remote.tokenizer.windows(text) == local.tokenizer.windows(text)


def names(table):
    return [f"{number}-{name}" for number, (name, _, _) in enumerate(table)]


@pytest.mark.parametrize("name, arguments, options", CALLS, ids=names(CALLS))
@pytest.mark.filterwarnings("ignore:truncated a text", "ignore:the documents do not fit")
async def test_a_call_says_the_same(local, remote, here, there, name, arguments, options):
    expected = told(await called(local, name, arguments(here), options))
    assert_alike(told(await called(remote, name, arguments(there), options)), expected)
    if hasattr(Engine, f"a{name}"):
        assert_alike(told(await called(remote, f"a{name}", arguments(there), options)), expected)


@pytest.mark.parametrize("name, arguments, options", WRONG, ids=names(WRONG))
async def test_a_wrong_call_is_the_same_error(local, remote, here, there, name, arguments, options):
    with pytest.raises((TypeError, ValueError, ClaraError)) as expected:
        await called(local, name, arguments(here), options)
    for twin in (name, f"a{name}"):
        if hasattr(Engine, twin):
            with pytest.raises(type(expected.value)) as found:
                await called(remote, twin, arguments(there), options)
            assert str(found.value) == str(expected.value)
