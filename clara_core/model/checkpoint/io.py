"""Reads, validates and atomically writes checkpoints.

The layout is that of the releases (`config.json`, `adapters.*`, `decoder_first_last_layers.*`), with `.safetensors`
instead of `.pth` in checkpoints that this project wrote. Keys of `adapters.safetensors` are `<adapter name>/<key>`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.config import CONFIG_FILE, ClaraConfig, Role
from clara_core.model.checkpoint.hub import resolve, resolve_base
from clara_core.model.checkpoint.validation import hidden_of, roles_of, validate
from clara_core.model.checkpoint.weights import (
    ADAPTERS,
    EMBED_KEY,
    EMBEDDINGS,
    HEAD_KEY,
    NO_EMBEDDINGS,
    StateDict,
    read_weights,
    weight_files,
)

__all__ = [
    "EMBED_KEY",
    "HEAD_KEY",
    "Checkpoint",
    "check_vocabulary",
    "export_peft",
    "read_checkpoint",
    "resolve",
    "resolve_base",
    "weight_files",
    "write_checkpoint",
]

# The config fields that determine what the weights compute.
_IDENTITY_FACTS: Final = (
    "doc_max_length",
    "compr_rate",
    "lora_r",
    "sep",
    "different_mem_tokens",
    "kbtc_training",
)
_HASH_CHUNK: Final = 1 << 22  # elements converted to float32 at a time
# Files of a checkpoint, which writing replaces. All other files in its folder are kept.
_OWN_FILES: Final = frozenset(
    {
        CONFIG_FILE,
        *(stem + end for stem in (ADAPTERS, EMBEDDINGS) for end in (".safetensors", ".pth")),
    }
)


@dataclass(frozen=True)
class Checkpoint:
    """A validated checkpoint in memory.

    Attributes:
        folder: the folder it was read from.
        config: its config.json.
        adapters: for each role, A `[r, in]` and B `[out, r]` of every linear layer of every block, by keys such as
            `model.layers.0.self_attn.q_proj.lora_A.weight`.
        embeddings: `model.embed_tokens.weight` and `lm_head.weight` `[vocabulary, hidden]` with the added tokens;
            without the latter if it is tied, and empty if the base already has the tokens.
        identity: sha256 of the weights (as float32, so equal for every dtype that stores them exactly) and of the
            config fields that determine the computation. The weights of the base decoder are not included.
    """

    folder: Path
    config: ClaraConfig
    adapters: dict[Role, StateDict]
    embeddings: StateDict
    identity: str

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles of the checkpoint, in order."""
        return tuple(self.adapters)

    @property
    def hidden(self) -> int:
        """Width of the decoder, and of a memory token."""
        if EMBED_KEY in self.embeddings:
            return int(self.embeddings[EMBED_KEY].shape[1])
        return hidden_of(next(iter(self.adapters.values())))


