"""Weight averaging of a checkpoint before and after fine-tuning, so that the model forgets less of what it knew.

Interpolated weights often keep most of the gain in the new domain and most of the quality in the old one (Wortsman et
al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.convert import BASE_FOLDER
from clara_core.model.checkpoint.io import Checkpoint, read_checkpoint, write_checkpoint
from clara_core.training.card import CARD_FILE
from clara_core.training.state import new_folder


def average(
    before: str | os.PathLike[str], after: str | os.PathLike[str], share: float, out: str | os.PathLike[str]
) -> Path:
    """Write the checkpoint ``(1 - share) * before + share * after``, with the base decoder and the card of `after`.

    Args:
        before: Folder of the checkpoint before fine-tuning.
        after: Folder of the checkpoint after fine-tuning, over the same base decoder.
        share: Weight of `after`, between 0 and 1.
        out: Folder to write; an existing folder is replaced once the new one is complete.

    Returns:
        Path: The folder `out`.

    Raises:
        ValueError: `share` is out of range.
        CheckpointError: A checkpoint cannot be read, or their roles or shapes differ.
        TrainingError: The new checkpoint cannot be written; `out` is unchanged.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    old, new = read_checkpoint(before), read_checkpoint(after)
    if old.roles != new.roles:
        raise CheckpointError(f"{_roles(old)}, but {_roles(new)}: only checkpoints with the same roles can be averaged")
    adapters = {
        role: _between(old.adapters[role], new.adapters[role], share, old, new, role.adapter) for role in new.roles
    }
    embeddings = _between(old.embeddings, new.embeddings, share, old, new, "the embeddings")
    with new_folder(Path(out)) as folder:
        write_checkpoint(folder, new.config, adapters, embeddings)
        base, card = new.folder / BASE_FOLDER, new.folder / CARD_FILE
        if base.is_dir():
            shutil.copytree(base, folder / BASE_FOLDER)
        text = card.read_text(encoding="utf-8") if card.is_file() else "# CLaRa\n"
        text += f"\n## Averaged\n\n{share:g} of these weights and {1 - share:g} of those of `{old.folder}`.\n"
        (folder / CARD_FILE).write_text(text, encoding="utf-8")
    return Path(out)


def _between(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], share: float, before: Checkpoint, after: Checkpoint, what: str
) -> dict[str, Tensor]:
    shapes = [{key: tuple(tensor.shape) for key, tensor in one.items()} for one in (old, new)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{what} of {before.folder} and {after.folder} have different shapes: give a checkpoint and one that was "
            "fine-tuned from it"
        )
    return {key: old[key].float().lerp(new[key].float(), share).to(new[key].dtype) for key in new}


def _roles(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.folder} holds {', '.join(role.label for role in checkpoint.roles)}"
