"""rwkvstic's command line: `python -m rwkv_core.rwkvstic --pq [MODEL]` and `... vram`."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rwkv_core.errors import OptionError
from rwkv_core.model_file import model_files
from rwkv_core.rwkvstic.asking import ask_for_model
from rwkv_core.util.printable import printable

_USAGE = """\
usage: python -m rwkv_core.rwkvstic --pq [MODEL] [options of rwkv-core prequantize]
       python -m rwkv_core.rwkvstic vram [options of rwkv-core vram]
for all else see: rwkv-core --help"""


def main(argv: Sequence[str]) -> int:
    """Run the command line `argv`. Return the exit status, or exit with it."""
    match argv:
        case ["vram", *options]:
            _run_rwkv_core(["vram", *options])
        case ["--pq", *options]:
            return _prequantize([option for option in options if option != "--nologfix"])
    print(_USAGE, file=sys.stderr)
    return 2


def _prequantize(options: list[str]) -> int:
    if not _names_a_model(options):
        found = model_files(Path())
        files = [path for path in found if path.suffix != ".pqth"]
        quantized = ", ".join(printable(str(path)) for path in found)
        otherwise = f"only {quantized}, quantized already" if found else "none"
        question = "What model do you want to quantize?"
        missing = "--pq: expected a model file after it"
        try:
            options = [ask_for_model(question, missing, files, otherwise), *options]
        except OptionError as error:
            print(f"rwkv-core: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    _run_rwkv_core(["prequantize", *options])


def _run_rwkv_core(arguments: Sequence[str]) -> NoReturn:
    """Run `python -m rwkv_core` with these arguments in this process, and exit."""
    sys.argv = ["rwkv-core", *arguments]
    runpy.run_module("rwkv_core", run_name="__main__")
    raise AssertionError("rwkv_core exits when it is run")


def _names_a_model(options: Sequence[str]) -> bool:
    """Return whether an argument is not an option's value; all options except help have one."""
    expects_value = False
    for option in options:
        if option in ("-h", "--help") or not (option.startswith("-") or expects_value):
            return True
        expects_value = option.startswith("-") and "=" not in option
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
