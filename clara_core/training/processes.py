"""The processes of a run: one, or several that accelerate started, each with its own device and share of the data."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Processes:
    """Where this process stands among the others.

    One process needs nothing but torch. Several (`accelerate launch`, `torchrun`) are connected by accelerate, which
    reads its own configuration: devices, machines, back end. Each process holds the whole base, which is frozen, and
    the gradients of the adapters are added up. FSDP and DeepSpeed would cut the base into pieces; that is not done
    here, so such a configuration starts processes and no more.

    Args:
        device: Where one process works; several get theirs from accelerate. None: a CUDA device where there is one.

    Raises:
        ImportError: There are several processes, but no accelerate.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.count, self.index = 1, 0
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import PartialState
            except ImportError as exc:
                raise ImportError("several processes need accelerate: pip install 'clara-rag[train]'") from exc
            self._state = PartialState(cpu=self.device.type == "cpu")
            self.count, self.index = int(self._state.num_processes), int(self._state.process_index)
            self.device = self._state.device
            if "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED")):
                log.warning(
                    "the FSDP or DeepSpeed part of accelerate's configuration cuts nothing here: every process holds "
                    "the whole frozen base; where that is too much, take quantization='nf4'"
                )

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor of each process; may change the tensor."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, found: list[str]) -> list[str]:
        """The texts of all processes together."""
        if self.count == 1:
            return found
        everything: list[list[str]] = [[] for _ in range(self.count)]
        torch.distributed.all_gather_object(everything, found)
        return [text for texts in everything for text in texts]

    def wait(self) -> None:
        """Until all processes are here."""
        if self._state is not None:
            self._state.wait_for_everyone()
