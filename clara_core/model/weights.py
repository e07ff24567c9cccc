"""The decoder's weights with one adapter a role: loading, export, and freezing in the fastest layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.config import ClaraConfig, Role
from clara_core.model.decode_step import DecodeStep, fits
from clara_core.model.int8_linear import Int8Linear, int8_linear
from clara_core.model.kv_memory import KVShape
from clara_core.model.lora import current_routing, route_linears
from clara_core.model.packed_linear import PackedLinear, packed
from clara_core.model.processor import Kernels, by_columns
from clara_core.model.sampler import Ends

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from clara_core.model.checkpoint.io import Checkpoint

EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class RoutedDecoder(nn.Module):
    """A causal LM with one adapter a role on every linear layer of its blocks.

    Args:
        decoder: The causal LM, with its vocabulary already resized to the memory tokens.
        config: Config of the checkpoint.

    Attributes:
        processor: Matrix kernels and threads on a CPU.
        fused: Fused decode step of a frozen model; None if it is not frozen or has another architecture.
    """

    fused: DecodeStep | None = None
    processor: Kernels = Kernels()

    def __init__(self, decoder: PreTrainedModel, config: ClaraConfig) -> None:
        super().__init__()
        self.decoder = decoder
        self.config = config
        self.trunk: nn.Module = getattr(decoder, decoder.base_model_prefix)
        self.prefix = f"{decoder.base_model_prefix}.layers."
        self.routed = route_linears(self.trunk.layers, config.lora_r, config.lora_scale, self.dtype)
        for layer in self.trunk.layers:
            layer.register_forward_pre_hook(_pause_between_layers)

    @property
    def hidden(self) -> int:
        """Width of a memory token."""
        return int(self.decoder.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the token ids."""
        device: torch.device = self.decoder.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of hidden states and memory tokens."""
        dtype: torch.dtype = self.decoder.get_input_embeddings().weight.dtype
        return dtype

    @property
    def context(self) -> int:
        """Most positions that a prompt and its answer may take together."""
        return context_of(self.decoder.config)

    @property
    def ends(self) -> Ends:
        """The tokens that end an answer by the generation config of the base decoder.

        Raises:
            CheckpointError: ``min_new_tokens`` in the config is invalid.
        """
        config = self.decoder.generation_config
        ids = getattr(config, "eos_token_id", None)
        after = getattr(config, "min_new_tokens", None)
        after = 0 if after is None else after
        if type(after) is not int or after < 0:
            msg = f"min_new_tokens in generation_config.json must be a whole number of at least 0, got {after!r}"
            raise CheckpointError(msg)
        return Ends(frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids]), after)

    def kv_shape(self) -> KVShape:
        """The shape of one position in the KV cache."""
        config = self.decoder.config
        heads = int(config.num_attention_heads)
        dim = getattr(config, "head_dim", None) or self.hidden // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return KVShape(int(config.num_hidden_layers), int(kv_heads), int(dim), self.dtype, self.device)

    # --- weights -----------------------------------------------------------------------------------------

    def load_adapters(self, checkpoint: Checkpoint) -> None:
        """Load the embeddings and adapters of a checkpoint, and check that each tensor matches.

        Raises:
            CheckpointError: The vocabulary, a layer or a shape does not match this decoder.
        """
        self._load_embeddings(checkpoint)
        for role, tensors in checkpoint.adapters.items():
            self._load_adapter(role, tensors, checkpoint)

    def export_adapter(self, role: Role) -> dict[str, Tensor]:
        """A copy of the adapter of a role under the keys of a checkpoint."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.routed.items():
            a, b = layer.export(role)
            tensors[f"{self.prefix}{name}.lora_A.weight"] = a
            tensors[f"{self.prefix}{name}.lora_B.weight"] = b
        return tensors

    def export_embeddings(self) -> dict[str, Tensor]:
        """A copy of the input embeddings and the output head under the keys of a checkpoint."""
        return {
            EMBEDDINGS: self.decoder.get_input_embeddings().weight.detach().clone(),
            HEAD: self.decoder.get_output_embeddings().weight.detach().clone(),
        }

    def freeze(self, kernels: Kernels | None = None) -> None:
        """End training: make the weights constant and store them in the layout of the chosen kernels.

        Args:
            kernels: Kernels for this CPU; None: oneDNN for all weights that it packs.
        """
        self.eval().requires_grad_(False)
        self.processor = kernels or Kernels()
        for layer in self.routed.values():
            layer.base = self._in_layout(layer.base)
            layer.onednn = self.processor.adapters
        self.decoder.set_output_embeddings(self._in_layout(self.decoder.get_output_embeddings()))
        if self.processor.int8:
            self.to(self.dtype)  # the other weights, which still have the type of the files
        if fits(self.trunk, self.routed):
            shape = self.kv_shape()
            heads = (int(self.decoder.config.num_attention_heads), shape.kv_heads, shape.dim)
            self.fused = DecodeStep(self.trunk, Role.GENERATOR, self.context, heads)

    def _in_layout(self, layer: nn.Module) -> nn.Module:
        """A linear layer in the layout of the chosen kernels."""
        if self.processor.int8:
            return int8_linear(layer)
        shape = (int(layer.out_features), int(layer.in_features))  # type: ignore[arg-type]
        if shape in self.processor.columns and type(layer) is nn.Linear:
            return by_columns(layer)
        return packed(layer) if self.processor.packs(shape) else layer

    @property
    def weights_bytes(self) -> int:
        """Bytes of weights and adapters, including packed weights, which are not parameters."""
        packed_bytes = sum(layer.nbytes for layer in self.modules() if isinstance(layer, PackedLinear | Int8Linear))
        fused_bytes = 0 if self.fused is None else self.fused.nbytes
        return packed_bytes + fused_bytes + sum(weight.nbytes for weight in self.parameters())

    def _load_embeddings(self, checkpoint: Checkpoint) -> None:
        targets = {
            EMBEDDINGS: self.decoder.get_input_embeddings().weight,
            HEAD: self.decoder.get_output_embeddings().weight,
        }
        for key, target in targets.items():
            saved = checkpoint.embeddings.get(key)
            if saved is None:
                continue
            if saved.shape != target.shape:
                raise CheckpointError(
                    f"{checkpoint.folder}: {key} is {list(saved.shape)}, but the base decoder with its memory tokens "
                    f"needs {list(target.shape)}; give the base it was trained on with base_model="
                )
            with torch.no_grad():
                target.copy_(saved)

    def _load_adapter(self, role: Role, tensors: dict[str, Tensor], checkpoint: Checkpoint) -> None:
        expected = {
            f"{self.prefix}{name}.lora_{part}.weight": shape
            for name, layer in self.routed.items()
            for part, shape in (("A", (layer.rank, layer.in_features)), ("B", (layer.out_features, layer.rank)))
        }
        found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if found != expected:
            key = min(key for key in found.keys() | expected if found.get(key) != expected.get(key))
            raise CheckpointError(
                f"{checkpoint.folder}: {role.adapter} does not fit the base decoder at {key}: the file has "
                f"{_shape(found.get(key))}, the decoder needs {_shape(expected.get(key))}; give the base it was "
                "trained on with base_model="
            )
        for name, layer in self.routed.items():
            stem = f"{self.prefix}{name}"
            layer.load(role, tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"])


def context_of(config: PretrainedConfig) -> int:
    """Most positions that a decoder with this config reads: its limit, or its sliding window if that is less."""
    limit, sliding = int(config.max_position_embeddings), getattr(config, "sliding_window", None)
    return min(limit, sliding) if sliding else limit


def _pause_between_layers(_module: nn.Module, _args: object) -> None:
    pause = current_routing().pause
    if pause is not None:
        pause()


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))
