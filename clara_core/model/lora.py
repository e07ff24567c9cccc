"""Role-routed LoRA: one linear layer with three adapters, where each row of a batch may have another role.

The A matrices of the adapters are stacked into one product, the columns of other roles are masked in each row, and one
product with the stacked B matrices adds the result. So rows of different roles share a batch. A context variable holds
the roles during a forward pass (`routed`), so two threads may run different roles on one model at the same time. A
routed layer raises an error outside of `routed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clara_core.model.checkpoint.config import Role
from clara_core.model.devices import upload
from clara_core.model.packed_linear import product

N_ROLES = len(Role)


@dataclass(frozen=True, slots=True)
class Routing:
    """The adapter of each row in the current forward pass."""

    role: Role | None = None  # the role of all rows, if they share one; otherwise None
    # the 0/1 mask of mixed rows ``[rows, 1, n_roles * rank]``, or of packed texts ``[1, total, n_roles * rank]``;
    # None for one role or none
    columns: Tensor | None = None
    # called between decoder layers, so that urgent work does not wait for the whole pass
    pause: Callable[[], None] | None = None


_routing: ContextVar[Routing | None] = ContextVar("clara_routing", default=None)


def current_routing() -> Routing:
    """The routing of the current forward pass in this thread.

    Raises:
        RuntimeError: No forward pass runs inside `routed`.
    """
    routing = _routing.get()
    if routing is None:
        raise RuntimeError("a role-routed layer was called outside of routed(...): give every forward pass its roles")
    return routing


@contextmanager
def routed(
    roles: Role | Sequence[Role] | None,
    rank: int,
    *,
    lengths: Sequence[int] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    pause: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Run the forward passes inside the ``with`` block with these roles.

    Args:
        roles: One role for all texts, one for each text, or None for the base decoder without adapters.
        rank: Rank of an adapter.
        lengths: Lengths of the texts, if they are packed in one row.
        device: Device of the pass.
        dtype: Type of the hidden states.
        pause: See `Routing`.
    """
    if roles is None or isinstance(roles, Role):
        routing = Routing(role=roles, pause=pause)
    elif len(set(roles)) == 1:
        routing = Routing(role=roles[0], pause=pause)
    else:
        chosen = F.one_hot(torch.tensor(roles), N_ROLES).to(dtype)  # [rows, n_roles]
        columns = chosen.repeat_interleave(rank, dim=1)  # [rows, n_roles * rank]
        if lengths is None:
            columns = columns.unsqueeze(1)  # [rows, 1, n_roles * rank]
        else:
            columns = columns.repeat_interleave(torch.tensor(lengths), dim=0)[None]  # [1, total, n_roles * rank]
        routing = Routing(columns=columns if device is None else upload(columns, device), pause=pause)
    token = _routing.set(routing)
    try:
        yield
    finally:
        _routing.reset(token)


class RoutedLinear(nn.Module):
    """A frozen or trainable linear layer with one LoRA adapter a role: ``y = W x + scale * B_role A_role x``.

    Args:
        base: The linear layer (plain or quantized); anything with ``in_features`` and ``out_features``.
        rank: Rank of each adapter.
        scale: ``lora_alpha / rank``.
        dtype: Type of the adapters and of the hidden states.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        weight: Tensor = base.weight  # type: ignore[assignment]  # a parameter, of whatever kind of layer
        self.in_features = int(base.in_features)  # type: ignore[arg-type]
        self.out_features = int(base.out_features)  # type: ignore[arg-type]
        self.base = base
        self.rank = rank
        self.scale = scale
        self.dropout = 0.0  # of the adapter's input in training
        self.onednn = True  # whether oneDNN may multiply the adapters' matrices (`packed_linear.product`)
        self.lora_A = nn.Parameter(torch.zeros(N_ROLES * rank, self.in_features, device=weight.device, dtype=dtype))
        # B is kept transposed, so that the rows of one role are one contiguous block.
        self.lora_B = nn.Parameter(torch.zeros(N_ROLES * rank, self.out_features, device=weight.device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x [rows, length, in]``; the roles come from the running `routed` scope."""
        routing = current_routing()
        if routing.role is not None and torch.is_grad_enabled() and self._base_is_trained:
            return F.linear(x, self._merged(routing.role), self.base.bias)  # type: ignore[arg-type]
        y: Tensor = self.base(x)
        if self.dropout and self.training and torch.is_grad_enabled():
            x = F.dropout(x, self.dropout)
        expand: Tensor
        if routing.columns is not None:
            shrunk = product(x, self.lora_A, onednn=self.onednn) * routing.columns  # [rows, length, n_roles * rank]
            expand = self.lora_B
        elif routing.role is not None:
            block = self.block(routing.role)
            shrunk = product(x, self.lora_A[block], onednn=self.onednn)  # [rows, length, rank]
            expand = self.lora_B[block]
        else:
            return y
        flat = shrunk.flatten(0, -2)
        if torch.is_grad_enabled() or y.dtype is not expand.dtype:  # mixed precision casts out of place only
            return torch.addmm(y.flatten(0, -2), flat, expand, alpha=self.scale).view(y.shape)
        y.view(-1, self.out_features).addmm_(flat, expand, alpha=self.scale)
        return y

    @property
    def _base_is_trained(self) -> bool:
        weight = self.base.weight
        return isinstance(weight, Tensor) and weight.requires_grad

    def _merged(self, role: Role) -> Tensor:
        """Base and adapter as one weight ``[out, in]``: if both are trained, one product a layer instead of three."""
        block = self.block(role)
        weight: Tensor = self.base.weight  # type: ignore[assignment]  # a parameter
        return torch.addmm(weight, self.lora_B[block].T, self.lora_A[block], alpha=self.scale)

    def block(self, role: Role) -> slice:
        """The rows of the stacked matrices that belong to a role."""
        return slice(role * self.rank, (role + 1) * self.rank)

    @torch.no_grad()
    def load(self, role: Role, a: Tensor, b: Tensor) -> None:
        """Set an adapter: ``a [rank, in]``, ``b [out, rank]`` (the layout of checkpoints)."""
        self.lora_A[self.block(role)].copy_(a)
        self.lora_B[self.block(role)].copy_(b.T)

    @torch.no_grad()
    def export(self, role: Role) -> tuple[Tensor, Tensor]:
        """A copy of the adapter of a role: ``(a [rank, in], b [out, rank])``."""
        block = self.block(role)
        return self.lora_A[block].clone(), self.lora_B[block].T.contiguous()


def route_linears(layers: nn.Module, rank: int, scale: float, dtype: torch.dtype) -> dict[str, RoutedLinear]:
    """Wrap every linear layer in `layers` in place; returns the new layers by their dotted names."""
    found = {
        name: module
        for name, module in layers.named_modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features")
    }
    routed_layers = {name: RoutedLinear(module, rank, scale, dtype) for name, module in found.items()}
    for name, module in routed_layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(layers.get_submodule(parent), leaf, module)
    return routed_layers


def init_adapter(layer: RoutedLinear, role: Role, generator: torch.Generator | None = None) -> None:
    """Initialise an adapter as in LoRA: A uniform with variance 1/(3 in), B zero."""
    a = layer.lora_A[layer.block(role)]
    bound = a.shape[1] ** -0.5
    with torch.no_grad():
        a.uniform_(-bound, bound, generator=generator)
        layer.lora_B[layer.block(role)].zero_()
