"""What commands show of passages and answers: sources, cited sentences, confidence, JSON."""

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

_BEGINNING = 60  # characters of a source that are shown
_BAR = 20  # characters
_COLOURS = ((0.8, "green"), (0.5, "yellow"), (0.0, "red"))  # of a confidence of at least this


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that an answer is read from.

    Attributes:
        file: Name of its file; the id where a store does not know it.
        start: Where it begins in the file, in characters.
        score: How well it answers the question.
        text: The passage.
    """

    file: str
    start: int
    score: float
    text: str


def source_of(hit: Hit) -> Source:
    """What a search found, as `clara index` wrote it or as somebody else did."""
    file, start = hit.metadata.get("file"), hit.metadata.get("start")
    if isinstance(file, str) and isinstance(start, int):
        return Source(file, start, hit.score, hit.text)
    return Source(hit.id, 0, hit.score, hit.text)


def show_sources(console: Console, sources: Sequence[Source]) -> None:
    """A line for each: score, file, beginning."""
    for source in sources:
        words = " ".join(source.text.split())
        beginning = words[:_BEGINNING] + ("…" if len(words) > _BEGINNING else "")
        line = Text.assemble((f"{source.score:6.3f}  ", "cyan"), plain(source.file), ("  " + plain(beginning), "dim"))
        console.print(line, soft_wrap=True)


def write_json(facts: dict[str, object]) -> None:
    """One JSON object; a name or question that is no Unicode is written as its JSON escape."""
    typer.echo(json.dumps(facts, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def plain(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    shown = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in shown)


def evidence_facts(answer: Answer) -> dict[str, Any]:
    """Citations, attribution and confidence in the types of JSON; ``document`` counts the sources from 0 on."""
    return {
        "citations": [asdict(one) for one in answer.citations or ()],
        "attribution": answer.attribution,
        **confidence_account(answer),
    }


def show_confidence(console: Console, answer: Answer) -> None:
    """A bar, and what is to be known of it."""
    if answer.confidence is None:
        console.print("confidence not known: the answer is empty or was cut", style="dim")
        return
    sure = answer.confidence
    colour = next(style for least, style in _COLOURS if sure >= least)
    full = round(sure * _BAR)
    note = "" if answer.calibrated else "  bare probability; `clara calibrate` makes it a confidence"
    line = Text.assemble(
        ("█" * full, colour), ("░" * (_BAR - full), "dim"), (f" {sure:.0%} sure", colour), (note, "dim")
    )
    console.print(line, soft_wrap=True)


def show_cited(console: Console, answer: Answer, sources: Sequence[Source]) -> None:
    """The cited sentence of each source with its score, best first: green where the words of the answer stand in it."""
    if not answer.citations:
        console.print("no source is cited", style="yellow")
    for one in answer.citations or ():
        source = sources[one.document]
        place = f"{source.file}:{source.start + one.text_start}"
        console.print(Text.assemble((f"{one.score:6.3f}  ", "cyan"), (plain(place), "bold")), soft_wrap=True)
        console.print(_marked(answer, one), soft_wrap=True)


def _marked(answer: Answer, citation: Citation) -> Text:
    """The sentence with the words of the answer in it; where they do not stand there, the nearest run of words."""
    said = " ".join(plain(answer.text[citation.start : citation.end]).split())
    text = Text("        " + " ".join(plain(citation.text).split()))
    if citation.verbatim:
        text.stylize("green")
        text.highlight_words([said], "bold green", case_sensitive=False)
    else:
        text.stylize("yellow")
        text.append(f"  (not word for word: {said})", style="dim")
    return text
