"""Validates the weights of a checkpoint against its config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.config import ClaraConfig, Role
from clara_core.model.checkpoint.weights import EMBED_KEY, EMBEDDINGS, VOCABULARY_KEYS, StateDict

_LORA_KEY = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.lora_([AB])\.weight", re.ASCII)
# Modules with input of size `hidden`, which is also the number of columns of their A.
_READS_HIDDEN: Final = (
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
)


def roles_of(adapters: Mapping[str, StateDict], where: str) -> dict[Role, StateDict]:
    """Adapters by role, in the order of the roles.

    Raises:
        CheckpointError: an adapter does not belong to a role.
    """
    found: dict[Role, StateDict] = {}
    for name, state in adapters.items():
        try:
            found[Role.from_adapter(name)] = state
        except ValueError as exc:
            raise CheckpointError(f"{where} has an unknown adapter: {exc}") from exc
    return dict(sorted(found.items()))


def validate(config: ClaraConfig, adapters: Mapping[Role, StateDict], embeddings: StateDict, where: str) -> None:
    """Check that the weights are complete and match the config.

    Args:
        config: the checkpoint's config.
        adapters: LoRA tensors of each role: A `[r, in]`, B `[out, r]`.
        embeddings: empty, or `model.embed_tokens.weight` and, unless it is tied, `lm_head.weight`.
        where: name of the checkpoint in messages.

    Raises:
        CheckpointError: an adapter, a layer or half of a pair is missing; a rank, shape or key is wrong; a value is not
            finite; or an adapter was never trained.
    """
    for role in config.required_roles:
        if role not in adapters:
            held = ", ".join(found.adapter for found in adapters) or "none"
            raise CheckpointError(
                f"{where} is of training_stage {config.training_stage!r}, which needs {role.adapter} ({role}), but "
                f"has: {held}. The file is incomplete, or the training_stage in config.json is wrong."
            )
    shapes = {role: _check_adapter(config, state, f"{where}, {role.adapter}") for role, state in adapters.items()}
    first, *others = shapes
    for role in others:
        if shapes[role] != shapes[first]:
            raise CheckpointError(
                f"{where}: {role.adapter} ({len(shapes[role])} layers) and {first.adapter} ({len(shapes[first])} "
                "layers) cover different modules or shapes; one is incomplete, or they belong to different decoders."
            )
    _check_embeddings(config, embeddings, shapes[first][0], where)


def hidden_of(adapter: StateDict) -> int:
    """Hidden size of the decoder of a validated adapter."""
    for key, tensor in adapter.items():
        match = _LORA_KEY.fullmatch(key)
        if match and match[3] == "A" and match[2].rpartition(".")[2] in _READS_HIDDEN:
            return int(tensor.shape[1])  # A is [r, hidden]
    raise CheckpointError("the adapter has no module whose input is the hidden state, so its hidden size is unknown")


_Shapes = dict[str, tuple[int, int]]  # module of one layer -> (in, out)


def _check_adapter(config: ClaraConfig, state: StateDict, where: str) -> dict[int, _Shapes]:
    """Check one adapter and return the shapes of each layer."""
    layers: dict[int, _Shapes] = {}
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = _LORA_KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(
                f"{where}: unknown key {key!r}; expected names such as 'model.layers.0.self_attn.q_proj.lora_A.weight'."
            )
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise CheckpointError(f"{where}: {key} is {tuple(tensor.shape)} {tensor.dtype}, expected a float matrix.")
        halves.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
        _check_finite(tensor, f"{where}: {key}")
    if not halves:
        raise CheckpointError(f"{where} is empty.")
    for (layer, module), pair in halves.items():
        name = f"{where}: layer {layer} {module}"
        if len(pair) != 2:
            raise CheckpointError(f"{name} has lora_{next(iter(pair))} without its other half.")
        a, b = pair["A"], pair["B"]  # [r, in], [out, r]
        if a.shape[0] != config.lora_r or b.shape[1] != config.lora_r:
            raise CheckpointError(
                f"{name} has rank {a.shape[0]} (A) and {b.shape[1]} (B), but lora_r in config.json is {config.lora_r}."
            )
        layers.setdefault(layer, {})[module] = (a.shape[1], b.shape[0])
    if sorted(layers) != list(range(len(layers))):
        raise CheckpointError(f"{where} covers layers {sorted(layers)}; layers are missing in between.")
    for layer, modules in layers.items():
        if modules != layers[0]:
            differing = sorted(dict(modules.items() ^ layers[0].items()))
            raise CheckpointError(f"{where}: layers 0 and {layer} differ in {', '.join(differing)}.")
    if not any(bool(pair["B"].any()) for pair in halves.values()):
        raise CheckpointError(f"{where}: every lora_B is zero, so the adapter was never trained.")
    return layers


def _check_embeddings(config: ClaraConfig, embeddings: StateDict, shapes: _Shapes, where: str) -> None:
    if not embeddings:
        return
    unknown = sorted(set(embeddings) - set(VOCABULARY_KEYS))
    if unknown:
        raise CheckpointError(f"{where}: unknown keys beside the embeddings: {', '.join(unknown[:5])}.")
    if EMBED_KEY not in embeddings:
        raise CheckpointError(f"{where}: {EMBEDDINGS} lacks {EMBED_KEY}.")
    hidden = {shape[0] for module, shape in shapes.items() if module.rpartition(".")[2] in _READS_HIDDEN}
    added = len(config.added_tokens)
    for key, tensor in embeddings.items():
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise CheckpointError(f"{where}: {key} is {tuple(tensor.shape)} {tensor.dtype}, expected a float matrix.")
        rows, width = tensor.shape
        if hidden and hidden != {width}:
            raise CheckpointError(
                f"{where}: {key} has {width} columns, but the adapters have hidden size {', '.join(map(str, hidden))}."
            )
        if rows <= added:
            raise CheckpointError(
                f"{where}: {key} has {rows} rows, not more than the {added} added tokens: it is incomplete, or not an "
                "embedding table."
            )
        _check_finite(tensor, f"{where}: {key}")
    if len({tensor.shape for tensor in embeddings.values()}) > 1:
        sizes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in embeddings.items())
        raise CheckpointError(f"{where}: the embeddings do not match each other: {sizes}.")


def _check_finite(tensor: Tensor, name: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(f"{name} holds {bad} values that are NaN or infinite; the file is damaged.")
