"""A server of a model that ships, `prose` by default, in a process of its own."""

import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Server:
    """A server that runs.

    Attributes:
        lines: what it has printed.
    """

    process: subprocess.Popen[str]
    address: str = ""
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.reader is not None:
            self.reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


def start(*arguments: str | Path, **variables: str) -> Server:
    """Start a server, and wait until it says where it is, or ends."""
    command = ["-m", "rwkv_core", "serve", "-m", "prose", "-b", "numpy", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )
    server = Server(process)
    known = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.lines.append(line)
            if found := re.search(r"serving \S+ at (\S+)", line):
                server.address = found[1]
                known.set()
        known.set()

    server.reader = threading.Thread(target=read, daemon=True)
    server.reader.start()
    known.wait(180)
    return server
