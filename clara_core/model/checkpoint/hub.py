"""Resolves the names of checkpoints and base decoders: a folder, the bundled model, or the Hub.

Files of a checkpoint are downloaded if it is on the Hub; remote code never is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from clara_core.common.announce import announce
from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.config import CONFIG_FILE, ClaraConfig

BUNDLED: Final = {"pocket": Path(__file__).parents[2] / "pocket"}

_SUBFOLDER = re.compile(r"compression-([1-9]\d*)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Rates of the released repos, from which the default rate is known without a download.
_RELEASED: Final = {f"apple/CLaRa-7B-{kind}": [16, 128] for kind in ("Base", "Instruct", "E2E")}
# Files to download from a Hub repo; no others, above all no remote code.
_WANTED: Final = (
    CONFIG_FILE,
    "adapters.*",
    "decoder_first_last_layers.*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_REMOTE_CODE: Final = ["*.py"]
# Base decoders of released or published checkpoints, by the last component of the path in their config.
_KNOWN_BASES: Final = {
    name.rpartition("/")[2]: name
    for name in (
        "mistralai/Mistral-7B-Instruct-v0.1",
        "mistralai/Mistral-7B-Instruct-v0.2",
        "mistralai/Mistral-7B-Instruct-v0.3",
        "microsoft/Phi-4-mini-instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen2.5-7B-Instruct",
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
        "upstage/SOLAR-10.7B-Instruct-v1.0",
    )
}


def resolve(
    model: str | os.PathLike[str],
    compression: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Find the folder of a checkpoint, and download it first if it is on the Hub.

    Args:
        model: a bundled name ("pocket"), a folder, or a Hub id "org/name". A bundled name always means the bundled
            model: write "./pocket" for a folder of that name. A path object is never a Hub id.
        compression: chooses the subfolder `compression-N` of a repo or folder with several rates; None chooses the
            smallest rate.
        revision: branch, tag or commit of a Hub repo.
        token: access token for private or gated Hub repos.
        cache_dir: cache folder of the Hub; None for its default.
        local_files_only: use only the cache.

    Returns:
        A folder with a `config.json`.

    Raises:
        TypeError, ValueError: an argument is invalid.
        CheckpointError: the checkpoint was not found; the message says where it was searched, and what to do.
    """
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a name or a path, got {type(model).__name__}")
    if compression is not None:
        if isinstance(compression, bool) or not isinstance(compression, int):
            raise TypeError(f"compression must be an int such as 16, got {compression!r}")
        if compression < 1:
            raise ValueError(f"compression must be positive, got {compression}")
    name = os.fspath(model)
    if not name or "\0" in name:
        raise ValueError(f"model must be a name or a path, got {name!r}")
    if isinstance(model, str) and model in BUNDLED:
        return _choose(BUNDLED[model], f"the bundled model {model!r}", compression)
    path = Path(name)
    if _is_folder(path):
        return _choose(path.resolve(), str(path), compression)
    if _is_file(path):
        raise CheckpointError(f"{path} is a file; give the folder with config.json and the adapters")
    if isinstance(model, str) and _is_hub_id(model):
        return _from_hub(model, compression, revision, token, cache_dir, local_files_only)
    raise CheckpointError(
        f"there is no folder {str(path)!r} (searched from {Path.cwd()}), and it is not a Hub id of the form org/name. "
        f"Give a folder, a Hub id such as 'apple/CLaRa-7B-E2E', or a bundled name ({', '.join(BUNDLED)})."
    )


def default_rate(model: str, compression: int | None, revision: str | None) -> int | None:
    """Normalize the rate of a model without access to the Hub, so that equal models share one engine.

    Returns:
        `compression`, or the smallest rate of a folder or released repo with several, which is announced. None for a
        folder with a single checkpoint of this rate, and if the rates are not known.
    """
    folder = BUNDLED.get(model, Path(model))
    if _is_file(folder / CONFIG_FILE):
        return None if compression is None or _is_of_rate(folder, compression) else compression
    if compression is not None:
        return compression
    rates = _rates(folder) or (_RELEASED.get(model, []) if revision is None else [])
    return _smallest(rates, model) if rates else None


def _smallest(rates: list[int], called: str) -> int:
    """The smallest rate, which preserves most of a text."""
    if len(rates) > 1:
        announce(
            f"{called} has the rates {', '.join(map(str, rates))}: using {rates[0]}, which preserves most of a text; "
            f"set compression={rates[1]} for another"
        )
    return rates[0]


def _is_of_rate(folder: Path, compression: int) -> bool:
    try:
        return ClaraConfig.read(folder).compr_rate == compression
    except CheckpointError:  # raised again when the checkpoint is read
        return False


def resolve_base(config: ClaraConfig, folder: str | Path, base_model: str | os.PathLike[str] | None = None) -> str:
    """Resolve the base decoder of a checkpoint.

    `base_model` has precedence. Otherwise the name in the config is tried as a path inside the checkpoint's folder, as
    an existing absolute path, and as a Hub id. Several releases name a path of the machine they were trained on; it is
    resolved by its last component, if known.

    Returns:
        An absolute path, or a Hub id.

    Raises:
        TypeError: `base_model` is not a name or a path.
        CheckpointError: the base cannot be resolved.
    """
    folder = Path(folder)
    if base_model is not None:
        return _named_base(base_model)
    name = config.decoder_model_name
    if "\0" not in name:
        path = folder / name  # unchanged if absolute
        # A relative name must not lead out of the checkpoint's folder ("../..") or be that folder (".").
        inside = Path(name).is_absolute() or folder.resolve() in path.resolve().parents
        if inside and _is_file(path / CONFIG_FILE):
            return str(path.resolve())
    if _is_hub_id(name):
        return name
    known = _KNOWN_BASES.get(re.split(r"[/\\]", name.rstrip("/\\"))[-1])
    if known is not None:
        return known
    raise CheckpointError(
        f"the checkpoint in {folder} names the base decoder {name!r}, which is neither a local folder nor a known "
        "model. Pass base_model= with the folder or the Hub id of the decoder it was trained on."
    )


