"""A backend, a dtype, threads and busy processes beside it, each measured in a process of its own.

The peak of memory and the number of threads belong to a process, and a library that is loaded stays
loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from rwkv_core.bench.measure import bench
from rwkv_core.bench.report import Report
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.util.printable import one_line

# What the libraries below the backends read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Combination:
    """What one bench measures; None is the best backend, its default dtype, and its own choice.

    Attributes:
        busy: how many other processes keep a core busy meanwhile.
    """

    backend: str | None = None
    dtype: str | None = None
    threads: int | None = None
    busy: int = 0

    def options(self) -> dict[str, Any]:
        """The backend's options that mean the dtype."""
        return {} if self.dtype is None else {"dtype": self.dtype}


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
    try:
        with busy_processes(combination.busy):
            with _limited_to(combination.threads):
                process.start()
            sending.close()
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
def busy_processes(n: int) -> Iterator[None]:
    """Processes that each keep a core busy, as other programs do on a shared machine."""
    command = [sys.executable, "-c", "while True: pass"]
    with ExitStack() as running:
        for _ in range(n):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            running.callback(process.wait)
            running.callback(process.kill)
        yield


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
