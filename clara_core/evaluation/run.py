"""A run: an engine over a file of questions, from the first line to the report."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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

_PICTURED = 200  # passages of the picture, at most


def read_questions(path: str | Path, limit: int | None = None) -> list[RetrievalLine]:
    """Questions of a file in the published layout: question, candidates, gold answers and, where known, `pos_index`.

    Args:
        path: ``.jsonl``, ``.jsonl.gz`` or ``.parquet``; see `clara_core.data.jsonl`.
        limit: Only the first so many.

    Raises:
        DataError: The file cannot be read, has no line, or a line is not right; names file and line.
    """
    lines = [line for line in islice(read_lines(path, "stage2"), limit) if isinstance(line, RetrievalLine)]
    if not lines:
        raise DataError(f"{path}: there is no question in it")
    return lines


def over_corpus(lines: Sequence[RetrievalLine]) -> list[RetrievalLine]:
    """The same questions with all passages of all lines as the candidates of each: search in a corpus."""
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
    """Ask a model all questions, and measure what it finds, what it answers, and what that costs.

    Every candidate is compressed, the candidates are ranked, the best `top_k` are read, best first. Answers are
    greedy. Candidates longer than the compressor's window become several windows; nothing is cut.

    Args:
        engine: The model.
        lines: Questions with candidates, as `read_questions` gives them.
        modes: "normal": what the ranking says is read. "oracle": the gold passages are put among what is read.
        top_k: Documents that are read for a question.
        ranker: Whose order decides what is read: "memory", "bm25", or "given", that of the line (which also
            checkpoints without a query reasoner can read).
        bm25: Rank by BM25 as well, over the same candidates.
        text_llm: A LangChain chat model, a LlamaIndex LLM or a function from text to text that reads the same
            documents as text, and those of BM25.
        text_llm_name: How the report calls it, and by what a run that goes on knows it again; its own name where None.
        max_tokens: Of an answer from memory.
        batch: Questions that are worked on together; also prompts that the text LLM is given at a time, in threads.
        timed: Of so many questions the time is taken, one by one, after all have been asked.
        paraphrases: So many passages are said again from their memory alone.
        folder: Outcomes are written here as they come; the same call goes on where it was interrupted.
        show_progress: Draw progress bars.

    Raises:
        ValueError: An argument is out of bounds, "oracle" was asked for and a line has no gold passage, or the folder
            holds another run.
        RoleError: The checkpoint has no query reasoner and `ranker` is "memory".
        ImportError: A package is missing; says which, and how to install it.
        ClaraError: The text LLM failed, or the folder cannot be written. What was done is kept in the folder.
    """
    plan = Plan(tuple(dict.fromkeys(modes)), top_k, ranker, bm25, max_tokens)
    _check(lines, plan, batch=batch, timed=timed, paraphrases=paraphrases)
    text = None if text_llm is None else TextReader(text_llm, batch, text_llm_name)
    if ranker == "memory":
        engine.reason([])  # says now, and not after much work, that there is no query reasoner
    settings = _settings(engine, plan, text)
    log = None if folder is None else OutcomeLog(Path(folder), settings, lines)
    outcomes = [] if log is None else log.outcomes
    runner = Runner(engine, plan, text)
    for made in _batches(runner, lines, len(outcomes), batch, show_progress=show_progress):
        if log is None:
            outcomes += made
        else:
            log.append(made)
    passages = _sample(lines, max(paraphrases, _PICTURED))
    again = paraphrase_passages(engine, passages[:paraphrases], batch, show_progress=show_progress)
    metrics = summarize(outcomes, again)
    answered = [line for line, out in zip(lines, outcomes, strict=True) if not any(one.failed for one in out.replies)]
    if asked_alone := answered[:timed]:
        metrics["latency"] = latency(engine, asked_alone, plan, text, show_progress=show_progress)
    points = align(engine, passages[:_PICTURED]) if len(passages) > 1 else None
    if points is not None:
        used = min(len(passages), _PICTURED)
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
    """Everything that can be wrong is found before the first question is asked."""
    if not lines:
        raise ValueError("there is no question to ask")
    for line in lines:
        if not isinstance(line, RetrievalLine):
            raise TypeError(f"a question must be a RetrievalLine, got {type(line).__name__}; see read_questions")
        if not line.docs or not line.references:
            raise ValueError(f"{line.where or repr(line.question)}: a question needs candidates and gold answers")
        if "oracle" in plan.modes and not line.pos_index:
            raise ValueError(f"{line.where or repr(line.question)}: 'oracle' needs the gold passages, 'pos_index'")
    if not plan.modes:
        raise ValueError("modes is empty; known are " + ", ".join(get_args(Mode)))
    for name, values, known in (("modes", plan.modes, get_args(Mode)), ("ranker", [plan.ranker], get_args(Ranker))):
        for value in values:
            if value not in known:
                raise ValueError(f"{name}: must be of {', '.join(known)}, got {value!r}")
    for name, number in {"top_k": plan.top_k, "max_tokens": plan.max_tokens, **numbers}.items():
        least = 0 if name in {"timed", "paraphrases"} else 1
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
    load_bleu()
    if numbers["paraphrases"]:
        load_rouge()


def _settings(engine: ClaraEngine, plan: Plan, text: TextReader | None) -> dict[str, Any]:
    """What the outcomes depend on, as JSON gives it back."""
    return {
        "fingerprint": engine.fingerprint,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "quantization": engine.arguments.quantization,
        "reasoner": engine.arguments.reasoner,
        "modes": list(plan.modes),
        "top_k": plan.top_k,
        "ranker": plan.ranker,
        "bm25": plan.bm25,
        "max_tokens": plan.max_tokens,
        "text_llm": None if text is None else text.label,
    }


def _facts(engine: ClaraEngine, lines: Sequence[RetrievalLine]) -> dict[str, Any]:
    """What else a reader of the report wants to know."""
    return {
        "model": engine.arguments.model,
        "data": sorted({line.where.rpartition(":")[0] for line in lines} - {""}),
        "hardware": hardware(engine),
        "memory_of_a_window": f"{engine.n_mem} tokens for at most {engine.window} of text",
    }


def _sample(lines: Sequence[RetrievalLine], count: int) -> list[str]:
    """Passages drawn from all candidates, the same every time."""
    passages = list(dict.fromkeys(text for line in lines for text in line.docs))
    return random.Random(0).sample(passages, min(count, len(passages)))
