"""What a server is told once: its model, where it listens, who may use it, and how much it takes at a time."""

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
    """How much a server takes. What is above a limit is refused before any work is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: int = Field(default=16 * MIB, ge=1024, description="Bytes of a request.")
    inputs: int = Field(default=2048, ge=1, description="Texts of a request to compress or embed.")
    documents: int = Field(default=1000, ge=1, description="Documents of a request to rank.")
    read: int = Field(default=256, ge=1, description="Documents of a question.")
    characters: int = Field(default=1_000_000, ge=1, description="Characters of a text.")
    requests: int = Field(default=256, ge=1, description="Requests at a time.")
    waiting_bytes: int = Field(default=64 * MIB, ge=1024, description="Bytes of all requests at a time.")
    waiting_answers: int | None = Field(
        default=None, ge=0, description="Answers that may wait for the device; None: four times what it writes at once."
    )
    body_seconds: float = Field(default=30, gt=0, description="In which the body of a request has to arrive.")
    seconds: float = Field(default=600, gt=0, description="In which a request has to be answered.")
    turn_seconds: float = Field(
        default=120, gt=0, description="After which a turn of the model counts as hanging, and the server as not alive."
    )


class ServeConfig(BaseModel):
    """A server. Values are checked when it is made.

    Args:
        options: Of the engine: which model, and how it is run.
        host: Address to listen at. Another one than this machine's own (loopback) needs a key.
        port: Port; 0: one that is free.
        keys: Keys of clients; a line may end with the word ``read-only``, and such a key writes to no store.
        insecure: Listen on another address without a key.
        allowed_hosts: Names by which clients may call the server, besides localhost.
        stores: Folders or addresses of stores, by the name that clients use.
        writable: Names of stores that clients may write to.
        any_model: Answer whatever model a request names.
        open_metrics: Show metrics to those who have no key.
        docs: Show the description of the routes at ``/docs``.
        drain_delay: Seconds between the signal to end and the moment when no new connection is taken.
        drain_seconds: Seconds that requests have to finish after that.
        limits: How much it takes.
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
    """Who is asking.

    Attributes:
        label: Its name in the log; says nothing of the key itself.
        read_only: Whether it may write to stores.
    """

    label: str
    read_only: bool


class Keys:
    """The keys of a server; those of a file can be read again.

    Raises:
        ValueError: The file cannot be read or holds no key, or a key is too short to keep anybody out.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._given = [key.get_secret_value() for key in config.keys]
        self._file = config.key_file
        self._known: list[tuple[bytes, Key]] = []
        self.reload()

    def __bool__(self) -> bool:
        return bool(self._known)

    def reload(self) -> None:
        """Read the file again."""
        lines = [*self._given, *self._lines()]
        self._known = [_key(line, index) for index, line in enumerate(lines, start=1)]

    def find(self, secret: str) -> Key | None:
        """The key that a client sent, if it is one. Takes the same time for every wrong one."""
        told = _digest(secret)
        found = None
        for digest, key in self._known:
            if hmac.compare_digest(digest, told):
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
            raise ValueError(f"the key file {self._file} holds no key; write one on a line")
        return keys


def _key(line: str, number: int) -> tuple[bytes, Key]:
    secret, _, role = line.partition(" ")
    if role.strip() not in ("", _READ_ONLY):
        raise ValueError(f"behind key {number} stands {role.strip()!r}; only {_READ_ONLY!r} can stand there")
    if len(secret) < 16:
        raise ValueError(f"key {number} has {len(secret)} characters; at least 16 are needed")
    return _digest(secret), Key(f"key-{number}", role.strip() == _READ_ONLY)


def _digest(secret: str) -> bytes:
    # Of one length, so that a comparison does not tell how long a key is.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def checked_config(values: Mapping[str, Any]) -> ServeConfig:
    """The config of these values.

    Raises:
        ValueError: One that cannot be, in one sentence each.
    """
    from pydantic import ValidationError

    from clara_core.engine.options import sentence

    try:
        return ServeConfig.model_validate(dict(values))
    except ValidationError as exc:
        raise ValueError("; ".join(map(sentence, exc.errors()))) from exc
