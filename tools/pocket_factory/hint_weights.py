"""Fits the weights of `clara_core.engine.quoting.learned_hints` to examples of `hint_examples`.

    python -m tools.pocket_factory.hint_weights work/hints.pt work/typed.pt

Fitted are the probability of the right beginnings among all candidates, and that of the right ends if one decides at
each word whether the quotation ends there. The score of a candidate is the model's logit plus its gain. The squares of
the weights have a penalty. Every fifth passage is left out, and tells how often the best candidate is right.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import dropout, embedding_bag, logsigmoid

from clara_core.engine.quoting.learned_hints import END_WEIGHTS, WEIGHTS

BATCH = 128  # examples of a step
FEWEST = 30  # examples of a feature with a weight
FEWEST_OF_SORT = 20  # examples of a sort with weights of its own
WIDTH = 32  # of the hidden layer
DROPPED = 0.3  # share of the hidden layer that a step leaves out
RATE = 0.02
Parameters = dict[str, Tensor]
Example = dict[str, Tensor]


class Batch:
    """Examples side by side: the features of all candidates, and the example of each candidate."""

    def __init__(self, some: Sequence[Example], index: Tensor, sorts: Tensor) -> None:
        names = index[torch.cat([one["names"] for one in some]).long()]
        kept = names >= 0
        sizes = torch.cat([one["sizes"] for one in some]).long()
        ends = torch.cat([torch.zeros(1, dtype=torch.long), kept.long().cumsum(0)])[sizes.cumsum(0)]
        self.names = names[kept]
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
        self.logits, self.rules = (torch.cat([one[name] for one in some]).float() for name in ("logits", "rules"))
        self.right = torch.cat([one["right"] for one in some])
        counts = torch.tensor([len(one["right"]) for one in some])
        self.example = torch.repeat_interleave(torch.arange(len(some)), counts)
        self.refusals = counts.cumsum(0) - 1  # the last candidate of each example
        self.count = len(some)
        self.sort = sorts[torch.stack([one["sort"] for one in some])][self.example]
        spans = torch.diff(self.offsets, append=torch.tensor([len(self.names)]))
        self.sort_of_names = torch.repeat_interleave(self.sort, spans)

    def scores(self, weights: Parameters, dropped: float = 0.0) -> Tensor:
        """The score of each candidate."""
        features = len(weights["plain"])

        def total(table: Tensor, rows: Tensor) -> Tensor:
            return embedding_bag(rows, table, self.offsets, mode="sum")

        gains = total(weights["plain"][:, None], self.names)[:, 0]
        own = self.sort_of_names * features + self.names
        gains = gains + total(weights["by_sort"].reshape(-1, 1), own)[:, 0]
        hidden = total(weights["hidden"], self.names) * weights["scale"][self.sort] + weights["shift"][self.sort]
        gains = gains + dropout(hidden.relu(), dropped) @ weights["out"]
        return weights["logits"].exp() * self.logits + weights["rules"] * self.rules + gains

    @property
    def by_rules(self) -> Tensor:
        """The score of each candidate by the rules alone."""
        return self.logits + self.rules

    def loss(self, scores: Tensor) -> Tensor:
        """Mean negative log-probability of the right candidates."""
        return (self._total(scores) - self._total(scores.masked_fill(~self.right, float("-inf")))).mean()

    def shares(self, scores: Tensor) -> dict[str, float]:
        """Of the questions with an answer those whose best candidate is right or the refusal; the right refusals.

        "Among answers" is without the refusal.
        """
        best, refused = self._best(scores), scores[self.refusals]
        right = self._best(scores.masked_fill(~self.right, float("-inf"))) >= best
        answered = ~self.right[self.refusals]
        others = scores.index_fill(0, self.refusals, float("-inf"))
        among = self._best(others.masked_fill(~self.right, float("-inf"))) >= self._best(others)
        shares = {
            "right": right[answered],
            "right among answers": among[answered],
            "wrongly refused": (refused >= best)[answered],
            "rightly refused": right[~answered],
        }
        return {name: float(found.float().mean()) for name, found in shares.items() if len(found)}

    def _best(self, scores: Tensor) -> Tensor:
        return torch.full((self.count,), float("-inf"), dtype=scores.dtype).scatter_reduce(
            0, self.example, scores, "amax"
        )

    def _total(self, scores: Tensor) -> Tensor:
        best = self._best(scores.detach())
        return best + torch.zeros_like(best).index_add(0, self.example, (scores - best[self.example]).exp()).log()


class EndBatch(Batch):
    """Candidates in the order of the text: the first one with a positive score is where the quotation ends."""

    def __init__(self, some: Sequence[Example], index: Tensor, sorts: Tensor) -> None:
        super().__init__(some, index, sorts)
        self.firsts = torch.cat([torch.zeros(1, dtype=torch.long), self.refusals[:-1] + 1])  # of each example

    def loss(self, scores: Tensor) -> Tensor:
        """Mean negative log-probability of the right ends."""
        scores = scores.double()
        stay = logsigmoid(-scores)
        before = stay.cumsum(0) - stay  # of all candidates before, also those of other examples
        logs = logsigmoid(scores) + before - before[self.firsts][self.example]
        return -self._total(logs.masked_fill(~self.right, float("-inf"))).mean()

    def shares(self, scores: Tensor) -> dict[str, float]:
        """Of the quotations those that end rightly."""
        places = torch.arange(len(scores)).masked_fill(scores <= 0, len(scores))
        first = torch.full((self.count,), len(scores)).scatter_reduce(0, self.example, places, "amin")
        right = torch.cat([self.right, torch.tensor([False])])[first]
        return {"right": float(right.float().mean())}


class Fit:
    """Examples in batches, and weights for their features.

    Args:
        content: The names of features and sorts, and the examples.
        batch: Class of the batches.
        seed: Seed of the first weights, and of the order of the examples.
    """

    def __init__(self, content: dict[str, Any], batch: type[Batch], seed: int = 1) -> None:
        names, sorts, known = content["names"], content["sorts"], content["examples"]
        train, held = ([one for one in known if bool(one["held"]) == wanted] for wanted in (False, True))
        counts, of_sort = Counter[int](), Counter(int(one["sort"]) for one in train)
        for one in train:
            counts.update(set(one["names"].tolist()))
        used = [number for number in range(len(names)) if counts[number] >= FEWEST]
        index = torch.full((len(names),), -1).index_put((torch.tensor(used),), torch.arange(len(used)))
        own = [number for number in range(len(sorts)) if of_sort[number] >= FEWEST_OF_SORT]
        numbers = torch.zeros(len(sorts), dtype=torch.long)
        numbers[own] = torch.arange(1, len(own) + 1)
        torch.manual_seed(seed)
        random.Random(seed).shuffle(train)
        self.features, self.sorts = [names[number] for number in used], ["", *(sorts[number] for number in own)]
        self.weights = start_weights(len(used), len(own) + 1)
        self.batches = [batch(train[at : at + BATCH], index, numbers) for at in range(0, len(train), BATCH)]
        self.tested = batch(held, index, numbers)

    def run(self, penalty: float, hidden_penalty: float, rounds: int) -> None:
        """Fit the weights, and print how often the best candidate of the held-out examples is right."""
        tested = self.tested
        print(f"{len(self.features)} features, {len(self.sorts)} sorts; by rules {_told(tested, tested.by_rules)}")

        def say(number: int, loss: float) -> None:
            print(f"{number}: loss {loss:.3f}, {_told(tested, tested.scores(self.weights))}", flush=True)

        train_weights(self.weights, self.batches, penalty, hidden_penalty, rounds, say)


def main(
    files: Annotated[list[Path], typer.Argument(help="Files of `hint_examples`.")],
    out: Annotated[Path, typer.Option(help="Folder of the two files of weights.")] = WEIGHTS.parent,
    penalty: Annotated[float, typer.Option(help="Factor of the squares of the weights.")] = 3e-4,
    hidden_penalty: Annotated[float, typer.Option(help="The same for the hidden layer.")] = 1e-4,
    rounds: Annotated[int, typer.Option(help="Passes over the examples.")] = 8,
    refusal: Annotated[float, typer.Option(help="Nats to add to the refusal.")] = 0.0,
    of_several: Annotated[float, typer.Option(help="As many more if there are several documents.")] = 0.0,
    first: Annotated[float, typer.Option(help="Nats to add to the first of several documents.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the first weights, and of the order of the examples.")] = 1,
) -> None:
    """Fit the weights of beginnings and ends, and write them."""
    for part, batch, file in (("beginnings", Batch, WEIGHTS), ("ends", EndBatch, END_WEIGHTS)):
        fit = Fit(read_examples(files, part), batch, seed=seed)
        fit.run(penalty, hidden_penalty, rounds)
        more = {"refusal=yes": refusal, "refusal documents=True": of_several, "document=0": first}
        write_weights(fit, out / file.name, more if part == "beginnings" else {})


def start_weights(features: int, sorts: int) -> Parameters:
    """Weights that leave everything to the rules."""
    weights = {
        "logits": torch.zeros(()), "rules": torch.ones(()),
        "plain": torch.zeros(features), "by_sort": torch.zeros(sorts, features),
        "hidden": 0.05 * torch.randn(features, WIDTH), "scale": torch.ones(sorts, WIDTH),
        "shift": 0.05 * torch.randn(sorts, WIDTH), "out": 0.1 * torch.randn(WIDTH),
    }  # fmt: skip
    return {name: tensor.requires_grad_() for name, tensor in weights.items()}


def train_weights(
    weights: Parameters,
    batches: list[Batch],
    penalty: float,
    hidden_penalty: float,
    rounds: int,
    say: Callable[[int, float], None],
) -> None:
    """Fit the weights in place."""
    optimizer = torch.optim.Adam(list(weights.values()), lr=RATE)
    step, steps = 0, rounds * len(batches)
    for number in range(rounds):
        random.Random(number).shuffle(batches)
        total = 0.0
        for batch in batches:
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / steps)
            step += 1
            loss = batch.loss(batch.scores(weights, DROPPED))
            total += loss.item() / len(batches)
            linear = weights["plain"].square().sum() + weights["by_sort"].square().sum()
            hidden = sum(weights[name].square().sum() for name in ("hidden", "shift", "out"))
            hidden = hidden + (weights["scale"] - 1).square().sum()
            optimizer.zero_grad()
            (loss + penalty * linear + hidden_penalty * hidden).backward()
            optimizer.step()
        with torch.no_grad():
            say(number, total)


def write_weights(fit: Fit, out: Path, more: Mapping[str, float]) -> None:
    """Write weights for logits that count once, with so many nats more for some features."""
    found, features, sorts = {name: one.detach() for name, one in fit.weights.items()}, fit.features, fit.sorts
    factor = 1 / found.pop("logits").exp()
    for name in ("plain", "by_sort", "out", "rules"):
        found[name] = found[name] * factor
    for name, nats in more.items():
        if nats:
            found["plain"][features.index(name)] += nats
    about = {"features": features, "sorts": sorts, "rules": round(float(found.pop("rules")), 4)}
    # A row of zeros for values without weights.
    found["plain"] = torch.cat([found["plain"], torch.zeros(1)])
    found["by_sort"] = torch.cat([found["by_sort"], torch.zeros(len(sorts), 1)], dim=1)
    found["hidden"] = torch.cat([found["hidden"], torch.zeros(1, WIDTH)])
    tensors = {name: tensor.half().contiguous() for name, tensor in found.items()}
    save_file(tensors, out, {"hints": json.dumps(about, ensure_ascii=False)})


def _told(batch: Batch, scores: Tensor) -> str:
    return ", ".join(f"{name} {share:.3f}" for name, share in batch.shares(scores).items())


def read_examples(files: Sequence[Path], part: str) -> dict[str, Any]:
    """The examples of several files, with one number for each name of a feature or a sort."""
    names: dict[str, int] = {}
    sorts: dict[str, int] = {}
    known: list[Example] = []
    for file in files:
        content = torch.load(file, weights_only=True)[part]
        own = torch.tensor([names.setdefault(name, len(names)) for name in content["names"]], dtype=torch.int32)
        kinds = torch.tensor([sorts.setdefault(sort, len(sorts)) for sort in content["sorts"]])
        known += [{**one, "names": own[one["names"].long()], "sort": kinds[one["sort"]]} for one in content["examples"]]
    return {"names": list(names), "sorts": list(sorts), "examples": known}


if __name__ == "__main__":
    typer.run(main)
