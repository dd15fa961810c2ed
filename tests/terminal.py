"""A program on a pseudo-terminal: types keys, waits for what is shown."""

import os
import select
import struct
import subprocess
import sys
import time

CTRL_C, CTRL_D = "\x03", "\x04"
# The terminal becomes the child's own, so that its Ctrl-C reaches it, also where these tests run in
# the background and Ctrl-C is ignored.
_BEGINNING = """
import fcntl, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
"""
_MAIN = """
from rwkv_core.cli import main
sys.exit(main())
"""
SECONDS = 60


class Terminal:
    """rwkv-core, or another program in Python, on a pseudo-terminal of its own."""

    def __init__(self, *arguments, program=_MAIN, cwd=None, **environment):
        import fcntl
        import pty
        import termios

        self._side, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 24, 200, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BEGINNING + program, *arguments],
            stdin=child, stdout=child, stderr=child, start_new_session=True, cwd=cwd,
            env={**os.environ, "TERM": "dumb", **environment},
        )  # fmt: skip
        os.close(child)
        self.shown = ""

    def wait_for(self, text, n=1):
        """Read until `text` has been shown `n` times."""
        end = time.monotonic() + SECONDS
        while self.shown.count(text) < n:
            assert time.monotonic() < end and self._read(), f"no {text!r} in {self.shown!r}"

    def type(self, text):
        os.write(self._side, text.encode())

    def type_until(self, key, text):
        """Type `key`, until `text` is shown.

        Python's readline can miss a signal that comes just as it begins to wait for a key.
        """
        for _ in range(SECONDS):
            self.type(key)
            while select.select([self._side], [], [], 1)[0]:
                assert self._read(), f"ended without {text!r}: {self.shown!r}"
                if text in self.shown:
                    return
        raise AssertionError(f"{key!r} does not lead to {text!r}: {self.shown[-200:]!r}")

    def end(self):
        """Read the rest of the output. Return the exit status."""
        end = time.monotonic() + SECONDS
        while self._read():
            assert time.monotonic() < end, f"it does not end: {self.shown[-200:]!r}"
        os.close(self._side)
        return self._process.wait(SECONDS)

    def kill(self):
        self._process.kill()
        self._process.wait()

    def _read(self):
        assert select.select([self._side], [], [], SECONDS)[0], f"silent after {self.shown!r}"
        try:
            data = os.read(self._side, 65536)
        # Linux says so where the program has gone.
        except OSError:
            return False
        self.shown += data.decode("utf-8", "replace")
        return bool(data)
