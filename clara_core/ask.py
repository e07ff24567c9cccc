"""The command `clara ask`: a folder of texts and a question, an answer with its sources."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from clara_core.passages import SUFFIXES, Passage, cut_passages, read_folder

if TYPE_CHECKING:
    from clara_core import Answer, ClaraEngine, Memory, Ranked

_BEGINNING = 60  # characters of a source that are shown


def ask(
    folder: Annotated[Path, typer.Argument(help="Folder with .md and .txt files, or one file.")],
    question: Annotated[str, typer.Argument(help="What to ask them.")],
    model: Annotated[str, typer.Option(help="Bundled name, folder, or Hub id.")] = "pocket",
    base_model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the base decoder, instead of the named.")
    ] = None,
    compression: Annotated[int | None, typer.Option(help="Rate, where a repo or folder holds several.")] = None,
    reasoner: Annotated[str | None, typer.Option(help="'encoder': the compressor reads the question, too.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Passages that the answer is read from.")] = 5,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Answers a question from the texts of a folder."""
    if not question.strip():
        raise ValueError("the question is empty")
    files, problems = read_folder(folder)
    notes = Console(stderr=True)
    for problem in problems:
        notes.print(_plain(f"left out: {problem}"), style="yellow", soft_wrap=True)
    if not files:
        kinds = " or ".join(SUFFIXES)
        raise ValueError(f"no readable {kinds} file in {str(folder)!r}")

    from clara_core import ClaraEngine

    engine = ClaraEngine.from_pretrained(
        model, compression=compression, base_model=base_model, reasoner=reasoner or "auto"
    )
    passages = [part for file in files for part in cut_passages(file, engine.tokenizer.windows)]
    if not passages:
        raise ValueError(f"the {len(files)} files in {str(folder)!r} hold no text")
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    memories = _compress(engine, passages, notes)
    seconds["compress"] = time.perf_counter() - start
    start = time.perf_counter()
    ranked = engine.rank(question, memories, top_k=top_k)
    seconds["rank"] = time.perf_counter() - start
    start = time.perf_counter()
    answer = engine.answer(question, [memories[hit.index] for hit in ranked], max_tokens=max_tokens)
    seconds["answer"] = time.perf_counter() - start
    if as_json:
        facts = _facts(question, answer, ranked, passages, seconds)
        facts |= {"model": model, "files": len(files), "left_out": problems}
        # A name or question that is no Unicode is written as its JSON escape.
        written = json.dumps(facts, ensure_ascii=False)
        typer.echo(written.encode("utf-8", "backslashreplace"))
        return
    _show(answer, ranked, passages, seconds)


def _compress(engine: ClaraEngine, passages: Sequence[Passage], notes: Console) -> list[Memory]:
    """Memories of the passages, with a progress bar where somebody can see it."""
    with Progress(console=notes, transient=True, disable=not notes.is_terminal) as progress:
        stream = engine.compress_stream([passage.text for passage in passages])
        return list(progress.track(stream, total=len(passages), description="compressing"))


def _facts(
    question: str,
    answer: Answer,
    ranked: Sequence[Ranked],
    passages: Sequence[Passage],
    seconds: dict[str, float],
) -> dict[str, object]:
    sources = [
        {
            "file": passages[hit.index].file,
            "start": passages[hit.index].start,
            "score": hit.score,
            "text": passages[hit.index].text,
        }
        for hit in ranked
    ]
    return {
        "question": question,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "sources": sources,
        "passages": len(passages),
        "prompt_tokens": answer.prompt_tokens,
        "memory_tokens": answer.memory_tokens,
        "source_tokens": answer.source_tokens,
        "completion_tokens": answer.completion_tokens,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _show(answer: Answer, ranked: Sequence[Ranked], passages: Sequence[Passage], seconds: dict[str, float]) -> None:
    console = Console(highlight=False)
    console.print(_plain(answer.text.strip()), style="bold", soft_wrap=True)
    if answer.finish_reason == "length":
        console.print("(cut at --max-tokens)", style="yellow")
    console.print()
    for hit in ranked:
        passage = passages[hit.index]
        words = " ".join(passage.text.split())
        beginning = words[:_BEGINNING] + ("…" if len(words) > _BEGINNING else "")
        line = Text.assemble((f"{hit.score:6.3f}  ", "cyan"), _plain(passage.file), ("  " + _plain(beginning), "dim"))
        console.print(line, soft_wrap=True)
    console.print(
        f"\nread {answer.memory_tokens:,} memory tokens instead of {answer.source_tokens:,} of text; "
        f"compressed {len(passages):,} passages in {seconds['compress']:.1f} s, "
        f"answered in {seconds['rank'] + seconds['answer']:.1f} s",
        style="dim",
        soft_wrap=True,
    )


def _plain(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    shown = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in shown)
