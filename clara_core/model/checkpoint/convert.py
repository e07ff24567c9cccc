"""Converts a checkpoint to this project's layout, optionally with its base decoder."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.io import Checkpoint, resolve_base, write_checkpoint

BASE_FOLDER = "base"


def convert_checkpoint(
    checkpoint: Checkpoint,
    dst: str | os.PathLike[str],
    base_model: str | os.PathLike[str] | None = None,
    *,
    with_base: bool = False,
) -> Checkpoint:
    """Write a checkpoint as safetensors, with a base name that is valid on this machine.

    A path of the machine it was trained on becomes the Hub id, if known; a base inside the source folder is named by
    its absolute path, unless it is copied. Tokenizer files and code of the source are not copied, because neither is
    read from a checkpoint.

    Args:
        checkpoint: a checkpoint from `read_checkpoint`.
        dst: the folder to write; it may be the source folder.
        base_model: the base to name, instead of the one that the checkpoint names.
        with_base: copy the base to `dst/base`; it must be a local folder.

    Returns:
        The checkpoint in `dst`, with the same identity.

    Raises:
        CheckpointError: the base cannot be copied, or writing failed; `dst` is then unchanged.
    """
    dst = Path(dst).absolute()
    name = _base_name(checkpoint, base_model)
    if with_base and Path(name).is_dir():
        name = _copy_base(Path(name), dst)
    elif with_base:
        raise CheckpointError(
            f"the base decoder {name!r} is not a local folder, so it cannot be copied. Pass its folder as "
            "base_model=, or convert without the base."
        )
    elif Path(name).is_absolute() and Path(name).is_relative_to(dst.resolve()):
        name = str(Path(name).relative_to(dst.resolve()))
    config = checkpoint.config.model_copy(update={"decoder_model_name": name})
    return write_checkpoint(dst, config, checkpoint.adapters, checkpoint.embeddings)


def _base_name(checkpoint: Checkpoint, base_model: str | os.PathLike[str] | None) -> str:
    try:
        return resolve_base(checkpoint.config, checkpoint.folder, base_model)
    except CheckpointError:
        if base_model is not None:
            raise
        # Keep the name, which may still help a reader to find the base.
        return checkpoint.config.decoder_model_name


def _copy_base(base: Path, dst: Path) -> str:
    """Copy a base to `dst`, atomically, and return its name relative to `dst`."""
    target = dst / BASE_FOLDER
    if target.exists():
        if target.resolve() == base.resolve():
            return BASE_FOLDER
        raise CheckpointError(f"{target} exists already; remove it to copy {base} there, or give another folder")
    stage = dst / f".{BASE_FOLDER}.new-{uuid.uuid4().hex[:8]}"
    try:
        dst.mkdir(parents=True, exist_ok=True)
        shutil.copytree(base, stage)
        stage.replace(target)
    except (OSError, shutil.Error) as exc:
        raise CheckpointError(f"copying the base decoder {base} to {target} failed ({exc})") from exc
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return BASE_FOLDER
