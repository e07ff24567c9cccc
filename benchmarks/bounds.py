"""Lower bounds of times on a device, from its arithmetic and its memory bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.workload import Shape


@dataclass(frozen=True)
class Device:
    """Throughput of a device in bfloat16.

    Attributes:
        flops: Measured floating-point operations per second of dense products.
        bandwidth: Bytes per second read from its memory.
    """

    flops: float
    bandwidth: float


DEVICES = {"H200": Device(flops=790e12, bandwidth=4.8e12)}
BYTES = 2  # of a bfloat16 number


def known_device(name: str) -> Device | None:
    """The device whose name is part of ``name``, or None if its figures are unknown."""
    return next((device for key, device in DEVICES.items() if key in name), None)


def compress_seconds(shape: Shape, tokens: float, passages: int, device: Device) -> float:
    """Least time for passages of ``tokens`` tokens each, special and memory tokens included.

    A large batch is bound by arithmetic: two operations for each weight and token, and attention.
    """
    attention = 2 * shape.layers * shape.hidden * tokens
    per_token = 2 * (shape.trunk + shape.adapter) + attention
    return passages * tokens * per_token / device.flops


def encode_seconds(shape: Shape, tokens: float, device: Device) -> float:
    """Least time for one question: its arithmetic, or reading the weights once."""
    weights = BYTES * (shape.trunk + shape.adapter) / device.bandwidth
    return max(weights, compress_seconds(shape, tokens, 1, device))


def answer_seconds(shape: Shape, prompts: list[int], new_tokens: int, device: Device) -> float:
    """Least time to read prompts of these lengths together and write ``new_tokens`` after each."""
    weights = BYTES * (shape.trunk + shape.adapter + shape.head) / device.bandwidth
    prefill = max(weights, sum(compress_seconds(shape, n, 1, device) for n in prompts))
    head = shape.hidden // shape.heads
    kv = BYTES * 2 * shape.layers * shape.kv_heads * head  # bytes of a token
    context = sum(prompts) + len(prompts) * new_tokens / 2
    memory = weights + context * kv / device.bandwidth
    arithmetic = len(prompts) * 2 * (shape.trunk + shape.adapter + shape.head) / device.flops
    return prefill + (new_tokens - 1) * max(memory, arithmetic)
