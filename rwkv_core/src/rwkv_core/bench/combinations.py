"""A backend, a dtype and a number of threads, each measured in a process of its own.

The peak of memory and the number of threads belong to a process, and a library that is loaded stays
loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from rwkv_core import plugins
from rwkv_core.bench.measure import bench
from rwkv_core.bench.report import Report
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.printable import one_line

# What the libraries below the backends read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Combination:
    """Of which one bench is; None is the best backend, its default dtype, and its own choice."""

    backend: str | None = None
    dtype: str | None = None
    threads: int | None = None

    def options(self) -> dict[str, Any]:
        """The backend's options that mean the dtype. Raises OptionError if it has no such dtype."""
        if self.dtype is None:
            return {}
        name = self.backend or plugins.default_backend()
        named = {row.name: row for row in plugins.list_backends()}.get(name)
        known = [option.name for option in named.options] if named else []
        if "dtype" in known or named is None:
            return {"dtype": self.dtype}
        if "bits" in known and self.dtype in _BITS:
            return {"bits": _BITS[self.dtype]}
        has = f"expected one of: {', '.join(_BITS)}" if "bits" in known else "it takes no dtype"
        raise OptionError(f"dtype: found {self.dtype!r} for backend {name}; {has}")


def bench_alone(
    combination: Combination, model: str, options: dict[str, Any], **arguments: Any
) -> Report:
    """`bench` of one combination in a new process; `arguments` are those of `bench`.

    Raises OptionError for options that the combination sets too, and BackendError for what went
    wrong there.
    """
    own = combination.options()
    for name in own.keys() & options.keys():
        raise OptionError(f"-o {name}: given beside a dtype, which is the same; drop either")
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    everything = (model, combination.backend, {**options, **own})
    process = context.Process(target=_work, args=(sending, everything, arguments))
    with _limited_to(combination.threads):
        process.start()
    sending.close()
    try:
        report, error, details = receiving.recv()
        process.join()
    except EOFError:
        process.join()
        raise BackendError(
            f"its process ended with status {process.exitcode}; out of memory?"
        ) from None
    finally:
        process.kill()
    if error is not None:
        failure = BackendError(error)
        failure.add_note(details)
        raise failure
    return report


def _work(sending: Connection, positional: tuple[Any, ...], arguments: dict[str, Any]) -> None:
    # stdout is the parent's, for results; some libraries say there what they do.
    os.dup2(2, 1)
    try:
        sending.send((bench(*positional, **arguments), None, ""))
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        sending.send((None, one_line(error), traceback.format_exc()))


@contextmanager
def _limited_to(threads: int | None) -> Iterator[None]:
    """A process started here computes with so many threads, whatever libraries it loads.

    Libraries that read no variable take as many threads as there are cores for them, so where the
    system can give a process fewer cores, that is done too.
    """
    if threads is None:
        yield
        return
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    try:
        if cores:
            os.sched_setaffinity(0, sorted(cores)[:threads])
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
