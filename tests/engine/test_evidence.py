"""Evidence of answers: parts and scores from log-probabilities, citations of a trained model, hostile input."""

from __future__ import annotations

import asyncio
import copy
import threading
from dataclasses import replace

import pytest
import torch

from clara_core import Answer, ClaraEngine
from clara_core.engine.attributing import _without_joint
from clara_core.engine.evidence import Part, find_parts, score, token_spans, unexplained
from clara_core.engine.recent import RecentQuestions
from tests.engines import PASSAGES, open_engine, wrapped
from tests.known import Known
from tests.parity_data import PARITY
from tests.tiny import Tiny, build


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("evidence"), "qwen2", seed=5)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> ClaraEngine:
    return open_engine(tiny)


# -- from numbers to parts -------------------------------------------------------------------------


def spans_of(text: str) -> list[tuple[int, int]]:
    pieces = [piece.encode() for piece in text.replace(" ", "\0 ").split("\0")]
    return token_spans(pieces, text)


def parts(text: str, drops: list[list[float]]) -> list[tuple[int, str]]:
    return [
        (part.document, text[part.start : part.end]) for part in find_parts(text, spans_of(text), torch.tensor(drops))
    ]


def test_one_document_has_the_whole_answer() -> None:
    assert parts("in May 1907", [[0.0, 0.1, 2.0], [0.0, 0.0, 0.1]]) == [(0, "in May 1907")]


def test_two_documents_have_a_half_each_and_the_word_between_belongs_to_none() -> None:
    assert parts("Sarn and Matar", [[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]) == [(0, "Sarn"), (1, "Matar")]


@pytest.mark.parametrize(
    "text, cut, parts", [("Mila and Vefa", 8, ["Mila", "Vefa"]), ("Mila, und Vefa", 4, ["Mila", "Vefa"])]
)
def test_the_word_that_joins_two_parts_belongs_to_none(text: str, cut: int, parts: list[str]) -> None:
    found = [Part(0, 1.0, 0, cut, (0,)), Part(1, 1.0, cut + 1, len(text), (1,))]
    sources = ["It lies in Mila.", "It lies in Vefa."]
    cut_off = [_without_joint(part, found, text, source) for part, source in zip(found, sources, strict=True)]
    assert [text[part.start : part.end].strip(" ,") for part in cut_off] == parts
    whole = [_without_joint(part, found, text, text) for part in found]  # the source contains the joining word
    assert whole == found


def test_a_document_that_matters_without_a_part_of_its_own_has_the_sentence() -> None:
    assert parts("Sarn", [[3.0], [1.0]]) == [(0, "Sarn"), (1, "Sarn")]


def test_sentences_are_told_apart() -> None:
    text = "Sarn built it. Matar too."
    assert parts(text, [[3.0, 0, 0, 0, 0], [0, 0, 0, 2.0, 0]]) == [(0, "Sarn built it."), (1, "Matar too.")]


def test_little_is_not_cited() -> None:
    assert parts("Sarn", [[0.1], [0.2]]) == []
    assert parts("", [[]]) == []


def test_a_score_is_the_lost_share() -> None:
    assert score(0.0) == 0.0
    assert score(-3.0) == 0.0
    assert score(float(torch.tensor(4.0).log())) == pytest.approx(0.75)


def test_words_that_no_single_document_is_missed_for() -> None:
    text = "Sarn and Matar"
    drops = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.1], [0.0, 0.0, 0.1]])
    assert unexplained(text, spans_of(text), drops, torch.tensor([3.0, 0.1, 4.0])) == [2]
    assert unexplained(text, spans_of(text), drops, torch.tensor([3.0, 0.1, 0.5])) == []


def test_tokens_behind_a_stop_string_lie_behind_the_end() -> None:
    assert token_spans([b"in ", b"19", b"07", b" END"], "in 1907") == [(0, 3), (3, 5), (5, 7), (7, 7)]
    assert token_spans(["富".encode()[:2], "富".encode()[2:]], "富") == [(0, 0), (0, 1)]


# -- attribution equals that of the reference ------------------------------------------------------


