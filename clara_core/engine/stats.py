"""What an engine holds and does, in numbers: for logs, health checks and admission."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment of an engine.

    Attributes:
        loaded: Whether the weights are on the device.
        weights_bytes: Bytes of weights and adapters.
        kv_total_bytes: Bytes set aside for keys and values of answers; 0 before the first answer.
        kv_used_bytes: Those of them that answers hold.
        waiting: Answers that wait for a place.
        running: Answers that are being written.
        questions: Questions and short texts that wait for the reasoner or the compressor.
        passages: Passages of larger jobs that wait for the compressor.
        compressed: Questions and passages that became memory tokens since the weights were loaded.
        preempted: How often an answer made room for an older one and was taken up again.
        cached: Documents in the engine's cache of memories.
        cached_bytes: Bytes of them.
        kernels: What multiplies on a processor, in words; empty elsewhere.
        alive: Whether requests are taken; an engine that is not loaded takes them, and loads.
        turn_seconds: How long the worker's current turn has lasted; 0 while it has nothing to do. A turn that does not
            end means a device that hangs.
    """

    loaded: bool = False
    weights_bytes: int = 0
    kv_total_bytes: int = 0
    kv_used_bytes: int = 0
    waiting: int = 0
    running: int = 0
    questions: int = 0
    passages: int = 0
    compressed: int = 0
    preempted: int = 0
    cached: int = 0
    cached_bytes: int = 0
    kernels: str = ""
    alive: bool = True
    turn_seconds: float = 0.0
