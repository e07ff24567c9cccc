"""The command `clara train`: runs one training stage over data files."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from clara_core.data.examples import Stage


def train_stage(
    stage: Annotated[Stage, typer.Argument(help="Stage of training.")],
    config: Annotated[Path, typer.Argument(help="Config file: .toml, .yaml or .yml (docs/training.md).")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a value of the file; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Draw a progress bar.")] = True,
) -> None:
    """Train a checkpoint; if it was stopped, run it again with the same config to resume."""
    logging.basicConfig(level=logging.WARNING, format="clara: %(message)s")
    from clara_core.training.config import TrainingConfig
    from clara_core.training.run import train

    training = TrainingConfig.read(config, changes or (), stage=stage)
    checkpoint = train(training, progress=progress).checkpoint
    if os.environ.get("RANK", "0") != "0":
        return
    if find_spec("matplotlib") is not None:
        from clara_core.training.plot import plot_run

        plot_run(training.out, training.out / "curve.png")
    typer.echo(f"{stage} -> {checkpoint}")
