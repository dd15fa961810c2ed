"""The command line: `rwkv-core`, and `python -m rwkv_core`."""

import signal
import sys


def main() -> int:
    """Run the process's command line; returns the exit status."""
    # While modules are imported, Ctrl-C ends the process without a traceback.
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from rwkv_core.cli import main as run

    signal.signal(signal.SIGINT, handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
