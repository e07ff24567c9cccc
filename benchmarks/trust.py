"""Measures citations, confidence and the second reading on the synthetic encyclopedia (``make bench-trust``).

    python -m benchmarks.trust                             # 1,000 passages, 300 questions of each sort
    python -m benchmarks.trust --passages 300 --questions 100
    python -m benchmarks.trust --calibrate FOLDER          # only fits calibration.json, on a corpus of another seed

All calls go through the public engine, on a held-out corpus with a fixed seed. Confidence and its thresholds come from
a corpus of another seed. Each question has five passages: the gold ones and the hardest others. Each figure is compared
with a plain baseline of the same run: the query score as citation, the log-probability or the best cosine as
confidence, a single reading. The corpus is synthetic and extractive: each question has one right string. Figures of
free answers differ.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.curves import make_figure
from benchmarks.encyclopedia_tasks import MAX_TOKENS, SEED
from benchmarks.report import Row, hardware, show
from benchmarks.trust_tasks import CALIBRATED, TrustSet, answerable, make_lines, unanswerable
from benchmarks.trust_text import text_rows
from clara_core import Answer, ClaraEngine
from clara_core.data.examples import RetrievalLine
from clara_core.engine.answer_options import Cited, Reading
from clara_core.engine.quotes import stands_in
from clara_core.evaluation import exact_match
from clara_core.evaluation.trust import (
    auroc,
    bootstrap,
    calibration_error,
    coverage_at_error,
    reliability,
    risk_coverage,
)
from tools.pocket_factory.world import ENCYCLOPEDIA

_TIMED = 40  # questions that are timed one by one
_WORST = 0.1  # share of the values with the highest loss in their memories
Pairs = list[tuple[float, bool]]


@dataclass(frozen=True)
class Asked:
    """Questions and their answers.

    Attributes:
        lines: The questions.
        answers: Answers with evidence.
        cosines: Cosines of each question with its documents.
    """

    lines: Sequence[RetrievalLine]
    answers: Sequence[Answer]
    cosines: Sequence[Sequence[float]]

    @property
    def right(self) -> list[bool]:
        """Whether each answer is right; an answer to an unanswerable question is wrong."""
        pairs = zip(self.answers, self.lines, strict=True)
        return [bool(line.pos_index) and exact_match(one.text, line.answer) == 1.0 for one, line in pairs]

    def confidences(self) -> Pairs:
        """Confidence, and whether the answer is right."""
        return [(one.confidence or 0.0, hit) for one, hit in zip(self.answers, self.right, strict=True)]

    def logprobs(self) -> Pairs:
        """The baseline: log-probability, and whether the answer is right."""
        sums = [sum(token.logprob for token in one.logprobs or ()) for one in self.answers]
        return list(zip(sums, self.right, strict=True))


def ask(
    engine: ClaraEngine, lines: Sequence[RetrievalLine], read: Reading = "memory", citations: Cited = True
) -> Asked:
    """Answer questions from all of their documents."""
    items = [(line.question, engine.remember(line.docs)) for line in lines]
    answers = engine.answer_batch(
        items, max_tokens=MAX_TOKENS, citations=citations, logprobs=True, min_confidence=0.0, read=read
    )
    cosines = [engine.score([question], memories)[0].tolist() for question, memories in items]
    return Asked(lines, answers, cosines)


def cited(answer: Answer) -> int | None:
    """The first cited document of an answer."""
    return answer.citations[0].document if answer.citations else None


def citation_rows(engine: ClaraEngine, best: Asked, mixed: Asked, double: Asked, families: Sequence[str]) -> list[Row]:
    """Rows 1 to 4 of the table."""
    rows, wrong = [], []
    for name, some in (("best first", best), ("any order", mixed)):
        attended = ask(engine, some.lines, citations="attention").answers
        asked = list(zip(_zipped(some), attended, strict=True))
        hits = [(cited(one), cited(other), _first(cos), line) for (one, line, cos, ok), other in asked if ok]
        found, other, query = (_share([hit[at] in hit[3].pos_index for hit in hits]) for at in range(3))
        plain = f"attention {other:.3f}, query score {query:.3f}"
        rows.append(_row(f"1 cited document of right answers, {name}", found, plain, 0.98))
        for (one, line, cos, ok), free in asked:
            places = [at for at, text in enumerate(line.docs) if stands_in(one.text, text)]
            if not ok and len(places) == 1 and places[0] not in line.pos_index:
                wrong.append([at == places[0] for at in (cited(one), cited(free), _first(cos))])
    if wrong:
        found, other, query = (_share([hit[at] for hit in wrong]) for at in range(3))
        name = f"2 cited document of wrong answers that stand in another ({len(wrong)})"
        rows.append(_row(name, found, f"attention {other:.3f}, query score {query:.3f}", 0.95))
    pairs = [
        (one, line) for (one, line, _, ok), kind in zip(_zipped(double), families, strict=True) if ok and kind == "pair"
    ]
    if pairs:
        both = [set(_documents(one)[:2]) == set(line.pos_index) for one, line in pairs]
        halves = [_halves(one, line) for one, line in pairs]
        rows.append(_row(f"3 both documents of 'A and B' ({len(pairs)})", _share(both), "", 0.92))
        rows.append(_row("3 right document for each half", _share(halves), "", 0.90))
    held = [bool(one.citations) and stands_in(one.text, one.citations[0].text) for one, _, _, ok in _zipped(best) if ok]
    rows.append(_row("4 cited sentence holds the answer", _share(held), "", 0.98))
    return rows


def mixtures_of(best: Asked, none: Asked, double: Asked) -> dict[str, tuple[Pairs, Pairs]]:
    """Confidence and, as a baseline, log-probability for three mixtures of questions."""
    mixtures = {
        "best first": [best],
        "half unanswerable": [best, none],
        "also over two passages": [best, none, double],
    }
    return {
        name: ([pair for part in parts for pair in part.confidences()], [p for part in parts for p in part.logprobs()])
        for name, parts in mixtures.items()
    }


def plot(mixtures: dict[str, tuple[Pairs, Pairs]], picture: Path) -> None:
    """Plot reliability, and error over coverage, of each mixture."""
    figure, (left, right) = make_figure(2)
    left.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
    for name, (sure, plain) in mixtures.items():
        said, true, _ = zip(*reliability(sure), strict=True)
        [line] = left.plot(said, true, marker="o", markersize=3, label=name)
        for pairs, style in ((sure, "-"), (plain, ":")):
            coverage, error = zip(*risk_coverage(pairs), strict=True)
            right.plot(coverage, error, style, color=line.get_color(), linewidth=1)
    left.set(xlabel="confidence", ylabel="share of right answers", title="reliability, ten bins of equal mass")
    right.set(xlabel="coverage", ylabel="error", title="risk and coverage; dotted: log-probability alone")
    left.legend(loc="upper left", frameon=False, fontsize=8)
    figure.savefig(picture, dpi=120)


def confidence_rows(mixtures: dict[str, tuple[Pairs, Pairs]], best: Asked, none: Asked) -> list[Row]:
    """Rows 6 to 9 of the table."""
    rows = []
    for (name, (sure, plain)), target in zip(mixtures.items(), (0.95, 0.96, 0.90), strict=True):
        low, high = bootstrap(sure, auroc, rounds=300)
        found = f"{auroc(sure):.3f} ({low:.3f} to {high:.3f})"
        rows.append(Row(f"6 AUROC, {name}", found, f"log p {auroc(plain):.3f}", auroc(sure), target))
        error = calibration_error(sure)
        rows.append(Row(f"7 ECE, {name}", f"{error:.3f}", "", error, 0.05, at_most=True))
    for name, error, target in (("best first", 0.02, 0.80), ("half unanswerable", 0.05, 0.40)):
        sure, plain = mixtures[name]
        found, other = coverage_at_error(sure, error), coverage_at_error(plain, error)
        rows.append(_row(f"8 coverage at {error:.0%} error, {name}", found, f"log p {other:.3f}", target))
    known = [(max(cos), True) for cos in best.cosines] + [(max(cos), False) for cos in none.cosines]
    sure = [(value, True) for value, _ in best.confidences()] + [(value, False) for value, _ in none.confidences()]
    found = auroc(sure)
    rows.append(_row("9 'not in the documents', AUROC of confidence", found, f"best cosine {auroc(known):.3f}", 0.97))
    return rows


def reading_rows(engine: ClaraEngine, best: Asked, double: Asked) -> list[Row]:
    """Rows 10 and 11 of the table."""
    rows = []
    for name, once, target in (("one passage", best, 0.95), ("two passages", double, None)):
        again = ask(engine, once.lines, "again")
        first, second = _share(once.right), _share(again.right)
        doubted = _share([_doubtful(one) for one in once.answers])
        taken = _share([one.reading == "again" for one in again.answers])
        other = f"once {first:.3f}; read again {doubted:.0%}, taken {taken:.0%}"
        rows.append(Row(f"10 exact match with read='again', {name}", f"{second:.3f}", other, second, target))
    passed = [ok for one, _, _, ok in _zipped(best) if _passes(one)]
    rows.append(
        _row("11 exact match where all checks pass", _share(passed), f"of {len(passed) / len(best.lines):.0%}", 0.99)
    )
    rows.append(_row("11 their share", len(passed) / len(best.lines), "", 0.80))
    return rows


def fidelity_rows(engine: ClaraEngine, lines: Sequence[RetrievalLine]) -> list[Row]:
    """Row 12: whether names and numbers that are improbable in their memory are answered wrongly."""
    texts = [line.docs[line.pos_index[0]] for line in lines]
    memories = engine.remember(texts)
    items = [(line.question, [memory]) for line, memory in zip(lines, memories, strict=True)]
    answers = engine.answer_batch(items, max_tokens=MAX_TOKENS)
    measured: Pairs = []  # minus the loss of the value, and whether it was read rightly
    for line, text, answer, fidelity in zip(lines, texts, answers, engine.fidelity(memories), strict=True):
        start = text.find(line.answer)
        losses = [one.loss for one in fidelity.spans if one.start < start + len(line.answer) and start < one.end]
        if start >= 0 and losses:
            measured.append((-sum(losses), exact_match(answer.text, line.answer) == 1.0))
    if all(ok for _, ok in measured):
        return []
    measured.sort()
    worst = round(_WORST * len(measured))
    errors = sum(not ok for _, ok in measured)
    found = sum(not ok for _, ok in measured[:worst]) / errors
    low, high = bootstrap(measured, auroc, rounds=300)
    area = auroc(measured)
    kind = f"{len(measured)} names and numbers, {errors} read wrongly"
    return [
        Row("12 AUROC of a value's loss in its memory", f"{area:.3f} ({low:.3f} to {high:.3f})", kind, area, 0.96),
        _row(f"12 reading errors among the worst {_WORST:.0%}", found, "", 0.85),
        _row("12 exact match of the rest", _share([ok for _, ok in measured[worst:]]), "", 0.995),
    ]


def time_row(engine: ClaraEngine, best: Asked) -> Row:
    """Row 5 of the table: processor time, which other work on the machine affects less. The cosines are given."""
    kinds: tuple[Cited, ...] = (False, True, "attention")
    times: dict[Cited, list[float]] = {kind: [] for kind in kinds}
    for line, scores in list(zip(best.lines, best.cosines, strict=True))[:_TIMED]:
        memories = engine.remember(line.docs)
        for kind in kinds:
            start = time.process_time()
            engine.answer(line.question, memories, max_tokens=MAX_TOKENS, citations=kind, scores=scores)
            times[kind].append(time.process_time() - start)
    plain, hidden, attended = (median(times[kind]) for kind in kinds)
    extra, name = hidden / plain - 1, "5 time that citations add, of an answer's own"
    return Row(name, f"{extra:.2f}", f"attention {attended / plain - 1:.2f}", extra, 0.9, at_most=True)


def _zipped(some: Asked) -> list[tuple[Answer, RetrievalLine, Sequence[float], bool]]:
    return list(zip(some.answers, some.lines, some.cosines, some.right, strict=True))


def _first(cosines: Sequence[float]) -> int:
    return cosines.index(max(cosines))


def _documents(answer: Answer) -> list[int]:
    return list(dict.fromkeys(one.document for one in answer.citations or ()))


def _halves(answer: Answer, line: RetrievalLine) -> bool:
    """Whether the first half of 'A and B' cites the first document and the second half the second."""
    cut = answer.text.find(" and ")
    first, second = (
        {one.document for one in answer.citations or () if (one.end <= cut) is early and (early or one.start > cut)}
        for early in (True, False)
    )
    return first == {line.pos_index[0]} and second == {line.pos_index[1]}


def _passes(answer: Answer) -> bool:
    checks = answer.checks
    return checks is not None and bool(checks.cited_first and checks.verbatim and checks.grounded)


def _doubtful(answer: Answer) -> bool:
    checks = answer.checks
    return checks is not None and False in (checks.cited_first, checks.verbatim, checks.grounded)


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0


def _row(name: str, value: float, other: str, target: float) -> Row:
    return Row(name, f"{value:.3f}", other, value, target)


def calibrate(engine: ClaraEngine, passages: int, questions: int, folder: Path) -> Path:
    """Fit a calibration on a corpus of another seed.

    Each question about one passage is asked with and without this passage. There are half as many questions about two
    passages, half of which are also asked without them.
    """
    made: TrustSet = make_lines(engine, passages, CALIBRATED, questions)
    double = made.double[: questions // 2]
    lines = [*answerable(made.single), *unanswerable(made.single)]
    lines += [*answerable(double), *unanswerable(double[: questions // 4])]
    return engine.calibrate(lines, show_progress=True, unanswerable=0.0).write(folder)


def main(
    model: Annotated[str, typer.Option(help="Bundled name, folder, or Hub id.")] = ENCYCLOPEDIA,
    passages: Annotated[int, typer.Option(min=50, help="Passages of the world.")] = 1000,
    questions: Annotated[int, typer.Option(min=20, help="Questions of each sort.")] = 300,
    calibrate_to: Annotated[
        Path | None, typer.Option("--calibrate", help="Only write calibration.json to this folder.")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="Draw reliability, and error over coverage.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Fail if a target is missed.")] = False,
) -> None:
    """Measure citations, confidence and the second reading."""
    engine = ClaraEngine.from_pretrained(model)
    if calibrate_to is not None:
        print(calibrate(engine, passages, questions, calibrate_to))
        return
    if engine.calibration is None:
        raise SystemExit(f"{model!r} has no calibration; --calibrate FOLDER makes one")
    made = make_lines(engine, passages, SEED, questions)
    best, mixed = ask(engine, answerable(made.single)), ask(engine, answerable(made.single, shuffled=SEED))
    none, double = ask(engine, unanswerable(made.single)), ask(engine, answerable(made.double))
    mixtures = mixtures_of(best, none, double)
    if picture is not None:
        plot(mixtures, picture)
    rows = [
        *citation_rows(engine, best, mixed, double, made.families),
        time_row(engine, best),
        *confidence_rows(mixtures, best, none),
        *reading_rows(engine, best, double),
        *fidelity_rows(engine, best.lines),
        *(text_rows(best.lines, _share(best.right)) if model == ENCYCLOPEDIA else ()),
    ]
    facts: dict[str, object] = {"benchmark": "trust", "passages": passages, "hardware": hardware("cpu")}
    facts |= {"questions": len(best.lines), "double": len(double.lines), "calibrated on": engine.calibration.questions}
    show(f"Trust: {len(best.lines)} questions, {passages:,} passages", rows, facts, "baseline")
    print(json.dumps({"exact_match": _share(best.right), "exact_match_double": _share(double.right)}))
    if check and any(row.reached is False for row in rows):
        raise SystemExit("a target is missed")


if __name__ == "__main__":
    typer.run(main)
