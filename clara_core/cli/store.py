"""The commands `clara index`, `clara search` and `clara store`: index a folder of texts, search it, check its files.

The id of a passage is its folder, file and position. Passages that the store has already with the same text are
skipped, so an interrupted run resumes, and a second run does nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from clara_core.cli.ask import open_store, read_files, written_store
from clara_core.cli.options import AsJson, MemoryType, Mode, engine_of, load_watched, with_options
from clara_core.cli.shown import plain, show_sources, source_of, write_json
from clara_core.data.documents import Passage, TextFile, cut_passages
from clara_core.engine.options import DEFAULT_MODEL, EngineOptions

if TYPE_CHECKING:
    from clara_core.store import MemoryStore
    from clara_core.store.records import Broken

_LONGEST_NAME = 200  # characters of an id; a longer one is replaced by its hash

Store = Annotated[str, typer.Option("--store", help="Folder of the store, or its address on object storage.")]


@dataclass(slots=True)
class Plan:
    """The changes that bring a store up to date with a folder.

    Attributes:
        passages: Passages of the folder by id.
        new: Ids of passages that the store does not have.
        changed: Ids of passages that the store has with another text.
        stale: Ids in the store of passages that their file no longer has.
        gone: Ids in the store of passages whose file no longer exists.
    """

    passages: dict[str, Passage]
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


# --- clara index ---------------------------------------------------------------------------------------


@with_options
def index_folder(
    folder: Annotated[Path, typer.Argument(help="Folder of files, or one file.")],
    store: Store,
    memory_type: MemoryType = "bfloat16",
    source: Annotated[
        str | None,
        typer.Option(help="Name of the folder in the store; default: its path. Keep the old path here after a move."),
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Delete passages of files that no longer exist.")] = False,
    as_json: AsJson = False,
    *,
    options: EngineOptions,
) -> None:
    """Compress the new and changed texts of a folder into a store."""
    notes = Console(stderr=True)
    files, problems = read_files(folder, notes)
    root = (folder if folder.is_dir() else folder.parent).resolve()
    source = str(root) if source is None else source

    engine = engine_of(options)
    passages = [part for file in files for part in cut_passages(file, engine.tokenizer.windows)]
    load_watched(engine)
    opened = open_store(store, engine, memory_type)
    plan = _plan(opened, source, root, files, passages)
    start = time.perf_counter()
    _carry_out(opened, plan, source, prune=prune, show_progress=notes.is_terminal)
    facts: dict[str, object] = {
        "store": store,
        "model": options.model or DEFAULT_MODEL,
        "source": source,
        "files": len(files),
        "passages": len(passages),
        "new": len(plan.new),
        "changed": len(plan.changed),
        "unchanged": len(passages) - len(plan.new) - len(plan.changed),
        "removed": len(plan.stale) + (len(plan.gone) if prune else 0),
        "gone": 0 if prune else len(plan.gone),
        "left_out": problems,
        "seconds": round(time.perf_counter() - start, 3),
    }
    if as_json:
        write_json(facts)
        return
    Console(highlight=False).print(plain(_summary(facts)), soft_wrap=True)


def _plan(store: MemoryStore, source: str, root: Path, files: Sequence[TextFile], passages: Sequence[Passage]) -> Plan:
    """Compare a folder with its passages in a store; those of a file that exists but was not read are kept."""
    plan = Plan({_id(source, passage): passage for passage in passages})
    read = {file.name for file in files}
    there: set[str] = set()
    exists: dict[str, bool] = {}
    for record in store:
        file = record.metadata.get("file")
        if record.metadata.get("source") != source or not isinstance(file, str):
            continue
        passage = plan.passages.get(record.id)
        if passage is not None:
            there.add(record.id)
            if record.text != passage.text:
                plan.changed.append(record.id)
        elif file in read:
            plan.stale.append(record.id)
        else:
            if file not in exists:
                exists[file] = os.path.lexists(root / file)
            if not exists[file]:
                plan.gone.append(record.id)
    plan.new = [id_ for id_ in plan.passages if id_ not in there]
    return plan


def _carry_out(store: MemoryStore, plan: Plan, source: str, *, prune: bool, show_progress: bool) -> None:
    """Apply the changes: add first, then delete, so that an interruption loses nothing."""
    ids = [*plan.changed, *plan.new]
    passages = [plan.passages[id_] for id_ in ids]
    metadatas = [{"source": source, "file": passage.file, "start": passage.start} for passage in passages]
    store.add([passage.text for passage in passages], metadatas, ids, show_progress=show_progress)
    removed = [*plan.stale, *(plan.gone if prune else [])]
    if removed:
        store.delete(removed)
    if ids or removed:
        store.optimize(show_progress=show_progress)


def _id(source: str, passage: Passage) -> str:
    name = f"{source}/{passage.file}#{passage.start}"
    if len(name) <= _LONGEST_NAME:
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _summary(facts: dict[str, Any]) -> str:
    done = ", ".join(f"{facts[name]:,} {name}" for name in ("new", "changed", "unchanged", "removed"))
    gone = (
        f"; {facts['gone']:,} of files that no longer exist were kept (--prune deletes them)" if facts["gone"] else ""
    )
    return f"{facts['files']:,} files, {facts['passages']:,} passages: {done}, in {facts['seconds']:.1f} s{gone}"


# --- clara search --------------------------------------------------------------------------------------


@with_options
def search_store(
    question: Annotated[str, typer.Argument(help="The question.")],
    store: Store,
    k: Annotated[int, typer.Option("-k", "--top-k", min=1, help="Most documents to show.")] = 5,
    mode: Mode = "hybrid",
    condition: Annotated[
        str | None, typer.Option("--filter", help='Metadata filter as JSON, such as {"file": "notes.md"}.')
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with all memories instead of searching short keys first.")
    ] = False,
    as_json: AsJson = False,
    *,
    options: EngineOptions,
) -> None:
    """Show the documents of a store that answer a question best."""
    if not question.strip():
        raise ValueError("the question is empty")
    parsed = _filter(condition)
    # A search by words alone needs no model.
    engine = None if mode == "text" else engine_of(options)
    opened = written_store(store, engine)
    if engine is not None:
        load_watched(engine)
    start = time.perf_counter()
    hits = opened.search(question, k, filter=parsed, mode=mode, exact=exact)
    seconds = time.perf_counter() - start
    if as_json:
        found = [
            {
                "id": hit.id,
                "score": hit.score,
                "relevance": hit.relevance,
                "window": hit.window,
                "text": hit.text,
                "metadata": hit.metadata,
            }
            for hit in hits
        ]
        write_json({"question": question, "mode": mode, "hits": found, "seconds": round(seconds, 3)})
        return
    console = Console(highlight=False)
    show_sources(console, [source_of(hit) for hit in hits])
    console.print(f"{len(hits)} of {opened.count():,} documents in {seconds:.2f} s", style="dim", soft_wrap=True)


def _filter(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    from clara_core.retrieval.filters import check_filter

    try:
        condition: dict[str, Any] = json.loads(text)
        check_filter(condition)
    except json.JSONDecodeError as exc:
        raise ValueError(f"--filter is not JSON ({exc}): {text!r:.80}") from exc
    except (TypeError, RecursionError) as exc:
        raise ValueError(f"--filter: {exc}") from exc
    return condition


# --- clara store ---------------------------------------------------------------------------------------

store_app = typer.Typer(no_args_is_help=True, help="Check and repair the files of a store.")


@store_app.command("check")
def check_store(store: Store, as_json: AsJson = False) -> None:
    """Read all files of a store and list those that cannot be read; exits with 1 if there are any."""
    notes = Console(stderr=True)
    broken = written_store(store, None).check(show_progress=notes.is_terminal)
    _show_broken(broken, "cannot be read", as_json=as_json)
    if broken:
        raise typer.Exit(1)


@store_app.command("salvage")
def salvage_store(store: Store, as_json: AsJson = False) -> None:
    """Remove the documents of broken files from a store, so that all others can be read. Deletes no file."""
    notes = Console(stderr=True)
    broken = open_store(store, None).salvage(show_progress=notes.is_terminal)
    _show_broken(broken, "removed", as_json=as_json)


def _show_broken(broken: Sequence[Broken], what: str, *, as_json: bool) -> None:
    if as_json:
        write_json({"broken": [{"path": file.path, "documents": file.rows, "reason": file.reason} for file in broken]})
        return
    console = Console(highlight=False)
    for file in broken:
        console.print(plain(f"{file.path}: {file.rows} documents {what} ({file.reason})"), soft_wrap=True)
    if not broken:
        console.print("all files can be read")
