"""Weight files of a checkpoint: reading without running code, and proving that what was read is whole.

A file that is cut short, foreign, holds code, or disagrees with its config is refused here, before a model sees it.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clara_core.config import ClaraConfig, Role
from clara_core.errors import CheckpointError

ADAPTERS: Final = "adapters"
EMBEDDINGS: Final = "decoder_first_last_layers"
EMBED_KEY: Final = "model.embed_tokens.weight"
HEAD_KEY: Final = "lm_head.weight"
VOCABULARY_KEYS: Final = (EMBED_KEY, HEAD_KEY)
# In the metadata of adapters.safetensors: the base already has the added tokens, no embeddings belong to the checkpoint.
NO_EMBEDDINGS: Final = {"embeddings": "base"}

_LORA_KEY = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.lora_([AB])\.weight", re.ASCII)
# Modules that read the residual stream, so that their A has `hidden` columns.
_READS_HIDDEN: Final = (
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
)

StateDict = dict[str, Tensor]


def read_weights(folder: Path) -> tuple[dict[str, StateDict], StateDict]:
    """Reads the adapters and the embeddings of a folder, `.safetensors` where there is one, else `.pth`.

    Returns:
        The state dict of each adapter (LoRA keys only), and the embeddings. Tensors may be views of a mapped file.

    Raises:
        CheckpointError: a file is missing, cut short, foreign, or holds more than tensors.
    """
    path = _find(folder, ADAPTERS)
    if path is None:
        raise CheckpointError(
            f"{folder} has a config.json but neither {ADAPTERS}.safetensors nor {ADAPTERS}.pth: the checkpoint was not "
            "fetched or copied completely."
        )
    adapters, metadata = _read_adapters(path)
    own: StateDict = {}
    for state in adapters.values():
        # The released code saves the resized embeddings with each adapter; they are the same tensors everywhere.
        own |= {key: state.pop(key) for key in VOCABULARY_KEYS if key in state}
    path = _find(folder, EMBEDDINGS)
    if path is not None:
        return adapters, _flat(_load(path)[0], path)
    if not own and metadata.items() & NO_EMBEDDINGS.items():
        return adapters, {}
    if EMBED_KEY not in own:
        raise CheckpointError(
            f"{folder} has neither {EMBEDDINGS}.safetensors nor {EMBEDDINGS}.pth: without them the memory tokens have "
            "no embeddings. The checkpoint was not fetched or copied completely."
        )
    return adapters, own


def weight_files(folder: Path) -> list[Path]:
    """The weight files that `read_weights` reads, as far as they are there."""
    return [
        path for path in (_find(folder, ADAPTERS), _find(folder, EMBEDDINGS)) if path is not None
    ]


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
                    f"{path} holds {key!r}; keys of a CLaRa checkpoint are '<adapter name>/<key>'. A plain peft folder "
                    "is one adapter only and cannot be read as a checkpoint."
                )
            adapters.setdefault(name, {})[rest] = tensor
        return adapters, metadata
    for name, state in content.items():
        if not isinstance(name, str) or not isinstance(state, Mapping):
            raise CheckpointError(
                f"{path} holds {_kind(state)} under {name!r}; expected one dict of tensors per adapter. It is not the "
                "adapters.pth of a CLaRa checkpoint."
            )
        adapters[name] = _flat(state, path)
    return adapters, metadata


def _load(path: Path) -> tuple[Mapping[object, object], dict[str, str]]:
    """Content and metadata of one file, on the CPU. Never runs code from the file."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as exc:
        raise CheckpointError(f"cannot read {path}: {exc.strerror or exc}") from exc
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in that repo."
        )
    if not head:
        raise CheckpointError(f"{path} is empty; fetch it again.")
    return _load_safetensors(path) if path.suffix == ".safetensors" else _load_pth(path, head)


def _load_safetensors(path: Path) -> tuple[Mapping[object, object], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(
            f"{path} ({_size(path)} bytes) is cut short or is no safetensors file ({exc}); fetch it again."
        ) from exc


def _load_pth(path: Path, head: bytes) -> tuple[Mapping[object, object], dict[str, str]]:
    zipped = head.startswith(b"PK\x03\x04")
    try:
        # Only the zip format can be mapped; the format before it is read at once.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as exc:
        # The restricted unpickler refuses code and files that are no pickle alike; its text tells them apart.
        if (
            "Unsupported" in str(exc)
            and "GLOBAL" in str(exc).upper()
            or "Unsupported class" in str(exc)
        ):
            raise CheckpointError(
                f"{path} holds pickled code, which is never run: {_first_line(exc)} Only files of plain tensors are read."
            ) from exc
        raise CheckpointError(
            f"{path} is no file of tensors ({_first_line(exc)}); fetch it again."
        ) from exc
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
        what = "is cut short or damaged" if zipped else "is no file of tensors"
        raise CheckpointError(
            f"{path} ({_size(path)} bytes) {what} ({_first_line(exc)}); fetch it again."
        ) from exc
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {_kind(content)}, expected a dict of tensors.")
    return content, {}


def _flat(content: Mapping[object, object], path: Path) -> StateDict:
    state: StateDict = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds {_kind(value)} under {key!r}, expected a tensor with a name."
            )
        state[key] = value
    return state


