"""Fits the weights of `clara_core.engine.learned_hints` to typed passages that the model was not trained on.

    python -m tools.pocket_factory.hint_weights examples pocket work/hints.pt
    python -m tools.pocket_factory.hint_weights fit work/hints.pt

An example is a question with the documents that it is asked of: its own passage, in three of ten also others. A
candidate is a place at which a quotation may begin, "Yes", "No", or the refusal. Its score is the model's logit for its
first token plus the weights of its features. Fitted is the probability of the right candidates among all, with a
penalty on the squares of the weights. Every fifth passage is left out, and tells how often the best candidate is right.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import embedding_bag

from clara_core import ClaraEngine, Memory
from clara_core.checkpoint.config import Role
from clara_core.engine.learned_hints import FOR, RULES, WEIGHTS, LearnedHints
from clara_core.engine.verbatim import REFUSAL
from clara_core.retrieval.words import place_spans
from tools.pocket_factory.typed import FOLDER, TypedPassage, read_typed

OTHERS = 0.3  # share of the examples with other passages beside their own
MOST_OTHERS = 4
SHUFFLED = 0.3  # share of these whose own passage may be anywhere
ROWS = 24  # of a pass of the model
BATCH = 128  # examples of a step
FEWEST = 40  # examples of a feature with a weight
WRITTEN = 0.02  # nats; smaller weights are left out
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, the forms of its answer, and the indexes of its documents."""

    question: str
    answers: tuple[str, ...]
    own: int
    documents: tuple[int, ...]


def questions(rng: random.Random, passages: Sequence[TypedPassage]) -> list[Asked]:
    """Every question of the passages, with documents."""
    found = []
    for own, passage in enumerate(passages):
        for question, answers in (*passage.asked, *((q, (REFUSAL,)) for q in passage.unanswerable)):
            documents = [own]
            if rng.random() < OTHERS:
                others = rng.sample(range(len(passages)), rng.randint(1, MOST_OTHERS))
                documents += [other for other in others if other != own]
                if rng.random() < SHUFFLED:
                    rng.shuffle(documents)
            found.append(Asked(question, answers, own, tuple(documents)))
    return found


def first_logits(engine: ClaraEngine, asked: Sequence[Asked], memories: Sequence[Memory]) -> Tensor:
    """The logits ``[questions, vocabulary]`` of the first token of each answer."""
    model, tokenizer = engine.load().model, engine.tokenizer
    several = [[memories[at] for at in one.documents] for one in asked]
    prompts = [
        tokenizer.answer_prompt(one.question, sum(memory.n_windows for memory in own))
        for one, own in zip(asked, several, strict=True)
    ]
    slots = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.bool)
    for row, ids in enumerate(prompts):
        slots[row, : len(ids)] = torch.tensor(tokenizer.is_slot(ids))
    filled = torch.cat([memory.tokens.flatten(0, 1) for own in several for memory in own])
    states = model.hidden_states(prompts, Role.GENERATOR, memories=filled, slots=slots)
    ends = states[torch.arange(len(prompts)), torch.tensor([len(ids) - 1 for ids in prompts])]
    return model.head(ends).float()


def candidates(asked: Asked, texts: Sequence[str]) -> Iterator[tuple[str, bool, list[tuple[str, float]]]]:
    """Each candidate of an example: its first word, whether it is right, and its features."""
    hints = LearnedHints(asked.question, [texts[at] for at in asked.documents])
    for number, at in enumerate(asked.documents):
        text = texts[at]
        for start, end in place_spans(text):
            if start == 0 or text[start - 1].isspace() or text[start].isalnum():
                right = at == asked.own and any(_begins(text, start, answer) for answer in asked.answers)
                yield text[start:end], right, _conditioned(hints, hints.features(number, start, text[start:end]))
    for answer in ("Yes", "No", REFUSAL):
        yield answer, answer in asked.answers, _conditioned(hints, hints.features_of_other(answer))


def _begins(text: str, start: int, answer: str) -> bool:
    end = start + len(answer)
    return text[start:end].lower() == answer.lower() and not text[end : end + 1].isalnum()


def _conditioned(hints: LearnedHints, features: Any) -> list[tuple[str, float]]:
    """Features, and all but the rules also for the sort of the question."""
    plain = list(features)
    return plain + [(f"{name}{FOR}{hints.sort}", value) for name, value in plain if name != RULES]


@app.command()
def examples(
    checkpoint: Annotated[str, typer.Argument(help="Bundled name or folder.")],
    file: Annotated[Path, typer.Argument(help="File to write.")],
    folder: Annotated[list[Path] | None, typer.Option(help="Folders of typed passages.")] = None,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 1,
) -> None:
    """Write the features and the model's logits of all candidates."""
    torch.set_num_threads(threads)
    rng, engine = random.Random(1), ClaraEngine.from_pretrained(checkpoint)
    names: dict[str, int] = {}
    found: list[dict[str, Tensor]] = []
    for held in (False, True):
        passages = [one for each in folder or [FOLDER / "hints"] for one in read_typed(each, held=held)]
        texts = [passage.text for passage in passages]
        memories = engine.compress(texts)
        asked = sorted(questions(rng, passages), key=lambda one: len(one.documents))
        for start in range(0, len(asked), ROWS):
            part = asked[start : start + ROWS]
            with torch.inference_mode():
                logits = first_logits(engine, part, memories)
            found += [_example(engine, one, texts, row, names, held) for one, row in zip(part, logits, strict=True)]
    torch.save({"names": list(names), "examples": [one for one in found if bool(one["right"].any())]}, file)
    print(f"{len(found)} examples, {len(names)} features")


