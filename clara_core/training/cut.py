"""The frozen base of a run: whole in every process, or cut over them; and the backward passes through it.

Where it is cut, a process holds its piece of every layer and gets the others' pieces for as long as it computes with
the layer, so all processes have to walk through the layers together. Their shares of a batch differ, though: one may
have more windows to compress, or no line at all. So each pass is agreed on first, and a process that has none of the
kind walks along with one token whose result is not used. What learns is whole everywhere, and learns as it always does.
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
    from clara_core.training.masters import Learning
    from clara_core.training.processes import Processes

log = logging.getLogger(__name__)


class Base(Protocol):
    """How passes go through the base."""

    def backward(self, loss: Tensor | None) -> None:
        """Compute the gradients of a loss; None where the passes since the last time gave none."""

    def finish(self) -> None:
        """Called when this process has no more passes, before anything else is exchanged with the others."""


class WholeBase:
    """Every process holds all of it, and needs no other for its passes."""

    def backward(self, loss: Tensor | None) -> None:
        """Compute the gradients of a loss."""
        if loss is not None and loss.requires_grad:
            loss.backward()

    def finish(self) -> None:
        """Nothing to wait for."""


class _Act(IntEnum):
    """What a process wants to do next; the greatest wish of all processes is what all of them do."""

    NOTHING = 0
    BACKWARD = 1
    FORWARD = 2
    FORWARD_ONLY = 3  # without gradient


class CutBase:
    """Every process holds its piece of each decoder layer's frozen weights.

    Adapters, embeddings and head stay whole. The gradients of what learns are not touched.

    The acts of a step are the same in all processes, and in the same order: first all forward passes, then one
    backward pass through all of them. That alone does not do for the backward pass: PyTorch's engine takes the passes
    from the last to the first and must find the same number of them everywhere, so a pass that the loss does not
    depend on gets a gradient of zero, and one whose input needs no gradient gets a copy of it that does (without it
    the first layer would not be freed in between, nor fetched again for the pass before).

    Args:
        model: It may lie on the processor still; ends on the device of this process, layer by layer.
        processes: Two or more.
    """

    def __init__(self, model: ClaraModel, processes: Processes) -> None:
        self._model = model
        self._processes = processes
        self._states: list[Tensor] = []  # what the passes with gradient since the last backward pass gave
        self._walking_along = False
        _cut_layers(model, processes)
        model.trunk.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
        model.trunk.register_forward_hook(self._after)

    def backward(self, loss: Tensor | None) -> None:
        """Compute the gradients of a loss, together with the other processes."""
        self._walk_until(_Act.BACKWARD)
        self._backward(loss)

    def finish(self) -> None:
        """Walk along until no process has a pass left."""
        self._walk_until(_Act.NOTHING)
        self._states = []

    def _walk_until(self, wanted: _Act) -> None:
        while (agreed := _Act(self._processes.greatest(wanted))) is not wanted:
            self._walk_along(agreed)

    def _walk_along(self, act: _Act) -> None:
        if act is _Act.BACKWARD:
            self._backward(None)
            return
        self._walking_along = True
        try:
            with torch.set_grad_enabled(act is _Act.FORWARD):
                self._model.hidden_states([[0]], None)
        finally:
            self._walking_along = False

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
        if not self._walking_along:
            self._walk_until(wanted)
        embeddings: Tensor = kwargs["inputs_embeds"]
        if wanted is _Act.FORWARD and not embeddings.requires_grad:
            kwargs = {**kwargs, "inputs_embeds": embeddings.detach().requires_grad_()}
        return args, kwargs

    def _after(self, _trunk: nn.Module, _args: object, output: Any) -> None:
        if torch.is_grad_enabled():
            self._states.append(output.last_hidden_state)


def base_of(model: ClaraModel, processes: Processes, learning: Sequence[Learning]) -> Base:
    """The base of a model, cut where accelerate's configuration asks for it.

    Raises:
        TrainingError: It is to be cut, but learns, or this torch cannot cut it.
    """
    if not processes.cuts:
        return WholeBase()
    if any(each.base for each in learning):
        raise TrainingError(
            "accelerate's configuration asks for FSDP or DeepSpeed ZeRO-3, which cut a frozen base over the processes, "
            "but here the base itself learns: start the processes without them (accelerate launch --multi_gpu, or "
            "torchrun)"
        )
    if not can_cut():
        raise TrainingError(
            "accelerate's configuration asks for FSDP or DeepSpeed ZeRO-3, but fully_shard of torch "
            f"{torch.__version__} has no ignored_params, so that it cannot leave the adapters whole: install a newer "
            "torch, or start the processes without them (accelerate launch --multi_gpu, or torchrun)"
        )
    return CutBase(model, processes)


def can_cut() -> bool:
    """Whether this torch can cut layers and leave some of their parameters whole."""
    from torch.distributed.fsdp import fully_shard

    return "ignored_params" in inspect.signature(fully_shard).parameters


def check_quantization(quantization: str | None, processes: Processes) -> None:
    """Refuse a quantized base that is to be cut.

    Raises:
        TrainingError: It is both.
    """
    if processes.cuts and quantization is not None:
        raise TrainingError(
            "accelerate's configuration asks for FSDP or DeepSpeed ZeRO-3, which cut the base over the processes, but "
            f"quantization={quantization!r} packs its weights in a form that cannot be cut: leave quantization out, or "
            "start the processes without them (accelerate launch --multi_gpu, or torchrun)"
        )


def _cut_layers(model: ClaraModel, processes: Processes) -> None:
    """Leave each process its piece of every decoder layer, on its device."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    adapters = {weight for layer in model.routed.values() for weight in (layer.lora_A, layer.lora_B)}
    layers = []
    for layer in model.trunk.layers:  # type: ignore[union-attr]  # a list of modules
        layer.to(processes.device)  # one whole layer at a time: the device never holds more of them
        for weight in set(layer.parameters()) - adapters:
            weight.requires_grad_(False)
        layers.append(fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapters))
    model.to(processes.device)
    # The trunk has no piece of its own: it is what the layers' streams and backward passes are ordered by.
    trunk = fully_shard(model.trunk, mesh=mesh, ignored_params=set(model.trunk.parameters()))
    # The next weights are fetched while a layer computes. By default their order is that of all forward passes so
    # far, those without gradient among them, which no backward pass goes through.
    for layer, before in zip(layers, [trunk, *layers], strict=False):
        layer.set_modules_to_backward_prefetch([before])
    log.info("the frozen weights of %d layers are cut over %d processes", len(layers), processes.count)
