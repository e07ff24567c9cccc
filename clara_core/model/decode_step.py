"""The fused decode step: one position a row over the decoder's weights, with few and large operations a layer.

Linear layers with the same input are one product, which includes the adapter's A matrices; a norm is one operation and
rotary positions are three; keys and values are written together. The plain version is the decoder's own forward, which
also reads prompts and passages and runs the steps of decoders with another architecture.

Dimensions of shapes: ``rows`` answers, ``heads`` query heads, ``kv_heads`` key and value heads of width ``dim``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clara_core.model.attention import Ragged
from clara_core.model.checkpoint.config import Role
from clara_core.model.int8_linear import Int8Linear, multiply
from clara_core.model.kv_cache import KVCache
from clara_core.model.lora import RoutedLinear
from clara_core.model.packed_linear import product

# Decoders whose layers are what `_Layer` computes, by the names of transformers.
_TRUNKS: Final = frozenset({"MistralModel", "LlamaModel", "Qwen2Model"})
_STATIC_ROPE: Final = frozenset({"default", "linear", "llama3", "yarn"})  # other kinds depend on the prompt's length


class FusedLinear:
    """Routed linear layers with the same input as one layer, with the adapter of one role.

    Plain weights are concatenated, and the layers become views of them, so only the adapter takes memory twice. Packed
    or quantized weights stay separate and are multiplied one after the other; 8-bit layers split their input once.
    """

    def __init__(self, layers: Sequence[RoutedLinear], role: Role) -> None:
        block, first = layers[0].block(role), layers[0]
        self._layers = layers
        self._scale = first.scale
        self._onednn = first.onednn
        self._out: int = sum(layer.out_features for layer in layers)
        self._shrink = torch.cat([layer.lora_A[block] for layer in layers])  # [parts * rank, in]
        self._expand = torch.block_diag(*[layer.lora_B[block] for layer in layers])  # [parts * rank, out]
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None
        bases = [layer.base for layer in layers]
        int8 = [base for base in bases if isinstance(base, Int8Linear)]
        self._int8 = int8 if len(int8) == len(bases) else []
        if self._int8:
            self._bias = _joined([base.bias for base in int8], [base.out_features for base in int8])
        if all(type(base) is nn.Linear and base.weight.dtype is first.lora_A.dtype for base in bases):
            self._fuse(bases)

    @property
    def nbytes(self) -> int:
        """Bytes in addition to the weights of the layers."""
        return int(self._shrink.nbytes + self._expand.nbytes)

    def _fuse(self, bases: Sequence[nn.Module]) -> None:
        weights: list[Tensor] = [base.weight for base in bases]  # type: ignore[misc]  # plain linear layers
        parts = [*(weight.detach() for weight in weights), self._shrink]
        if weights[0].stride(0) == 1 < weights[0].stride(1):  # column-major: see `processor`
            self._weight = torch.cat([part.t() for part in parts], dim=1).t()
        else:
            self._weight = torch.cat(parts)  # [out + parts * rank, in]
        sizes = [len(part) for part in parts]
        *views, self._shrink = self._weight.split(sizes)
        for base, view in zip(bases, views, strict=True):
            base.weight = nn.Parameter(view, requires_grad=False)
        biases: list[Tensor | None] = [base.bias for base in bases]  # type: ignore[misc]
        self._bias = _joined([*biases, None], sizes)

    def __call__(self, x: Tensor, adapted: bool) -> Tensor:
        """``x [rows, in]`` -> ``[rows, out]``, the outputs of the layers side by side; may be a strided view."""
        if self._weight is not None:
            both = F.linear(x, self._weight, self._bias)  # [rows, out + parts * rank]
            y = both[:, : self._out]
            return y.addmm_(both[:, self._out :], self._expand, alpha=self._scale) if adapted else y
        if self._int8:
            y = multiply(x, self._int8, self._bias)
        else:
            several: list[Tensor] = [layer.base(x) for layer in self._layers]
            y = several[0] if len(several) == 1 else torch.cat(several, dim=1)
        if not adapted:
            return y
        shrunk = product(x, self._shrink, onednn=self._onednn)
        if y.dtype is not self._expand.dtype:
            return torch.addmm(y.to(self._expand.dtype), shrunk, self._expand, alpha=self._scale)
        return y.addmm_(shrunk, self._expand, alpha=self._scale)


def _joined(biases: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """Biases side by side, zeros for a missing one; None if all are missing."""
    some = next((bias for bias in biases if bias is not None), None)
    if some is None:
        return None
    pairs = zip(biases, sizes, strict=True)
    return torch.cat([some.new_zeros(size) if bias is None else bias.detach() for bias, size in pairs])


class _Layer:
    """One block of the decoder for one position a row."""

    def __init__(self, block: Any, role: Role, heads: int, kv_heads: int, dim: int) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.inputs = FusedLinear([attention.q_proj, attention.k_proj, attention.v_proj], role)
        self.outputs = FusedLinear([attention.o_proj], role)
        self.wide = FusedLinear([mlp.gate_proj, mlp.up_proj], role)
        self.narrow = FusedLinear([mlp.down_proj], role)
        self.activation: nn.Module = mlp.act_fn
        self.norms = [_Norm(block.input_layernorm), _Norm(block.post_attention_layernorm)]
        self.scale = float(attention.scaling)
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim

    def __call__(
        self, states: Tensor, index: int, cache: KVCache, rotary: tuple[Tensor, Tensor], ragged: Ragged, adapted: bool
    ) -> Tensor:
        """Apply the block to ``states [rows, hidden]`` in place."""
        rows, turned = len(states), self.heads + self.kv_heads
        read = self.inputs(self.norms[0](states), adapted).view(rows, -1, self.dim)  # [rows, heads + 2 kv_heads, dim]
        _rotate(read[:, :turned], *rotary)
        written = read[:, self.heads :].view(rows, 2, self.kv_heads, self.dim)
        keys, values = cache.put(index, written)
        query = read[:, : self.heads, None]  # [rows, heads, 1, dim]
        mixed = ragged.attend(query, keys, values, self.scale, None)
        states.add_(self.outputs(mixed.reshape(rows, -1), adapted))
        gate, up = self.wide(self.norms[1](states), adapted).chunk(2, dim=1)
        return states.add_(self.narrow(self.activation(gate).mul_(up), adapted))


class _Norm:
    """A root-mean-square norm as one operation."""

    def __init__(self, norm: Any) -> None:
        self._weight: Tensor = norm.weight
        self._epsilon = float(norm.variance_epsilon)

    def __call__(self, states: Tensor) -> Tensor:
        return F.rms_norm(states, self._weight.shape, self._weight, self._epsilon)


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotate ``states [rows, heads, dim]`` in place by the cosines and sines of their positions, ``[rows, 1, dim]``."""
    half = states.shape[-1] // 2
    swapped = torch.cat([states[..., half:], states[..., :half]], dim=-1)
    states.mul_(cosine).addcmul_(swapped, sine)


