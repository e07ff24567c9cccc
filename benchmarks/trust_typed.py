"""Measures citations and confidence of the bundled model on passages typed by hand, with facts of plain kinds.

    python -m benchmarks.trust_typed                                       # tests/data/typed_facts.json
    python -m benchmarks.trust_typed --data tests/data/typed.json --half open   # everyday text

The passages were not generated and are not in any training or calibration data. Each question is searched among all of
them by memory and words, and read with as many of the best as the model reads well, as in `clara ask`, or with
``--top-k``. Some of the questions are unanswerable.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.encyclopedia_tasks import MAX_TOKENS
from benchmarks.evaluate_typed import hybrid_ranking
from benchmarks.report import Row, hardware, show
from benchmarks.typed_tasks import FACTS, TypedSet, typed_set
from clara_core import Answer, ClaraEngine
from clara_core.evaluation import exact_match
from clara_core.evaluation.trust import auroc


@dataclass(frozen=True)
class TypedTrust:
    """Figures of the typed questions.

    Attributes:
        answerable: Questions that a passage answers.
        unanswerable: Number of the others.
        exact: Share of the answerable ones that are answered right.
        cited: Share of right answers whose first cited document is the right one.
        offsets: Share of citations whose text is at its offsets and, if marked verbatim, contains the words.
        citations: Number of citations.
        auroc: AUROC of confidence for right answers, over all questions.
        logprob: AUROC of the log-probability.
    """

    answerable: int
    unanswerable: int
    exact: float
    cited: float
    offsets: float
    citations: int
    auroc: float
    logprob: float


def measure(engine: ClaraEngine, typed: TypedSet, top_k: int | None = None) -> TypedTrust:
    """Answer all questions with evidence, from the best `top_k` passages; None: `ClaraEngine.answer_top_k`."""
    memories = engine.remember(typed.texts)
    asked = [*typed.answerable, *typed.unanswerable]
    ranked = hybrid_ranking(engine, [one.text for one in asked], typed.texts, top_k or engine.answer_top_k)
    items = [(one.text, [memories[at] for at in few]) for one, few in zip(asked, ranked, strict=True)]
    answers = engine.answer_batch(items, max_tokens=MAX_TOKENS, citations=True, logprobs=True)
    right = [
        bool(one.answers) and exact_match(said.text, one.answers) == 1.0
        for one, said in zip(asked, answers, strict=True)
    ]
    cited = [
        bool(said.citations) and few[said.citations[0].document] in one.gold
        for one, few, said, hit in zip(asked, ranked, answers, right, strict=True)
        if hit
    ]
    sound = [
        hit for few, said in zip(ranked, answers, strict=True) for hit in _sound([typed.texts[at] for at in few], said)
    ]
    sure = [(said.confidence or 0.0, hit) for said, hit in zip(answers, right, strict=True)]
    plain = [
        (sum(token.logprob for token in said.logprobs or ()), hit) for said, hit in zip(answers, right, strict=True)
    ]
    return TypedTrust(
        answerable=len(typed.answerable),
        unanswerable=len(typed.unanswerable),
        exact=sum(right) / len(typed.answerable),
        cited=sum(cited) / max(len(cited), 1),
        offsets=sum(sound) / max(len(sound), 1),
        citations=len(sound),
        auroc=auroc(sure),
        logprob=auroc(plain),
    )


def _sound(texts: list[str], answer: Answer) -> list[bool]:
    """For each citation whether its text is at its offsets and, if verbatim, contains the words of the answer."""
    return [
        texts[one.document][one.text_start : one.text_end] == one.text
        and (not one.verbatim or answer.text[one.start : one.end].strip(" .,").casefold() in one.text.casefold())
        for one in answer.citations or ()
    ]


def main(
    model: Annotated[str, typer.Option(help="Bundled name, folder, or Hub id.")] = "pocket",
    data: Annotated[Path, typer.Option(help="Passages and questions.")] = FACTS,
    half: Annotated[str, typer.Option(help="open or closed.")] = "open",
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Passages to read; default: as many as it reads well.")
    ] = None,
) -> None:
    """Measure citations and confidence on text typed by hand."""
    if half not in ("open", "closed"):
        raise SystemExit(f"--half must be open or closed, got {half!r}")
    found = measure(ClaraEngine.from_pretrained(model), typed_set(half, data), top_k)  # type: ignore[arg-type]  # checked above
    rows = [
        Row("right answers", f"{found.exact:.3f}", f"of {found.answerable}", found.exact, None),
        Row("cited document of right answers", f"{found.cited:.3f}", "", found.cited, 0.95),
        Row("citations at their offsets", f"{found.offsets:.3f}", f"of {found.citations}", found.offsets, 1.0),
        Row("AUROC of confidence", f"{found.auroc:.3f}", f"log p {found.logprob:.3f}", found.auroc, 0.85),
    ]
    facts: dict[str, object] = {"benchmark": "trust typed", "hardware": hardware("cpu"), "data": data.name}
    title = f"Typed by hand: {found.answerable} questions, {found.unanswerable} that nothing answers"
    show(title, rows, facts, "baseline")
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    typer.run(main)
