"""Memory that runs out in a training run, said with what takes less."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from clara_core.common.errors import NotEnoughMemory
from clara_core.model.devices import is_out_of_memory
from clara_core.training.config import FROZEN_STAGES, TrainingConfig


@contextmanager
def memory_errors(config: TrainingConfig) -> Iterator[None]:
    """Memory that runs out is said with what takes less of it.

    Raises:
        NotEnoughMemory: In place of what torch raises.
    """
    try:
        yield
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
        traceback.clear_frames(exc.__traceback__)  # they hold the tensors of the pass
        raise NotEnoughMemory(
            f"memory ran out in training ({str(exc).strip().splitlines()[0] if str(exc) else type(exc).__name__}): "
            f"{'; '.join(_what_takes_less(config))}. Start the same command again to go on from the last saved state"
        ) from exc


def _what_takes_less(config: TrainingConfig) -> list[str]:
    """Ways, the one that costs least first."""
    ways = []
    if config.micro_batch_size > 1:
        ways.append(
            f"lower micro_batch_size={config.micro_batch_size} (batch_size stays, and so does what is learned)"
            if not config.in_batch_negatives
            else f"lower micro_batch_size={config.micro_batch_size} (fewer in-batch negatives: a run of its own)"
        )
    if not config.gradient_checkpointing:
        ways.append("set gradient_checkpointing=true (a third more arithmetic)")
    if config.memory_room_mb and config.stage in FROZEN_STAGES:
        ways.append(f"lower memory_room_mb={config.memory_room_mb}")
    if config.dtype == "float32":
        ways.append('set dtype="bfloat16"')
    if config.quantization is None:
        ways.append('set quantization="nf4"')
    ways.append("give fewer or shorter documents a line, or use more processes (`torchrun`), which share the base")
    return ways
