"""Atomic writes of a run: its state (tensors and JSON facts) in one file, and whole folders."""

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
    """Write tensors and facts (JSON values) to one file, atomically.

    Raises:
        TrainingError: The file cannot be written (disk full, no permission); an existing one is unchanged.
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
            f"{path} cannot be written: {exc}. A state that was saved there before is unchanged: free disk space and "
            "start the same command again to resume from it"
        ) from exc
    finally:
        new.unlink(missing_ok=True)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the file of `save_state`, tensors on the CPU; None if it does not exist.

    Raises:
        TrainingError: The file is damaged or not a state.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            return {name: file.get_tensor(name) for name in list(file.keys())}, facts
    except (SafetensorError, OSError, ValueError, KeyError) as exc:
        raise TrainingError(
            f"{path} is damaged or not the state of a training run ({exc}); delete it to start anew"
        ) from exc


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder, which replaces the target when the block ends without an error.

    Raises:
        TrainingError: The folder cannot be written; an existing target is unchanged.
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
        raise TrainingError(f"{target} cannot be written: {exc}; an existing folder there is unchanged") from exc
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
