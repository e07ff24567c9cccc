"""A second reading if the evidence contradicts the first answer: its documents, and the choice between both."""

from __future__ import annotations

import random

import pytest
import torch

from clara_core import ClaraEngine
from clara_core.engine.quotes import stands_in
from clara_core.model.checkpoint.config import Role
from tests.engines import PASSAGES, open_engine, wrapped
from tests.known import find_known
from tests.tiny import Tiny, build
from tools.pocket_factory.world import make_corpus

QUESTION = "When was the bridge over the river Aln opened?"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("readings"), "mistral", seed=5)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> ClaraEngine:
    return open_engine(tiny)


def test_a_sound_answer_is_not_read_again() -> None:
    encyclopedia, known = find_known()
    asked = (known.question, known.memories)
    once, again = encyclopedia.answer(*asked, citations=True), encyclopedia.answer(*asked, citations=True, read="again")
    assert again == once
    assert (again.reading, again.judged_tokens) == ("memory", once.judged_tokens)


def test_doubt_leads_to_the_best_ranked_document(engine: ClaraEngine) -> None:
    """A random model is always in doubt, because no document contains its words."""
    memories = engine.remember(PASSAGES[:3])
    once = engine.answer(QUESTION, memories, max_tokens=6, citations=True)
    assert False in (once.checks.cited_first, once.checks.verbatim, once.checks.grounded)
    prompts: list[int] = []

    def seen(original, sequences, tokens, slots, cache, **others):
        prompts.extend(sum(row) for row in slots)
        return original(sequences, tokens, slots, cache, **others)

    with wrapped(engine.load().model, "prefill", seen):
        again = engine.answer(QUESTION, memories, max_tokens=6, read="again")
    assert prompts == [3 * engine.n_mem, engine.n_mem]
    assert again.text == once.text  # no text contains the other answer either
    assert again.judged_tokens > once.judged_tokens
    assert again.logprobs is None


def test_what_is_taken_stands_in_the_text_and_is_more_probable() -> None:
    encyclopedia, _ = find_known()
    corpus = make_corpus(random.Random(5), 12, split="test", words=(20, 80), questions_per_passage=2, two_passage=0.0)
    memories = encyclopedia.remember([passage.text for passage in corpus.passages])
    for asked in corpus.questions:
        scores = encyclopedia.score([asked.text], memories)[0]
        few = [memories[at] for at in scores.argsort(descending=True)[:5].tolist()]
        once, again = (
            encyclopedia.answer(asked.text, few, citations=True, logprobs=True, read=r) for r in ("memory", "again")
        )
        if again.reading == "again":
            assert stands_in(again.text, few[0].text)
            assert sum(one.logprob for one in again.logprobs) > sum(one.logprob for one in once.logprobs)
            assert again.memory_tokens == few[0].n_windows * encyclopedia.n_mem
            assert [one.document for one in again.citations] == [0] * len(again.citations)
            assert again.attribution[1:] == (0.0,) * 4
        else:
            assert again.text == once.text


def test_scores_of_a_search_take_the_place_of_the_reasoner(engine: ClaraEngine) -> None:
    memories = engine.remember(PASSAGES[:3])
    with wrapped(engine.load().model, "encode", _refuse):
        first, last = (
            engine.answer(QUESTION, memories, max_tokens=6, citations=True, scores=scores)
            for scores in ([0.9, 0.1, 0.1], [0.1, 0.1, 0.9])
        )
    if first.citations:
        assert first.checks.cited_first is (first.citations[0].document == 0)
        assert last.checks.cited_first is (first.citations[0].document == 2)


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("the scores are known")


def test_the_bare_base_reads_text(tiny: Tiny, engine: ClaraEngine) -> None:
    memories = engine.remember(PASSAGES[:3])
    roles: list[Role | None] = []
    prompts: list[list[int]] = []

    def seen(original, sequences, tokens, slots, cache, **others):
        roles.append(cache.role)
        prompts.extend(list(map(list, sequences)))
        return original(sequences, tokens, slots, cache, **others)

    with wrapped(engine.load().model, "prefill", seen):
        answer = engine.answer(QUESTION, memories, max_tokens=6, read="text")
    assert roles == [Role.GENERATOR, None]
    text = engine.tokenizer.decode(prompts[1])
    ranked = engine.rank(QUESTION, memories)
    assert all(PASSAGES[hit.index] in text for hit in ranked[:2])
    assert PASSAGES[ranked[2].index] not in text
    assert answer.reading in ("memory", "text")


def test_rows_of_the_base_and_of_the_generator_step_side_by_side(tiny: Tiny, engine: ClaraEngine) -> None:
    """Each row gives the same answer as alone."""
    from clara_core.engine.sampling import Sampling

    def requests() -> list:
        made = [
            engine._chat_request([{"role": "user", "content": text}], [], Sampling(max_tokens=9))
            for text in PASSAGES[:4]
        ]
        for request in made[::2]:
            request.role = None
        return made

    alone = [engine._wait([request])[0].text for request in requests()]
    assert [answer.text for answer in engine._wait(requests())] == alone
    request = requests()[0]
    logits = tiny.reference().bare(torch.tensor([request.ids])).logits[0, -1]
    engine._wait([request])
    assert request.sequence.ids[0] == int(logits.argmax())
