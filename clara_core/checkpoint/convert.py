"""Turning a checkpoint into our own layout, alone or together with its base decoder."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from clara_core.checkpoint.io import Checkpoint, resolve_base, write_checkpoint
from clara_core.common.errors import CheckpointError

BASE_FOLDER = "base"


def convert_checkpoint(
    checkpoint: Checkpoint,
    dst: str | os.PathLike[str],
    base_model: str | os.PathLike[str] | None = None,
    *,
    with_base: bool = False,
) -> Checkpoint:
    """Writes a checkpoint as safetensors, with a base name that holds on this machine.

    A dead path of the machine it was trained on becomes the Hub id, where that is known; a base
    that lies inside the source folder is named by its absolute path, unless it is copied along.
    Tokenizer files and code of the source stay behind: neither is read from a checkpoint.

    Args:
        checkpoint: what `read_checkpoint` returned.
        dst: the folder to write; it may be the source's own.
        base_model: the base to name, instead of the one that the checkpoint names.
        with_base: copy the base into `dst/base`; it must lie in a folder.

    Returns:
        The checkpoint as it now lies in `dst`, with the same identity.

    Raises:
        CheckpointError: the base cannot be copied, or writing failed; `dst` is then as it was.
    """
    dst = Path(dst).absolute()
    name = _base_name(checkpoint, base_model)
    if with_base and Path(name).is_dir():
        name = _bring_base(Path(name), dst)
    elif with_base:
        raise CheckpointError(
            f"the base decoder {name!r} does not lie in a folder here, so it cannot be copied. "
            f"Pass "
            "its folder as base_model=, or convert without the base."
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
        # The name says nothing here, and may still say something to whoever knows its origin.
        return checkpoint.config.decoder_model_name


def _bring_base(base: Path, dst: Path) -> str:
    """Copies a base into `dst`, whole or not at all, and returns its name relative to `dst`."""
    target = dst / BASE_FOLDER
    if target.exists():
        if target.resolve() == base.resolve():
            return BASE_FOLDER
        raise CheckpointError(f"{target} exists already; it would have to make room for {base}")
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
