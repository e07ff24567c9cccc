"""The command `clara calibrate`: fits the confidence of a model's answers and writes it beside the checkpoint."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from clara_core.cli.options import AsJson, Limit, Questions, TopK, load_watched, local_engine_of, with_options
from clara_core.engine.options import EngineOptions

_SHOWN = (0.01, 0.02, 0.05, 0.1)  # errors whose thresholds are printed


@with_options
def calibrate_model(
    data: Questions,
    out: Annotated[
        Path | None, typer.Option(help="Folder of calibration.json; default: that of the checkpoint.")
    ] = None,
    top_k: TopK = 5,
    unanswerable: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the questions whose gold documents are removed.")
    ] = 0.3,
    limit: Limit = None,
    as_json: AsJson = False,
    *,
    options: EngineOptions,
) -> None:
    """Fit the confidence of answers to questions with known answers; writes calibration.json."""
    from clara_core.evaluation import read_questions

    engine = local_engine_of(options)
    lines = read_questions(data, limit)
    load_watched(engine)
    made = engine.calibrate(lines, show_progress=sys.stderr.isatty(), top_k=top_k, unanswerable=unanswerable)
    folder = engine.load().checkpoint.folder if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    path = made.write(folder)
    if as_json:
        typer.echo(json.dumps({"file": str(path), **asdict(made)}, ensure_ascii=False))
        return
    console = Console(highlight=False)
    table = Table("level", title=f"{made.questions:,} answers, {unanswerable:.0%} unanswerable", title_justify="left")
    for error in _SHOWN:
        table.add_column(f"error <= {error:g}", justify="right")
    for name in (name for name, level in made.levels.items() if level.table):
        cells = []
        for error in _SHOWN:
            try:
                cells.append(f"{made.threshold(error, name):.3f}")
            except ValueError:
                cells.append("-")
        table.add_row(name, *cells)
    console.print(table)
    console.print("min_confidence for each error, kept with a probability of 0.95", style="dim", soft_wrap=True)
    console.print(str(path), style="bold", markup=False, soft_wrap=True)
