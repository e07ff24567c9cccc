"""Plots the metrics of a run: ``python -m clara_core.training.plot RUN CURVE.png``."""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path
from typing import Any

from clara_core.training.metrics_log import METRICS_FILE, read_lines

WINDOW = 20  # steps of the running mean
_SHARES = {"accuracy": "answer tokens right", "recall@1": "recall@1 in the batch", "again": "retold tokens right"}
_LOSSES = {"answer": "answer", "contrastive": "contrastive", "held_out": "held out", "pointing": "attention elsewhere"}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run in order, each with the hours of training so far; a repeated step counts once."""
    last = {(line["stage"], line["step"]): dict(line) for line in read_lines(run / METRICS_FILE)}
    hours = 0.0
    for line in last.values():
        hours += float(line["seconds"]) / 3600
        line["hours"] = hours
    return list(last.values())


def plot_run(run: Path, picture: Path) -> None:
    """Draw accuracies and losses of a run over the hours of training.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ImportError("plots need matplotlib: pip install 'clara-rag[train]'") from exc
    lines = read_metrics(run)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    shares, losses = figure.subplots(1, 2)
    _draw(shares, lines, _SHARES)
    _draw(losses, lines, _LOSSES)
    shares.set(xlabel="hours", ylim=(0, 1), ylabel="share")
    losses.set(xlabel="hours", ylabel="loss", ylim=(0, None))
    figure.savefig(picture, dpi=120)


def _draw(axes: Any, lines: list[dict[str, Any]], curves: dict[str, str]) -> None:
    """Draw one curve a metric, interrupted between stages, and a labelled line at the beginning of each stage."""
    for number, (name, label) in enumerate(curves.items()):
        shown: str | None = label
        for _, group in groupby(lines, key=lambda line: line["stage"]):
            points = [(line["hours"], line[name]) for line in group if name in line]
            if points:
                smooth = _running_mean([value for _, value in points])
                axes.plot([at for at, _ in points], smooth, f"C{number}", linewidth=1.2, label=shown)
                shown = None
    for stage, group in groupby(lines, key=lambda line: line["stage"]):
        start = next(group)["hours"]
        axes.axvline(start, color="0.8", linewidth=0.8, zorder=0)
        axes.text(start, 1.02, f" {stage}", fontsize=7, rotation=20, transform=axes.get_xaxis_transform())
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _running_mean(values: list[float]) -> list[float]:
    parts = [values[max(0, end - WINDOW) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in parts]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    plot_run(arguments.run, arguments.picture)


if __name__ == "__main__":
    main()