def _example(
    engine: ClaraEngine, asked: Asked, texts: Sequence[str], logits: Tensor, names: dict[str, int], held: bool
) -> dict[str, Tensor]:
    known = [(word, right, features) for word, right, features in candidates(asked, texts) if word.strip()]
    first = [ids[0] for ids, _ in engine.tokenizer.encode_spans([word for word, _, _ in known])]
    features = [one for _, _, own in known for one in own]
    return {
        "held": torch.tensor(held),
        "logits": logits[first],
        "right": torch.tensor([right for _, right, _ in known]),
        "sizes": torch.tensor([len(own) for _, _, own in known]),
        "names": torch.tensor([names.setdefault(name, len(names)) for name, _ in features], dtype=torch.int32),
        "values": torch.tensor([value for _, value in features]),
    }


class Batch:
    """Examples side by side: the features of all candidates, and the example of each candidate."""

    def __init__(self, some: Sequence[dict[str, Tensor]], index: Tensor) -> None:
        names = index[torch.cat([one["names"] for one in some]).long()]
        kept = names >= 0
        sizes = torch.cat([one["sizes"] for one in some])
        ends = torch.cat([torch.zeros(1, dtype=torch.long), kept.long().cumsum(0)])[sizes.cumsum(0)]
        self.names, self.values = names[kept], torch.cat([one["values"] for one in some])[kept].float()
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
        self.logits, self.right = (torch.cat([one[name] for one in some]) for name in ("logits", "right"))
        self.example = torch.repeat_interleave(
            torch.arange(len(some)), torch.tensor([len(one["right"]) for one in some])
        )
        self.count = len(some)

    def scores(self, weights: Tensor, scale: Tensor) -> Tensor:
        """The score of each candidate."""
        gains = embedding_bag(self.names, weights, self.offsets, per_sample_weights=self.values, mode="sum")[:, 0]
        return scale.exp() * self.logits + gains

    def loss(self, scores: Tensor) -> Tensor:
        """Mean negative log-probability of the right candidates."""
        return (self._total(scores) - self._total(scores.masked_fill(~self.right, float("-inf")))).mean()

    def right_first(self, scores: Tensor) -> float:
        """Share of the examples whose best candidate is right."""
        return float((self._best(scores.masked_fill(~self.right, float("-inf"))) >= self._best(scores)).float().mean())

    def _best(self, scores: Tensor) -> Tensor:
        return torch.full((self.count,), float("-inf")).scatter_reduce(0, self.example, scores, "amax")

    def _total(self, scores: Tensor) -> Tensor:
        best = self._best(scores.detach())
        return best + torch.zeros(self.count).index_add(0, self.example, (scores - best[self.example]).exp()).log()


@app.command()
def fit(
    files: Annotated[list[Path], typer.Argument(help="Files of `examples`.")],
    out: Annotated[Path, typer.Option(help="File of weights to write.")] = WEIGHTS,
    penalty: Annotated[float, typer.Option(help="Factor of the squares of the weights.")] = 5e-4,
    rounds: Annotated[int, typer.Option(help="Passes over the examples.")] = 10,
    refusal: Annotated[float, typer.Option(help="Nats to add to the refusal.")] = 0.0,
) -> None:
    """Fit the weights, and write them."""
    names, known = _read(files)
    train, held = ([one for one in known if bool(one["held"]) == wanted] for wanted in (False, True))
    counts = Counter[int]()
    for one in train:
        counts.update(set(one["names"].tolist()))
    used = [number for number in range(len(names)) if counts[number] >= FEWEST]
    index = torch.full((len(names),), -1).index_put((torch.tensor(used),), torch.arange(len(used)))
    start = torch.tensor([[float(names[number] == RULES)] for number in used])
    weights, scale = start.clone().requires_grad_(), torch.zeros((), requires_grad=True)
    random.Random(1).shuffle(train)
    batches = [Batch(train[at : at + BATCH], index) for at in range(0, len(train), BATCH)]
    tested = Batch(held, index)
    optimizer = torch.optim.Adam([weights, scale], lr=0.05)
    print(f"{len(train)} examples, {len(used)} features; right first, rules alone: "
          f"{tested.right_first(tested.scores(start, torch.zeros(()))):.3f}")  # fmt: skip
    for number in range(rounds):
        random.Random(number).shuffle(batches)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - number / rounds)
        for batch in batches:
            loss = batch.loss(batch.scores(weights, scale)) + penalty * ((weights - start) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            right = tested.right_first(tested.scores(weights, scale))
        print(f"{number}: loss {float(loss.detach()):.3f}, right first {right:.3f}")
    fitted = (weights.detach()[:, 0] / scale.detach().exp()).tolist()
    written = {names[number]: round(weight, 2) for number, weight in zip(used, fitted, strict=True)}
    written["refusal"] = written.get("refusal", 0.0) + refusal
    kept = {name: weight for name, weight in sorted(written.items()) if abs(weight) >= WRITTEN}
    out.write_text(json.dumps(kept, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(kept)} weights in {out}")


def _read(files: Sequence[Path]) -> tuple[list[str], list[dict[str, Tensor]]]:
    """The names of the features of several files, and their examples with the numbers of these names."""
    names: dict[str, int] = {}
    known: list[dict[str, Tensor]] = []
    for file in files:
        content = torch.load(file, weights_only=True)
        own = torch.tensor([names.setdefault(name, len(names)) for name in content["names"]], dtype=torch.int32)
        known += [{**one, "names": own[one["names"].long()]} for one in content["examples"]]
    return list(names), known


if __name__ == "__main__":
    app()
