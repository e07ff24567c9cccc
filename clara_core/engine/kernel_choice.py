"""The choice of matrix kernels for a model on a CPU, cached from one load to the next.

The cache file is keyed by all that the choice depends on: weights, dtype, quantization, CPU, threads, torch, and the
version of the kernels. If it cannot be read or written, the kernels are measured again at each load.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from pydantic import TypeAdapter

from clara_core.engine.options import EngineArguments
from clara_core.model.decoder import ClaraModel
from clara_core.model.processor import PLAIN, SMALL, VERSION, Kernels, measure_products, measure_threads

log = logging.getLogger(__name__)

_CHOICES: Final = TypeAdapter(dict[str, Kernels])  # what the file has, by `_key`
_MOST: Final = 64  # choices in the file; the oldest are dropped
_LARGE: Final = 64_000_000  # parameters above which a step uses all threads, if that is not measured


def prepare(model: ClaraModel, arguments: EngineArguments, fingerprint: str, *, int8: bool = False) -> None:
    """Freeze a model, with its weights in the layout that its device multiplies fastest.

    With `int8`, which is for a CPU only, the weights of the linear layers are kept in 8 bits.
    """
    layers = [layer.base for layer in model.routed.values()]
    numbers = sum(layer.in_features * layer.out_features for layer in model.routed.values())
    single = 0 if numbers > _LARGE else Kernels().single
    if model.device.type != "cpu" or arguments.cpu_kernels != "auto" or numbers <= SMALL:
        model.freeze(replace(PLAIN if arguments.cpu_kernels == "mkl" else Kernels(), single=single, int8=int8))
        return
    path, key = cache_file(), _key(arguments, fingerprint)
    known = _read(path).get(key)
    if known is not None:
        model.freeze(replace(known, int8=int8))
        return
    head = model.decoder.get_output_embeddings()
    adapter = (model.config.lora_r, model.hidden)
    kernels = PLAIN if int8 else measure_products([*layers, head], adapter)
    model.freeze(replace(kernels, int8=int8))
    frozen = [*(layer.base for layer in model.routed.values()), model.decoder.get_output_embeddings()]
    model.processor = replace(model.processor, single=measure_threads(frozen, model.dtype))
    log.debug("kernels on this CPU: %s", model.processor)
    _write(path, key, model.processor)


def cache_file() -> Path:
    """Path of the cache file."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clara-rag" / "kernels.json"


def _key(arguments: EngineArguments, fingerprint: str) -> str:
    facts = (
        VERSION, fingerprint, arguments.dtype, arguments.quantization, torch.__version__, torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(), _processor(),
    )  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _processor() -> str:
    """Description of the CPU model, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("vendor_id", "cpu family", "model", "model name", "stepping", "CPU implementer", "CPU part")
    first = [line for line in lines if line.partition(":")[0].strip() in names][: len(names)]
    return " ".join(line.partition(":")[2].strip() for line in first)


def _read(path: Path) -> dict[str, Kernels]:
    try:
        return _CHOICES.validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        log.debug("%s is not read: %s", path, exc)
        return {}


def _write(path: Path, key: str, kernels: Kernels) -> None:
    kept = dict(list({**_read(path), key: kernels}.items())[-_MOST:])
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(_CHOICES.dump_json(kept, indent=1))
        part.replace(path)
    except OSError as exc:
        log.debug("%s is not written: %s", path, exc)
