"""The model card of a trained checkpoint: its origin, data, training time, metrics and settings."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_core.training.metrics_log import Line

CARD_FILE = "README.md"
_TAIL = 30  # last steps of a phase, over which metrics are averaged
_LEFT_OUT = {"stage", "step", "lr", "seconds", "norm"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of training data, as listed on the card.

    Attributes:
        name: File name, without the folder.
        sha256: Hash of its bytes.
    """

    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> DataFile:
        """Read and hash a file."""
        with path.open("rb") as file:
            return cls(path.name, hashlib.file_digest(file, "sha256").hexdigest())


def card(
    *,
    title: str,
    facts: Mapping[str, Any],
    files: Sequence[DataFile],
    metrics: Sequence[Line],
    settings: Mapping[str, Any],
) -> str:
    """Text of the card.

    Args:
        title: Heading.
        facts: Rows of the first table, in order; rows with the value None are left out.
        files: Training data.
        metrics: Lines of ``metrics.jsonl``.
        settings: The config.
    """
    parts = [f"# {title}", "", _table(("", ""), [(name, value) for name, value in facts.items() if value is not None])]
    if files:
        rows = [(f"`{file.name}`", file.sha256) for file in files]
        parts += ["", "## Data", "", _table(("file", "sha256"), rows)]
    if metrics:
        parts += ["", "## Metrics of training", "", _scores(metrics), ""]
        parts += [f"Means over the last {_TAIL} steps of a stage on its training data, which do not measure quality."]
        parts += ["The `held_out` columns are measured on held-out lines, with the weights of this checkpoint."]
        parts += ["Measure quality with `clara eval`."]
    parts += ["", "## Settings", "", "```toml", *_toml(settings), "```", ""]
    parts += [
        "The licences of the base decoder and of the checkpoint that training started from apply to these weights.",
        "",
    ]
    return "\n".join(parts)


def hardware() -> str:
    """The device of the training, for the card."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"


def versions() -> str:
    """Versions of the libraries that determine the numbers."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("clara-rag", "torch", "transformers"))


def _scores(metrics: Sequence[Line]) -> str:
    """Table with one row a stage."""
    stages = list(dict.fromkeys(str(line["stage"]) for line in metrics))
    names = list(dict.fromkeys(name for line in metrics for name in line if name not in _LEFT_OUT))
    rows = []
    for stage in stages:
        lines = [line for line in metrics if line["stage"] == stage]
        evaluated = [line for line in lines if "held_out" in line]
        best = min(evaluated, key=lambda line: float(line["held_out"]), default=None)
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
    lines = [f"[{table}]"] if table else []
    inner = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            inner += ["", *_toml(value, f"{table}.{name}" if table else name)]
        elif value is not None:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return lines + inner
