"""The command `clara train`: one stage over files of lines."""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer


class StageName(StrEnum):
    """A stage of the paper, as a word of the command line."""

    STAGE1 = "stage1"
    STAGE1_2 = "stage1_2"
    CONTRASTIVE = "contrastive"
    STAGE2 = "stage2"


def train_stage(
    stage: Annotated[StageName, typer.Argument(help="A stage of the paper.")],
    config: Annotated[Path, typer.Argument(help="What to do: .toml, .yaml or .yml (docs/training.md).")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value in place of what the file says; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Draw a bar over the steps.")] = True,
) -> None:
    """Trains a checkpoint; started again with the same config, it goes on where it was stopped."""
    logging.basicConfig(level=logging.WARNING, format="clara: %(message)s")
    from clara_core.training.config import TrainingConfig
    from clara_core.training.run import train

    wanted = TrainingConfig.read(config, changes or (), stage=stage.value)
    checkpoint = train(wanted, progress=progress).checkpoint
    if os.environ.get("RANK", "0") != "0":
        return
    if find_spec("matplotlib") is not None:
        from clara_core.training.plot import plot_run

        plot_run(wanted.out, wanted.out / "curve.png")
    typer.echo(f"{stage.value} -> {checkpoint}")
