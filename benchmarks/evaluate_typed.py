"""Measures retrieval and answers on passages and everyday questions that were typed by hand.

    python benchmarks/evaluate_typed.py                          # the bundled model on the open half
    python benchmarks/evaluate_typed.py --half closed            # final figures
    python benchmarks/evaluate_typed.py --data tests/data/typed_others.json    # harder questions, by other hands
    python benchmarks/evaluate_typed.py --model pocket --model FOLDER

All calls go through the public engine; answers are greedy. A question is searched among all passages of both halves
and compared with BM25 on the same questions. It is answered from its passage alone, from its passage and the four
others that the model ranks highest ("best first", in the order of the ranking), and from the five that were retrieved
("end to end"), by memory alone and, as in `clara ask` and the retrievers, by memory and words, ranked again ("hybrid");
in the latter case also from the best one, as `clara ask` does with the bundled model.
A refusal is the answer "The documents do not say." It is right for questions that no passage answers and for those
without their passage, and wrong for the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.encyclopedia_tasks import DOCUMENTS, MAX_TOKENS, best_first, bm25_ranking, hybrid_ranking
from benchmarks.report import hardware
from benchmarks.typed_tasks import TYPED, Half, Typed, TypedSet, typed_set
from clara_core import ClaraEngine, Memory
from clara_core.engine.quoting.verbatim import REFUSAL
from clara_core.evaluation import exact_match, f1, score_rankings

Ranking = list[list[int]]


@dataclass
class TypedFigures:
    """Scores of one model.

    Attributes:
        model: Name of the model as given.
        figures: Figures by name, each in [0, 1].
        kinds: Exact match from the passage alone, by kind of question, with the number of questions.
        wrong: Every wrong answer from the passage alone.
    """

    model: str
    figures: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, tuple[float, int]] = field(default_factory=dict)
    wrong: list[dict[str, str]] = field(default_factory=list)


def is_refusal(answer: str) -> bool:
    """Whether an answer is a refusal."""
    return exact_match(answer, REFUSAL) == 1.0


def memory_ranking(engine: ClaraEngine, questions: Sequence[Typed], memories: Sequence[Memory]) -> Ranking:
    """All passages in order of their cosine, for each question."""
    scores = engine.score([question.text for question in questions], memories)  # [questions, passages]
    ranking: Ranking = scores.argsort(dim=1, descending=True, stable=True).tolist()
    return ranking


def evaluate(model: str, typed: TypedSet) -> TypedFigures:
    """All figures of a model."""
    engine = ClaraEngine.from_pretrained(model)
    memories = engine.compress(typed.texts)
    asked, near = typed.answerable, typed.unanswerable
    ranked, near_ranked = (memory_ranking(engine, questions, memories) for questions in (asked, near))

    def say(questions: Sequence[Typed], documents: Ranking) -> list[str]:
        items = [(q.text, [memories[i] for i in few]) for q, few in zip(questions, documents, strict=True)]
        return [answer.text for answer in engine.answer_batch(items, max_tokens=MAX_TOKENS)]

    found = TypedFigures(model)
    by_words = bm25_ranking(asked, typed.texts)  # type: ignore[arg-type]  # only the texts are read
    by_both = hybrid_ranking(engine, [question.text for question in asked], typed.texts)
    gold = [question.gold for question in asked]
    for name, ranking in (("", ranked), ("hybrid ", by_both), ("BM25 ", by_words)):
        scores = score_rankings(ranking, gold, ks=(1, 5))
        found.figures |= {f"{name}recall@1": scores["recall@1"], f"{name}recall@5": scores["recall@5"]}
    alone = say(asked, [list(q.gold) for q in asked])
    right = [exact_match(said, q.answers) for said, q in zip(alone, asked, strict=True)]
    others = [[i for i in ranking if i not in q.gold] for q, ranking in zip(asked, ranked, strict=True)]
    five = best_first([[*q.gold, *few[: DOCUMENTS - 1]] for q, few in zip(asked, others, strict=True)], ranked)
    of_five = say(asked, five)
    found.figures["alone, exact"] = _mean(right)
    found.figures["alone, F1"] = _mean([f1(said, q.answers) for said, q in zip(alone, asked, strict=True)])
    for name, said in (
        (f"of {DOCUMENTS}, best first", of_five),
        (f"of {DOCUMENTS}, end to end", say(asked, [ranking[:DOCUMENTS] for ranking in ranked])),
        (f"hybrid of {DOCUMENTS}, end to end", say(asked, [ranking[:DOCUMENTS] for ranking in by_both])),
        ("hybrid of 1, end to end", say(asked, [ranking[:1] for ranking in by_both])),
    ):
        found.figures[f"{name}, exact"] = _mean([exact_match(a, q.answers) for a, q in zip(said, asked, strict=True)])
    for name, said in (
        ("refused alone", say(near, [list(q.gold) for q in near])),
        (f"refused of {DOCUMENTS}", say(near, [ranking[:DOCUMENTS] for ranking in near_ranked])),
        ("refused, its passage gone", say(asked, [few[:DOCUMENTS] for few in others])),
        ("wrongly refused alone", alone),
        (f"wrongly refused of {DOCUMENTS}", of_five),
    ):
        found.figures[name] = _mean([float(is_refusal(a)) for a in said])
    for kind in sorted({q.kind for q in asked}):
        own = [value for value, q in zip(right, asked, strict=True) if q.kind == kind]
        found.kinds[kind] = (_mean(own), len(own))
    found.wrong = [
        {"form": q.form, "kind": q.kind, "question": q.text, "right": q.answers[0], "answer": said}
        for said, q, hit in zip(alone, asked, right, strict=True)
        if not hit
    ]
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def show(title: str, rows: dict[str, list[str]], columns: Sequence[str]) -> None:
    """One table, a column for each model."""
    table = Table("", title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console(width=None if Console().is_terminal else 120).print(table)


def main(
    model: Annotated[list[str] | None, typer.Option(help="Bundled name, folder, or Hub id; may be repeated.")] = None,
    half: Annotated[str, typer.Option(help="open or closed.")] = "open",
    data: Annotated[Path, typer.Option(help="File of passages with questions.")] = TYPED,
    wrong: Annotated[bool, typer.Option("--wrong", help="Print every wrong answer of the open half.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Measure models on passages and questions that were typed by hand."""
    if half not in get_args(Half):
        raise SystemExit(f"--half must be open or closed, got {half!r}")
    typed = typed_set(half, data)  # type: ignore[arg-type]  # checked above
    found = [evaluate(one, typed) for one in model or ["pocket"]]
    models = [one.model for one in found]
    counts = f"{len(typed.texts)} passages, {len(typed.answerable)} questions, {len(typed.unanswerable)} unanswerable"
    rows = {name: [f"{one.figures[name]:.3f}" for one in found] for name in found[0].figures}
    show(f"{data.name}, {half} half: {counts}", rows, models)
    kinds = {f"{k} ({n})": [f"{one.kinds[k][0]:.2f}" for one in found] for k, (_, n) in found[0].kinds.items()}
    show("Exact match alone, by kind of question", kinds, models)
    if wrong and half == "open":
        for entry in found[-1].wrong:
            print(f"{entry['form']}: {entry['question']} -> {entry['answer']!r} ({entry['right']})")
    facts = {"benchmark": data.stem, "half": half, "hardware": hardware("cpu")}
    report = {**facts, "models": [{"model": one.model, **one.figures} for one in found]}
    if json_file is not None:
        json_file.write_text(json.dumps({**facts, "models": [asdict(one) for one in found]}, indent=1) + "\n", "utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    typer.run(main)
