"""Errors that a user can cause. A message says what was found, what was expected, what to do."""

from rwkv_core.util.printable import error_message


class RWKVError(Exception):
    """Base of all errors of rwkv-core.

    A message may quote a file or server. It never shows a password, holds no control characters,
    and is short.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(error_message(message))


class CheckpointError(RWKVError):
    """A model file that is damaged, of another architecture, or of an unknown kind."""


class DownloadError(RWKVError):
    """An address is malformed, or its file cannot be downloaded completely."""


class BackendError(RWKVError):
    """A backend that is unknown, not installed, broken, or short of something on this machine."""


class OptionError(RWKVError, ValueError):
    """An option or argument with an unknown name, a wrong type or a value out of range."""


class StateError(RWKVError):
    """A state of another model or another shape, or a damaged state file."""


class TokenizerError(RWKVError):
    """A tokenizer that is missing, unreadable, or does not fit the model."""


class BackendWarning(RuntimeWarning):
    """A backend failed to start, and another backend was used instead."""


class PromptTooLongError(OptionError):
    """A prompt with more tokens than the engine accepts."""


class QueueFullError(RWKVError):
    """A request that was refused because the engine's queue is full."""


class EngineClosedError(RWKVError):
    """A request to an engine that is closed."""
