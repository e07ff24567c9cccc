"""Where a checkpoint and its base decoder lie: a folder, the bundled model, or the Hub.

Only names are resolved here; nothing of what is found is read beyond the names of its files. Remote
code of a Hub repo is never fetched.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from clara_core.checkpoint.config import CONFIG_FILE, ClaraConfig
from clara_core.common.announce import announce
from clara_core.common.errors import CheckpointError

BUNDLED: Final = {"pocket": Path(__file__).parents[1] / "pocket"}

_SUBFOLDER = re.compile(r"compression-([1-9]\d*)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Rates that the released repos hold, so that an engine of a default rate is known before anything is fetched.
_RELEASED: Final = {f"apple/CLaRa-7B-{kind}": [16, 128] for kind in ("Base", "Instruct", "E2E")}
# What is taken from a Hub repo. Everything else (remote code above all) stays there.
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
# Bases that released or published checkpoints were trained on, by the last component of a path.
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
    """Finds the folder of a checkpoint and fetches it first where it lies on the Hub.

    Args:
        model: a bundled name ("pocket"), a folder, or a Hub id "org/name". A bundled name always
            means the bundled model: write "./pocket" for a folder of that name. A path object is
            never a Hub id.
        compression: chooses the subfolder `compression-N` of a repo or folder that holds several
            rates; the smallest of them where it is None.
        revision: branch, tag or commit of a Hub repo.
        token: access token for private or gated Hub repos.
        cache_dir: where files of the Hub are kept; the Hub's default without it.
        local_files_only: look into the cache only.

    Returns:
        A folder that holds a `config.json`.

    Raises:
        CheckpointError: nothing was found; the message says what was looked for, where, and what
            to do.
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
        raise CheckpointError(f"{path} is a file; give the folder that holds config.json and the adapters")
    if isinstance(model, str) and _is_hub_id(model):
        return _from_hub(model, compression, revision, token, cache_dir, local_files_only)
    raise CheckpointError(
        f"no folder {str(path)!r} (looked from {Path.cwd()}), and it is no Hub id of the form "
        "org/name either. Give a folder, a Hub id such as 'apple/CLaRa-7B-E2E', or a bundled name "
        f"({', '.join(BUNDLED)})."
    )


def default_rate(model: str, compression: int | None, revision: str | None) -> int | None:
    """The rate that arguments stand for, as far as it is known without the Hub, so that one model is one engine.

    Returns:
        The rate that was asked for, else the smallest of a folder or released repo that holds several, which is said
        once. None where a folder is one checkpoint of that very rate, and where nothing is known yet.
    """
    folder = BUNDLED.get(model, Path(model))
    if _is_file(folder / CONFIG_FILE):
        return None if compression is None or _is_of_rate(folder, compression) else compression
    if compression is not None:
        return compression
    rates = _rates(folder) or (_RELEASED.get(model, []) if revision is None else [])
    return _smallest(rates, model) if rates else None


def _smallest(rates: list[int], called: str) -> int:
    """The rate that keeps most of a text."""
    if len(rates) > 1:
        announce(
            f"{called} holds the rates {', '.join(map(str, rates))}: {rates[0]} is taken, which keeps most of a text; "
            f"compression={rates[1]} takes another"
        )
    return rates[0]


def _is_of_rate(folder: Path, compression: int) -> bool:
    try:
        return ClaraConfig.read(folder).compr_rate == compression
    except CheckpointError:  # said where the checkpoint is read
        return False


def resolve_base(config: ClaraConfig, folder: str | Path, base_model: str | os.PathLike[str] | None = None) -> str:
    """Says which base decoder a checkpoint stands on.

    The caller's `base_model` wins. Otherwise the name in the config is tried as a path inside the
    checkpoint's folder, as an existing absolute path, and as a Hub id. Several releases carry a
    path of the machine they were trained on; it is resolved by its last component where that is
    known.

    Returns:
        An absolute path, or a Hub id.

    Raises:
        CheckpointError: no base follows from the name; the message asks for `base_model=`.
    """
    folder = Path(folder)
    if base_model is not None:
        return _named_base(base_model)
    name = config.decoder_model_name
    if "\0" not in name:
        path = folder / name  # an absolute name stays what it is
        # A name such as "../.." must not lead out of the folder that it came with, nor "." be it.
        inside = Path(name).is_absolute() or folder.resolve() in path.resolve().parents
        if inside and _is_file(path / CONFIG_FILE):
            return str(path.resolve())
    if _is_hub_id(name):
        return name
    known = _KNOWN_BASES.get(re.split(r"[/\\]", name.rstrip("/\\"))[-1])
    if known is not None:
        return known
    raise CheckpointError(
        f"the checkpoint in {folder} names the base decoder {name!r}, which is neither a folder "
        "here nor a known model. Pass base_model= with the folder or the Hub id of the decoder it "
        "was trained on."
    )


