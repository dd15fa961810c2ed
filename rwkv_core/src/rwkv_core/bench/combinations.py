"""Measures several backends, dtypes and thread counts, each in a process of its own.

A process has one peak of memory and one number of threads, and cannot unload a library.
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

# Variables that OpenMP, BLAS and other libraries read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Combination:
    """Settings of one bench; None stands for the default.

    Attributes:
        backend: a backend's name; by default the fastest available one.
        dtype: type of the matrices; by default the backend's.
        threads: number of threads; by default the backend's choice.
        busy: number of other processes that each keep a core busy during the bench.
    """

    backend: str | None = None
    dtype: str | None = None
    threads: int | None = None
    busy: int = 0

    def options(self) -> dict[str, Any]:
        """Return the backend's options that set the dtype."""
        return {} if self.dtype is None else {"dtype": self.dtype}


def bench_alone(
    combination: Combination, model: str, options: dict[str, Any], **arguments: Any
) -> Report:
    """Run `bench` for one combination in a new process, and return its report.

    `options` are options of the backend, and `arguments` are the other arguments of `bench`.

    Raises OptionError for an option that the combination also sets, and BackendError for a failure
    in the new process.
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
    # stdout is for the parent's results, and some libraries print there.
    os.dup2(2, 1)
    try:
        sending.send((bench(*positional, **arguments), None, ""))
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        sending.send((None, one_line(error), traceback.format_exc()))


@contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """Run `n` processes that each keep a core busy, like other programs on a shared machine."""
    command = [sys.executable, "-c", "while True: pass"]
    with ExitStack() as running:
        for _ in range(n):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            running.callback(process.wait)
            running.callback(process.kill)
        yield


@contextmanager
def _limited_to(threads: int | None) -> Iterator[None]:
    """Limit processes started inside to this number of threads, whichever libraries they load.

    Environment variables such as OMP_NUM_THREADS set the limit. A library that ignores them starts
    one thread for each core that the process may use. So the processes also get only as many cores,
    if the system can restrict them.
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
