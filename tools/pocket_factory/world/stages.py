"""The training stages on the synthetic encyclopedia: their length, their data, and the weights that are trained.

``configs/pocket.toml`` has one table for each stage, with the fields of `Stage`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from clara_core.common.suggest import nearest_or_all
from clara_core.model.checkpoint.config import Role
from clara_core.training.config import ROLES, Settings, parse, read_table


@dataclass(frozen=True, slots=True)
class Stage:
    """One training stage: its length, its data, and the weights that are trained.

    Attributes:
        name: Name of the stage. "base" reads passages as text; "stage2" trains end to end.
        steps: Optimizer steps.
        lr: Learning rate at the start (after a short warm-up) and at the end.
        hold: Share of the steps at the first rate, before it falls linearly to the second.
        passages: Passages of a step.
        kinds: Number of kinds of subjects in a step; None: all.
        syllables: Number of syllables from which names are made; None: all of them.
        words: Fewest and most words of a passage.
        asked: Questions that the query reasoner reads.
        documents: Fewest and most documents of a generator row.
        rows: Generator rows of a step.
        questions: Most questions of a row.
        two_passage: Questions about two passages for each passage, on average.
        pairs: Share of the rows over several documents whose question needs two of them.
        shuffled: Share of the rows with documents in any order; in the others the right ones come first.
        mixed: Share of the rows that read their best ranked documents as text beside the memories of the others.
        paraphrases: Rows that repeat a passage.
        verbatim: Share of them that repeat it word for word.
        contrastive: Weight of the contrastive loss.
        pointing: Weight of the loss on attention to the wrong documents.
        tau: Temperature of the contrastive loss.
        learning: Roles whose adapters are trained; None: all weights, including those of the decoder.
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
    mixed: float = 0.0
    paraphrases: int = 0
    verbatim: float = 0.0
    contrastive: float = 0.3
    pointing: float = 0.0
    tau: float = 0.05
    learning: tuple[Role, ...] | None = None


_STAGE = TypeAdapter(Stage)


class WorldConfig(Settings):
    """A run of training stages on the synthetic encyclopedia.

    Attributes:
        out: Folder of the run; checkpoints are in its subfolders ``checkpoints/<stage>``. A run that was stopped is
            continued.
        start: Checkpoint of an earlier run to start from (bundled name or folder), instead of random weights.
        first: Stage to begin with, instead of the first one.
        seed: Seed of weights and data.
        scale: Factor for the steps of every stage, for short trials.
        dtype: Type of the forward passes, as in `TrainingConfig`; master weights are always float32.
        save_minutes: Minutes between two saved states.
        save_every: Steps between two saved states; None: only by time.
        tensorboard: Whether to write event files; None: if TensorBoard is installed.
        lessons: Fields of each `Stage`, by its name, in order.
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
        """The stages from `first` on."""
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
        """Read the config from a file; see `TrainingConfig.read`."""
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
