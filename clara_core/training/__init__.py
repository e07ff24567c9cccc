"""Training of CLaRa models: `train` runs one stage over data files, `synthesize` writes these files from documents.

Importing this package does not load torch; a name is resolved at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clara_core.common.lazy import lazy_names

if TYPE_CHECKING:
    from clara_core.training.averaging import average
    from clara_core.training.config import TrainingConfig
    from clara_core.training.run import TrainingResult, train
    from clara_core.training.synthesis import SynthesisReport, synthesize

__all__ = [
    "SynthesisReport",
    "TrainingConfig",
    "TrainingResult",
    "average",
    "synthesize",
    "train",
]

_MODULES: Final = {
    "SynthesisReport": "clara_core.training.synthesis",
    "TrainingConfig": "clara_core.training.config",
    "TrainingResult": "clara_core.training.run",
    "average": "clara_core.training.averaging",
    "synthesize": "clara_core.training.synthesis",
    "train": "clara_core.training.run",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
