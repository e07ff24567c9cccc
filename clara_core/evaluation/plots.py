"""The plots of a report. They need matplotlib, which is part of the extra `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_core.evaluation.cost import Alignment


def plot_recall(curves: Mapping[str, Sequence[float]], picture: Path) -> None:
    """Plot recall at 1, 2, 3, … for each ranker.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = _figure()
    longest = max(map(len, curves.values()))
    for name, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, marker=".", linewidth=1.2, label=name)
    axes.set(xlabel="candidates that are read (k)", ylabel="recall@k", ylim=(0, 1.02), xlim=(0.5, longest + 0.5))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(picture, dpi=120)


def plot_alignment(points: Alignment, picture: Path) -> None:
    """Plot memory tokens and document tokens in two dimensions.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = _figure()
    for name, both, colour in (("document tokens", points.text, "C0"), ("memory tokens", points.memory, "C3")):
        axes.scatter([x for x, _ in both], [y for _, y in both], s=14, alpha=0.7, color=colour, label=name)
    first, second = (f"component {number} ({share:.0%})" for number, share in enumerate(points.explained, start=1))
    axes.set(xlabel=first, ylabel=second)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=120)


def load_figure() -> Any:
    """Import matplotlib's `Figure`, which needs no display.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ImportError("the plots of a report need matplotlib: pip install 'clara-rag[train]'") from exc
    return Figure


def _figure() -> tuple[Any, Any]:
    figure = load_figure()(figsize=(6, 4), layout="constrained")
    return figure, figure.subplots()
