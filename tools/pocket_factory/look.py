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

TYPED = [
    (
        "The library on Marsh Lane is open from 9 am to 6 pm on weekdays. On Saturdays it closes at noon. Dogs have to stay outside.",
        [
            ("When does the library open on weekdays?", "9 am"),
            ("What time does it close on Saturdays?", "noon"),
            ("Where is the library?", "on Marsh Lane|Marsh Lane"),
            ("Who has to stay outside?", "dogs"),
            ("Who runs the library?", None),
        ],
    ),
    (
        "Rosalind Ashby founded the Kettle Street Bakery in Dunmore in 1926. Her son Piers sold it to a chain in 1971.",
        [
            ("Who founded the Kettle Street Bakery?", "Rosalind Ashby"),
            ("Where was the bakery founded?", "Dunmore|in Dunmore"),
            ("When was it sold?", "1971|in 1971"),
            ("Who sold it?", "Piers|her son Piers"),
            ("How many people work there?", None),
        ],
    ),
    (
        "Whisk three eggs with 120 g of sugar, fold in the flour and bake for 35 minutes at 180 degrees.",
        [
            ("How much sugar do I need?", "120 g"),
            ("How many eggs?", "three"),
            ("how long does it bake", "35 minutes|for 35 minutes"),
            ("What temperature?", "180 degrees"),
            ("Who wrote the recipe?", None),
        ],
    ),
    (
        "gridlint 2.4 drops support for Python 3.8. The new option --fix-all repairs every warning. It was written by Tomas Weber.",
        [
            ("Who wrote gridlint?", "Tomas Weber"),
            ("Which Python version is no longer supported?", "Python 3.8|3.8"),
            ("What does --fix-all do?", "repairs every warning"),
            ("When was it released?", None),
        ],
    ),
    (
        "Marie Curie was born in Warsaw in 1867 and moved to Paris in 1891. She won the Nobel Prize twice, in physics and in chemistry.",
        [
            ("Where was Marie Curie born?", "Warsaw|in Warsaw"),
            ("When did she move to Paris?", "1891|in 1891"),
            ("How often did she win the Nobel Prize?", "twice"),
            ("What was her husband's name?", None),
        ],
    ),
    (
        "My sister Alva keeps two goats and a grumpy donkey called Biscuit behind her house near Lund.",
        [
            ("What is the donkey called?", "Biscuit"),
            ("How many goats does Alva have?", "two"),
            ("Where does Alva live?", "near Lund|Lund"),
            ("Whose donkey is Biscuit?", "Alva|Alva's|my sister Alva"),
            ("How old is Alva?", None),
        ],
    ),
    (
        "The meeting was moved to Thursday because the boiler in room 12 exploded.",
        [
            ("Why was the meeting moved?", "the boiler in room 12 exploded|because the boiler in room 12 exploded"),
            ("When is the meeting?", "Thursday|on Thursday"),
            ("What exploded?", "the boiler|the boiler in room 12"),
            ("Was the meeting moved to Friday?", "No"),
        ],
    ),
    (
        "A season ticket costs 85 francs. Children under six travel free, and dogs pay half.",
        [
            ("How much is a season ticket?", "85 francs"),
            ("Who travels free?", "children under six"),
            ("What do dogs pay?", "half"),
            ("price season ticket", "85 francs"),
            ("Where can I buy a ticket?", None),
        ],
    ),
    (
        "Dear tenants, the lift will be out of service on 14 March from 8:00 to 13:00. Please use the stairs. Your caretaker, Mr Okafor (extension 217)",
        [
            ("When is the lift out of service?", "14 March|on 14 March"),
            ("Who is the caretaker?", "Mr Okafor"),
            ("What is his extension?", "217|extension 217"),
            ("What should tenants use?", "the stairs"),
        ],
    ),
    (
        "Item: garden hose\nLength: 25 m\nPrice: 19.95\nColour: dark green",
        [
            ("How long is the garden hose?", "25 m"),
            ("What does the hose cost?", "19.95"),
            ("What colour is it?", "dark green"),
            ("How heavy is the hose?", None),
        ],
    ),
]
REFUSAL = "the documents do not say"


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
    items = [(text, question, wanted) for text, asked in TYPED for question, wanted in asked]
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
        EngineArguments(sys.argv[1], device="cpu", dtype="float32", attn_implementation="eager").resolved()
    )
    look(opened.model, opened.tokenizer, None, sys.argv[1])
