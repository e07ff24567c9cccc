"""The passages that were written for the training, and the weights of hints that are fitted to such passages."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch

from benchmarks.typed_tasks import TYPED
from clara_core.engine.learned_hints import FOR, RULES
from tools.pocket_factory.hint_weights import Asked, candidates, fit, questions
from tools.pocket_factory.typed import FOLDER, Typed, read_typed

SHARED = 6  # words in a row that two passages may not share


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + SHARED]) for at in range(len(words) - SHARED + 1)}


def test_no_written_passage_repeats_one_that_is_measured() -> None:
    measured = set[tuple[str, ...]]()
    for name in ("typed.json", "typed_others.json"):
        for half in json.loads(TYPED.with_name(name).read_text(encoding="utf-8")).values():
            measured.update(*(runs(passage["text"]) for passage in half))
    written = [
        p for folder in (FOLDER, FOLDER / "hints") for held in (False, True) for p in read_typed(folder, held=held)
    ]
    assert len(written) > 2500
    assert [passage.text for passage in written if len(runs(passage.text) & measured) > 1] == []


def test_every_fifth_passage_of_a_file_is_held_out(tmp_path: Path) -> None:
    blocks = [f"# note\nNumber {number}0 is here.\n? Which is here? | Number {number}0" for number in range(1, 8)]
    (tmp_path / "notes.txt").write_text("\n\n".join(blocks), encoding="utf-8")
    assert [passage.text for passage in read_typed(tmp_path, held=True)] == ["Number 50 is here."]
    assert len(read_typed(tmp_path)) == 6


@pytest.mark.parametrize("line", ["? Which? | Number 7", "Which?", "? Which?"])
def test_a_line_that_is_no_question_of_its_passage_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "notes.txt").write_text(f"# note\nNumber 10 is here.\n{line}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"notes\.txt, passage 1"):
        read_typed(tmp_path)


def test_a_passage_with_other_numbers_still_holds_its_answers() -> None:
    typed, rng = Typed(), random.Random(3)
    made = [typed.make(rng) for _ in range(300)]
    assert [a for m in made for _, a in m.asked if a not in m.text and a not in ("Yes", "No")] == []
    known = {passage.text for passage in typed.known}
    assert 0.2 < sum(m.text not in known for m in made) / len(made) < 0.6


def test_candidates_of_a_question_are_the_places_of_its_documents() -> None:
    texts = ["The shop opens at 9:30 on weekdays.", "It opens at noon."]
    found = list(candidates(Asked("When does the shop open?", ("at 9:30", "9:30"), 0, (1, 0)), texts))
    assert [word for word, right, _ in found if right] == ["at", "9:30"]
    assert [word for word, _, _ in found[-3:]] == ["Yes", "No", "The documents do not say."]
    names = {name for name, _ in found[0][2]}
    assert RULES in names and f"{RULES}{FOR}time" not in names and f"word:it{FOR}time" in names  # noqa: PT018
    assert all(one.own in one.documents for one in questions(random.Random(1), read_typed()[:40]))


def test_a_feature_of_right_candidates_gets_a_weight(tmp_path: Path) -> None:
    rng = random.Random(0)

    def example(held: bool) -> dict[str, torch.Tensor]:
        right = rng.randrange(4)
        names = [[0, 1 if at == right else 2, 3 if rng.random() < 0.5 else 4] for at in range(4)]
        return {
            "held": torch.tensor(held),
            "logits": torch.tensor([rng.gauss(2.0 * (at == right), 1.0) for at in range(4)]),
            "right": torch.tensor([at == right for at in range(4)]),
            "sizes": torch.tensor([3] * 4),
            "names": torch.tensor([name for own in names for name in own], dtype=torch.int32),
            "values": torch.tensor([0.1, 1.0, 1.0] * 4),
        }

    file, out = tmp_path / "examples.pt", tmp_path / "weights.json"
    known = [example(held=number % 5 == 4) for number in range(300)]
    torch.save({"names": [RULES, "right", "wrong", "a", "b"], "examples": known}, file)
    fit([file], out, penalty=1e-3, rounds=60)
    weights = json.loads(out.read_text(encoding="utf-8"))
    assert weights["right"] > 1 > -1 > weights["wrong"]
    assert abs(weights.get("a", 0.0) - weights.get("b", 0.0)) < weights["right"] / 3
