"""The command `clara synthesize`: writes training sets of all stages about documents, with a language model."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from clara_core.cli.ask import cut_files, read_files
from clara_core.cli.options import AsJson, engine_of, with_options
from clara_core.common.errors import DataError
from clara_core.engine.options import EngineOptions

if TYPE_CHECKING:
    from clara_core import Engine
    from clara_core.training.candidates import Search

_TEXTS = ("text", "page_content", "content", "contents")  # names of the text field in JSONL files
_NO_CANDIDATES = "none"
_BM25 = "bm25"


@with_options
def synthesize_documents(
    docs: Annotated[
        Path, typer.Argument(help="Folder of files, one file, or documents as .jsonl, .jsonl.gz or .parquet.")
    ],
    llm: Annotated[
        str, typer.Option(help="openai:MODEL, openai:MODEL@URL, python:MODULE:NAME or python:FILE.py:NAME.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the sets; a stopped run resumes from it.")],
    model: Annotated[str | None, typer.Option(help="Model to be trained; its window cuts passages.")] = None,
    candidates: Annotated[
        str, typer.Option(help="Search for the candidates of a question: bm25, the address of a store, or none.")
    ] = _BM25,
    n_candidates: Annotated[int, typer.Option(min=1, help="Candidates of a question.")] = 20,
    top_k: Annotated[int, typer.Option(min=1, help="Passages of a question for instruction tuning.")] = 5,
    max_rounds: Annotated[
        int, typer.Option(min=1, help="Rounds after which a passage that is not covered is dropped.")
    ] = 10,
    concurrency: Annotated[int, typer.Option(min=1, help="Passages to work on at a time.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a reply.")] = 120.0,
    held_out: Annotated[
        float, typer.Option(help="Share of the questions to hold out from training for evaluation.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the order of candidates.")] = 0,
    as_json: AsJson = False,
    *,
    options: EngineOptions,
) -> None:
    """Write training sets about your documents with a language model."""
    if candidates != _NO_CANDIDATES and top_k > n_candidates:
        raise ValueError(f"--top-k {top_k} is more than --n-candidates {n_candidates}")
    from clara_core.training.candidates import end_to_end_sets
    from clara_core.training.llm_spec import open_llm
    from clara_core.training.synthesis import synthesize

    client = open_llm(llm)
    search = _search(candidates, options)  # opened before the language model costs anything
    passages = _passages(docs, options)
    bar = sys.stderr.isatty()
    report = synthesize(
        passages,
        client,
        out,
        max_rounds=max_rounds,
        concurrency=concurrency,
        timeout=timeout,
        held_out=held_out,
        show_progress=bar,
    )
    facts: dict[str, Any] = {"synthesis": asdict(report)}
    shown = [str(report)]
    if candidates != _NO_CANDIDATES:
        sets = end_to_end_sets(out, search, n_candidates=n_candidates, top_k=top_k, seed=seed, show_progress=bar)
        facts["candidates"] = asdict(sets) | {"missed_rate": sets.missed_rate}
        shown.append(str(sets))
    typer.echo(json.dumps(facts, ensure_ascii=False, default=str) if as_json else "\n".join(shown))


def _search(candidates: str, options: EngineOptions) -> Search | None:
    """The store to search for candidates; None for no candidates, and for BM25, which `end_to_end_sets` makes."""
    if candidates in (_NO_CANDIDATES, _BM25):
        return None
    from clara_core.store import MemoryStore

    return MemoryStore.open(candidates, engine_of(options), read_only=True)


def _passages(docs: Path, options: EngineOptions) -> list[str]:
    """Passages of documents, cut to the window of a model."""
    engine = engine_of(options)
    if docs.name.lower().endswith((".jsonl", ".jsonl.gz", ".parquet")):
        return _from_lines(docs, engine)
    files, _ = read_files(docs, Console(stderr=True))
    return [passage.text for passage in cut_files(files, engine, docs)]


def _from_lines(path: Path, engine: Engine) -> list[str]:
    from clara_core.data.jsonl import read_objects

    passages = []
    for where, found in read_objects(path):
        text = next((found[name] for name in _TEXTS if isinstance(found.get(name), str)), None)
        if text is None:
            names = " or ".join(map(repr, _TEXTS))
            raise DataError(f"{where}: a document must have a text named {names}; the line has {list(found)}")
        passages += [text[start:end] for start, end in engine.tokenizer.windows(text)]
    if not passages:
        raise ValueError(f"no document in {str(path)!r}")
    return passages
