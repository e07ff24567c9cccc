"""The processes of a run, one or several, and their communication: sums, maxima, lists, barriers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara_core.common.errors import TrainingError


class Processes:
    """This process and its communication with the others.

    One process needs only torch. Several (`accelerate launch`, `torchrun`) are connected by accelerate, which reads its
    own configuration: devices, machines, back end. The gradients of the adapters are summed. The frozen base is whole
    in each process, or sharded over them if that configuration enables FSDP or DeepSpeed ZeRO-3.

    Args:
        device: Device of a single process; accelerate assigns those of several. None: CUDA if available.

    Attributes:
        count: Number of processes.
        index: Rank of this process.
        device: Device of this process.
        shards: Whether the frozen base is sharded over the processes.

    Raises:
        ImportError: There are several processes, but accelerate is not installed.
        TrainingError: DeepSpeed's configuration file cannot be read.
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
        self.shards = self.count > 1 and wants_sharding()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over all processes; may change the tensor in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def maximum(self, number: int) -> int:
        """Maximum of a number over all processes."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return int(numbers)

    def gather(self, found: list[str]) -> list[str]:
        """Concatenate the lists of all processes."""
        if self.count == 1:
            return found
        everything: list[list[str]] = [[] for _ in range(self.count)]
        torch.distributed.all_gather_object(everything, found)
        return [text for texts in everything for text in texts]

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self._state is not None:
            self._state.wait_for_everyone()


def wants_sharding() -> bool:
    """Whether accelerate's environment variables enable sharding of weights."""
    setting = os.environ.get
    if setting("ACCELERATE_USE_FSDP") == "true":
        return setting("FSDP_SHARDING_STRATEGY", "") not in ("NO_SHARD", "3")
    # Below stage 3 DeepSpeed shards only gradients and optimizer states, which a frozen base does not have.
    return setting("ACCELERATE_USE_DEEPSPEED") == "true" and _deepspeed_stage() == "3"


def _deepspeed_stage() -> str:
    """The stage of ZeRO, as accelerate finds it: from DeepSpeed's configuration file if there is one."""
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file == "none":
        return os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
        return str(settings.get("zero_optimization", {}).get("stage", 0))
    except (OSError, ValueError, AttributeError) as exc:
        raise TrainingError(
            f"DeepSpeed's configuration file {file!r} cannot be read ({exc}): set deepspeed_config_file in "
            "accelerate's configuration to the path of a JSON file"
        ) from exc
