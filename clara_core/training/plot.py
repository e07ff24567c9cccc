"""The curve of a run as a picture: ``python -m clara_core.training.plot RUN CURVE.png``."""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

WINDOW = 20  # steps of the running mean


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run in order, each with the hours of work up to its step; a step that was repeated counts once."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = {(line["stage"], line["step"]): line for line in lines}
    hours = 0.0
    for line in last.values():
        hours += line["seconds"] / 3600
        line["hours"] = hours
    return list(last.values())


def plot_run(run: Path, picture: Path) -> None:
    """Draw accuracy of the answers' tokens and recall within the batch over the hours of the run.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        msg = "a picture needs matplotlib: pip install 'clara-rag[train]'"
        raise ImportError(msg) from exc
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, colour, label in (("accuracy", "C0", "answer tokens right"), ("recall@1", "C1", "recall@1 in the batch")):
        for index, (_, group) in enumerate(groupby(read_metrics(run), key=lambda line: line["stage"])):
            points = [(line["hours"], line[name]) for line in group if name in line]
            smooth = _running_mean([value for _, value in points])
            axes.plot([at for at, _ in points], smooth, colour, linewidth=1.2, label=None if index else label)
    for stage, group in groupby(read_metrics(run), key=lambda line: line["stage"]):
        start = next(group)["hours"]
        axes.axvline(start, color="0.8", linewidth=0.8, zorder=0)
        axes.text(start, 1.02, f" {stage}", fontsize=7, rotation=20)
    axes.set(xlabel="hours", ylim=(0, 1), ylabel="share")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(picture, dpi=120)


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
