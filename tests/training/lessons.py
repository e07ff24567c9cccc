"""Small training sets and configs for the tests of the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clara_core.data.examples import Stage
from clara_core.training.config import TrainingConfig
from tests.tiny import Tiny

ANIMALS = ("otter", "heron", "badger", "newt", "lynx", "stork", "marten", "toad", "crane", "shrew", "vole", "ibex")
PLACES = ("the mill", "the marsh", "the quarry", "the orchard", "the lake", "the chapel")


def passage(number: int) -> str:
    """A passage; those with the highest numbers are longer than a window."""
    text = f"The {ANIMALS[number]} lives near {PLACES[number % 6]} and eats {number + 2} fish a day."
    return text if number < 10 else text + " It is seldom seen, for it sleeps by day and is shy of noise." * 3


def lines_of(stage: Stage) -> list[dict[str, Any]]:
    """Twelve training lines for a stage."""
    made = []
    for number, animal in enumerate(ANIMALS):
        question, answer = f"Where does the {animal} live?", f"near {PLACES[number % 6]}"
        docs = [passage((number + offset) % len(ANIMALS)) for offset in (3, 0, 7, 5)]
        if stage == "stage1" and number % 3:
            made.append({"data_type": "qa", "question": [question], "answers": [answer], "docs": [passage(number)]})
        elif stage == "stage1":
            again = f"Near {PLACES[number % 6]} the {animal} is at home."
            made.append({"data_type": "paraphrase", "question": [], "answers": [again], "docs": [passage(number)]})
        elif stage == "stage1_2":
            made.append({"question": question, "docs": docs[:2], "answer": answer})
        else:
            made.append({"question": question, "docs": docs, "pos_index": [1], "answer": answer})
    return made


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write lines to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def config_for(tiny: Tiny, folder: Path, stage: Stage, **given: Any) -> TrainingConfig:
    """The config of a short run over the lines of a stage."""
    data = folder / "data" / f"{stage}.jsonl"
    if not data.exists():
        write(data, lines_of(stage))
    values: dict[str, Any] = {
        "model": str(tiny.folder),
        "base_model": str(tiny.base),
        "data": data,
        "out": folder / "run",
        "steps": 4,
        "batch_size": 4,
        "lr": 1e-3,
        "device": "cpu",
        "dtype": "float32",  # "auto" is bfloat16 on a processor that multiplies it
        "tensorboard": False,
    }
    return TrainingConfig(stage=stage, **values | given)


def metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics without times."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
