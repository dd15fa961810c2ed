"""`python -m rwkv_core` is `rwkv-core`."""

import sys

from rwkv_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
