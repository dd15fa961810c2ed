"""Refuses a second thread in an object with a running state, which would mix two texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Any, TypeVar

from rwkv_core.errors import StateError

Class = TypeVar("Class", bound=type)


def one_thread_at_a_time(*methods: str) -> Callable[[Class], Class]:
    """Decorate a class: while a thread runs one of `methods`, other threads get a StateError.

    The same thread may call the methods again, as `on_progress` may do.
    """

    def decorate(cls: Class) -> Class:
        for name in methods:
            setattr(cls, name, _guarded(getattr(cls, name)))
        return cls

    return decorate


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        lock = self.__dict__.setdefault("_thread_lock", RLock())  # atomic
        if not lock.acquire(blocking=False):
            raise StateError(
                f"{method.__qualname__}: another thread uses this object; give each thread an RWKV "
                "of its own: RWKV(rwkv.model, tokenizer=rwkv.tokenizer) shares the model"
            )
        try:
            return method(self, *arguments, **options)
        finally:
            lock.release()

    return call
