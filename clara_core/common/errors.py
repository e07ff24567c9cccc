"""The exceptions of the project, all derived from `ClaraError`.

Invalid arguments raise `ValueError` or `TypeError`. The exceptions here are about files, weights, models and servers.
Each message names what is wrong, the value, and what to do.
"""

from __future__ import annotations


class ClaraError(Exception):
    """Base class of the exceptions of this project."""


class UnknownOption(ClaraError, TypeError):
    """A class or function does not have an option; the message names both, and the closest known option."""


class CheckpointError(ClaraError):
    """A checkpoint or its base decoder cannot be found, read, validated or written."""


class RoleError(ClaraError):
    """A call needs a role that the checkpoint does not have, such as the query reasoner."""


class WindowOverflow(ClaraError):
    """A text is longer than the compressor's window, and `overflow` is "error"."""


class ContextOverflow(ClaraError):
    """A prompt with its memory slots does not fit the context of the base decoder."""


class FingerprintMismatch(ClaraError):
    """A memory was made with other weights or another compression rate than those of the engine that reads it."""


class NotEnoughMemory(ClaraError):
    """A model does not fit the memory of its device; the message names needed and free memory, and what would fit."""


class EngineClosed(ClaraError):
    """The engine was closed, or its worker died, during a call."""


class DataError(ClaraError):
    """A line of training or evaluation data is invalid; the message names file and line."""


class StoreError(ClaraError):
    """A store cannot be opened, read or written: it is missing, damaged, of another format, or busy for too long."""


class LLMError(ClaraError):
    """Every call of a language model for synthesis or evaluation fails."""


class TrainingError(ClaraError):
    """A training run cannot continue: its loss is not finite, or a file cannot be written or is of another run."""


class ServerError(ClaraError):
    """A server of `clara serve` refused a call or failed; the message is that of the server."""


class ServerOverloaded(ServerError):
    """The server accepts no further call now; `retry_after` is the time to wait in seconds, if the server gave one."""

    retry_after: float | None = None


class ServerUnreachable(ServerError):
    """No server answers at an address; the message names the address and what to check."""
