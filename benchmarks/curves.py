"""Recall of short keys: the share of true neighbours among their candidates, by key length and oversampling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clara_core.store.keys import Key

OVERSAMPLES = (1, 2, 5, 10, 20)
_FITTED = 512  # windows to which keys are fitted, as in a store

Rows = list[np.ndarray]


@dataclass
class KeyCurve:
    """Keys of several lengths for a corpus that is added batch by batch.

    Attributes:
        dimension: Dimension of the memories.
        lengths: Lengths of the keys; those that are not shorter than a memory are left out.
        keys: The keys added so far, by length.
        owners: The document of each window added so far.
    """

    dimension: int
    lengths: Sequence[int]
    keys: dict[int, Rows] = field(default_factory=dict)
    owners: list[str] = field(default_factory=list)
    _makers: dict[int, Key] = field(default_factory=dict)

    def add(self, tokens: Tensor, owners: Iterable[str]) -> None:
        """Add windows ``[n, n_mem, hidden]`` and their documents."""
        for length in self.lengths:
            if length >= self.dimension:
                continue
            if length not in self._makers:
                self._makers[length] = Key(self.dimension, length).fitted(tokens[:_FITTED])
            self.keys.setdefault(length, []).append(self._makers[length].documents(tokens))
        self.owners += owners

    def recall(self, questions: Tensor, nearest: Sequence[Sequence[str]]) -> dict[int, dict[int, float]]:
        """Share of each question's true neighbours among its candidates, by length and oversampling.

        Args:
            questions: ``[Q, n_mem, hidden]``.
            nearest: The k true neighbours of each question.
        """
        owners = np.array(self.owners)
        curves: dict[int, dict[int, float]] = {}
        for length, parts in self.keys.items():
            maker = self._makers[length]
            scores = torch.from_numpy(maker.scores(maker.questions(questions), np.concatenate(parts)))  # [Q, n]
            depth = min(max(OVERSAMPLES) * max(map(len, nearest)), scores.shape[1])
            order = owners[scores.topk(depth, dim=1).indices.numpy()]  # [Q, depth]
            curves[length] = {
                times: float(np.mean([
                    len(set(true) & set(found[: times * len(true)])) / len(true)
                    for true, found in zip(nearest, order.tolist(), strict=True)
                ]))
                for times in OVERSAMPLES
            }  # fmt: skip
        return curves


def plot_curves(curves: dict[int, dict[int, float]], title: str, picture: Path) -> None:
    """Plot recall over oversampling, one line for each key length."""
    figure, axes = make_figure(1)
    draw_curves(axes[0], curves, title)
    figure.savefig(picture, dpi=120)


def draw_curves(axes: object, curves: dict[int, dict[int, float]], title: str) -> None:
    """Draw the lines of `plot_curves` on matplotlib axes."""
    for length, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=f"{length} numbers")
    axes.axhline(0.99, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xscale="log", xlabel="candidates for each result", ylabel="recall@10 of two steps", ylim=(0.5, 1.01))
    axes.minorticks_off()
    axes.set_xticks(OVERSAMPLES, [str(times) for times in OVERSAMPLES])
    axes.set_title(title, fontsize=9)
    axes.legend(loc="lower right", frameon=False, fontsize=8)


def make_figure(panels: int) -> tuple[object, list]:
    """A matplotlib figure with its axes side by side.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ImportError("a picture needs matplotlib: pip install 'clara-rag[train]'") from exc
    figure = Figure(figsize=(5 * panels, 3.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)
    return figure, list(axes[0])
