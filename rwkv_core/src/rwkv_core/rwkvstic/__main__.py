"""`python -m rwkv_core.rwkvstic --pq MODEL`: prequantizes, as `rwkv-core prequantize` does."""

import sys

from rwkv_core.cli import main

if sys.argv[1:2] != ["--pq"]:
    sys.exit("of rwkvstic's command line there is --pq; for all else, see rwkv-core --help")
sys.exit(main(["prequantize", *sys.argv[2:]]))
