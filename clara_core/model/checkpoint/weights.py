"""Reads the weight files of a checkpoint without running code from them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clara_core.common.errors import CheckpointError

ADAPTERS: Final = "adapters"
EMBEDDINGS: Final = "decoder_first_last_layers"
EMBED_KEY: Final = "model.embed_tokens.weight"
HEAD_KEY: Final = "lm_head.weight"
VOCABULARY_KEYS: Final = (EMBED_KEY, HEAD_KEY)
# Metadata of adapters.safetensors if the base already has the added tokens, so that the checkpoint has no embeddings.
NO_EMBEDDINGS: Final = {"embeddings": "base"}

StateDict = dict[str, Tensor]


def read_weights(folder: Path) -> tuple[dict[str, StateDict], StateDict]:
    """Read the adapters and the embeddings of a folder.

    A `.safetensors` file is preferred to a `.pth` file of the same name.

    Returns:
        The state dict of each adapter (LoRA keys only), and the embeddings. Tensors may be views of a mapped file.

    Raises:
        CheckpointError: a file is missing, damaged, of another kind, or holds other objects than tensors.
    """
    path = _find(folder, ADAPTERS)
    if path is None:
        raise CheckpointError(
            f"{folder} has a config.json but neither {ADAPTERS}.safetensors nor {ADAPTERS}.pth: the checkpoint was "
            "not downloaded or copied completely."
        )
    adapters, metadata = _read_adapters(path)
    own: StateDict = {}
    for state in adapters.values():
        # The released code saves the same resized embeddings with each adapter.
        own |= {key: state.pop(key) for key in VOCABULARY_KEYS if key in state}
    path = _find(folder, EMBEDDINGS)
    if path is not None:
        return adapters, _flat(_load(path)[0], path)
    if not own and metadata.items() & NO_EMBEDDINGS.items():
        return adapters, {}
    if EMBED_KEY not in own:
        raise CheckpointError(
            f"{folder} has neither {EMBEDDINGS}.safetensors nor {EMBEDDINGS}.pth, which hold the embeddings of the "
            "memory tokens: the checkpoint was not downloaded or copied completely."
        )
    return adapters, own


def weight_files(folder: Path) -> list[Path]:
    """The existing files that `read_weights` reads."""
    return [path for path in (_find(folder, ADAPTERS), _find(folder, EMBEDDINGS)) if path is not None]


def _find(folder: Path, stem: str) -> Path | None:
    for suffix in (".safetensors", ".pth"):
        path = folder / (stem + suffix)
        if path.is_file():
            return path
    return None


def _read_adapters(path: Path) -> tuple[dict[str, StateDict], dict[str, str]]:
    content, metadata = _load(path)
    adapters: dict[str, StateDict] = {}
    if path.suffix == ".safetensors":
        for key, tensor in _flat(content, path).items():
            name, slash, rest = key.partition("/")
            if not slash:
                raise CheckpointError(
                    f"{path} has the key {key!r}, expected '<adapter name>/<key>'. A plain peft folder has only one "
                    "adapter and cannot be read as a checkpoint."
                )
            adapters.setdefault(name, {})[rest] = tensor
        return adapters, metadata
    for name, state in content.items():
        if not isinstance(name, str) or not isinstance(state, Mapping):
            raise CheckpointError(
                f"{path} holds {_kind(state)} under {name!r}, expected a dict of tensors for each adapter. It is not "
                "the adapters.pth of a CLaRa checkpoint."
            )
        adapters[name] = _flat(state, path)
    return adapters, metadata


def _load(path: Path) -> tuple[Mapping[Any, Any], dict[str, str]]:
    """Content and metadata of one file, on the CPU."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in that repo.")
    if not head:
        raise CheckpointError(f"{path} is empty; download it again.")
    return _load_safetensors(path) if path.suffix == ".safetensors" else _load_pth(path, head)


def _load_safetensors(path: Path) -> tuple[Mapping[Any, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(
            f"{path} ({_size(path)} bytes) is truncated or not a safetensors file ({exc}); download it again."
        ) from exc


def _load_pth(path: Path, head: bytes) -> tuple[Mapping[Any, Any], dict[str, str]]:
    zipped = head.startswith(b"PK\x03\x04")
    try:
        # Only the zip format can be mapped, not the older one.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as exc:
        # torch's message is not shown, because it advises to load the file without the restriction.
        code = re.search(r"GLOBAL:?\s+([\w.]+)", str(exc))
        if code is not None or head.startswith(b"\x80"):
            named = f" ({code[1]})" if code else ""
            raise CheckpointError(
                f"{path} holds pickled Python objects{named}, which may be code and are never loaded. Only files of "
                "plain tensors are read: take the checkpoint from its original source."
            ) from exc
        raise CheckpointError(f"{path} is not a file of tensors; download it again.") from exc
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
    ) as exc:
        what = "is truncated or damaged" if zipped else "is not a file of tensors"
        raise CheckpointError(f"{path} ({_size(path)} bytes) {what} ({_first_line(exc)}); download it again.") from exc
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {_kind(content)}, expected a dict of tensors.")
    return content, {}


def _flat(content: Mapping[Any, Any], path: Path) -> StateDict:
    state: StateDict = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path} holds {_kind(value)} under {key!r}, expected a named tensor.")
        state[key] = value.detach()  # embeddings are saved as parameters
    return state


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
