"""Prints tables, and sizes in readable units."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Sequence

from rwkv_core.util.printable import MAX_LENGTH, printable


def print_table(
    header: Sequence[object], rows: Sequence[Sequence[object]], right: Collection[int] = ()
) -> None:
    """Print `header` and `rows` in columns of fitting widths. Columns in `right` align right."""
    lines = [[_cell(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_wrapped_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """Print a table like `print_table`, with the last column wrapped to fit the terminal."""
    table = [[_cell(cell) for cell in line] for line in (header, *rows)]
    first = [max(map(len, column)) + 2 for column in list(zip(*table, strict=True))[:-1]]
    width = max(20, shutil.get_terminal_size().columns - sum(first))
    for line in table:
        start = "".join(cell.ljust(w) for cell, w in zip(line, first, strict=False))
        for text in textwrap.wrap(line[-1], width, break_on_hyphens=False) or [""]:
            print((start + text).rstrip())
            start = " " * sum(first)


def _cell(value: object) -> str:
    """Return the text of one cell, with a label's leading spaces."""
    text = str(value)
    return text if text.isprintable() and len(text) <= MAX_LENGTH else printable(text)


def readable_bytes(size: float) -> str:
    """Return `size` bytes as text in GiB, MiB or KiB, to about three digits."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.{2 if size < 10 * scale else 1}f} {unit}"
    return f"{size / 2**10:.0f} KiB"
