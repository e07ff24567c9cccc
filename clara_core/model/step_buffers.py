"""The inputs of decode steps in buffers with fixed shapes and addresses.

A step of any rows is described by numbers of one size: the number of rows is rounded up, and so is the number of pages
of the longest row. The rows that fill up the batch read one position of the first page and write to a column that
belongs to no page, so they change no other row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from clara_core.model.devices import overwrite
from clara_core.model.kernels import PAGE
from clara_core.model.kv_memory import KVRow

_STRIDE: Final = 8  # rows between two sizes of larger batches


def row_bucket(rows: int) -> int:
    """Rows of the smallest batch that holds `rows`: 1, 2, 4, 8, 16, 24, 32 and so on."""
    return power_of_two(rows) if rows <= _STRIDE else -(-rows // _STRIDE) * _STRIDE


def page_bucket(pages: int, most: int) -> int:
    """Width of the smallest table of pages that holds `pages`: 1, 2, 4, 8 and so on, and no wider than `most`."""
    return max(pages, min(power_of_two(pages), most))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


class StepBuffers:
    """The inputs of the decode steps of one size, overwritten in place before each step.

    Args:
        rows: Rows of the batch.
        pages: Width of the table of pages.
        spare: The column that other rows do not use.
        device: Device of the model.

    Attributes:
        rows: The argument.
        pages: The argument.
        tokens: Newest token of each row, ``[rows]``.
        positions: Rotary position of the token, ``[rows]``, int32.
        lengths: Length of the row with this token, ``[rows]``, int32.
        into: Column of the KV cache that the token's keys and values are written to, ``[rows]``, int32.
        table: Pages of each row in order, ``[rows, pages]``, int32; entries after a row's last are 0.
    """

    def __init__(self, rows: int, pages: int, spare: int, device: torch.device) -> None:
        self.rows, self.pages = rows, pages
        self._spare = spare
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        # One block, so that a step takes one transfer.
        self._numbers = torch.zeros(rows * (3 + pages), dtype=torch.int32, device=device)
        self.positions, self.lengths, self.into = self._numbers[: 3 * rows].view(3, rows).unbind()
        self.table = self._numbers[3 * rows :].view(rows, pages)

    def fill(self, tokens: Sequence[int] | Tensor, rows: Sequence[KVRow]) -> None:
        """Describe the next step of some rows, without waiting for the device.

        Args:
            tokens: The newest token of each row, as numbers or as a tensor on the device.
            rows: The rows, no more than the buffers hold.
        """
        numbers = np.zeros(self.rows * (3 + self.pages), dtype=np.int32)
        places = numbers[: 3 * self.rows].reshape(3, self.rows)
        places[1], places[2] = 1, self._spare
        table = numbers[3 * self.rows :].reshape(self.rows, self.pages)
        for at, row in enumerate(rows):
            column = row.pages[row.length // PAGE] * PAGE + row.length % PAGE
            places[:, at] = row.length, row.length + 1, column
            used = row.pages[: row.length // PAGE + 1]
            table[at, : len(used)] = used
        overwrite(self._numbers, torch.from_numpy(numbers))
        overwrite(self.tokens[: len(rows)], tokens)
