"""The card of a trained checkpoint: from what it was trained, on what, for how long, and what it scored."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_core.training.metrics_log import Line

CARD_FILE = "README.md"
_TAIL = 30  # steps at the end of a phase whose mean is shown
_LEFT_OUT = {"stage", "step", "lr", "seconds", "norm"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of training data, as the card names it.

    Attributes:
        name: Its name, without the folder.
        lines: How many lines it has; None where only all files together were counted.
        sha256: Of its bytes.
    """

    name: str
    lines: int | None
    sha256: str

    @classmethod
    def of(cls, path: Path, lines: int | None = None) -> DataFile:
        """Reads the file once."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return cls(path.name, lines, digest.hexdigest())


def card(
    *,
    title: str,
    facts: Mapping[str, Any],
    files: Sequence[DataFile],
    metrics: Sequence[Line],
    settings: Mapping[str, Any],
) -> str:
    """The text of README.md.

    Args:
        title: First line.
        facts: What the first table says, in order; values of None are left out.
        files: The data.
        metrics: Lines of ``metrics.jsonl``.
        settings: The config.
    """
    parts = [f"# {title}", "", _table(("", ""), [(name, value) for name, value in facts.items() if value is not None])]
    if files:
        rows = [(f"`{file.name}`", "" if file.lines is None else f"{file.lines:,}", file.sha256) for file in files]
        parts += ["", "## Data", "", _table(("file", "lines", "sha256"), rows)]
    if metrics:
        parts += ["", "## What it scored in training", "", _scores(metrics)]
        parts += [
            "",
            f"Means of the last {_TAIL} steps of a stage on what it learned from, which show the course of the",
        ]
        parts += [
            "training and prove nothing; `held_out` columns are of lines that were not learned, at the step whose"
        ]
        parts += ["weights these are. `clara eval` measures."]
    parts += ["", "## Settings", "", "```toml", *_toml(settings), "```", ""]
    parts += ["The weights stand under the licence of the base decoder and of the model they were trained from.", ""]
    return "\n".join(parts)


def hardware() -> str:
    """What trained, in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"


def versions() -> str:
    """Of the libraries that decide the numbers."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("clara-rag", "torch", "transformers"))


def _scores(metrics: Sequence[Line]) -> str:
    """One row a stage."""
    stages = list(dict.fromkeys(str(line["stage"]) for line in metrics))
    names = list(dict.fromkeys(name for line in metrics for name in line if name not in _LEFT_OUT))
    rows = []
    for stage in stages:
        lines = [line for line in metrics if line["stage"] == stage]
        looked = [line for line in lines if "held_out" in line]
        best = min(looked, key=lambda line: float(line["held_out"]), default=None)
        cells = [stage, str(len(lines))]
        for name in names:
            source = ([] if best is None else [best]) if name.startswith("held_out") else lines[-_TAIL:]
            values = [float(line[name]) for line in source if name in line]
            cells.append(f"{sum(values) / len(values):.3f}" if values else "")
        rows.append(tuple(cells))
    return _table(("stage", "steps", *names), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _toml(settings: Mapping[str, Any], table: str = "") -> list[str]:
    import json

    lines = [f"[{table}]"] if table else []
    inner = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            inner += ["", *_toml(value, f"{table}.{name}" if table else name)]
        elif value is not None:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return lines + inner