def _named_base(base_model: str | os.PathLike[str]) -> str:
    if not isinstance(base_model, str | os.PathLike):
        raise TypeError(f"base_model must be a name or a path, got {type(base_model).__name__}")
    path = Path(base_model)
    if _is_folder(path):
        if not _is_file(path / CONFIG_FILE):
            raise CheckpointError(f"base_model is {path}: the folder holds no {CONFIG_FILE}.")
        return str(path.resolve())
    if isinstance(base_model, str) and _is_hub_id(base_model):
        return base_model
    raise CheckpointError(
        f"base_model is {os.fspath(base_model)!r}: no such folder (looked from {Path.cwd()}), and "
        "no Hub id of the form org/name."
    )


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def _choose(folder: Path, called: str, compression: int | None) -> Path:
    """Picks the folder of one rate: the given folder itself, or one of its `compression-N`."""
    if _is_file(folder / CONFIG_FILE):
        if compression is not None:
            _check_rate(folder, called, compression)
        return folder
    rates = _rates(folder)
    if not rates:
        raise CheckpointError(
            f"{called} ({folder}) holds neither {CONFIG_FILE} nor a subfolder compression-N: it is "
            "not a CLaRa checkpoint, or was not fetched completely."
        )
    if compression is None:
        compression = _smallest(rates, called)
    if compression not in rates:
        raise CheckpointError(f"{called} has no compression-{compression}; it holds {', '.join(map(str, rates))}.")
    return folder / f"compression-{compression}"


def _check_rate(folder: Path, called: str, compression: int) -> None:
    rate = ClaraConfig.read(folder).compr_rate
    if rate != compression:
        raise CheckpointError(
            f"{called} is one checkpoint of rate {rate}, but compression={compression} was asked "
            "for. Leave compression out, or give the folder above that holds several rates."
        )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name longer than the system takes, a folder above it that is closed to us
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _rates(folder: Path) -> list[int]:
    try:
        found = [_SUBFOLDER.fullmatch(path.name) for path in folder.iterdir() if (path / CONFIG_FILE).is_file()]
    except OSError:  # no folder, or one that is closed to us
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
    """Fetches the small config files, chooses the rate by them, then fetches that rate alone."""

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
        # Our own layout may bring its base decoder in a subfolder.
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
            f"access to {where} on the Hub must be granted first: accept its terms on its page, then pass token=."
        ) from exc
    except RepositoryNotFoundError as exc:
        raise CheckpointError(
            f"no repo {where} on the Hub, or it is private. Check the spelling, or pass token=."
        ) from exc
    except RevisionNotFoundError as exc:
        raise CheckpointError(f"the Hub repo {model} has no revision {revision!r}.") from exc
    except HFValidationError as exc:
        raise CheckpointError(f"{model!r} is no folder here and no valid Hub id: {exc}") from exc
    except LocalEntryNotFoundError as exc:
        cache = cache_dir or "the default Hub cache"
        reason = "local_files_only is set" if local_files_only else "the Hub could not be reached (offline?)"
        raise CheckpointError(
            f"{where} is not in {cache}, and {reason}. Fetch it once with a connection, or give a folder."
        ) from exc
    except broken as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise CheckpointError(f"fetching {where} from the Hub failed: {reason}") from exc


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the Hub client lets through when a connection breaks in the middle of a file.

    Before version 1.0 these were OSErrors; since then they are those of httpx.
    """
    try:
        import httpx
    except ImportError:
        return ()
    return (httpx.HTTPError,)
