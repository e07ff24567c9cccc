"""The command `clara ask`: answers a question from a folder of texts or from a store, and shows the sources."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from clara_core.cli.options import AsJson, MemoryType, Mode, engine_of, load_watched, with_options
from clara_core.cli.shown import (
    Source,
    evidence_facts,
    plain,
    show_cited,
    show_confidence,
    show_sources,
    source_of,
    write_json,
)
from clara_core.data.documents import SUFFIXES, Passage, TextFile, cut_passages, group_left_out, read_folder
from clara_core.engine.answer_options import confidence_account
from clara_core.engine.options import DEFAULT_MODEL, EngineOptions

if TYPE_CHECKING:
    from clara_core import Answer, Engine, Memory
    from clara_core.store import MemoryStore


@dataclass(slots=True)
class _Reading:
    """The passages that an answer is read from, the store they were found in, and the seconds of each step."""

    store: MemoryStore
    seconds: dict[str, float] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start


@with_options
def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[FOLDER] QUESTION",
            help="A folder of files, or one file (not with --store), and the question.",
            show_default=False,
        ),
    ],
    store: Annotated[str | None, typer.Option(help="Folder or address of a store to ask.")] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passages to read for the answer; default: as many as the model reads well.", show_default=False
        ),
    ] = None,
    mode: Mode = "hybrid",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 128,
    cite: Annotated[bool, typer.Option("--cite", help="Show the sentences that support the answer.")] = False,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Withhold an answer with a lower confidence.")
    ] = 0.0,
    verbatim: Annotated[
        bool | None,
        typer.Option(
            "--verbatim/--free",
            help="Answer in the words of one passage, or freely; default: as the checkpoint says.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    *,
    options: EngineOptions,
) -> None:
    """Answer a question from the texts of a folder or of a store."""
    if len(words) != (2 if store is None else 1):
        wanted = "a folder and a question" if store is None else "a question alone, because --store names the texts"
        raise ValueError(f"give {wanted}; got {len(words)} arguments")
    question = words[-1]
    if not question.strip():
        raise ValueError("the question is empty")
    notes = Console(stderr=True)
    facts: dict[str, object] = {"model": options.model or DEFAULT_MODEL}
    files: list[TextFile] = []
    if store is None:
        files, problems = read_files(Path(words[0]), notes)
        facts |= {"files": len(files), "left_out": problems}

    engine = engine_of(options)
    if store is None:
        reading = _in_memory(engine, files, words[0], notes)
    else:
        facts["store"] = store
        opened = written_store(store, engine)
        load_watched(engine)
        reading = _Reading(opened)
    _search(reading, question, engine.answer_top_k if top_k is None else top_k, mode)
    with reading.timed("answer"):
        answer = engine.answer(
            question,
            reading.memories,
            max_tokens=max_tokens,
            verbatim=verbatim,
            citations=cite,
            min_confidence=min_confidence,
        )
    if as_json:
        evidence = evidence_facts(answer) if cite else confidence_account(answer)
        write_json(_facts(question, answer, reading) | evidence | facts)
        return
    _show(answer, reading, cite=cite)


def read_files(folder: Path, notes: Console) -> tuple[list[TextFile], list[str]]:
    """Read the texts of a folder; also returns a line for each file left out, and prints these by kind.

    Raises:
        ValueError: There is no file that can be read.
    """
    files, left_out = read_folder(folder)
    for line in group_left_out(left_out):
        notes.print(plain(f"left out: {line}"), style="yellow", soft_wrap=True)
    if not files:
        raise ValueError(
            f"no file in {str(folder)!r} can be read, so there is no text; supported kinds: {', '.join(SUFFIXES)}"
        )
    return files, list(map(str, left_out))


def cut_files(files: Sequence[TextFile], engine: Engine, folder: Path) -> list[Passage]:
    """The passages of files, cut to the window of an engine.

    Raises:
        ValueError: There is no text.
    """
    passages = [part for file in files for part in cut_passages(file, engine.tokenizer.windows)]
    if not passages:
        raise ValueError(f"the {len(files)} files in {str(folder)!r} hold no text")
    return passages


def _in_memory(engine: Engine, files: Sequence[TextFile], folder: str, notes: Console) -> _Reading:
    """A store in memory of the passages of files."""
    from clara_core.store.store import MemoryStore  # a store in memory works without the extra

    passages = cut_files(files, engine, Path(folder))
    load_watched(engine)
    reading = _Reading(MemoryStore.open("memory://", engine))
    with reading.timed("compress"):
        reading.store.add(
            [passage.text for passage in passages],
            [{"file": passage.file, "start": passage.start} for passage in passages],
            [str(number) for number in range(len(passages))],
            show_progress=notes.is_terminal,
        )
    return reading


def _search(reading: _Reading, question: str, top_k: int, mode: Mode) -> None:
    from clara_core.retrieval.ranking import RERANK

    with reading.timed("search"):
        hits = reading.store.search(question, top_k, mode=mode, rerank=RERANK)
        reading.memories = reading.store.memories([hit.id for hit in hits])
    reading.sources = [source_of(hit) for hit in hits]


def open_store(uri: str, engine: Engine | None, memory_type: MemoryType = "bfloat16") -> MemoryStore:
    """Open a `MemoryStore`, which need not exist yet."""
    from clara_core.store import MemoryStore

    return MemoryStore.open(uri, engine, memory_type=memory_type)


def written_store(uri: str, engine: Engine | None) -> MemoryStore:
    """Open a `MemoryStore` that exists.

    Raises:
        ValueError: There is no store.
    """
    store = open_store(uri, engine)
    if store.fingerprint is None:
        raise ValueError(f"there is no store at {uri!r}; `clara index FOLDER --store {uri}` makes one")
    return store


def _facts(question: str, answer: Answer, reading: _Reading) -> dict[str, object]:
    return {
        "question": question,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "sources": [asdict(source) for source in reading.sources],
        "passages": reading.store.count(),
        "prompt_tokens": answer.prompt_tokens,
        "memory_tokens": answer.memory_tokens,
        "source_tokens": answer.source_tokens,
        "completion_tokens": answer.completion_tokens,
        "windows_left_out": answer.windows_left_out,
        "seconds": {name: round(value, 3) for name, value in reading.seconds.items()},
    }


def _show(answer: Answer, reading: _Reading, *, cite: bool) -> None:
    console = Console(highlight=False)
    console.print(plain(answer.text.strip()) or "(the model answered nothing)", style="bold", soft_wrap=True)
    if answer.finish_reason == "length":
        console.print("(cut at --max-tokens)", style="yellow")
    if answer.abstained and answer.draft:
        console.print(plain(f"withheld: {answer.draft.strip()}"), style="dim", soft_wrap=True)
    if cite or answer.calibrated:
        show_confidence(console, answer)
    if cite:
        console.print()
        show_cited(console, answer, reading.sources)
    console.print()
    show_sources(console, reading.sources)
    seconds = dict(reading.seconds)
    compressed = seconds.pop("compress", None)
    before = "searched" if compressed is None else "compressed"
    spent = "" if compressed is None else f" in {compressed:.1f} s"
    console.print(
        f"\nread {answer.memory_tokens:,} memory tokens instead of {answer.source_tokens:,} of text; "
        f"{before} {reading.store.count():,} passages{spent}, answered in {sum(seconds.values()):.1f} s",
        style="dim",
        soft_wrap=True,
    )
