"""Fidelity of memories: spans of a text, and their probability given the memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clara_core import ClaraEngine
from clara_core.engine.fidelity import Fidelity, WeakSpan, find_spans
from clara_core.model.tokenizer import PARAPHRASE_INSTRUCTION
from tests.engines import PASSAGES, open_engine
from tests.known import Known, find_known
from tests.tiny import Tiny, build


def spans(text: str) -> list[str]:
    return [text[start:end] for start, end in find_spans(text)]


def test_names_numbers_and_code() -> None:
    text = "The bridge at Old Manal opened in 1,907 (see docs/plan.md). Call `make_it(3)` or clara.fit_all, Dr. O'Neil."
    assert spans(text) == ["Old Manal", "1,907", "docs/plan.md", "`make_it(3)`", "clara.fit_all", "Dr", "O'Neil"]


def test_words_that_open_sentences_are_no_names() -> None:
    assert spans("Founded in 1712. Mills grind oats.") == ["1712"]
    assert spans("Tolmet grinds oats. The mill of Tolmet is old.") == ["Tolmet", "Tolmet"]
    assert spans("") == []
    assert spans("nothing to see here, at all") == []


def test_weak_spans_come_worst_first() -> None:
    found = Fidelity((1.0,), 1.0, tuple(WeakSpan(str(n), n, n + 1, 0.0, n / 10) for n in range(10)))
    assert [span.risk for span in found.weak()] == [0.9, 0.8, 0.7, 0.6]
    assert len(found.weak(0.85)) == 1
    assert found.keep_text
    assert not Fidelity((0.0,), 0.0, tuple(WeakSpan("a", 0, 1, 0.0, 0.1) for _ in range(10))).keep_text
    assert not Fidelity((), 0.0, ()).keep_text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("fidelity"), "mistral", seed=5)


def test_losses_are_those_of_the_plain_twin(tiny: Tiny) -> None:
    engine = open_engine(tiny)
    reference = tiny.reference()
    text = " ".join(PASSAGES[:4])
    [memory] = engine.compress([text])
    assert memory.n_windows > 1
    [found] = engine.fidelity([memory])
    prompt = engine.tokenizer.paraphrase_prompt(PARAPHRASE_INSTRUCTION, 1)
    plain = [
        -reference.judge(prompt, memory.tokens[at], engine.tokenizer.encode_plain(text[start:end]))
        for at, (start, end) in enumerate(memory.spans)
    ]
    assert found.windows == pytest.approx([float(one.mean()) for one in plain], abs=1e-3)
    assert found.loss == pytest.approx(float(torch.cat(plain).mean()), abs=1e-3)
    for span in found.spans:
        assert text[span.start : span.end] == span.text
        assert 0 <= span.risk <= 1
    assert {"1907", "214"} <= {span.text for span in found.spans}


async def test_a_trained_model_keeps_its_own_text_best() -> None:
    encyclopedia: ClaraEngine
    known: Known
    encyclopedia, known = find_known()
    right = encyclopedia.fidelity(known.memories)
    swapped = [
        replace(one, tokens=other.tokens[:1].expand(one.n_windows, -1, -1).contiguous())
        for one, other in zip(known.memories, known.memories[1:] + known.memories[:1], strict=True)
    ]
    wrong = encyclopedia.fidelity(swapped)
    assert all(one.loss < other.loss for one, other in zip(right, wrong, strict=True))
    assert await encyclopedia.afidelity(known.memories) == right
    assert encyclopedia.fidelity([]) == []
    [empty] = encyclopedia.fidelity(encyclopedia.compress([""]))
    assert empty.spans == ()
