"""The lessons over the generated world: how long each is, on what, and which weights learn.

The lessons of the encyclopedia stand in ``configs/pocket.toml``, one table each with the fields of `Stage`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from clara_core.checkpoint.config import Role
from clara_core.common.suggest import nearest_or_all
from clara_core.training.config import ROLES, Settings, parse, read_table


@dataclass(frozen=True, slots=True)
class Stage:
    """One lesson: how long, on what, and which weights learn.

    Attributes:
        name: Its name. "base" reads passages as text; "stage2" learns end to end.
        steps: Optimizer steps.
        lr: Learning rate at the start (after a short warm-up) and at the end.
        hold: Share of the steps at the first rate, before it falls in a straight line to the second.
        passages: Passages of each step's corpus.
        kinds: Kinds of subjects in it; all where None.
        syllables: Of how many syllables its names are made; of all where None.
        words: Shortest and longest passage.
        asked: Questions that the query reasoner reads.
        documents: Fewest and most documents of a generator row.
        rows: Generator rows of a step.
        questions: Most questions of a row.
        two_passage: Questions over two passages for each passage, on average.
        pairs: Share of the rows of several documents that ask over two at once.
        shuffled: Share of the rows whose documents stand in any order; in the others the best stand first.
        paraphrases: Rows that say a passage again.
        verbatim: Share of them that say it word for word.
        contrastive: Weight of the contrastive loss.
        pointing: Weight of the loss of attention that goes to the wrong documents.
        tau: Temperature of the contrastive loss.
        learning: The roles whose adapters learn; None for all weights, the decoder's own with them.
    """

    name: str
    steps: int
    lr: tuple[float, float]
    hold: float = 0.0
    passages: int = 64
    kinds: int | None = None
    syllables: int | None = None
    words: tuple[int, int] = (20, 60)
    asked: int = 32
    documents: tuple[int, int] = (1, 1)
    rows: int = 96
    questions: int = 3
    two_passage: float = 0.0
    pairs: float = 0.5
    shuffled: float = 1.0
    paraphrases: int = 0
    verbatim: float = 0.0
    contrastive: float = 0.3
    pointing: float = 0.0
    tau: float = 0.05
    learning: tuple[Role, ...] | None = None


_STAGE = TypeAdapter(Stage)


class WorldConfig(Settings):
    """A run of lessons over the generated world.

    Attributes:
        out: Folder of the run; checkpoints are its subfolders ``checkpoints/<lesson>``. A run that was stopped goes on.
        start: Checkpoint of an earlier run to learn on from (bundled name or folder), instead of random weights.
        first: Lesson to begin with, instead of the first one.
        seed: Of weights and data.
        scale: Multiplies the steps of every lesson (for trials).
        dtype: Of the passes, as in `TrainingConfig`; masters are float32 in any case.
        save_minutes: Minutes between two saved states.
        save_every: Steps between two saved states. None: by time alone.
        tensorboard: Write event files. None: where TensorBoard is installed.
        lessons: By name, in order; the fields of `Stage`.
    """

    out: Path = Path("runs/pocket")
    start: str | None = None
    first: str | None = None
    seed: int = 1
    scale: float = Field(default=1.0, gt=0)
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    save_minutes: float = Field(default=3.0, gt=0)
    save_every: int | None = Field(default=None, gt=0)
    tensorboard: bool | None = None
    lessons: dict[str, dict[str, Any]]

    @field_validator("lessons")
    @classmethod
    def _known(cls, lessons: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, values in lessons.items():
            _stage(name, values)
        return lessons

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The lessons from the first one to be held on."""
        found = [_stage(name, values) for name, values in self.lessons.items()]
        names = [stage.name for stage in found]
        if self.first is not None and self.first not in names:
            raise ValueError(
                f"first must be one of {', '.join(names)}, got {self.first!r}{nearest_or_all(self.first, names)}"
            )
        found = found[0 if self.first is None else names.index(self.first) :]
        return tuple(replace(stage, steps=max(1, round(stage.steps * self.scale))) for stage in found)

    @classmethod
    def read(cls, path: str | Path, changes: Sequence[str] = (), **given: Any) -> Self:
        """The config in a file; see `TrainingConfig.read`."""
        return parse(cls, {**read_table(path, changes), **given}, str(path))


def _stage(name: str, values: Mapping[str, Any]) -> Stage:
    known = [item.name for item in fields(Stage)]
    for key in values:
        if key not in known:
            raise ValueError(f"lesson {name!r} has no option {key!r}{nearest_or_all(key, known)}")
    found = {**values, "name": name}
    if found.get("learning") is not None:
        for role in found["learning"]:
            if role not in ROLES:
                raise ValueError(f"lesson {name!r}: learning must name roles ({', '.join(ROLES)}), got {role!r}")
        found["learning"] = tuple(ROLES[role] for role in found["learning"])
    try:
        return _STAGE.validate_python(found)
    except ValidationError as exc:
        faults = "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in exc.errors())
        raise ValueError(f"lesson {name!r}: {faults}") from exc
