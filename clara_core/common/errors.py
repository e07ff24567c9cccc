"""The exceptions of the project, a small tree below `ClaraError`.

Bad arguments are `ValueError` or `TypeError`, as everywhere in Python. What is here is about the
state of the world: files, weights, limits of a model. Each message says what was wrong, with the
value, and what to do.
"""

from __future__ import annotations


class ClaraError(Exception):
    """Base of every error that this project raises on purpose."""


class UnknownOption(ClaraError, TypeError):
    """An option that the class or function does not have; the message names both, and the nearest right one."""


class CheckpointError(ClaraError):
    """A checkpoint, or the base decoder it needs, cannot be found, read, trusted or written."""


class RoleError(ClaraError):
    """A call needs a role (such as the query reasoner) that the checkpoint does not hold."""


class WindowOverflow(ClaraError):
    """A text is longer than the compressor's window, and `overflow="error"` was asked for."""


class ContextOverflow(ClaraError):
    """A prompt with its memory slots does not fit the context of the base decoder."""


class FingerprintMismatch(ClaraError):
    """A memory was made by other weights, or at another rate, than the ones that are to read it."""


class NotEnoughMemory(ClaraError):
    """A model does not fit the memory of its device; the message says what is needed, what is free, and what fits."""


class EngineClosed(ClaraError):
    """The engine was closed, or its worker died, while the call was waiting."""


class DataError(ClaraError):
    """A line of training or evaluation data is not what it should be; the message names file and line."""


class StoreError(ClaraError):
    """A store cannot be opened, read or written: missing, damaged, of another format, or busy for too long."""


class LLMError(ClaraError):
    """A language model that was given for synthesis or evaluation fails every time it is asked."""


class TrainingError(ClaraError):
    """A training run cannot go on: its loss is no number, its files cannot be written, or belong to another run."""


class ServerError(ClaraError):
    """A server of `clara serve` refused a call or failed; the message is its own."""


class ServerOverloaded(ServerError):
    """The server has as much to do as it takes; `retry_after` says in how many seconds to ask again, where it told."""

    retry_after: float | None = None


class ServerUnreachable(ServerError):
    """No server answers at the address; the message says which, and what to check."""
