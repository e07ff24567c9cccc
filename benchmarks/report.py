"""Shared parts of the benchmarks: a timer, a description of the hardware, a table and a JSON line."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from clara_core.model.int8_linear import check_int8


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        measure: What was measured.
        engine: The engine's figure, with its unit.
        other: The figure to compare with, and its unit; "" for none.
        value: The number that is compared with the target, usually the ratio to ``other``.
        target: Minimum of ``value``, or its maximum with ``at_most``; None for no target.
        at_most: Whether smaller is better.
        bound: Fraction of the physical bound that was reached; None if it is not known.
    """

    measure: str
    engine: str
    other: str = ""
    value: float | None = None
    target: float | None = None
    at_most: bool = False
    bound: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        if self.value is None or self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


def synchronize() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of several runs, because other work on the machine only makes runs longer."""
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def cpu_flags() -> set[str]:
    """Instruction sets of the processor; empty if the system does not report them."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    for line in info.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def has_bfloat16(device: str) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware."""
    return device != "cpu" or bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def has_int8(device: str) -> bool:
    """Whether the engine can multiply 8-bit weights on a CPU."""
    if device != "cpu":
        return False
    try:
        check_int8()
    except ValueError:
        return False
    return True


def hardware(device: str) -> str:
    """Description of the device."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def show(title: str, rows: Sequence[Row], facts: dict[str, object], other: str) -> None:
    """Print the table, and its content as one JSON line."""
    with_bound = any(row.bound is not None for row in rows)
    table = Table(title=title)
    for column in ("", "engine", other, "value", "target", "reached"):
        table.add_column(column, justify="left" if not column else "right")
    if with_bound:
        table.add_column("of the bound", justify="right")
    for row in rows:
        sign = "<=" if row.at_most else ">="
        cells = [
            row.measure,
            row.engine,
            row.other,
            "" if row.value is None else f"{row.value:.3g}",
            "" if row.target is None else f"{sign} {row.target:g}",
            {True: "yes", False: "NO", None: ""}[row.reached],
        ]
        if with_bound:
            cells.append("" if row.bound is None else f"{row.bound:.0%}")
        table.add_row(*cells)
    Console(width=None if Console().is_terminal else 140).print(table)
    lines = [{**asdict(row), "reached": row.reached} for row in rows]
    print(json.dumps({**facts, "rows": lines}))
