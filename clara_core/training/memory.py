"""Memory that runs out in a training run, said with what takes less."""

from __future__ import annotations

from contextlib import AbstractContextManager

from clara_core.model.devices import memory_said
from clara_core.training.config import FROZEN_STAGES, TrainingConfig


def memory_errors(config: TrainingConfig) -> AbstractContextManager[None]:
    """Memory that runs out in a run is said with what takes less of it, as a `NotEnoughMemory`."""

    def words(exc: Exception) -> str:
        first = str(exc).strip().splitlines()[0] if str(exc) else type(exc).__name__
        ways = "; ".join(_what_takes_less(config))
        return (
            f"memory ran out in training ({first}): {ways}. Start the same command again to go on from the last saved "
            "state"
        )

    return memory_said(words)


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
