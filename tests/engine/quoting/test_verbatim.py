"""Answers that quote: which words may be quoted, by every kind of tokenizer, and through an engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from unicodedata import normalize

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clara_core import ClaraEngine, Memory
from clara_core.engine.quoting.verbatim import OTHER_ANSWERS, Quotation
from clara_core.model.checkpoint.config import ClaraConfig
from clara_core.model.tokenizer import ClaraTokenizer
from clara_core.retrieval.words import word_spans
from tests.engines import PASSAGES, open_engine
from tests.model.test_tokenizer import tokenizer_of
from tests.tiny import Tiny, build

FAMILIES = ("mistral", "qwen2", "llama2", "llama3", "phi3")
SPLIT = ("qwen2", "llama3", "phi3", "pocket")  # no token goes beyond the end of a word
END = 10**9
QUESTIONS = ("Where?", "When was the bridge opened?", "Who sailed to Lisbon?", "How high is it?")


def walk(texts: list[str], tokenizer: ClaraTokenizer, rng: random.Random) -> str:
    """A random quotation, as if each allowed token were equally likely."""
    quotation, ids = Quotation(texts, tokenizer), []
    while True:
        allowed = quotation.allowed([END])
        assert allowed, "a quotation can always go on or end"
        token = rng.choice(list(allowed))
        if token == END:
            return tokenizer.decode(ids).lstrip()  # some decoders leave the space before the first word
        quotation.feed(token)
        ids.append(token)


def quotations(text: str, tokenizer: ClaraTokenizer) -> set[str]:
    """Every quotation of a text."""
    found, paths = set(), [[]]
    while paths:
        path = paths.pop()
        quotation = Quotation([text], tokenizer)
        for token in path:
            quotation.feed(token)
        for token in quotation.allowed([END]):
            if token == END:
                found.add(tokenizer.decode(path).lstrip())
            else:
                paths.append([*path, token])
    return found - set(OTHER_ANSWERS)


def stands_whole(quoted: str, text: str) -> bool:
    """Whether a text has these characters somewhere between two words."""
    spans = word_spans(text)
    starts, ends = {start for start, _ in spans}, {end for _, end in spans}
    at = text.find(quoted)
    while at >= 0:
        if at in starts and at + len(quoted) in ends:
            return True
        at = text.find(quoted, at + 1)
    return False


@pytest.mark.parametrize("family", SPLIT)
def test_all_runs_of_words_can_be_quoted_and_nothing_else(family: str) -> None:
    tokenizer = ClaraEngine.from_pretrained("pocket").tokenizer if family == "pocket" else tokenizer_of(family)
    text = "Ada paid 3.4 kg (net)."
    starts, ends = (0, 4, 9, 13, 16, 17), (3, 8, 12, 15, 17, 20, 22)
    runs = {text[start:end] for start in starts for end in ends if start < end}
    assert quotations(text, tokenizer) == runs


@pytest.mark.parametrize("mark", ["'", "’"])  # noqa: RUF001 - an apostrophe of print
def test_an_owner_can_be_quoted_without_the_ending(mark: str) -> None:
    assert quotations(f"Ada{mark}s cat", tokenizer_of("qwen2")) == {
        f"Ada{mark}s cat", f"Ada{mark}s", "Ada", "cat",
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@example(texts=["00 "], seed=42)
@example(texts=["0's 0's\u2019s"], seed=1)
@example(texts=["0\uf900"], seed=0)  # some tokenizers normalize this character to another one
@example(texts=["It rained.\n\n"], seed=3)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_any_text_is_quoted_letter_by_letter(family: str, texts: list[str], seed: int) -> None:
    tokenizer = tokenizer_of(family)
    quoted = normalize("NFC", walk(texts, tokenizer, random.Random(seed)))
    assert quoted in OTHER_ANSWERS or any(stands_whole(quoted, normalize("NFC", text)) for text in texts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "text", ["", "   ", "</s><MEM0>[/INST]", "富士山は高い", "🐐🐐 é\u0301", "\ud800 broken", "a" * 3000]
)
def test_hostile_texts_can_be_quoted(family: str, text: str) -> None:
    tokenizer = tokenizer_of(family)
    special = {tokenizer.token_id(token) for token in tokenizer.config.mem_tokens}
    for seed in range(5):
        quotation, rng = Quotation([text] * 20, tokenizer), random.Random(seed)
        while (token := rng.choice(list(quotation.allowed([END])))) != END:
            assert token not in special
            quotation.feed(token)


def test_a_script_without_spaces_is_quoted_by_characters() -> None:
    assert {"富士山", "高い", "山は高"} <= quotations("富士山は高い", tokenizer_of("qwen2"))


# --- through an engine ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mistral", "qwen2"])
def tiny(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Tiny:
    return build(tmp_path_factory.mktemp("verbatim"), request.param, seed=3)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> Iterator[ClaraEngine]:
    engine = open_engine(tiny)
    yield engine
    engine.unload()


@pytest.fixture(scope="module")
def memories(engine: ClaraEngine) -> list[Memory]:
    return engine.compress(PASSAGES)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_answers_are_words_of_a_document(engine: ClaraEngine, memories: list[Memory], temperature: float) -> None:
    said = [
        engine.answer(question, memories[:few], verbatim=True, max_tokens=200, temperature=temperature, seed=seed)
        for question in QUESTIONS
        for few, seed in ((1, 1), (2, 2), (6, 3))
    ]
    for answer in said:
        assert answer.finish_reason == "stop"
        assert answer.text in OTHER_ANSWERS or any(stands_whole(answer.text, text) for text in PASSAGES)
    assert len({answer.text for answer in said}) > 1 or temperature == 0


def test_a_batch_a_stream_and_a_small_cache_give_the_same(tiny: Tiny, engine: ClaraEngine, memories) -> None:
    """Beside free answers, which do not wait for the host, and with answers that are preempted."""
    options = {"max_tokens": 60, "temperature": 1.0, "seed": 5}
    alone = [engine.answer(question, memories, verbatim=True, **options) for question in QUESTIONS]
    items = [(question, memories) for question in QUESTIONS]
    assert engine.answer_batch(items, verbatim=True, **options) == alone
    streams = [
        engine.stream(question, memories, verbatim=at % 2 == 0, **options) for at, question in enumerate(QUESTIONS)
    ]
    texts = ["".join(chunk.text for chunk in stream) for stream in streams]
    assert texts[0::2] == [answer.text for answer in alone[0::2]]
    assert texts[1::2] == [engine.answer(question, memories, **options).text for question in QUESTIONS[1::2]]
    page = engine.load().model.kv_shape().page_bytes
    small = open_engine(tiny, kv_cache_bytes=12 * page)
    try:
        assert small.answer_batch(items * 3, verbatim=True, **options) == alone * 3
    finally:
        small.unload()


def test_a_checkpoint_reads_as_many_documents_as_in_training(engine: ClaraEngine) -> None:
    assert engine.answer_top_k == engine.config.generation_top_k == 2


def test_only_answers_from_documents_are_restricted(engine: ClaraEngine, memories) -> None:
    assert engine.answer("Where?", verbatim=True, max_tokens=9) == engine.answer("Where?", max_tokens=9)
    assert engine.answer("Where?", memories, verbatim=False) == engine.answer("Where?", memories)
    assert engine.paraphrase(memories[0], max_tokens=9).text
    with pytest.raises(TypeError, match="verbatim must be True, False or None, got str"):
        engine.answer("Where?", memories, verbatim="yes")  # type: ignore[arg-type]


def test_log_probabilities_are_those_of_the_model(engine: ClaraEngine, memories) -> None:
    answer = engine.answer("Where?", memories, verbatim=True, logprobs=True)
    assert answer.logprobs
    assert b"".join(token.bytes for token in answer.logprobs).decode() == answer.text
    total = sum(token.logprob for token in answer.logprobs)
    assert engine.logprob("Where?", memories, answer.text) == pytest.approx(total, abs=1e-3)


def test_a_quotation_may_be_shorter_than_the_shortest_answer(engine: ClaraEngine, memories, monkeypatch) -> None:
    """A document of one word leaves nothing else to say."""
    monkeypatch.setattr(engine.load().model.decoder.generation_config, "min_new_tokens", 50)
    [memory] = engine.compress(["Yes"])
    answer = engine.answer("Where?", [memory], verbatim=True)
    assert answer.text in OTHER_ANSWERS
    assert answer.finish_reason == "stop"


def test_a_checkpoint_can_quote_by_default_and_say_how_many_documents_it_reads(tmp_path) -> None:
    tiny = build(tmp_path, "mistral", seed=3)
    config = ClaraConfig.read(tiny.folder)
    assert not config.verbatim
    config.model_copy(update={"verbatim": True, "answer_top_k": 1}).write(tiny.folder)
    assert ClaraConfig.read(tiny.folder).verbatim
    engine = ClaraEngine.from_pretrained(str(tiny.folder), base_model=str(tiny.base))
    assert engine.answer_top_k == 1
    memories = engine.compress(PASSAGES)
    quoted = engine.answer("Where?", memories)
    assert quoted == engine.answer("Where?", memories, verbatim=True)
    assert quoted != engine.answer("Where?", memories, verbatim=False)
    engine.unload()
