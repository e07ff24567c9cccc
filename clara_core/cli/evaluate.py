"""The command `clara eval`: evaluates a model on a file of questions and writes a report."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from clara_core.cli.options import AsJson, Limit, Questions, TopK, load_watched, local_engine_of, with_options
from clara_core.engine.options import EngineOptions

if TYPE_CHECKING:
    from clara_core.evaluation import Report


class ModeName(StrEnum):
    """Modes of evaluation as values of ``--mode``; typer takes no list of a `Literal`."""

    NORMAL = "normal"
    ORACLE = "oracle"


@with_options
def evaluate_file(
    data: Questions,
    mode: Annotated[
        list[ModeName] | None,
        typer.Option(help="'oracle' adds the gold passages to the documents that are read; may be repeated."),
    ] = None,
    top_k: TopK = 5,
    ranker: Annotated[
        Literal["memory", "bm25", "given"],
        typer.Option(help="What ranks the candidates; 'given' keeps their order and needs no query reasoner."),
    ] = "memory",
    corpus: Annotated[
        bool, typer.Option("--corpus", help="Search all passages of the file for each question.")
    ] = False,
    bm25: Annotated[bool, typer.Option(help="Also rank by BM25, for comparison.")] = True,
    text_llm: Annotated[
        str | None,
        typer.Option(
            help="LLM that reads the documents as text: openai:MODEL[@URL], python:MODULE:NAME or python:FILE.py:NAME."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 64,
    limit: Limit = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions (and prompts of the text LLM) at a time.")] = 16,
    timed: Annotated[int, typer.Option(min=0, help="Questions to time one by one.")] = 20,
    paraphrases: Annotated[int, typer.Option(min=0, help="Passages to paraphrase from their memories.")] = 20,
    trust: Annotated[
        bool, typer.Option("--trust", help="Also measure citations, confidence and a second reading.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; an interrupted run resumes from it.")] = None,
    as_json: AsJson = False,
    *,
    options: EngineOptions,
) -> None:
    """Measure retrieval, answers and latency of a model."""
    from clara_core.evaluation import evaluate, over_corpus, read_questions
    from clara_core.evaluation.report import load_figure
    from clara_core.evaluation.trust import measure_trust
    from clara_core.training.llm_spec import open_llm

    engine = local_engine_of(options)
    lines = read_questions(data, limit)
    if out is not None:
        load_figure()  # raises now if a package of the report is missing
    load_watched(engine)
    report = evaluate(
        engine,
        over_corpus(lines) if corpus else lines,
        modes=[one.value for one in mode or [ModeName.NORMAL]],
        top_k=top_k,
        ranker=ranker,
        bm25=bm25,
        text_llm=None if text_llm is None else open_llm(text_llm),
        text_llm_name=text_llm,
        max_tokens=max_tokens,
        batch=batch,
        timed=timed,
        paraphrases=paraphrases,
        folder=out,
        show_progress=sys.stderr.isatty(),
    )
    if trust:
        report.metrics["trust"] = measure_trust(engine, lines, top_k=top_k, max_tokens=max_tokens)
    if out is not None:
        report.write(out)
    if as_json:
        typer.echo(json.dumps({"settings": report.settings, **report.metrics}, ensure_ascii=False))
        return
    _show(report, out)


def _show(report: Report, out: Path | None) -> None:
    console = Console(highlight=False)
    answers = Table("mode", "read from", title=f"{report.metrics['questions']:,} questions", title_justify="left")
    for name in ("EM", "Cover-EM", "F1", "BLEU"):
        answers.add_column(name, justify="right")
    for mode, systems in report.metrics["answers"].items():
        for system, one in systems.items():
            scores = (one[name] for name in ("exact_match", "cover_match", "f1", "bleu"))
            answers.add_row(mode, system, *(f"{score:.3f}" for score in scores))
    console.print(answers)
    if retrieval := report.metrics.get("retrieval"):
        found = Table("", *retrieval, title=f"{report.metrics['with_gold']:,} with known gold", title_justify="left")
        for name in next(iter(retrieval.values())):
            found.add_row(name, *(f"{scores[name]:.3f}" for scores in retrieval.values()))
        console.print(found)
    if trust := report.metrics.get("trust"):
        _show_trust(console, trust)
    if latency := report.metrics.get("latency"):
        steps = [f"{name} {one['p50']:,.0f} ms" for name, one in latency.items() if isinstance(one, dict)]
        console.print("median of a question alone: " + ", ".join(steps), style="dim", soft_wrap=True)
    if out is not None:
        console.print(str(out / "report.md"), style="bold", markup=False, soft_wrap=True)


def _show_trust(console: Console, found: dict[str, Any]) -> None:
    shown = {
        "first cited document is gold (right answers)": found["citations"],
        "best ranked document is gold (right answers)": found["first_ranked"],
        "AUROC of the log-probability": found["logprob_auroc"],
        **{f"{name} of confidence": value for name, value in (found["confidence"] or {}).items()},
        "answers that pass all checks (share)": found["passed"]["share"],
        "accuracy of these answers": found["passed"]["accuracy"],
        "exact match": found["exact_match"],
        "exact match with read='again'": found["again"]["exact_match"],
        "answers from the second reading (share)": found["again"]["taken"],
    }
    title = "trust" if found["calibrated"] else "trust (not calibrated: `clara calibrate`)"
    table = Table("", title=title, title_justify="left", show_header=False)
    for name, value in shown.items():
        table.add_row(name, "-" if value is None else f"{value:.3f}")
    console.print(table)
