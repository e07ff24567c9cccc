"""Typed sentences with everyday questions: what a model in training says about them (``python look.py CHECKPOINT``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clara_core.config import Role

if TYPE_CHECKING:
    from clara_core.model import ClaraModel
    from clara_core.tokens import ClaraTokenizer

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


@torch.no_grad()
def answers(model: ClaraModel, tokenizer: ClaraTokenizer, items: list[tuple[str, str]], most: int = 24) -> list[str]:
    """Greedy answers to (passage, question) with the product's prompt."""
    out = []
    model.eval()
    for passage, question in items:
        spans = tokenizer.windows(passage)
        memory = model.encode(tokenizer.encode_passages([passage[a:b] for a, b in spans]), Role.COMPRESSOR)
        ids = tokenizer.answer_prompt(question, len(spans))
        slots = torch.tensor([tokenizer.is_slot(ids)])
        logits, cache = model.prefill([ids], memory.flatten(0, 1), slots)
        said = []
        for _ in range(most):
            token = int(logits[0].argmax())
            if token in tokenizer.eos_ids:
                break
            said.append(token)
            logits = model.step(torch.tensor([token]), cache)
        out.append(tokenizer.decode(said))
    return out


def look(model: ClaraModel, tokenizer: ClaraTokenizer, file: Path | None, title: str) -> float:
    """Write what is said to every typed question."""
    items = typed()
    said = answers(model, tokenizer, [(text, question) for text, question, _ in items])
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
    from clara_core.loading import EngineArguments
    from clara_core.training.opening import open_checkpoint

    opened = open_checkpoint(
        EngineArguments(model=sys.argv[1], device="cpu", dtype="float32", attn_implementation="eager").resolved()
    )
    look(opened.model, opened.tokenizer, None, sys.argv[1])
