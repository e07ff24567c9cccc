"""Float32 master weights of the trainable parameters, and their optimizers.

Passes may run in bfloat16; gradients are accumulated and optimizer steps are taken in the float32 master weights. A
master weight may be a block of rows of a parameter: one stacked tensor holds the adapters of all roles, and one table
holds the embeddings of the base and of the memory tokens. Weights without a master weight do not change in any bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from clara_core.common.errors import TrainingError
from clara_core.engine.loader import DTYPES
from clara_core.model.checkpoint.config import Role
from clara_core.model.devices import multiplies_bfloat16
from clara_core.training.muon import Muon

if TYPE_CHECKING:
    from clara_core.model.decoder import ClaraModel
    from clara_core.training.distributed import Processes

_STATE = "optimizer"  # prefix of the keys of optimizer tensors


@dataclass(frozen=True, slots=True)
class TrainableSpec:
    """Which weights are trained, and how.

    Attributes:
        roles: Roles whose adapters are trained.
        memory_tokens: Whether the embeddings of the added tokens are trained.
        base: Whether all weights are trained, including the decoder; for a base that starts from random weights.
        optimizer: "adamw", or "muon" for the matrices of the decoder and AdamW for the rest.
        weight_decay: Weight decay of AdamW.
        max_norm: Norm to which gradients are clipped.
    """

    roles: tuple[Role, ...]
    memory_tokens: bool = False
    base: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.0
    max_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """Trainable rows of a parameter."""

    parameter: nn.Parameter
    rows: slice

    def read(self) -> Tensor:
        """The values in float32; may share memory with the parameter."""
        return self.parameter.detach()[self.rows].float()

    def write(self, value: Tensor) -> None:
        """Overwrite the values."""
        with torch.no_grad():
            self.parameter[self.rows].copy_(value)


def pass_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The type of the passes; ``auto`` is bfloat16 if the device has instructions for its products, else float32."""
    if wanted == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    return DTYPES[wanted]


class MasterWeights:
    """The master weights of a model with their gradients and optimizers.

    Args:
        model: The model from whose weights the master weights are initialized.
        trainable: The trainable weights; all others are frozen.
    """

    def __init__(self, model: ClaraModel, trainable: TrainableSpec) -> None:
        self.trainable = trainable
        self._parts = parts_of(model, trainable)
        chosen = {id(part.parameter) for part in self._parts.values()}
        for parameter in model.parameters():
            if parameter.is_floating_point():  # a quantized weight is not, and is never trainable
                parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
        self.weights = {name: part.read().clone() for name, part in self._parts.items()}
        self._optimizers = _optimizers(self.weights, trainable)

    def collect(self) -> None:
        """Add the gradients of the last backward pass to those of the master weights, in float32."""
        for name, part in self._parts.items():
            if part.parameter.grad is None:
                continue
            gradient = part.parameter.grad[part.rows]
            master = self.weights[name]
            if master.grad is None:
                master.grad = gradient.float() if gradient.dtype is not torch.float32 else gradient.clone()
            else:
                master.grad += gradient
        for part in self._parts.values():
            part.parameter.grad = None

    def reduce(self, processes: Processes) -> None:
        """Sum the gradients over all processes."""
        if processes.count == 1:
            return
        for master in self.weights.values():
            if master.grad is None:  # no pass of this process reached the weight
                master.grad = torch.zeros_like(master)
        gradients = [master.grad for master in self.weights.values() if master.grad is not None]
        flat = processes.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def clip(self) -> float:
        """Clip the gradients to `max_norm` and return the norm before clipping."""
        return float(torch.nn.utils.clip_grad_norm_(self.weights.values(), self.trainable.max_norm))

    def step(self, rate: float) -> None:
        """Take an optimizer step at a learning rate and copy the new weights to the model."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.drop()
        self.refresh()

    def drop(self) -> None:
        """Discard the gradients."""
        for master in self.weights.values():
            master.grad = None

    def refresh(self) -> None:
        """Copy the master weights to the model."""
        for name, part in self._parts.items():
            part.write(self.weights[name])

    # --- states ------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Master weights and optimizer states, flat."""
        tensors = {f"weights/{name}": weight.detach() for name, weight in self.weights.items()}
        for number, optimizer in enumerate(self._optimizers):
            for index, entry in optimizer.state_dict()["state"].items():
                tensors |= {f"{_STATE}/{number}/{index}/{key}": value for key, value in entry.items()}
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load the result of `state`, or its weights alone.

        Raises:
            TrainingError: The state belongs to other weights.
        """
        for name, weight in self.weights.items():
            saved = tensors.get(f"weights/{name}")
            if saved is None or saved.shape != weight.shape:
                raise TrainingError(
                    f"the saved state does not match the trainable weight {name}: it belongs to another run; give "
                    "another folder as out"
                )
            weight.copy_(saved)
        for number, optimizer in enumerate(self._optimizers):
            entries: dict[int, dict[str, Tensor]] = {}
            prefix = f"{_STATE}/{number}/"
            for key, value in tensors.items():
                if key.startswith(prefix):
                    index, _, leaf = key.removeprefix(prefix).partition("/")
                    entries.setdefault(int(index), {})[leaf] = value
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        self.refresh()


def parts_of(model: ClaraModel, trainable: TrainableSpec) -> dict[str, Part]:
    """The trainable weights of a model, by name."""
    if trainable.base:
        return {name: Part(parameter, slice(None)) for name, parameter in model.named_parameters()}
    parts = {}
    for role in trainable.roles:
        for name, layer in model.routed.items():
            parts[f"{role.adapter}/{name}.lora_A"] = Part(layer.lora_A, layer.block(role))
            parts[f"{role.adapter}/{name}.lora_B"] = Part(layer.lora_B, layer.block(role))
    if trainable.memory_tokens:
        table: nn.Parameter = model.decoder.get_input_embeddings().weight
        parts["memory_tokens"] = Part(table, slice(len(table) - len(model.config.added_tokens), None))
    return parts


def read_parts(parts: Mapping[str, Part]) -> dict[str, Tensor]:
    """The values of parts for a file, in the type of the passes."""
    return {f"learned/{name}": part.parameter.detach()[part.rows].clone() for name, part in parts.items()}


def write_parts(parts: Mapping[str, Part], tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `read_parts`; parts that it lacks are unchanged."""
    for name, part in parts.items():
        if f"learned/{name}" in tensors:
            part.write(tensors[f"learned/{name}"])


def _optimizers(weights: dict[str, Tensor], trainable: TrainableSpec) -> list[torch.optim.Optimizer]:
    """The optimizers of the weights; `MasterWeights.step` replaces the learning rates given here."""
    if trainable.optimizer == "adamw":
        return [torch.optim.AdamW(weights.values(), lr=1e-3, weight_decay=trainable.weight_decay)]
    matrices = [weight for name, weight in weights.items() if name.endswith(".base.weight")]
    rest = [weight for name, weight in weights.items() if not name.endswith(".base.weight")]
    adamw = torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=trainable.weight_decay)
    if not matrices:
        return [adamw]
    return [Muon(matrices), adamw]
