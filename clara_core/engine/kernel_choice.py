"""The choice of kernels for a model on a processor, remembered from one load to the next.

It lies in the user's cache under what it depends on: the weights, their form, the processor, its threads, torch. A file
that cannot be read or written costs nothing but the measuring.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from clara_core.engine.options import EngineArguments
from clara_core.model.decoder import ClaraModel
from clara_core.model.processor import PLAIN, SMALL, Kernels, facts, from_facts, measure_products, measure_threads

log = logging.getLogger(__name__)

_MOST: Final = 64  # choices that are kept; the oldest go
_LARGE: Final = 64_000_000  # weights above which a step takes all threads, where that is not measured


def prepare(model: ClaraModel, arguments: EngineArguments, fingerprint: str, *, int8: bool = False) -> None:
    """Freeze a model in the form in which its device multiplies it fastest.

    Args:
        model: With its weights.
        arguments: Whether kernels are measured or named.
        fingerprint: Of the weights.
        int8: Keep the weights of its linear layers in 8 bits; on a processor alone.
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
    log.debug("kernels of this processor: %s", model.processor)
    _write(path, key, model.processor)


def cache_file() -> Path:
    """Where choices are remembered."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clara-rag" / "kernels.json"


def _key(arguments: EngineArguments, fingerprint: str) -> str:
    of = (
        fingerprint, arguments.dtype, arguments.quantization, torch.__version__, torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(), _processor(),
    )  # fmt: skip
    return hashlib.sha256(repr(of).encode()).hexdigest()


def _processor() -> str:
    """What tells one processor from another, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("vendor_id", "cpu family", "model", "model name", "stepping", "CPU implementer", "CPU part")
    first = [line for line in lines if line.partition(":")[0].strip() in names][: len(names)]
    return " ".join(line.partition(":")[2].strip() for line in first)


def _read(path: Path) -> dict[str, Kernels]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): from_facts(value) for key, value in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        log.debug("%s is not read: %s", path, exc)
        return {}


def _write(path: Path, key: str, kernels: Kernels) -> None:
    kept = list({**_read(path), key: kernels}.items())[-_MOST:]
    written: dict[str, Any] = {name: facts(one) for name, one in kept}
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(written, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as exc:
        log.debug("%s is not written: %s", path, exc)
