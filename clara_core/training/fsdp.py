"""The frozen base of a run, whole in every process or sharded over them (FSDP), and the backward passes through it.

A process with a sharded base holds its shard of every layer and gathers the other shards while it computes with the
layer, so all processes must run their passes together. Their shares of a batch differ: one process may have more
windows to compress than another, or no line at all. The processes therefore agree on each pass first, and a process
that has none left runs a pass over one token whose result is not used. Trainable weights are never sharded.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from clara_core.common.errors import TrainingError

if TYPE_CHECKING:
    from clara_core.model.decoder import ClaraModel
    from clara_core.training.distributed import Processes
    from clara_core.training.master_weights import TrainableSpec

log = logging.getLogger(__name__)

_SHARDING = "accelerate's configuration enables FSDP or DeepSpeed ZeRO-3"
_WITHOUT = "start the processes without them (accelerate launch --multi_gpu, or torchrun)"


class Base(Protocol):
    """Runs the backward passes of a step."""

    def backward(self, loss: Tensor | None) -> None:
        """Compute the gradients of a loss; None if the passes since the last call gave no loss."""

    def finish(self) -> None:
        """To be called when this process has no passes left, before any other communication."""


class WholeBase:
    """Every process holds the whole base and runs its passes alone."""

    def backward(self, loss: Tensor | None) -> None:
        """Compute the gradients of a loss."""
        if loss is not None and loss.requires_grad:
            loss.backward()

    def finish(self) -> None:
        """Nothing to wait for."""


class _Act(IntEnum):
    """The next act of a process. All processes perform the act with the highest number among theirs."""

    NOTHING = 0
    BACKWARD = 1
    FORWARD = 2
    FORWARD_ONLY = 3  # without gradient


class ShardedBase:
    """Every process holds its shard of each decoder layer's frozen weights.

    Adapters, embeddings and head are not sharded. The gradients of trainable weights are not changed.

    The acts of a step are the same in all processes and in the same order: all forward passes, then one backward pass
    through all of them. Autograd visits the passes from the last to the first and must find the same number of them in
    every process. Therefore a pass that the loss does not depend on gets a gradient of zero, and a pass whose input
    needs no gradient gets a copy of the input that does: without the copy the first layer would be neither resharded
    after a pass nor gathered again for the one before.

    Args:
        model: A model on the CPU or the device; it is moved to the device of this process, layer by layer.
        processes: Two or more processes.
    """

    def __init__(self, model: ClaraModel, processes: Processes) -> None:
        self._model = model
        self._processes = processes
        self._states: list[Tensor] = []  # outputs of the passes with gradient since the last backward pass
        self._idle_pass = False
        _shard_layers(model, processes)
        model.trunk.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
        model.trunk.register_forward_hook(self._after)

    def backward(self, loss: Tensor | None) -> None:
        """Compute the gradients of a loss, together with the other processes."""
        self._run_until(_Act.BACKWARD)
        self._backward(loss)

    def finish(self) -> None:
        """Join the other processes' passes until none has a pass left."""
        self._run_until(_Act.NOTHING)
        self._states = []

    def _run_until(self, wanted: _Act) -> None:
        while (agreed := _Act(self._processes.maximum(wanted))) is not wanted:
            self._join(agreed)

    def _join(self, act: _Act) -> None:
        if act is _Act.BACKWARD:
            self._backward(None)
            return
        self._idle_pass = True
        try:
            with torch.set_grad_enabled(act is _Act.FORWARD):
                self._model.hidden_states([[0]], None)
        finally:
            self._idle_pass = False

    def _backward(self, loss: Tensor | None) -> None:
        states, self._states = self._states, []
        roots: list[Tensor] = list(states)
        gradients: list[Tensor | None] = [state.new_zeros(()).expand_as(state) for state in states]
        if loss is not None and loss.requires_grad:
            roots.append(loss)
            gradients.append(None)
        if roots:
            torch.autograd.backward(roots, gradients)

    def _before(
        self, _trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        wanted = _Act.FORWARD if torch.is_grad_enabled() else _Act.FORWARD_ONLY
        if not self._idle_pass:
            self._run_until(wanted)
        embeddings: Tensor = kwargs["inputs_embeds"]
        if wanted is _Act.FORWARD and not embeddings.requires_grad:
            kwargs = {**kwargs, "inputs_embeds": embeddings.detach().requires_grad_()}
        return args, kwargs

    def _after(self, _trunk: nn.Module, _args: object, output: Any) -> None:
        if torch.is_grad_enabled():
            self._states.append(output.last_hidden_state)


def base_of(model: ClaraModel, processes: Processes, trainable: Sequence[TrainableSpec]) -> Base:
    """The base of a model, sharded if accelerate's configuration enables it.

    Raises:
        TrainingError: Sharding is enabled, but the base is trainable or this torch cannot leave adapters unsharded.
    """
    if not processes.shards:
        return WholeBase()
    if any(each.base for each in trainable):
        raise TrainingError(
            f"{_SHARDING}, which shard a frozen base over processes, but this run trains the base: {_WITHOUT}"
        )
    if not can_shard():
        raise TrainingError(
            f"{_SHARDING}, but fully_shard of torch {torch.__version__} has no ignored_params and would shard the "
            f"adapters, too: install a newer torch, or {_WITHOUT}"
        )
    return ShardedBase(model, processes)


def can_shard() -> bool:
    """Whether `fully_shard` of this torch can leave some parameters of a layer unsharded."""
    from torch.distributed.fsdp import fully_shard

    return "ignored_params" in inspect.signature(fully_shard).parameters


def check_quantization(quantization: str | None, processes: Processes) -> None:
    """Check that a sharded base is not quantized.

    Raises:
        TrainingError: It is.
    """
    if processes.shards and quantization is not None:
        raise TrainingError(
            f"{_SHARDING}, which shard the base over processes, but weights packed by quantization={quantization!r} "
            f"cannot be sharded: leave quantization out, or {_WITHOUT}"
        )


def _shard_layers(model: ClaraModel, processes: Processes) -> None:
    """Shard every decoder layer over the processes, each shard on the device of its process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    adapters = {weight for layer in model.routed.values() for weight in (layer.lora_A, layer.lora_B)}
    layers = []
    for layer in model.trunk.layers:  # type: ignore[union-attr]  # a list of modules
        layer.to(processes.device)  # one at a time, so that the device never holds two whole layers
        for weight in set(layer.parameters()) - adapters:
            weight.requires_grad_(False)
        layers.append(fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapters))
    model.to(processes.device)
    # The trunk has no shard of its own: it orders the streams and the backward passes of the layers.
    trunk = fully_shard(model.trunk, mesh=mesh, ignored_params=set(model.trunk.parameters()))
    # The next weights are gathered while a layer computes. By default their order is that of all forward passes so
    # far, which includes passes without gradient that no backward pass runs through.
    for layer, before in zip(layers, [trunk, *layers], strict=False):
        layer.set_modules_to_backward_prefetch([before])
    log.info("the frozen weights of %d layers are sharded over %d processes", len(layers), processes.count)
