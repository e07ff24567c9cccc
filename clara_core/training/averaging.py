"""A checkpoint between two: what a model has learned for a new domain, without most of what it forgot for it.

The weights between those before and those after a training often keep nearly all of the new and lose little of the old
(Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903). It costs no training.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from clara_core.checkpoint.convert import BASE_FOLDER
from clara_core.checkpoint.io import Checkpoint, read_checkpoint, write_checkpoint
from clara_core.common.errors import CheckpointError
from clara_core.training.card import CARD_FILE
from clara_core.training.state import new_folder


def average(
    before: str | os.PathLike[str], after: str | os.PathLike[str], share: float, out: str | os.PathLike[str]
) -> Path:
    """Write the checkpoint ``(1 - share) * before + share * after``; the base and the card of `after` go with it.

    Args:
        before: Folder of the checkpoint that was taught.
        after: Folder of what came of it; the base decoder is the same.
        share: Of `after`, between 0 and 1.
        out: Folder to write; what is there is replaced once the new one is whole.

    Returns:
        Path: The folder.

    Raises:
        ValueError: `share` is out of range.
        CheckpointError: One cannot be read, or they are not of one kind.
        TrainingError: The new one cannot be written; what was at `out` is as it was.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    old, new = read_checkpoint(before), read_checkpoint(after)
    if old.roles != new.roles:
        raise CheckpointError(f"{_names(old)}, but {_names(new)}: only checkpoints of the same roles have a middle")
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
            f"{what} of {before.folder} and {after.folder} are of different shapes: not of one training"
        )
    return {key: old[key].float().lerp(new[key].float(), share).to(new[key].dtype) for key in new}


def _names(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.folder} holds {', '.join(role.label for role in checkpoint.roles)}"