def read_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read and validate a checkpoint folder.

    Tensors are on the CPU in the dtype of the file, and may be views of a mapped file.

    Raises:
        CheckpointError: a file or tensor is missing, damaged, unknown, not finite, or contradicts the config.
    """
    folder = Path(folder)
    config = ClaraConfig.read(folder)
    by_name, embeddings = read_weights(folder)
    adapters = roles_of(by_name, str(folder))
    validate(config, adapters, embeddings, str(folder))
    return Checkpoint(folder, config, adapters, embeddings, _identity(config, adapters, embeddings))


def check_vocabulary(checkpoint: Checkpoint, vocabulary: int, base: str) -> None:
    """Check the checkpoint's embeddings against the base's tokenizer with the added tokens.

    Args:
        checkpoint: the checkpoint.
        vocabulary: length of the base's tokenizer with the added tokens.
        base: name of the base in messages.

    Raises:
        CheckpointError: the embeddings have another number of rows.
    """
    matrix = checkpoint.embeddings.get(EMBED_KEY)
    if matrix is not None and matrix.shape[0] != vocabulary:
        raise CheckpointError(
            f"the checkpoint in {checkpoint.folder} has embeddings for {matrix.shape[0]} tokens, but the tokenizer of "
            f"{base} with the {len(checkpoint.config.added_tokens)} added tokens has {vocabulary}. It was trained on "
            "another base: pass that one as base_model=."
        )


def write_checkpoint(
    folder: str | os.PathLike[str],
    config: ClaraConfig,
    adapters: Mapping[Role, StateDict],
    embeddings: StateDict,
) -> Checkpoint:
    """Write a checkpoint in safetensors, atomically, and return it.

    All files are written and synced in a new folder beside the target, which then replaces it. If a step fails, the
    target is unchanged. Other files of the target (a base decoder, a card) are kept.

    Args:
        folder: the target; it is created, with its parents, if it does not exist.
        config: content of config.json.
        adapters: LoRA tensors of each role, as in `Checkpoint.adapters`.
        embeddings: as in `Checkpoint.embeddings`; may be empty.

    Raises:
        CheckpointError: the weights are not valid, or cannot be written (disk full, no permission).
    """
    target = Path(folder).absolute()
    adapters = dict(sorted(adapters.items()))
    validate(config, adapters, embeddings, f"the checkpoint for {target}")
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"cannot write a checkpoint to {target}: a file of that name exists; name a folder")
    mark = uuid.uuid4().hex[:8]
    stage = target.with_name(f".{target.name}.new-{mark}")
    try:
        stage.mkdir(parents=True)
        _write_files(stage, config, adapters, embeddings)
        _swap(stage, target, target.with_name(f".{target.name}.old-{mark}"))
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(
            f"writing the checkpoint {target} failed ({exc}); an existing checkpoint there is unchanged."
        ) from exc
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return Checkpoint(target, config, adapters, dict(embeddings), _identity(config, adapters, embeddings))


def export_peft(checkpoint: Checkpoint, role: Role, folder: str | os.PathLike[str]) -> None:
    """Write the adapter of one role as a folder that `PeftModel.from_pretrained` loads.

    The checkpoint's embeddings are not written: the adapter is for the base decoder with its own vocabulary.

    Raises:
        CheckpointError: the checkpoint lacks the role, the folder is not empty, or writing failed.
    """
    if role not in checkpoint.adapters:
        held = ", ".join(found.label for found in checkpoint.roles)
        raise CheckpointError(f"{checkpoint.folder} has no {role}; it has: {held}")
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not an empty folder; give another one")
    state = checkpoint.adapters[role]
    config = checkpoint.config
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.decoder_model_name,
        "r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({key.split(".")[-3] for key in state}),
    }
    stage = target.with_name(f".{target.name}.new-{uuid.uuid4().hex[:8]}")
    try:
        stage.mkdir(parents=True)
        (stage / "adapter_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        tensors = _own_storage({f"base_model.model.{key}": tensor for key, tensor in state.items()})
        save_file(tensors, stage / "adapter_model.safetensors", metadata={"format": "pt"})
        stage.replace(target)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"writing the peft folder {target} failed ({exc})") from exc
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write_files(stage: Path, config: ClaraConfig, adapters: Mapping[Role, StateDict], embeddings: StateDict) -> None:
    config.write(stage)
    flat = {f"{role.adapter}/{key}": tensor for role, state in adapters.items() for key, tensor in state.items()}
    metadata = {"format": "pt"} if embeddings else {"format": "pt", **NO_EMBEDDINGS}
    save_file(_own_storage(flat), stage / f"{ADAPTERS}.safetensors", metadata=metadata)
    if embeddings:
        save_file(_own_storage(embeddings), stage / f"{EMBEDDINGS}.safetensors", metadata={"format": "pt"})
    for path in stage.iterdir():
        _flush(path)
    _flush(stage)


def _swap(stage: Path, target: Path, old: Path) -> None:
    """Rename `stage` to `target`, and move other files of the old target to it; undo all if a step fails."""
    if not target.exists():
        stage.replace(target)
        _flush(target.parent)
        return
    target.replace(old)
    kept: list[str] = []
    try:
        stage.replace(target)
        for entry in sorted(path.name for path in old.iterdir() if path.name not in _OWN_FILES):
            (old / entry).replace(target / entry)
            kept.append(entry)
        _flush(target.parent)
    except OSError:
        for entry in kept:
            (target / entry).replace(old / entry)
        if target.exists():
            target.replace(stage)
        old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Sync a file or a folder to disk; does nothing for a folder on systems that cannot open one."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _own_storage(tensors: Mapping[str, Tensor]) -> StateDict:
    """Contiguous CPU tensors that do not share memory, as safetensors requires (tied weights do)."""
    seen: set[int] = set()
    result: StateDict = {}
    for key, tensor in tensors.items():
        own = tensor.detach().to("cpu").contiguous()
        if own.untyped_storage().data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        result[key] = own
    return result


def _identity(config: ClaraConfig, adapters: Mapping[Role, StateDict], embeddings: StateDict) -> str:
    digest = hashlib.sha256()
    facts = {name: getattr(config, name) for name in _IDENTITY_FACTS}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for prefix, state in _named_states(adapters, embeddings):
        for key in sorted(state):
            tensor = state[key].detach()
            digest.update(f"\n{prefix}/{key}{tuple(tensor.shape)}\n".encode())
            flat = tensor.reshape(-1)
            for start in range(0, flat.numel(), _HASH_CHUNK):
                chunk = flat[start : start + _HASH_CHUNK].to("cpu", torch.float32)
                digest.update(chunk.contiguous().numpy().data)
    return digest.hexdigest()


def _named_states(adapters: Mapping[Role, StateDict], embeddings: StateDict) -> Iterable[tuple[str, StateDict]]:
    for role, state in adapters.items():
        yield role.adapter, state
    yield EMBEDDINGS, embeddings