class DecodeStep:
    """Decode steps of one decoder.

    Args:
        trunk: The frozen decoder stack with routed linear layers; its plain weights are concatenated.
        role: Role of the adapter; a step uses this one or none.
        positions: Most positions of a row.
        shape: ``(heads, kv_heads, dim)``.
    """

    def __init__(self, trunk: Any, role: Role, positions: int, shape: tuple[int, int, int]) -> None:
        self.role = role
        self._layers = [_Layer(block, role, *shape) for block in trunk.layers]
        self._norm = _Norm(trunk.norm)
        weight: Tensor = trunk.norm.weight
        at = torch.arange(positions, device=weight.device)[None]
        cosine, sine = trunk.rotary_emb(weight.new_empty(1, 1, 1), at)  # [1, positions, dim] each
        first = sine.shape[-1] // 2
        sine = torch.cat([-sine[..., :first], sine[..., first:]], dim=-1)  # rotation negates the first half
        self._table = torch.cat([cosine, sine], dim=-1)[0]  # [positions, 2 dim]

    @property
    def nbytes(self) -> int:
        """Bytes in addition to the weights of the decoder."""
        fused = (one for layer in self._layers for one in (layer.inputs, layer.outputs, layer.wide, layer.narrow))
        return self._table.nbytes + sum(one.nbytes for one in fused)

    def __call__(self, states: Tensor, positions: Tensor, cache: KVCache, ragged: Ragged) -> Tensor:
        """Append one position to each row: last hidden states ``[rows, hidden]``.

        Args:
            states: Embeddings ``[rows, hidden]``; they are overwritten.
            positions: Rotary positions ``[rows]``.
            cache: Stores keys and values; its role must be `role` or None.
            ragged: Attention over the rows.
        """
        cosine, sine = self._table.index_select(0, positions)[:, None].chunk(2, dim=-1)  # [rows, 1, dim] each
        for index, layer in enumerate(self._layers):
            states = layer(states, index, cache, (cosine, sine), ragged, cache.role is not None)
        return self._norm(states)


def fits(trunk: nn.Module, routed: Mapping[str, RoutedLinear]) -> bool:
    """Whether a decoder has the architecture that `DecodeStep` implements."""
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    return (
        type(trunk).__name__ in _TRUNKS
        and type(trunk).__module__.startswith("transformers.")
        and getattr(trunk.rotary_emb, "rope_type", None) in _STATIC_ROPE
        and {name.rpartition(".")[2] for name in routed} == names
    )
