"""Evaluates an engine on a file of questions: reads the questions, runs them and reports the result."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from clara_core.common.errors import DataError
from clara_core.data.examples import RetrievalLine
from clara_core.data.jsonl import read_lines
from clara_core.evaluation.cost import align, hardware, latency
from clara_core.evaluation.outcomes import Mode, Outcome, OutcomeLog, Ranker
from clara_core.evaluation.paraphrases import paraphrase_passages
from clara_core.evaluation.report import Report
from clara_core.evaluation.runner import Plan, Runner
from clara_core.evaluation.summary import summarize
from clara_core.evaluation.text_overlap import load_bleu, load_rouge
from clara_core.evaluation.text_reader import TextReader

if TYPE_CHECKING:
    from clara_core.engine.engine import ClaraEngine

_PLOTTED = 200  # most passages of the alignment plot


def read_questions(path: str | Path, limit: int | None = None) -> list[RetrievalLine]:
    """Read questions in the published layout: question, candidates, gold answers and, if known, `pos_index`.

    Args:
        path: A ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file; see `clara_core.data.jsonl`.
        limit: Most questions to read; None for all.

    Raises:
        DataError: The file cannot be read, is empty, or a line is invalid; the message names file and line.
    """
    lines = [line for line in islice(read_lines(path, "stage2"), limit) if isinstance(line, RetrievalLine)]
    if not lines:
        raise DataError(f"{path}: the file holds no question")
    return lines


def over_corpus(lines: Sequence[RetrievalLine]) -> list[RetrievalLine]:
    """The same questions with the passages of all lines as candidates of each, to measure search in a corpus."""
    corpus = tuple(dict.fromkeys(text for line in lines for text in line.docs))
    places = {text: place for place, text in enumerate(corpus)}
    return [
        RetrievalLine(
            question=line.question,
            docs=corpus,
            answer=line.answer,
            references=line.references,
            pos_index=tuple(dict.fromkeys(places[line.docs[index]] for index in line.pos_index)),
            where=line.where,
        )
        for line in lines
    ]


def evaluate(
    engine: ClaraEngine,
    lines: Sequence[RetrievalLine],
    *,
    modes: Sequence[Mode] = ("normal",),
    top_k: int = 5,
    ranker: Ranker = "memory",
    bm25: bool = True,
    text_llm: Any = None,
    text_llm_name: str | None = None,
    max_tokens: int = 64,
    batch: int = 16,
    timed: int = 20,
    paraphrases: int = 20,
    folder: str | Path | None = None,
    show_progress: bool = False,
) -> Report:
    """Answer all questions and measure retrieval, answers and cost.

    Every candidate is compressed and ranked, and the generator reads the best `top_k`, best first. Answers are greedy.
    Candidates longer than the compressor's window are split into several windows.

    Args:
        engine: The engine to evaluate.
        lines: Questions with candidates, from `read_questions`.
        modes: "normal" reads the first documents of the ranking, "oracle" makes sure that the gold passages are read.
        top_k: Documents that are read for a question.
        ranker: Ranking that is read: "memory", "bm25", or "given" (the order of the line, which does not need a query
            reasoner).
        bm25: Whether to measure the ranking by BM25, too.
        text_llm: A LangChain chat model, a LlamaIndex LLM or a function from text to text that answers from the same
            documents as text, and from those of BM25.
        text_llm_name: Name of `text_llm` in the report and in the settings of the run; None for its own name.
        max_tokens: Most tokens of an answer from memory.
        batch: Questions of a batch; also the most concurrent calls of `text_llm`.
        timed: Questions whose latency is measured, one by one, at the end.
        paraphrases: Passages that are paraphrased from their memory.
        folder: Folder for the outcomes; the same call resumes an interrupted run. None: outcomes are not written.
        show_progress: Show progress bars.

    Raises:
        ValueError: An argument is out of bounds, "oracle" is given but a line has no gold passage, or the folder holds
            another run.
        RoleError: The checkpoint has no query reasoner and `ranker` is "memory".
        ImportError: A package is missing; the message says how to install it.
        ClaraError: The text LLM failed, or the folder cannot be written. Finished questions are kept in the folder.
    """
    plan = Plan(tuple(dict.fromkeys(modes)), top_k, ranker, bm25, max_tokens)
    _check(lines, plan, batch=batch, timed=timed, paraphrases=paraphrases)
    text = None if text_llm is None else TextReader(text_llm, batch, text_llm_name)
    if ranker == "memory":
        engine.reason([])  # fail early if there is no query reasoner
    settings = _settings(engine, plan, text)
    log = None if folder is None else OutcomeLog(Path(folder), settings, lines)
    outcomes = [] if log is None else log.outcomes
    runner = Runner(engine, plan, text)
    for made in _batches(runner, lines, len(outcomes), batch, show_progress=show_progress):
        if log is None:
            outcomes += made
        else:
            log.append(made)
    passages = _sample(lines, max(paraphrases, _PLOTTED))
    again = paraphrase_passages(engine, passages[:paraphrases], batch, show_progress=show_progress)
    metrics = summarize(outcomes, again)
    answered = [line for line, out in zip(lines, outcomes, strict=True) if not any(one.failed for one in out.replies)]
    if answered[:timed]:
        metrics["latency"] = latency(engine, answered[:timed], plan, text, show_progress=show_progress)
    points = align(engine, passages[:_PLOTTED]) if len(passages) > 1 else None
    if points is not None:
        used = min(len(passages), _PLOTTED)
        metrics["alignment"] = {"passages": used, "mse": points.mse, "cosine": points.cosine}
    facts = {**_facts(engine, lines), **settings}
    return Report(facts, metrics, outcomes, again, points, None if log is None else log.path)


def _batches(
    runner: Runner, lines: Sequence[RetrievalLine], first: int, batch: int, *, show_progress: bool
) -> Iterator[list[Outcome]]:
    from tqdm.auto import tqdm

    with tqdm(total=len(lines), initial=first, desc="asking", unit="question", disable=not show_progress) as bar:
        for start in range(first, len(lines), batch):
            made = runner.run(lines[start : start + batch])
            yield made
            bar.update(len(made))


def _check(lines: Sequence[RetrievalLine], plan: Plan, **numbers: int) -> None:
    """Check arguments, questions and optional packages before the first question is run."""
    if not lines:
        raise ValueError("lines is empty: there is no question to evaluate")
    for line in lines:
        if not isinstance(line, RetrievalLine):
            raise TypeError(f"a question must be a RetrievalLine, got {type(line).__name__}; see read_questions")
        if not line.docs or not line.references:
            raise ValueError(f"{line.where or repr(line.question)}: a question needs candidates and gold answers")
        if "oracle" in plan.modes and not line.pos_index:
            raise ValueError(f"{line.where or repr(line.question)}: 'oracle' needs the gold passages, 'pos_index'")
    if not plan.modes:
        raise ValueError("modes is empty; known: " + ", ".join(get_args(Mode)))
    for name, values, known in (("modes", plan.modes, get_args(Mode)), ("ranker", [plan.ranker], get_args(Ranker))):
        for value in values:
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    for name, number in {"top_k": plan.top_k, "max_tokens": plan.max_tokens, **numbers}.items():
        least = 0 if name in {"timed", "paraphrases"} else 1
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
    load_bleu()
    if numbers["paraphrases"]:
        load_rouge()


def _settings(engine: ClaraEngine, plan: Plan, text: TextReader | None) -> dict[str, Any]:
    """Settings that determine the outcomes, as JSON values."""
    return {
        "fingerprint": engine.fingerprint,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "quantization": engine.arguments.quantization,
        "reasoner": engine.arguments.reasoner,
        **asdict(plan),
        "modes": list(plan.modes),
        "text_llm": None if text is None else text.label,
    }


def _facts(engine: ClaraEngine, lines: Sequence[RetrievalLine]) -> dict[str, Any]:
    """Facts of the report that do not determine the outcomes."""
    return {
        "model": engine.arguments.model,
        "data": sorted({line.where.rpartition(":")[0] for line in lines} - {""}),
        "hardware": hardware(engine),
        "memory_of_a_window": f"{engine.n_mem} tokens for at most {engine.window} of text",
    }


def _sample(lines: Sequence[RetrievalLine], count: int) -> list[str]:
    """Passages drawn from all candidates, with a fixed seed."""
    passages = list(dict.fromkeys(text for line in lines for text in line.docs))
    return random.Random(0).sample(passages, min(count, len(passages)))
