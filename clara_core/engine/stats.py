"""Numbers of an engine for logs, health checks and admission control."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The state of an engine at one moment.

    Attributes:
        loaded: Whether the weights are on the device.
        weights_bytes: Bytes of weights and adapters.
        kv_total_bytes: Bytes of the KV cache; 0 before the first answer.
        kv_used_bytes: Bytes of the KV cache that answers hold.
        waiting: Answers that wait for a place in the KV cache.
        running: Answers that are being generated.
        questions: Questions and short texts that wait for the query reasoner or the compressor.
        passages: Passages of larger jobs that wait for the compressor.
        compressed: Questions and passages that were encoded since the weights were loaded.
        preempted: How often an answer gave its pages to an older one and was resumed later.
        cached: Documents in the engine's cache of memories.
        cached_bytes: Bytes of these documents.
        kernels: Description of the matrix kernels on a CPU; empty on other devices.
        alive: Whether requests are accepted; an engine that is not loaded accepts them and loads.
        turn_seconds: How long the worker's current turn has lasted, in seconds; 0 while it is idle. A turn that does
            not end means that the device hangs.
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