def test_attribution_is_the_lost_probability(tiny: Tiny, engine: ClaraEngine) -> None:
    memories = engine.remember(PASSAGES[:3])
    found = engine.attribute("Where?", memories, "in Lisbon")
    messages = [{"role": "user", "content": "Where?"}]
    prompt = engine.tokenizer.chat_prompt(messages, 3)
    said = engine.tokenizer.continuation_ids(messages, 3, "in Lisbon")
    tokens = torch.cat([memory.tokens for memory in memories])
    reference = tiny.reference()
    full = float(reference.judge(prompt, tokens, said).sum())
    without = [float(reference.judge(prompt, tokens, said, [window]).sum()) for window in range(3)]
    assert found.logprob == pytest.approx(full, abs=1e-3)
    assert found.scores == pytest.approx([score(full - one) for one in without], abs=1e-3)
    assert engine.logprob("Where?", memories, "in Lisbon") == pytest.approx(full, abs=1e-3)
    assert engine.logprob("Where?", [], "in Lisbon") < 0
    assert found.judged_tokens > len(prompt)


# -- a trained model -------------------------------------------------------------------------------


def test_a_right_answer_cites_the_sentence_it_came_from(encyclopedia: ClaraEngine, known: Known) -> None:
    answer = encyclopedia.answer(known.question, known.memories, citations=True)
    assert answer.text == known.answer
    [first, *_] = answer.citations
    assert (first.document, first.verbatim) == (known.gold, True)
    assert first.text == known.texts[known.gold][first.text_start : first.text_end]
    assert known.answer in first.text
    assert answer.text[first.start : first.end] == known.answer
    assert answer.attribution.index(max(answer.attribution)) == known.gold
    assert answer.checks.grounded is True
    assert answer.checks.verbatim is True
    assert answer.checks.cited_first is True
    assert 0 <= answer.confidence <= 1
    assert answer.judged_tokens > 0
    assert copy.deepcopy(answer) == answer


def test_evidence_changes_neither_text_nor_ids(encyclopedia: ClaraEngine, known: Known) -> None:
    plain = encyclopedia.answer(known.question, known.memories)
    cited = encyclopedia.answer(known.question, known.memories, citations=True)
    assert (cited.text, cited.completion_tokens) == (plain.text, plain.completion_tokens)
    assert (plain.citations, plain.attribution, plain.confidence, plain.checks) == (None, None, None, None)
    assert cited.logprobs is None


def test_a_document_given_many_times_is_cited_each_time(encyclopedia: ClaraEngine, known: Known) -> None:
    answer = encyclopedia.answer(known.question, [known.memories[known.gold]] * 20, citations=True)
    assert max(answer.attribution) < 0.2  # hiding one of them loses nothing
    assert {one.document for one in answer.citations} == set(range(20))
    twice = encyclopedia.answer(known.question, [*known.memories, known.memories[known.gold]], citations=True)
    if twice.text == known.answer:
        assert {known.gold, 4} <= {one.document for one in twice.citations}
    said = encyclopedia.attribute(known.question, [*known.memories, known.memories[known.gold]], known.answer)
    assert {known.gold, 4} <= {one.document for one in said.citations}


def test_text_of_others_is_attributed_too(encyclopedia: ClaraEngine, known: Known) -> None:
    found = encyclopedia.attribute(known.question, known.memories, known.answer)
    assert found.grounded
    assert found.citations[0].document == known.gold
    answer = encyclopedia.answer(known.question, known.memories)
    assert encyclopedia.attribute(known.question, known.memories, answer).scores == pytest.approx(
        found.scores, abs=1e-4
    )
    nothing = encyclopedia.attribute(known.question, known.memories, "What is the question about then?")
    assert nothing.logprob < found.logprob


def test_a_stream_brings_the_evidence_with_its_last_piece(encyclopedia: ClaraEngine, known: Known) -> None:
    whole = encyclopedia.answer(known.question, known.memories, citations=True)
    with encyclopedia.stream(known.question, known.memories, citations=True) as stream:
        chunks = list(stream)
    assert len(chunks) > 1
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].answer == whole
    assert {chunk.logprobs for chunk in chunks} == {None}


def test_a_text_that_may_be_withheld_comes_as_one_piece(encyclopedia: ClaraEngine, known: Known) -> None:
    with encyclopedia.stream(
        known.question, known.memories, min_confidence=1.0, unsure_text="?", logprobs=True
    ) as stream:
        [only] = list(stream)
    assert only.text == only.answer.text == "?"
    assert (only.answer.draft, only.answer.abstained) == (known.answer, True)
    assert only.logprobs == only.answer.logprobs
    with encyclopedia.stream(known.question, known.memories, read="again") as stream:
        assert (
            "".join(chunk.text for chunk in stream)
            == encyclopedia.answer(known.question, known.memories, read="again").text
        )


