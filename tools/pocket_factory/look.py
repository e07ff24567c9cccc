"""Typed sentences with everyday questions: what a model in training says about them (``python look.py CHECKPOINT``)."""

from __future__ import annotations

import sys
from pathlib import Path

from clara_core import ClaraEngine

REFUSAL = "the documents do not say"


def typed() -> list[tuple[str, str, str | None]]:
    """Passage, question and right answers (None: there is none) of ``look.txt``."""
    found: list[tuple[str, str, str | None]] = []
    passage = ""
    for line in (Path(__file__).parent / "look.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("> "):
            passage = line[2:].replace("\\n", "\n")
        elif line and not line.startswith("#"):
            question, _, answer = line.partition(" =")
            found.append((passage, question, answer.strip() or None))
    return found


def plain(text: str) -> str:
    """For comparison."""
    return " ".join(text.lower().strip(" .!").split())


def right(said: str, wanted: str | None) -> bool:
    """Whether an answer is one of those that are right."""
    if wanted is None:
        return plain(said) == REFUSAL
    return plain(said).removeprefix("the ") in [plain(w).removeprefix("the ") for w in wanted.split("|")]


def look(checkpoint: Path, file: Path | None, title: str) -> float:
    """Write what a checkpoint says to every typed question, each with its passage alone."""
    items = typed()
    engine = ClaraEngine.from_pretrained(str(checkpoint), device="cpu", dtype="float32")
    memories = engine.compress([text for text, _, _ in items])
    said = [
        engine.answer(question, [memory], max_tokens=24).text
        for (_, question, _), memory in zip(items, memories, strict=True)
    ]
    engine.unload()
    hits = [right(s, w) for s, (_, _, w) in zip(said, items, strict=True)]
    known = [h for h, (_, _, w) in zip(hits, items, strict=True) if w is not None]
    unknown = [h for h, (_, _, w) in zip(hits, items, strict=True) if w is None]
    lines = [f"=== {title}: answered {sum(known)}/{len(known)}, refused {sum(unknown)}/{len(unknown)}"]
    lines += [
        f"{'+' if h else '-'} {q} -> {s!r}" + ("" if h else f" ({w})")
        for h, s, (_, q, w) in zip(hits, said, items, strict=True)
    ]
    text = "\n".join(lines) + "\n"
    if file is None:
        print(text)
    else:
        with file.open("a") as out:
            out.write(text)
    return sum(hits) / len(hits)


if __name__ == "__main__":
    look(Path(sys.argv[1]), None, sys.argv[1])
