"""Shows the answers of a model in training, over hand-written sentences and over the handbook of the examples.

python -m tools.pocket_factory.look CHECKPOINT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clara_core import ClaraEngine
from clara_core.data.documents import cut_passages, read_folder

HANDBOOK = Path(__file__).parents[2] / "examples"
READ = 5  # passages of the handbook that are read for an answer
REFUSAL = "the documents do not say"


def typed() -> list[tuple[str, str, str | None]]:
    """Passage, question and right answers of each question in ``look.txt``; None if it has no answer."""
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
    """A text in the form in which answers are compared."""
    return " ".join(text.lower().strip(" .!").split())


def right(said: str, wanted: str | None) -> bool:
    """Whether an answer is one of the right ones."""
    if wanted is None:
        return plain(said) == REFUSAL
    return plain(said).removeprefix("the ") in [plain(w).removeprefix("the ") for w in wanted.split("|")]


def look(checkpoint: Path, file: Path | None, title: str) -> float:
    """Write or print the answers of a checkpoint, each from its passage alone; returns the share of right ones."""
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


def handbook(checkpoint: str) -> int:
    """Print the answers of a checkpoint to the questions about the handbook; returns the number of right ones."""
    engine = ClaraEngine.from_pretrained(checkpoint, device="cpu", dtype="float32")
    files, _ = read_folder(HANDBOOK / "data")
    passages = [part for file in files for part in cut_passages(file, engine.tokenizer.windows)]
    memories = engine.compress([passage.text for passage in passages])
    hits = 0
    for entry in json.loads((HANDBOOK / "questions.json").read_text(encoding="utf-8")):
        [scores] = engine.score([entry["question"]], memories)
        best = scores.topk(READ).indices.tolist()
        said = engine.answer(entry["question"], [memories[index] for index in best], max_tokens=24).text
        hit = right(said, "|".join(entry["answers"]) or None)
        hits += hit
        found = [index for index, number in enumerate(best, 1) if passages[number].file in entry["files"]]
        place = f"its file is no. {found[0]}" if found else "its file was not found" if entry["files"] else "no answer"
        print(f"{'+' if hit else '-'} {entry['question']} -> {said!r} ({place})")
    engine.unload()
    return hits


if __name__ == "__main__":
    look(Path(sys.argv[1]), None, sys.argv[1])
    handbook(sys.argv[1])
