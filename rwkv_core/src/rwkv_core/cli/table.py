"""Prints rows in columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def print_table(
    header: Sequence[object], rows: Sequence[Sequence[object]], right: Collection[int] = ()
) -> None:
    """Print `header` and `rows` in columns as wide as they need; those in `right` right-aligned."""
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
