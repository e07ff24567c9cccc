"""Output of the commands: sources, cited sentences, confidence, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from clara_core.engine.answer_options import confidence_account

if TYPE_CHECKING:
    from clara_core import Answer
    from clara_core.engine.evidence import Citation
    from clara_core.store import Hit

_BEGINNING = 60  # characters of a source to show
_BAR = 20  # characters
_COLOURS = ((0.8, "green"), (0.5, "yellow"), (0.0, "red"))  # colours of a confidence of at least this


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that an answer is read from.

    Attributes:
        file: Name of its file; its id if the store has no file name.
        start: First character in the file.
        score: Score of the ranking or search.
        text: The passage.
    """

    file: str
    start: int
    score: float
    text: str


def source_of(hit: Hit) -> Source:
    """The source of a hit, with file and position if `clara index` wrote the store."""
    file, start = hit.metadata.get("file"), hit.metadata.get("start")
    if isinstance(file, str) and isinstance(start, int):
        return Source(file, start, hit.score, hit.text)
    return Source(hit.id, 0, hit.score, hit.text)


def show_sources(console: Console, sources: Sequence[Source]) -> None:
    """Print a line for each source: score, file, beginning of the text."""
    for source in sources:
        words = " ".join(source.text.split())
        beginning = words[:_BEGINNING] + ("…" if len(words) > _BEGINNING else "")
        line = Text.assemble((f"{source.score:6.3f}  ", "cyan"), plain(source.file), ("  " + plain(beginning), "dim"))
        console.print(line, soft_wrap=True)


def write_json(facts: dict[str, object]) -> None:
    """Print one JSON object; lone surrogates in names and questions are escaped."""
    typer.echo(json.dumps(facts, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def plain(text: str) -> str:
    """Replace control characters, so that a terminal shows the text and does not interpret it."""
    shown = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in shown)


def evidence_facts(answer: Answer) -> dict[str, Any]:
    """Citations, attribution and confidence as JSON types; ``document`` is the index of a source."""
    return {
        "citations": [asdict(one) for one in answer.citations or ()],
        "attribution": answer.attribution,
        **confidence_account(answer),
    }


def show_confidence(console: Console, answer: Answer) -> None:
    """Print the confidence as a bar, with a note if it is not calibrated."""
    if answer.confidence is None:
        console.print("confidence unknown: the answer is empty or was cut", style="dim")
        return
    sure = answer.confidence
    colour = next(style for least, style in _COLOURS if sure >= least)
    full = round(sure * _BAR)
    note = "" if answer.calibrated else "  not calibrated; run `clara calibrate`"
    line = Text.assemble(
        ("█" * full, colour), ("░" * (_BAR - full), "dim"), (f" {sure:.0%} sure", colour), (note, "dim")
    )
    console.print(line, soft_wrap=True)


def show_cited(console: Console, answer: Answer, sources: Sequence[Source]) -> None:
    """Print the cited sentence of each source with its score, green if it contains the words of the answer."""
    if not answer.citations:
        console.print("no source is cited", style="yellow")
    for one in answer.citations or ():
        source = sources[one.document]
        place = f"{source.file}:{source.start + one.text_start}"
        console.print(Text.assemble((f"{one.score:6.3f}  ", "cyan"), (plain(place), "bold")), soft_wrap=True)
        console.print(_marked(answer, one), soft_wrap=True)


def _marked(answer: Answer, citation: Citation) -> Text:
    """The cited text: green with the words of the answer in bold, or yellow if it does not contain them."""
    part = " ".join(plain(answer.text[citation.start : citation.end]).split())
    text = Text("        " + " ".join(plain(citation.text).split()))
    if citation.verbatim:
        text.stylize("green")
        text.highlight_words([part], "bold green", case_sensitive=False)
    else:
        text.stylize("yellow")
        text.append(f"  (not verbatim: {part})", style="dim")
    return text