async def test_awaited_it_is_the_same(encyclopedia: ClaraEngine, known: Known) -> None:
    asked = (known.question, known.memories)
    whole = encyclopedia.answer(*asked, citations=True, read="again")
    assert await encyclopedia.aanswer(*asked, citations=True, read="again") == whole
    chunks = [chunk async for chunk in encyclopedia.astream(*asked, citations=True)]
    assert chunks[-1].answer.citations == whole.citations
    assert await encyclopedia.aattribute(*asked, whole) == encyclopedia.attribute(*asked, whole)
    assert await encyclopedia.alogprob(*asked, known.answer) == encyclopedia.logprob(*asked, known.answer)
    several = await encyclopedia.aanswer_batch([asked, ("How many people does it seat?", [])], citations=True)
    # The last digits of a log-probability depend on the size of the batch.
    assert [replace(one, score=0.0) for one in several[0].citations] == [
        replace(one, score=0.0) for one in whole.citations
    ]
    assert [one.score for one in several[0].citations] == pytest.approx(
        [one.score for one in whole.citations], abs=1e-4
    )
    assert (several[1].citations, several[1].attribution) == ((), None)


# -- hostile ---------------------------------------------------------------------------------------


def test_no_documents_nothing_is_known(encyclopedia: ClaraEngine) -> None:
    answer = encyclopedia.answer("Where?", [], citations=True, read="again", min_confidence=0.0, max_tokens=8)
    assert (answer.citations, answer.attribution) == ((), None)
    assert (answer.checks.cited_first, answer.checks.verbatim, answer.checks.grounded) == (None, None, None)
    with pytest.raises(ValueError, match="memories is empty"):
        encyclopedia.attribute("Where?", [], "there")


def test_an_empty_answer_is_sure_of_nothing(engine: ClaraEngine) -> None:
    memories = engine.remember(PASSAGES[:2])
    plain = engine.answer("Where?", memories, max_tokens=6)
    empty = engine.answer("Where?", memories, max_tokens=6, stop=plain.text[:1], citations=True, min_confidence=0.5)
    assert (empty.draft, empty.abstained) == ("", True)
    assert all(0 <= one.start <= one.end == 0 for one in empty.citations)
    for text in ("", " ", "\n"):
        try:
            assert engine.attribute("Where?", memories, text).citations == ()
        except ValueError as exc:
            assert "the answer is empty" in str(exc)  # noqa: PT017 - both are right: a space may be a token


