"""Errors of a training run that runs out of memory, with the settings that need less."""

from __future__ import annotations

from contextlib import AbstractContextManager

from clara_core.model.devices import memory_said
from clara_core.training.config import FROZEN_STAGES, TrainingConfig


def memory_errors(config: TrainingConfig) -> AbstractContextManager[None]:
    """Turn out-of-memory errors of a run into `NotEnoughMemory` with the settings that need less."""

    def message(exc: Exception) -> str:
        first = str(exc).strip().splitlines()[0] if str(exc) else type(exc).__name__
        return (
            f"training ran out of memory ({first}): {'; '.join(_remedies(config))}. Start the same command again to "
            "resume from the last saved state"
        )

    return memory_said(message)


def _remedies(config: TrainingConfig) -> list[str]:
    """Changes that save memory, the cheapest first."""
    remedies = []
    if config.micro_batch_size > 1:
        remedies.append(
            f"lower micro_batch_size={config.micro_batch_size} (batch_size and the result stay the same)"
            if not config.in_batch_negatives
            else f"lower micro_batch_size={config.micro_batch_size} (fewer in-batch negatives, so start a new run)"
        )
    if not config.gradient_checkpointing:
        remedies.append("set gradient_checkpointing=true (a third more arithmetic)")
    if config.memory_room_mb and config.stage in FROZEN_STAGES:
        remedies.append(f"lower memory_room_mb={config.memory_room_mb}")
    if config.dtype == "float32":
        remedies.append('set dtype="bfloat16"')
    if config.quantization is None:
        remedies.append('set quantization="nf4"')
    remedies.append("give fewer or shorter documents a line, or shard the base over several GPUs (FSDP)")
    return remedies
