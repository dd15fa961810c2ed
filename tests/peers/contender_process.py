"""A contender in a process of its own, started once, which waits for commands."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from contenders import Contender, Files

from rwkv_core.bench.measure import peak_memory
from rwkv_core.util.printable import one_line

# Nothing that is asked for takes longer than this, in seconds, or it has failed.
_PATIENCE = 600


class Failed(Exception):
    """The error of a contender."""


class Loaded(NamedTuple):
    seconds: float
    peak_bytes: int | None


class ContenderProcess:
    """Start the contender. Raises Failed if it fails."""

    def __init__(self, contender: Contender, files: Files) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender, files))
        self._process.start()
        theirs.close()

    def load(self) -> Loaded:
        return self._ask("load")

    def prompt(self, n_tokens: int) -> float:
        """Return the seconds for reading a prompt."""
        return self._ask("prompt", n_tokens)

    def decode(self, n_tokens: int, limit: float) -> float:
        """Tokens a second, going on from the last prompt for at most `limit` seconds."""
        return self._ask("decode", n_tokens, limit)

    def _ask(self, *request: Any) -> Any:
        try:
            self._connection.send(request)
            if not self._connection.poll(_PATIENCE):
                raise Failed(f"no answer within {_PATIENCE} s")
            answer, error = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Failed(f"its process ended with status {self._process.exitcode}") from None
        if error is not None:
            raise Failed(error)
        return answer

    def end(self) -> None:
        self._connection.close()
        self._process.join(10)
        self._process.kill()


def _serve(connection: Connection, contender: Contender, files: Files) -> None:
    os.dup2(2, 1)  # what libraries print is no part of the table
    try:
        session = _Session(contender, files)
        while True:
            name, *arguments = connection.recv()
            connection.send((getattr(session, name)(*arguments), None))
    except (EOFError, KeyboardInterrupt):
        pass
    except BaseException as error:
        connection.send((None, one_line(error)))


class _Session:
    def __init__(self, contender: Contender, files: Files) -> None:
        self._contender, self._files = contender, files
        # Numbers that every vocabulary has.
        self._tokens = np.random.default_rng(0).integers(0, 8192, 4096).tolist()

    def load(self) -> Loaded:
        self._contender.prepare()
        began = time.perf_counter()
        self._forward = self._contender.load(self._files)
        return Loaded(time.perf_counter() - began, peak_memory())

    def prompt(self, n_tokens: int) -> float:
        began = time.perf_counter()
        logits, self._state = self._forward(self._tokens[:n_tokens], None)
        np.asarray(logits)
        return time.perf_counter() - began

    def decode(self, n_tokens: int, limit: float) -> float:
        began = time.perf_counter()
        done, passed = 0, 0.0
        while done < n_tokens and passed < limit:
            logits, self._state = self._forward(self._tokens[done : done + 1], self._state)
            # What was computed has to arrive before the clock is looked at.
            np.asarray(logits)
            done, passed = done + 1, time.perf_counter() - began
        return done / passed
