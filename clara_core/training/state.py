"""Files of a run, written whole or not at all: a state of tensors and facts, and folders that replace each other."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clara_core.common.errors import TrainingError

_FACTS = "run"


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and facts (JSON values) to one file; until it is whole, the file of that name stays.

    Raises:
        TrainingError: The file cannot be written (disk full, no permission); the old one is as it was.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(own, new, metadata={_FACTS: json.dumps(facts)})
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except (OSError, SafetensorError) as exc:
        raise TrainingError(
            f"{path} cannot be written: {exc}. The state that was saved there before, if any, is whole: make room and "
            "start the same command again to go on from it"
        ) from exc
    finally:
        new.unlink(missing_ok=True)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_state` wrote, tensors on the processor; None where there is no file.

    Raises:
        TrainingError: The file is damaged or foreign.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            return {name: file.get_tensor(name) for name in list(file.keys())}, facts
    except (SafetensorError, OSError, ValueError, KeyError) as exc:
        raise TrainingError(
            f"{path} is no state of a training run, or is damaged ({exc}); delete it to start anew"
        ) from exc


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, which takes its name and place when the block ends well.

    Raises:
        TrainingError: It cannot be written; what was at the target before is as it was.
    """
    mark = uuid.uuid4().hex[:8]
    new, old = target.with_name(f".{target.name}.new-{mark}"), target.with_name(f".{target.name}.old-{mark}")
    try:
        new.mkdir(parents=True)
        yield new
        if target.exists():
            target.replace(old)
        try:
            new.replace(target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise
    except OSError as exc:
        raise TrainingError(f"{target} cannot be written: {exc}; what was there before is unchanged") from exc
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
