"""The command `clara inspect`: shows the passages whose memories have lost names, numbers or code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.progress import track
from rich.text import Text

from clara_core.cli.ask import cut_files, read_files, written_store
from clara_core.cli.options import AsJson, load_watched, local_engine_of, with_options
from clara_core.cli.shown import plain, write_json
from clara_core.engine.options import EngineOptions

if TYPE_CHECKING:
    from clara_core import ClaraEngine, Memory
    from clara_core.engine.fidelity import Fidelity
    from clara_core.store import Hit

_BATCH = 64  # passages at a time
_COLOURS = ((0.9, "bold red"), (0.5, "yellow"))  # colours of spans with at least this risk


@dataclass(frozen=True, slots=True)
class _Passage:
    """A passage with the fidelity of its memory."""

    source: str
    memory: Memory
    fidelity: Fidelity

    @property
    def worst(self) -> float:
        """The greatest risk of its spans."""
        return max((span.risk for span in self.fidelity.spans), default=0.0)


@with_options
def inspect_memories(
    folder: Annotated[Path | None, typer.Argument(help="A folder of files, or one file (not with --store).")] = None,
    store: Annotated[str | None, typer.Option(help="Folder or address of a store to inspect.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Passages to show, the worst first.")] = 10,
    as_json: AsJson = False,
    *,
    options: EngineOptions,
) -> None:
    """Show the names and numbers that cannot be read back from the memories of passages."""
    if (folder is None) == (store is None):
        raise ValueError("give either a folder or --store")
    notes = Console(stderr=True)
    engine = local_engine_of(options)
    memories = _of_files(engine, folder, notes) if folder is not None else _of_store(engine, str(store))
    passages: list[_Passage] = []
    starts = range(0, len(memories), _BATCH)
    for start in track(starts, "reading back", console=notes, transient=True, disable=not notes.is_terminal):
        some = memories[start : start + _BATCH]
        found = engine.fidelity([memory for _, memory in some])
        passages += [_Passage(name, memory, one) for (name, memory), one in zip(some, found, strict=True)]
    spans = sum(len(one.fidelity.spans) for one in passages)
    weak = sum(len(one.fidelity.weak()) for one in passages)
    shown = sorted(passages, key=lambda one: -one.worst)[:most]
    facts = {"passages": len(passages), "spans": spans, "weak": weak}
    if as_json:
        worst = [{"source": one.source, "text": one.memory.text, **asdict(one.fidelity)} for one in shown]
        write_json({**facts, "worst": worst})
        return
    console = Console(highlight=False)
    for one in shown:
        if one.fidelity.weak():
            console.print(Text(plain(one.source), style="bold"), soft_wrap=True)
            console.print(_marked(one), soft_wrap=True)
            console.print()
    share = weak / spans if spans else 0.0
    console.print(
        f"{weak:,} of {spans:,} names, numbers and pieces of code ({share:.1%}) in {len(passages):,} passages are more "
        "likely misread than not",
        style="dim",
        soft_wrap=True,
    )


def _of_files(engine: ClaraEngine, folder: Path, notes: Console) -> list[tuple[str, Memory]]:
    files, _ = read_files(folder, notes)
    passages = cut_files(files, engine, folder)
    load_watched(engine)
    memories = engine.compress([passage.text for passage in passages], show_progress=notes.is_terminal)
    return [(f"{one.file}:{one.start}", memory) for one, memory in zip(passages, memories, strict=True)]


def _of_store(engine: ClaraEngine, uri: str) -> list[tuple[str, Memory]]:
    store = written_store(uri, engine)
    load_watched(engine)
    [anything] = engine.compress(["anything"])  # a query vector; all documents are returned in any order
    vectors = anything.tokens[0].flatten()[None]  # [1, D]
    [hits] = cast("list[list[Hit]]", store.search(vectors, store.count(), exact=True, with_memories=True))
    return [(hit.id, hit.memory) for hit in hits if hit.memory is not None]


def _marked(passage: _Passage) -> Text:
    """The passage with its weak spans coloured by their risk."""
    text = Text()
    before = 0
    for span in passage.fidelity.spans:
        colour = next((style for least, style in _COLOURS if span.risk >= least), None)
        if colour is None or span.start < before:
            continue
        text.append(plain(passage.memory.text[before : span.start]))
        text.append(plain(span.text), style=colour)
        text.append(f" ({span.risk:.0%})", style="dim")
        before = span.end
    text.append(plain(passage.memory.text[before:]))
    return text
