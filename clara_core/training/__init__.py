"""Training of CLaRa models: ``train(TrainingConfig(...))`` over files of lines, `synthesize` to make them of documents.

Importing this package loads no torch; a name is resolved at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from clara_core.training.config import TrainingConfig
    from clara_core.training.pocket import train_world
    from clara_core.training.run import TrainingResult, train
    from clara_core.training.stages import WorldConfig

__all__ = ["TrainingConfig", "TrainingResult", "WorldConfig", "train", "train_world"]

_MODULES: Final = {
    "TrainingConfig": "clara_core.training.config",
    "TrainingResult": "clara_core.training.run",
    "WorldConfig": "clara_core.training.stages",
    "train": "clara_core.training.run",
    "train_world": "clara_core.training.pocket",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
