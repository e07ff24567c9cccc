"""Citations by attention during an answer, compared with a plain forward pass that returns its attention weights."""

from __future__ import annotations

import pytest
import torch

from clara_core import ClaraEngine
from clara_core.engine.answer_options import Wanted
from clara_core.engine.evidence import attended_parts
from clara_core.engine.sampling import Sampling
from clara_core.model.checkpoint.config import Role
from tests.engines import PASSAGES, Counter, open_engine
from tests.known import Known
from tests.reference import PlainKernel
from tests.tiny import FAMILIES, Tiny, build

QUESTION = "When was the bridge over the river Aln opened?"


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("attention"), request.param, seed=11)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> ClaraEngine:
    return open_engine(tiny)


def asked(engine: ClaraEngine, count: int):
    """A request for nine tokens over this number of documents, with recorded attention."""
    messages, sampling = [{"role": "user", "content": QUESTION}], Sampling(max_tokens=9, recorded=0)
    return engine._ask(messages, engine.remember(PASSAGES[:count]), sampling, Wanted(citations="attention")).request


def plainly(plain: ClaraEngine, request) -> torch.Tensor:
    """The same shares from one forward pass of transformers over prompt and answer."""
    model = plain.load().model
    layers = model.trunk.layers
    paid: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _module, _args, output: paid.append(output[1]))
        for layer in layers[len(layers) // 2 :]
    ]
    ids = request.ids + request.sequence.ids[:-1]
    slots = torch.tensor([request.slots + [False] * (len(ids) - len(request.slots))])
    with torch.no_grad():
        model.hidden_states([ids], Role.GENERATOR, memories=request.memories, slots=slots)
    for hook in hooks:
        hook.remove()
    weights = torch.stack(paid).mean((0, 2))[0, len(request.ids) - 1 :]  # [tokens, length]
    return torch.stack([weights[:, start:end].sum(1) for start, end in request.watched], dim=1)


@pytest.mark.parametrize("kernel", [None, PlainKernel()], ids=["padded", "packed"])
def test_shares_are_those_of_a_plain_pass(tiny: Tiny, kernel: PlainKernel | None) -> None:
    engine, plain = open_engine(tiny), open_engine(tiny, attn_implementation="eager")
    engine.load().model.kernel = kernel
    requests = [asked(engine, count) for count in (4, 1, 3)]
    engine._wait(requests)
    for request in requests:
        expected = plainly(plain, request)
        assert request.paid.shape == (len(request.sequence.ids), len(request.watched)) == expected.shape
        torch.testing.assert_close(request.paid, expected, atol=1e-5, rtol=0)
        assert not request.queries
    engine.unload()
    plain.unload()


def test_an_answer_that_makes_room_and_goes_on_has_the_same(tiny: Tiny, engine: ClaraEngine) -> None:
    expected = asked(engine, 2)
    engine._wait([expected])
    small = open_engine(tiny, kv_cache_bytes=4 * engine.load().model.kv_shape().page_bytes)
    requests = [asked(small, 2) for _ in range(3)]
    small._wait(requests)
    for request in requests:
        torch.testing.assert_close(request.paid, expected.paid, atol=1e-5, rtol=0)
    small.unload()


def test_no_pass_more_and_the_same_text(engine: ClaraEngine) -> None:
    memories = engine.remember(PASSAGES[:4])
    model = engine.load().model
    with Counter(model, "judge") as judged, Counter(model, "step") as steps:
        answer = engine.answer(QUESTION, memories, max_tokens=9, citations="attention")
    assert judged.calls == 0
    assert steps.calls == answer.completion_tokens - (answer.finish_reason == "length")
    assert answer.text == engine.answer(QUESTION, memories, max_tokens=9).text
    assert answer.judged_tokens == 0
    assert answer.checks.grounded is None
    assert sum(answer.attribution) == pytest.approx(1.0, abs=1e-4)


def test_a_trained_model_looks_at_what_it_says(encyclopedia: ClaraEngine, known: Known) -> None:
    for answer in (
        encyclopedia.answer(known.question, known.memories, citations="attention"),
        list(encyclopedia.stream(known.question, known.memories, citations="attention"))[-1].answer,
    ):
        [cited] = answer.citations
        assert cited.document == known.gold
        assert known.answer in cited.text == known.texts[known.gold][cited.text_start : cited.text_end]
        assert max(answer.attribution) == answer.attribution[known.gold] > 0.5
        assert answer.calibrated


def test_without_documents_or_words_nothing_is_known(engine: ClaraEngine) -> None:
    answer = engine.answer(QUESTION, [], max_tokens=3, citations="attention")
    assert (answer.citations, answer.attribution, answer.checks.verbatim) == ((), None, None)
    with pytest.raises(TypeError, match="citations must be True, False or 'attention', got str: 'attn'"):
        engine.answer(QUESTION, [], citations="attn")


def test_attention_that_cannot_be_seen_is_refused(tiny: Tiny) -> None:
    engine = open_engine(tiny, attn_implementation="eager")
    with pytest.raises(ValueError, match="needs the attention of this package, not attn_implementation='eager'"):
        engine.answer(QUESTION, engine.remember(PASSAGES[:2]), citations="attention")
    engine.unload()


def test_a_word_belongs_to_the_document_that_its_tokens_looked_at_most() -> None:
    spans = [(0, 4), (4, 8), (8, 11), (11, 15)]  # "Mila and Ve|fa"
    shares = torch.tensor([[0.9, 0.4, 0.45, 0.1], [0.1, 0.3, 0.55, 0.9], [0.0, 0.3, 0.0, 0.0]])
    found = attended_parts("Mila and Vefa!!", spans, shares)
    assert [(part.document, part.start, part.end) for part in found] == [(0, 0, 8), (1, 9, 15)]
    assert [part.score for part in found] == pytest.approx([0.65, 0.725])
