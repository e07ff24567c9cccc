"""Averages the weights of checkpoints of one shape, such as the ends of consecutive runs.

    python -m tools.pocket_factory.average OUT 0.25:start 0.35:run1/checkpoint 0.40:run2/checkpoint

All files but the weights are those of the last checkpoint.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def average(out: Path, parts: list[tuple[float, Path]]) -> None:
    """Write the weighted mean of checkpoints to a new folder.

    Raises:
        ValueError: The weights do not add up to 1, or the checkpoints have different tensors.
    """
    total = sum(weight for weight, _ in parts)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the weights must add up to 1, got {total:g}")
    last = parts[-1][1]
    shutil.copytree(last, out)
    for file in out.rglob("*.safetensors"):
        name = file.relative_to(out)
        tensors = [(weight, load_file(folder / name)) for weight, folder in parts]
        kept = tensors[-1][1]
        for (_, folder), (_, found) in zip(parts, tensors, strict=True):
            if {key: value.shape for key, value in found.items()} != {key: value.shape for key, value in kept.items()}:
                raise ValueError(f"{folder / name} and {last / name} hold tensors of different names or shapes")
        means = {
            key: torch.stack([weight * found[key].float() for weight, found in tensors]).sum(0).to(value.dtype)
            for key, value in kept.items()
        }
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        save_file(means, file, metadata=metadata)


def main(
    out: Annotated[Path, typer.Argument(help="New folder.")],
    parts: Annotated[list[str], typer.Argument(help="WEIGHT:FOLDER of each checkpoint.")],
) -> None:
    """Average the weights of checkpoints."""
    read = [part.partition(":") for part in parts]
    average(out, [(float(weight), Path(folder)) for weight, _, folder in read])


if __name__ == "__main__":
    typer.run(main)