def test_a_question_that_a_search_has_read_is_not_read_again(
    engine: ClaraEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories = engine.remember(PASSAGES[:3])
    read: list[str] = []
    asks = engine._question_request
    monkeypatch.setattr(engine, "_question_request", lambda questions: read.extend(questions) or asks(questions))
    options = {"max_tokens": 4, "citations": True}
    fresh = engine.answer("Where was the bell cast?", memories, **options)
    assert read == ["Where was the bell cast?"]
    engine.rank("Who found the ship?", memories)
    known = engine.answer("Who found the ship?", memories, **options)
    assert engine.answer("Where was the bell cast?", memories, **options) == fresh
    assert read == ["Where was the bell cast?", "Who found the ship?"]
    monkeypatch.setattr(engine, "_recent", RecentQuestions())
    assert engine.answer("Who found the ship?", memories, **options) == known
    assert read[2:] == ["Who found the ship?"]
    engine.reason([f"Question {number}?" for number in range(100)])
    assert engine._recent_tokens("Who found the ship?") is None
    assert torch.equal(engine._recent_tokens("Question 99?"), engine.reason(["Question 99?"])[0])


@pytest.mark.parametrize("name", ["instruct", "base"])
def test_without_a_query_reasoner_nothing_is_known_of_ranks(name: str) -> None:
    folder = PARITY / name
    engine = ClaraEngine.from_pretrained(
        str(folder / "checkpoint"), base_model=str(folder / "base"), dtype="float32", device="cpu"
    )
    memories = engine.remember(["Ann lives in Oslo.", "Bob bought 3 boats in 1999."])
    for read in ("memory", "again"):
        answer = engine.answer("Where does Ann live?", memories, max_tokens=4, citations=True, read=read)
        assert answer.checks is not None
        assert (answer.checks.cited_first, answer.reading) == (None, "memory")
        assert answer.checks.grounded is not None
        assert len(answer.attribution) == 2
    given = engine.answer("Where does Ann live?", memories, max_tokens=4, citations=True, scores=[0.1, 0.9])
    assert given.checks.cited_first is not None  # they were ranked by another search
    engine.unload()


def test_an_answer_that_was_cut_has_no_confidence(engine: ClaraEngine) -> None:
    answer = engine.answer("Where?", engine.remember(PASSAGES[:2]), max_tokens=5, citations=True, min_confidence=0.1)
    assert answer.finish_reason == "length"
    assert answer.confidence is None
    assert answer.abstained
    kept = engine.answer("Where?", engine.remember(PASSAGES[:2]), max_tokens=5, min_confidence=0.0)
    assert not kept.abstained


def test_offsets_are_of_the_text_as_it_came_back(engine: ClaraEngine) -> None:
    """A stop string ends the text in the middle of a token."""
    memories = engine.remember(PASSAGES[:3])
    plain = engine.answer("Where?", memories, max_tokens=20)
    stop = plain.text[len(plain.text) // 2 :][:2]
    answer = engine.answer("Where?", memories, max_tokens=20, stop=stop, citations=True, logprobs=True)
    assert len(answer.text) < len(plain.text)
    for one in answer.citations:
        assert 0 <= one.start <= one.end <= len(answer.text)
        assert memories[one.document].text[one.text_start : one.text_end] == one.text


def test_special_tokens_in_texts_are_text(encyclopedia: ClaraEngine) -> None:
    texts = ["<MEM0><SEP></s>[INST] Tolmet Mill was built by Verin Sarn. </s><MEM3>", "<s><ENC> Dorven Hall [/INST]"]
    answer = encyclopedia.answer("Who built <MEM1> Tolmet Mill</s>?", encyclopedia.remember(texts), citations=True)
    for one in answer.citations:
        assert texts[one.document][one.text_start : one.text_end] == one.text
    said = encyclopedia.attribute("Who?", encyclopedia.remember(texts), "<MEM0></s> Verin Sarn <SEP>")
    assert len(said.scores) == 2


def test_sixty_documents(encyclopedia: ClaraEngine, known: Known) -> None:
    texts = [f"Ralto House {number} has {number + 3} rooms." for number in range(59)]
    many = encyclopedia.remember(texts)
    answer = encyclopedia.answer(known.question, [known.memories[known.gold], *many], citations=True, max_tokens=12)
    assert len(answer.attribution) == 60
    assert answer.checks.grounded in (True, False)


def test_a_long_document_is_cited_by_its_own_windows(encyclopedia: ClaraEngine, known: Known) -> None:
    long = " ".join([f"The lane to Sarvin has {n + 2} stones." for n in range(30)] + [known.texts[known.gold]])
    [memory, other] = encyclopedia.remember([long, known.texts[0]])
    assert memory.n_windows > 3
    answer = encyclopedia.answer(known.question, [memory, other], citations=True)
    for one in answer.citations:
        text = [memory, other][one.document].text
        assert text[one.text_start : one.text_end] == one.text
        start, end = [memory, other][one.document].spans[one.window]
        assert start < one.text_end
        assert one.text_start < end


def test_cancelled_while_it_is_judged(encyclopedia: ClaraEngine, known: Known) -> None:
    model = encyclopedia.load().model
    stream = encyclopedia.stream(known.question, known.memories, citations=True)

    def cancels(original, prompts, tokens):
        stream.cancel()
        return original(prompts, tokens)

    with wrapped(model, "judge", cancels):
        last = list(stream)[-1]
    assert last.answer.text == known.answer
    assert (last.answer.citations, last.answer.confidence, last.answer.checks) == (None, None, None)
    assert encyclopedia.answer(known.question, known.memories).text == known.answer  # the engine still works


async def test_a_task_that_is_cancelled_while_it_is_judged(encyclopedia: ClaraEngine, known: Known) -> None:
    model = encyclopedia.load().model
    entered, go = threading.Event(), threading.Event()

    def stands(original, prompts, tokens):
        entered.set()
        go.wait(120)
        return original(prompts, tokens)

    with wrapped(model, "judge", stands):
        task = asyncio.ensure_future(encyclopedia.aanswer(known.question, known.memories, citations=True))
        assert await asyncio.to_thread(entered.wait, 120)
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await encyclopedia.aanswer(known.question, known.memories)).text == known.answer


def test_closing_a_stream_in_the_middle(encyclopedia: ClaraEngine, known: Known) -> None:
    with encyclopedia.stream(known.question, known.memories, citations=True) as stream:
        next(stream)
    assert isinstance(encyclopedia.answer(known.question, known.memories, citations=True), Answer)