def roles_of(adapters: Mapping[str, StateDict], where: str) -> dict[Role, StateDict]:
    """Adapters by role, in the order of the roles.

    Raises:
        CheckpointError: an adapter has a name that belongs to no role.
    """
    found: dict[Role, StateDict] = {}
    for name, state in adapters.items():
        try:
            found[Role.from_adapter(name)] = state
        except ValueError as exc:
            raise CheckpointError(
                f"{where} holds an adapter that nothing would use: {exc}"
            ) from exc
    return dict(sorted(found.items()))


def prove(
    config: ClaraConfig, adapters: Mapping[Role, StateDict], embeddings: StateDict, where: str
) -> None:
    """Checks that the weights are all that the config promises, and nothing else.

    Args:
        config: the checkpoint's config.
        adapters: LoRA tensors of each role: A `[r, in]`, B `[out, r]`.
        embeddings: may be empty; else `model.embed_tokens.weight` and, unless it is tied, `lm_head.weight`.
        where: the name of the checkpoint in messages.

    Raises:
        CheckpointError: an adapter, a pair, a layer is missing; a rank, a shape, a key, a value is wrong.
    """
    for role in config.promised_roles:
        if role not in adapters:
            held = ", ".join(found.adapter for found in adapters) or "none"
            raise CheckpointError(
                f"{where} is of training_stage {config.training_stage!r}, which promises {role.adapter} ({role}), but "
                f"holds: {held}. The file is incomplete, or the training_stage in config.json is wrong."
            )
    shapes = {
        role: _prove_adapter(config, state, f"{where}, {role.adapter}")
        for role, state in adapters.items()
    }
    first, *others = shapes
    for role in others:
        if shapes[role] != shapes[first]:
            raise CheckpointError(
                f"{where}: {role.adapter} and {first.adapter} cover different modules or shapes; they are adapters of "
                "different decoders."
            )
    _prove_embeddings(config, embeddings, shapes[first], where)


_Shapes = dict[str, tuple[int, int]]  # module of one layer -> (in, out)


def _prove_adapter(config: ClaraConfig, state: StateDict, where: str) -> _Shapes:
    layers: dict[int, _Shapes] = {}
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = _LORA_KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(
                f"{where}: unknown key {key!r}; expected names such as 'model.layers.0.self_attn.q_proj.lora_A.weight'."
            )
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise CheckpointError(
                f"{where}: {key} is {tuple(tensor.shape)} {tensor.dtype}, expected a float matrix."
            )
        halves.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
        _prove_finite(tensor, f"{where}: {key}")
    if not halves:
        raise CheckpointError(f"{where} is empty.")
    for (layer, module), pair in halves.items():
        name = f"{where}: layer {layer} {module}"
        if len(pair) != 2:
            raise CheckpointError(f"{name} has lora_{next(iter(pair))} without its other half.")
        a, b = pair["A"], pair["B"]  # [r, in], [out, r]
        if a.shape[0] != config.lora_r or b.shape[1] != config.lora_r:
            raise CheckpointError(
                f"{name} has rank {a.shape[0]} (A) and {b.shape[1]} (B), config.json says lora_r {config.lora_r}."
            )
        layers.setdefault(layer, {})[module] = (a.shape[1], b.shape[0])
    if sorted(layers) != list(range(len(layers))):
        raise CheckpointError(
            f"{where} covers layers {sorted(layers)}; layers are missing in between."
        )
    for layer, modules in layers.items():
        if modules != layers[0]:
            differing = sorted(dict(modules.items() ^ layers[0].items()))
            raise CheckpointError(
                f"{where}: layers 0 and {layer} differ in {', '.join(differing)}."
            )
    if not any(bool(pair["B"].any()) for pair in halves.values()):
        raise CheckpointError(f"{where}: every lora_B is zero, the adapter was never trained.")
    return layers[0]


def _prove_embeddings(
    config: ClaraConfig, embeddings: StateDict, shapes: _Shapes, where: str
) -> None:
    if not embeddings:
        return
    unknown = sorted(set(embeddings) - set(VOCABULARY_KEYS))
    if unknown:
        raise CheckpointError(
            f"{where}: unknown keys beside the embeddings: {', '.join(unknown[:5])}."
        )
    if EMBED_KEY not in embeddings:
        raise CheckpointError(f"{where}: {EMBEDDINGS} lacks {EMBED_KEY}.")
    hidden = {
        shape[0] for module, shape in shapes.items() if module.rpartition(".")[2] in _READS_HIDDEN
    }
    added = len(config.added_tokens)
    for key, tensor in embeddings.items():
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise CheckpointError(
                f"{where}: {key} is {tuple(tensor.shape)} {tensor.dtype}, expected a float matrix."
            )
        rows, width = tensor.shape
        if hidden and hidden != {width}:
            raise CheckpointError(
                f"{where}: {key} is {width} wide, the adapters are made for hidden size {', '.join(map(str, hidden))}."
            )
        if rows <= added:
            raise CheckpointError(
                f"{where}: {key} has {rows} rows, no more than the {added} added tokens: it is cut, or is no vocabulary."
            )
        _prove_finite(tensor, f"{where}: {key}")
    if len({tensor.shape for tensor in embeddings.values()}) > 1:
        sizes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in embeddings.items())
        raise CheckpointError(f"{where}: the embeddings do not match each other: {sizes}.")


def _prove_finite(tensor: Tensor, name: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{name} holds {bad} values that are NaN or infinite; the file is damaged."
        )


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
