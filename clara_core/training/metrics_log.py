"""Writes the metrics of a run to ``metrics.jsonl``, a progress bar, TensorBoard and the log."""

from __future__ import annotations

import json
import logging
import sys
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any, Self, TextIO

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
_LOG_EVERY = 10  # steps
_SHOWN = ("answer", "contrastive", "accuracy", "recall@1", "held_out")  # beside the progress bar

Line = dict[str, float | str]


class MetricsLog:
    """Writer of metrics, one line a step.

    Args:
        out: Folder of the run.
        active: Whether this process writes.
        progress: Show a progress bar over the steps of a phase.
        tensorboard: Write event files. None: if TensorBoard is installed.

    Raises:
        ImportError: `tensorboard` is true, but TensorBoard is not installed.
    """

    def __init__(self, out: Path, *, active: bool, progress: bool, tensorboard: bool | None) -> None:
        self.path = out / METRICS_FILE
        self._active = active
        self._progress = progress and active
        self._bar: Any = None
        self._file: TextIO | None = None
        self._events: Any = None
        self._wants_events = active and (find_spec("tensorboard") is not None if tensorboard is None else tensorboard)
        if tensorboard and find_spec("tensorboard") is None:
            raise ImportError("tensorboard=true needs TensorBoard: pip install tensorboard")

    def begin(self, phase: str, steps: int, number: int) -> None:
        """Begin or resume a phase at a step; lines of later steps are removed."""
        log.info("%s: %d steps, starting at step %d", phase, steps, number)
        if not self._active:
            return
        self._truncate(phase, number)
        self._file = self.path.open("a", encoding="utf-8")
        if self._wants_events:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(self.path.parent / "tensorboard" / phase)
            self._events = SummaryWriter(folder, purge_step=number)
        if self._progress:
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=number, desc=phase, unit="step", file=sys.stderr)

    def write(self, line: Line) -> None:
        """Write the metrics of one step."""
        if int(line["step"]) % _LOG_EVERY == 0:
            log.info(" ".join(f"{key}={value}" for key, value in line.items()))
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._events is not None:
            for name, value in line.items():
                if name not in ("stage", "step"):
                    self._events.add_scalar(name, value, line["step"])
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix({name: line[name] for name in _SHOWN if name in line}, refresh=False)

    def end(self) -> None:
        """End a phase."""
        for opened in (self._file, self._events, self._bar):
            if opened is not None:
                opened.close()
        self._file = self._events = self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()

    def _truncate(self, phase: str, number: int) -> None:
        """Keep only the lines of earlier phases, and of this phase before the step."""
        if not self.path.exists():
            return
        kept = takewhile(lambda line: line["stage"] != phase or int(line["step"]) < number, read_lines(self.path))
        new = self.path.with_name(f".{self.path.name}.new")
        new.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        new.replace(self.path)


def read_lines(path: Path) -> list[Line]:
    """The lines of a file of metrics; a line that a killed run left incomplete is skipped."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
