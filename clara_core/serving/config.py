"""Configuration of a server: its model, address, keys and limits."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from clara_core.engine.options import EngineOptions

MIB: Final = 1 << 20
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")

_STORE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_READ_ONLY: Final = "read-only"


class Limits(BaseModel):
    """Limits of a server. A request above a limit is refused before any work is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: int = Field(default=16 * MIB, ge=1024, description="Maximum bytes of a request.")
    inputs: int = Field(default=2048, ge=1, description="Maximum number of texts to compress or embed in a request.")
    documents: int = Field(default=1000, ge=1, description="Maximum number of documents to rank in a request.")
    read: int = Field(default=256, ge=1, description="Maximum number of documents of a question.")
    characters: int = Field(default=1_000_000, ge=1, description="Maximum characters of a text.")
    requests: int = Field(default=256, ge=1, description="Maximum number of concurrent requests.")
    waiting_bytes: int = Field(default=64 * MIB, ge=1024, description="Maximum bytes of all concurrent requests.")
    waiting_answers: int | None = Field(
        default=None, ge=0, description="Maximum number of waiting answers; None is four times the batch size."
    )
    body_seconds: float = Field(default=30, gt=0, description="Seconds in which the body of a request must arrive.")
    seconds: float = Field(default=600, gt=0, description="Seconds in which a request must be answered.")
    turn_seconds: float = Field(
        default=120,
        gt=0,
        description="Seconds after which a turn of the model counts as hung and the server as not alive.",
    )


class ServeConfig(BaseModel):
    """Configuration of a server. The values are checked when it is created.

    Args:
        options: Options of the engine, which name the model.
        host: Address to listen at. Any address other than loopback needs a key.
        port: Port; 0 chooses a free one.
        keys: Keys of clients. A key followed by the word ``read-only`` cannot write to stores.
        key_file: File with more keys, one on each line; it is read again on SIGHUP.
        insecure: Allow an address other than loopback without a key.
        allowed_hosts: Names accepted in the Host header, besides localhost.
        stores: Folders or addresses of stores, by the name that clients use.
        writable: Names of stores that clients may write to.
        any_model: Accept any model name in requests.
        open_metrics: Serve metrics without a key.
        docs: Serve the description of the routes at ``/docs``.
        drain_delay: Seconds between the signal to stop and the moment when new connections are refused.
        drain_seconds: Seconds that requests have to finish after that.
        limits: Limits of requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: EngineOptions = Field(default_factory=EngineOptions)
    host: str = "127.0.0.1"
    port: int = Field(default=8010, ge=0, le=65535)
    keys: tuple[SecretStr, ...] = ()
    key_file: Path | None = None
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    stores: Mapping[str, str] = Field(default_factory=dict)
    writable: frozenset[str] = frozenset()
    any_model: bool = False
    open_metrics: bool = False
    docs: bool = False
    drain_delay: float = Field(default=0, ge=0)
    drain_seconds: float = Field(default=30, gt=0)
    limits: Limits = Field(default_factory=Limits)

    @field_validator("stores")
    @classmethod
    def _names(cls, stores: Mapping[str, str]) -> Mapping[str, str]:
        for name in stores:
            if not _STORE_NAME.fullmatch(name):
                raise ValueError(f"a store is named by up to 64 letters, digits and ._-, got {name!r}")
        return stores

    @model_validator(mode="after")
    def _safe(self) -> Self:
        unknown = self.writable - set(self.stores)
        if unknown:
            raise ValueError(f"writable names the store {min(unknown)!r}; known: {', '.join(self.stores) or '-'}")
        if not self.loopback and not self.insecure and not (self.keys or self.key_file):
            raise ValueError(
                f"{self.host} can be reached from other machines, and there is no key: give one (--key-file FILE, or "
                "CLARA_API_KEY), listen at 127.0.0.1, or say --insecure"
            )
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Key:
    """A client's key, without its secret.

    Attributes:
        label: Name in the log, which does not reveal the secret.
        read_only: Whether the key may only read stores.
    """

    label: str
    read_only: bool


class Keys:
    """The keys of a server. A key file can be read again while the server runs.

    Raises:
        ValueError: The file cannot be read or has no key, or a key is too short.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._given = [key.get_secret_value() for key in config.keys]
        self._file = config.key_file
        self._known: list[tuple[bytes, Key]] = []
        self.reload()

    def __bool__(self) -> bool:
        return bool(self._known)

    def reload(self) -> None:
        """Read the key file again."""
        lines = [*self._given, *self._lines()]
        self._known = [_key(line, index) for index, line in enumerate(lines, start=1)]

    def find(self, secret: str) -> Key | None:
        """The key with this secret, or None. The time taken does not depend on the secret."""
        wanted = _digest(secret)
        found = None
        for digest, key in self._known:
            if hmac.compare_digest(digest, wanted):
                found = key
        return found

    def _lines(self) -> Sequence[str]:
        if self._file is None:
            return []
        try:
            text = self._file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as exc:
            raise ValueError(f"the key file {self._file} cannot be read: {exc}") from exc
        lines = [line.strip() for line in text.splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError(f"the key file {self._file} holds no key; write one key on each line")
        return keys


def _key(line: str, number: int) -> tuple[bytes, Key]:
    secret, _, role = line.partition(" ")
    if role.strip() not in ("", _READ_ONLY):
        raise ValueError(f"key {number} is followed by {role.strip()!r}; only {_READ_ONLY!r} may follow a key")
    if len(secret) < 16:
        raise ValueError(f"key {number} has {len(secret)} characters; at least 16 are needed")
    return _digest(secret), Key(f"key-{number}", role.strip() == _READ_ONLY)


def _digest(secret: str) -> bytes:
    # Digests have one length, so the comparison does not reveal the length of a key.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def checked_config(values: Mapping[str, Any]) -> ServeConfig:
    """Create a config from values.

    Raises:
        ValueError: A value is invalid; the message has one sentence for each.
    """
    from pydantic import ValidationError

    from clara_core.engine.options import sentence

    try:
        return ServeConfig.model_validate(dict(values))
    except ValidationError as exc:
        raise ValueError("; ".join(map(sentence, exc.errors()))) from exc
