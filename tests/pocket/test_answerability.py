"""The tool that fits which of the documents found holds the answer."""

from __future__ import annotations

import json

import pytest
import torch

from clara_core import ClaraEngine
from clara_core.engine.quoting.answerability import WEIGHTS, answer_shares
from tools.pocket_factory.answerability import Batch, Example, examples, fit

TEXTS = [
    "The bakery on Kettle Street opens at six.",
    "Rosalind Ashby founded the bakery on Kettle Street.",
    "The ferry takes twelve minutes.",
]
FOUNDER = "Who founded the bakery on Kettle Street?"


def test_examples_are_what_a_search_finds() -> None:
    [example] = examples(ClaraEngine.from_pretrained("pocket"), TEXTS, [(FOUNDER, (1,))])
    assert example.sort == "person"
    assert example.right.sum() == 1
    best = example.right.float().argmax()
    assert example.features[best, :2].tolist() == example.features[:, :2].amax(0).tolist()
    weights = json.loads(WEIGHTS.read_text("utf-8"))
    assert {len(row) for row in weights.values()} == {example.features.shape[1]}
    shares = (example.features.double() @ torch.tensor(weights["person"]).double()).softmax(0)
    assert bool(example.right[shares.argmax()])
    equal = answer_shares(FOUNDER, TEXTS, [(0.5, 0.5)] * 3)
    assert equal[1] == max(equal)


@pytest.mark.parametrize("sort", ["", "person"])
def test_a_fit_finds_the_feature_that_tells(sort: str) -> None:
    generator = torch.Generator().manual_seed(1)
    some = []
    for count in [2, 3, 5] * 40:
        features = torch.randn(count, 3, generator=generator)
        some.append(Example(sort, features, features[:, 1] == features[:, 1].max()))
    batch = Batch(some, ["", "person"])
    assert batch.first(batch.features[..., 0].masked_fill(~batch.there, float("-inf"))) < 0.6
    weights = fit(some, ["", "person"])
    assert batch.first(batch.scores(weights)) > 0.9
    assert batch.loss(weights) < batch.loss(torch.zeros_like(weights))