def _named_base(base_model: str | os.PathLike[str]) -> str:
    if not isinstance(base_model, str | os.PathLike):
        raise TypeError(f"base_model must be a name or a path, got {type(base_model).__name__}")
    path = Path(base_model)
    if _is_folder(path):
        if not _is_file(path / CONFIG_FILE):
            raise CheckpointError(f"base_model is {path}: the folder has no {CONFIG_FILE}.")
        return str(path.resolve())
    if isinstance(base_model, str) and _is_hub_id(base_model):
        return base_model
    raise CheckpointError(
        f"base_model is {os.fspath(base_model)!r}: there is no such folder (searched from {Path.cwd()}), and it is not "
        "a Hub id of the form org/name."
    )


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def _choose(folder: Path, called: str, compression: int | None) -> Path:
    """Choose the folder of one rate: the given folder, or one of its subfolders `compression-N`."""
    if _is_file(folder / CONFIG_FILE):
        if compression is not None:
            _check_rate(folder, called, compression)
        return folder
    rates = _rates(folder)
    if not rates:
        raise CheckpointError(
            f"{called} ({folder}) has neither {CONFIG_FILE} nor a subfolder compression-N: it is not a CLaRa "
            "checkpoint, or was not downloaded completely."
        )
    if compression is None:
        compression = _smallest(rates, called)
    if compression not in rates:
        raise CheckpointError(f"{called} has no compression-{compression}; it has {', '.join(map(str, rates))}.")
    return folder / f"compression-{compression}"


def _check_rate(folder: Path, called: str, compression: int) -> None:
    rate = ClaraConfig.read(folder).compr_rate
    if rate != compression:
        raise CheckpointError(
            f"{called} is a single checkpoint of rate {rate}, but compression={compression} is given. Leave "
            "compression out, or give the parent folder with several rates."
        )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the name is too long, or a parent folder is not accessible
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _rates(folder: Path) -> list[int]:
    try:
        found = [_SUBFOLDER.fullmatch(path.name) for path in folder.iterdir() if (path / CONFIG_FILE).is_file()]
    except OSError:  # not a folder, or not accessible
        return []
    return sorted(int(match[1]) for match in found if match)


def _from_hub(
    model: str,
    compression: int | None,
    revision: str | None,
    token: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """Download the config files, choose the rate, and download the files of that rate only."""

    def fetch(patterns: list[str]) -> Path:
        return _snapshot(model, patterns, revision, token, cache_dir, local_files_only)

    called = f"the Hub repo {model}" + (f" at {revision}" if revision else "")
    configs = [CONFIG_FILE, f"compression-*/{CONFIG_FILE}"]
    root = fetch(configs)
    folder = _choose(root, called, compression)
    prefix = "" if folder == root else f"{folder.name}/"
    patterns = [prefix + wanted for wanted in _WANTED]
    base = ClaraConfig.read(folder).decoder_model_name
    if re.fullmatch(r"[\w-]+", base, re.ASCII):
        # A checkpoint that this project wrote may have its base decoder in a subfolder.
        patterns.append(f"{prefix}{base}/*")
    root = fetch(patterns)
    return root / prefix if prefix else root


def _snapshot(
    model: str,
    patterns: list[str],
    revision: str | None,
    token: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    broken: tuple[type[Exception], ...] = (HfHubHTTPError, OSError, *_transport_errors())
    where = f"{model} (revision {revision or 'main'})"
    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=patterns,
                ignore_patterns=_REMOTE_CODE,
            )
        )
    except GatedRepoError as exc:
        raise CheckpointError(
            f"access to {where} on the Hub must be granted first: accept the terms on its page, then pass token=."
        ) from exc
    except RepositoryNotFoundError as exc:
        raise CheckpointError(
            f"there is no repo {where} on the Hub, or it is private. Check the spelling, or pass token=."
        ) from exc
    except RevisionNotFoundError as exc:
        raise CheckpointError(f"the Hub repo {model} has no revision {revision!r}.") from exc
    except HFValidationError as exc:
        raise CheckpointError(f"{model!r} is neither a local folder nor a valid Hub id: {exc}") from exc
    except LocalEntryNotFoundError as exc:
        cache = cache_dir or "the default Hub cache"
        reason = "local_files_only is set" if local_files_only else "the Hub could not be reached (offline?)"
        raise CheckpointError(
            f"{where} is not in {cache}, and {reason}. Download it once with a connection, or give a folder."
        ) from exc
    except broken as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise CheckpointError(f"downloading {where} from the Hub failed: {reason}") from exc


def _transport_errors() -> tuple[type[Exception], ...]:
    """Exceptions of the Hub client if a connection breaks during a download: httpx's since version 1.0."""
    try:
        import httpx
    except ImportError:
        return ()
    return (httpx.HTTPError,)
